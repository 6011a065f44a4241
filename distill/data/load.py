"""The way in: from a source's name to a `Dataset`."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data import fashion_mnist
from distill.data.dataset import Dataset, ImageList, Indices, Skipped
from distill.data.decode_cache import decoded
from distill.data.image_folder import list_folder
from distill.data.manifest import list_manifest
from distill.data.protocols import PROTOCOLS, list_protocol
from distill.data.splits import Split, encode_labels, split
from distill.data.unlabeled import join_unlabelled
from gallery.console import log
from gallery.errors import InputError

MANIFESTS = (".csv", ".parquet", ".pq")
SAMPLE = 200
LARGEST = 2048


def load(
    source: str,
    sizes: Iterable[int],
    cache: Path,
    *,
    seed: int,
    query_fraction: float = 0.2,
    validation_fraction: float = 0.05,
    strict: bool = False,
    root: Path | None = None,
    unlabelled: Sequence[str | Path] = (),
    unseen: int = 0,
) -> Dataset:
    """Loads `source` with its pictures decoded at each of `sizes`.

    source: "embedded", "fashion_mnist", a protocol's name, or the path of an image folder or a CSV or Parquet manifest
    cache:  folder of decoded pictures, shared by all sources
    query_fraction: share of each class drawn as queries where the source has no split
    validation_fraction: share of train held out, by `seed` too
    strict: a picture that cannot be used is an error, not an entry in `skipped`
    root:   folder of the protocols' data sets; otherwise TWINHASH_DATA says which
    unlabelled: folders of pictures to learn from without labels; those whose file is a query's too are left out
    unseen: number of classes, drawn by `seed`, that stay in gallery and query but of which train sees no picture
    Raises `InputError` that says what to do.
    """
    wanted = _check(sizes, query_fraction, validation_fraction)
    listing = join_unlabelled(_list(source, cache, root, seed), unlabelled)
    if not listing.names:
        _judge(listing, listing.skipped, strict)
    encode_labels(listing, np.arange(len(listing.names)))  # to fail before hours of decoding
    pictures = decoded(listing.pictures, listing.names, wanted, cache)
    skipped = listing.skipped + pictures.skipped
    _judge(listing, skipped, strict)
    classes, labels = encode_labels(listing, pictures.kept)
    own = split(listing, pictures.kept, classes, labels, seed, query_fraction, validation_fraction, unseen)
    own = own._replace(unlabelled=_without_leaks(own, pictures.digests))
    names = tuple(listing.names[i] for i in pictures.kept)
    content = hashlib.sha256(b"".join(pictures.digests)).hexdigest()
    arrays = [labels, own.train, own.validation, own.gallery, own.query, *filter(len, [own.unlabelled])]
    return Dataset(
        name=listing.name,
        classes=classes,
        labels=labels,
        names=names,
        **own._asdict(),
        pixels=pictures.pixels,
        skipped=skipped,
        fingerprint=_fingerprint([classes, names, content], arrays),
        cut=listing.cut,
    )


def native_size(source: str, root: Path | None = None) -> int:
    """Median shorter side, in pixels, of up to 200 of the source's pictures, from their headers."""
    if source in fashion_mnist.SOURCES:
        return fashion_mnist.EDGE
    listing, reason = _list(source, Path(), root, 0), "none"
    sides = []
    for i in np.unique(np.linspace(0, max(0, len(listing.names) - 1), min(SAMPLE, len(listing.names)), dtype=int)):
        try:
            sides.append(listing.pictures.shorter_side(int(i)))
        except InputError as error:
            reason = f"{listing.names[i]}: {error.found}"
    if not sides:
        raise InputError(f"pictures in {source}", reason, "Point --data at a folder or manifest of pictures.")
    return int(np.median(sides))


def _fingerprint(texts: Sequence[Any], arrays: Sequence[NDArray[Any]]) -> str:
    digest = hashlib.sha256(json.dumps(texts).encode())
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _check(sizes: Iterable[int], query_fraction: float, validation_fraction: float) -> Sequence[int]:
    wanted = sorted(set(sizes))
    if not wanted or wanted[0] < 1 or wanted[-1] > LARGEST:
        raise InputError(f"input sizes from 1 to {LARGEST} pixels", str(wanted), "Choose others.")
    if not (0 < query_fraction < 1 and 0 <= validation_fraction < 1):
        found = f"{query_fraction} and {validation_fraction}"
        raise InputError("shares of queries and validation between 0 and 1", found, "Choose others.")
    return wanted


def _without_leaks(own: Split, digests: Sequence[bytes]) -> Indices:
    """The pictures without labels, less copies of queries: what a query is to find must not be taught by itself."""
    queries = {digests[i] for i in own.query}
    leaks = np.array([digests[i] in queries for i in own.unlabelled], bool)
    if leaks.any():
        log.warning("left out %d pictures without labels that are copies of queries", leaks.sum())
    return own.unlabelled[~leaks]


def _list(source: str, cache: Path, root: Path | None, seed: int) -> ImageList:
    if make := fashion_mnist.SOURCES.get(source):
        return make(cache)
    if source in PROTOCOLS:
        return list_protocol(source, root, seed)
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


def _judge(listing: ImageList, skipped: Sequence[Skipped], strict: bool) -> None:
    total = len(listing.names) + len(listing.skipped)
    few = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:5]) + ("; ..." if len(skipped) > 5 else "")
    found = f"{len(skipped)} of {total} that cannot be used: {few}"
    if len(skipped) == total or (strict and skipped):
        raise InputError(f"readable pictures in {listing.name}", found, "Repair or remove these, or add others.")
    if skipped:
        log.warning("skipped %s", found)
