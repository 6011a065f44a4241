"""The published protocols by name, read from a data root."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from distill.data.dataset import ImageList
from distill.data.list_files import list_published
from distill.data.protocol_specs import CIFAR10, UCMERCED, DatasetSource
from distill.data.published import PUBLISHED
from distill.data.sampled_splits import CIFAR_PROTOCOLS, list_cifar10, list_ucmerced

VARIABLE = "TWINHASH_DATA"
PROTOCOLS: dict[str, tuple[DatasetSource, Callable[[str, Path, int], ImageList]]] = {
    **dict.fromkeys(CIFAR_PROTOCOLS, (CIFAR10, list_cifar10)),
    **{name: (spec.home, list_published) for name, spec in PUBLISHED.items()},
    **dict.fromkeys(("ucmerced", "ucmerced_multi"), (UCMERCED, list_ucmerced)),
}


def list_protocol(name: str, root: Path | None, seed: int) -> ImageList:
    """Lists the pictures of a protocol from below `root`, or below the folder in TWINHASH_DATA.

    Raises `InputError` that says what to download, where to put it, and under which licence.
    """
    home, make = PROTOCOLS[name]
    folder = root or os.environ.get(VARIABLE)
    if not folder:
        raise home.absent("<data root>", f"no data root: neither --data-root nor {VARIABLE} is given")
    return make(name, Path(folder), seed)
