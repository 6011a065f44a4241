"""The published protocols by name, read from a data root."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from distill.data.dataset import ImageList
from distill.data.list_files import list_published
from distill.data.protocol_specs import CIFAR10, PUBLISHED, UCMERCED, DatasetSource
from distill.data.sampled_splits import CIFAR_PROTOCOLS, list_cifar10, list_ucmerced

VARIABLE = "TWINHASH_DATA"
PROTOCOLS: dict[str, tuple[DatasetSource, Callable[[str, Path, int], ImageList]]] = {
    **dict.fromkeys(CIFAR_PROTOCOLS, (CIFAR10, list_cifar10)),
    **{name: (spec.dataset, list_published) for name, spec in PUBLISHED.items()},
    **dict.fromkeys(("ucmerced", "ucmerced_multi"), (UCMERCED, list_ucmerced)),
}


def list_protocol(name: str, data_root: Path | None, seed: int) -> ImageList:
    """List the images of a protocol from below `data_root`, or below the folder in TWINHASH_DATA.

    Raises `InputError` that says what to download, where to put it, and under which licence.
    """
    dataset, list_images = PROTOCOLS[name]
    folder = data_root or os.environ.get(VARIABLE)
    if not folder:
        raise dataset.missing_error("<data root>", f"no data root: neither --data-root nor {VARIABLE} is given")
    return list_images(name, Path(folder), seed)
