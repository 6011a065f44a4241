"""From the name of a source to a Dataset."""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from warnings import catch_warnings, filterwarnings

import numpy as np

from distill.data import fashion_mnist
from distill.data.check import check_bits, check_brightness, check_classes, check_copies, check_sizes
from distill.data.cifar import CIFAR_PROTOCOLS, ZERO_SHOT, list_cifar
from distill.data.dataset import Dataset, ImageList, Split
from distill.data.decode_cache import decode_all
from distill.data.image_folder import list_folder
from distill.data.list_files import list_published
from distill.data.manifest import list_manifest
from distill.data.protocol_specs import CIFAR10, CIFAR100, PUBLISHED, UCMERCED, DatasetSource
from distill.data.sampled_splits import list_ucmerced
from distill.data.splits import Labels, SplitConfig, encode_labels, split
from distill.data.unlabeled import join_unlabeled
from gallery.console import log, plain
from gallery.errors import InputError
from gallery.names import counted
from gallery.results import Skipped

VARIABLE = "TWINHASH_DATA"  # names the data root
PROTOCOLS: dict[str, tuple[DatasetSource, Callable[[str, Path, int], ImageList]]] = {
    **{
        name: (CIFAR100 if name.startswith("cifar100") else CIFAR10, list_cifar) for name in CIFAR_PROTOCOLS | ZERO_SHOT
    },
    **{name: (spec.dataset, list_published) for name, spec in PUBLISHED.items()},
    **dict.fromkeys(("ucmerced", "ucmerced_multi"), (UCMERCED, list_ucmerced)),
}
MANIFESTS = (".csv", ".parquet", ".pq")
SAMPLE, LARGEST = 200, 2048  # images whose size is read; largest input, pixels


@dataclass(frozen=True)
class DataConfig(SplitConfig):
    """Options of a data set, named as those of the command line.

    strict: an image that cannot be used is an error, not an entry in `skipped`
    data_root: folder of the protocols' data sets; without it TWINHASH_DATA names it
    unlabeled_data: folders of images to learn from without labels; copies of queries are left out
    """

    strict: bool = False
    data_root: Path | None = None
    unlabeled_data: Sequence[str | Path] = ()


def load(
    source: str, sizes: Iterable[int], cache_dir: Path, options: DataConfig, app_size: int | None = None
) -> Dataset:
    """Load `source` with its images decoded at each of `sizes`; raises `InputError` that says what to do.

    source: "embedded", "fashion_mnist", a protocol's name, or the path of an image folder or a CSV or Parquet manifest
    cache_dir: folder of decoded images, shared by all sources
    app_size: one of `sizes`, at which the images are made by apps too (`distill.data.app_pixels`)
    """
    wanted = sorted(set(sizes))
    if not wanted or wanted[0] < 1 or wanted[-1] > LARGEST:
        raise InputError(f"input sizes from 1 to {LARGEST} pixels", str(wanted), "Choose others.")
    listed = join_unlabeled(list_images(source, cache_dir, options.data_root, options.seed), options.unlabeled_data)
    if not listed.names:
        _report_skipped(listed, listed.skipped, options.strict)
    encode_labels(listed)  # to fail before hours of decoding
    decoded = decode_all(listed.source, listed.names, wanted, cache_dir, app_size)
    skipped = listed.skipped + decoded.skipped
    _report_skipped(listed, skipped, options.strict)
    columns = "names", "labels", "splits"
    kept: dict[str, Any] = {c: tuple(getattr(listed, c)[i] for i in decoded.kept) for c in columns}
    images = replace(listed, **kept)
    classes, labels = encode_labels(images)
    own = _without_leaks(split(images, (classes, labels), options, decoded.digests), decoded.digests)
    dark = list(check_bits(decoded.bits)) or check_brightness(decoded.pixels[wanted[0]])
    checks = check_classes(listed, images), check_sizes(images.names), check_copies(images, own, decoded.digests), dark
    own = replace(own, warnings=(*images.warnings, *own.warnings, *chain.from_iterable(checks)))
    for sentence in own.warnings:
        log.warning("Check your data: %s", sentence)
    return Dataset(
        **vars(own), name=images.name, classes=classes, labels=labels, names=images.names, pixels=decoded.pixels,
        skipped=tuple(Skipped(path=plain(skip.path), reason=plain(skip.reason)) for skip in skipped),
        fingerprint=_fingerprint(images.names, (classes, labels), own, decoded.digests), top_k=images.top_k,
        app_pixels=decoded.app_pixels,
    )  # fmt: skip


def _without_leaks(own: Split, digests: Sequence[bytes]) -> Split:
    """Return the split without unlabeled images that are copies of queries: training must not see what these find."""
    queries = {digests[i] for i in own.query}
    copies = np.array([digests[i] in queries for i in own.unlabeled], bool)
    said = f"{counted(copies.sum(), 'unlabeled image')} left out: copies of queries."
    return replace(own, unlabeled=own.unlabeled[~copies], warnings=(*own.warnings, *([said] if copies.any() else [])))


def _fingerprint(names: Sequence[str], encoded: Labels, own: Split, digests: Sequence[bytes]) -> str:
    content = hashlib.sha256(b"".join(digests)).hexdigest()
    fingerprint = hashlib.sha256(json.dumps([encoded[0], names, content]).encode())
    for array in (encoded[1], own.train, own.validation, own.gallery, own.query, *filter(len, [own.unlabeled])):
        fingerprint.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return fingerprint.hexdigest()


class SourceSummary(NamedTuple):
    """What is known of a source before its images are decoded.

    image_size: median shorter side, pixels, of up to 200 images; labeled: whether any image has a label
    """

    image_size: int
    labeled: bool


def summarize(source: str, data_root: Path | None = None) -> SourceSummary:
    """Return the size of a source's images, from their headers, and whether it has labels."""
    if source in fashion_mnist.SOURCES:
        return SourceSummary(fashion_mnist.EDGE, True)
    images, sides, skipped = list_images(source, Path(), data_root, 0), list[int](), list[Skipped]()
    count = len(images.names)
    sample = np.unique(np.linspace(0, max(0, count - 1), min(SAMPLE, count), dtype=int))
    with catch_warnings():
        filterwarnings("ignore", module="PIL")  # on odd metadata and large images
        for i in sample.tolist():
            try:
                sides.append(images.source.shorter_side(i))
            except InputError as error:
                skipped.append(Skipped(path=images.names[i], reason=error.found))
    if not sides:
        raise _nothing_left(images.name, count + len(images.skipped), [*images.skipped, *skipped])
    return SourceSummary(int(np.median(sides)), any(images.labels))


def list_images(source: str, cache_dir: Path, data_root: Path | None, seed: int) -> ImageList:
    """List the images of a source as `load` takes it; none is decoded.  Raises `InputError` that says what to do."""
    if list_source := fashion_mnist.SOURCES.get(source):
        return list_source(cache_dir)
    if source in PROTOCOLS:
        dataset, list_protocol = PROTOCOLS[source]
        if folder := data_root or os.environ.get(VARIABLE):
            return list_protocol(source, Path(folder), seed)
        raise dataset.missing_error("<data root>", f"no data root: neither --data-root nor {VARIABLE} is given")
    path, mode, found = Path(source), 0, f"{source}, which is neither"
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # a name that no file can have is a ValueError
        found = str(error)
    if stat.S_ISDIR(mode):
        return list_folder(path)
    if stat.S_ISREG(mode) and path.suffix.lower() in MANIFESTS:
        return list_manifest(path)
    expected = f"data: {', '.join(fashion_mnist.SOURCES)}, an image folder, or a manifest ({', '.join(MANIFESTS)})"
    raise InputError(expected, found, f"Check the path, or name a protocol: {', '.join(PROTOCOLS)}.")


def _report_skipped(images: ImageList, skipped: Sequence[Skipped], strict: bool) -> None:
    total = len(images.names) + len(images.skipped)
    if len(skipped) == total or (strict and skipped):
        raise _nothing_left(images.name, total, skipped)
    if skipped:
        log.warning("skipped %s", _few(skipped, total))


def _nothing_left(name: str, total: int, skipped: Sequence[Skipped]) -> InputError:
    fix = "Repair or remove these, or add others: images in class folders, or without, or listed in a manifest."
    return InputError(f"readable images in {name}", _few(skipped, total), fix)


def _few(skipped: Sequence[Skipped], total: int) -> str:
    few = "; ".join(f"{plain(s.path)}: {plain(s.reason)}" for s in skipped[:5])
    few += "; ..." if len(skipped) > 5 else ""
    return f"{len(skipped)} of {total} that cannot be used: {few}" if total else "none, nor a file that may be one"
