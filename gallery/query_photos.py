"""Held-out query photos, hashed by the students of several code spaces: to compare what apps will find in each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gallery.codes import Codes
from gallery.console import log, track
from gallery.errors import InputError
from gallery.names import counted, some
from gallery.sources.reader import ImageReader, ImageRequest

if TYPE_CHECKING:
    import pyarrow as pa

    from gallery.onnx_student import OnnxStudent
    from gallery.sources.listing import Listing

FIX = "Give a manifest with a column `label`, or a folder whose folders are the labels."


class QueryPhotos(NamedTuple):
    """codes: packed uint8 `[n, bytes]` of the photos, by code space; labels: the class names of each"""

    codes: dict[str, Codes]
    labels: pa.ListArray


def choose_photos(listing: Listing, count: int) -> pa.Table:
    """Return at most `count` random photos with labels (seed 0); raises `InputError` where there are none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    items = listing.items
    if "labels" in items.column_names:
        items = items.filter(pc.greater(pc.fill_null(pc.list_value_length(items["labels"]), 0), 0))
    if "labels" not in items.column_names or not len(items):
        raise InputError("query photos with labels", f"none of {counted(len(listing.items), 'image')} has one", FIX)
    if without := len(listing.items) - len(items):
        log.warning("  left out: %s without a label", counted(without, "query photo"))
    return items.take(pa.array(np.sort(np.random.default_rng(0).permutation(len(items))[:count])))


def encode_photos(
    photos: pa.Table, students: Mapping[str, OnnxStudent], known: pa.ChunkedArray, allow_http: bool = False
) -> QueryPhotos:
    """Hash photos by each student; what cannot be decoded, or is in the gallery, is left out, and that is said.

    photos: as of `choose_photos`; students: by code space; known: the SHA-256 of the gallery's images
    Raises `InputError` where none is left.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    ids, sources = photos["id"].to_pylist(), photos["source"].to_pylist()
    requests = [ImageRequest(row, source) for row, source in enumerate(sources)]
    codes: dict[str, dict[int, Codes]] = {space: {} for space in students}
    hashes, reasons = dict[int, str](), dict[int, str]()
    for size in sorted({student.size for student in students.values()}):
        images = ImageReader(size, allow_http).read_all(requests)
        for image in track(images, f"query photos at {size} px", len(requests)):
            hashes[image.row] = image.sha256
            if image.pixels is None:
                reasons[image.row] = image.reason
                continue
            for space, student in students.items():
                if student.size == size:
                    codes[space][image.row] = student.encode_square(image.pixels)
    stored = pc.is_in(pa.array(hashes.values(), pa.string()), value_set=known.combine_chunks()).to_pylist()
    repeated = [row for row, is_known in zip(hashes, stored, strict=True) if is_known and row not in reasons]
    _say("not decoded", [f"{ids[row]} ({reason})" for row, reason in reasons.items()])
    _say("in the gallery", [ids[row] for row in repeated])
    kept = sorted(hashes.keys() - reasons.keys() - set(repeated))
    if not kept:
        found = f"{len(reasons):,} not decoded and {len(repeated):,} in the gallery"
        raise InputError("query photos that the gallery has not", found, "Give other photos of the items.")
    return QueryPhotos(
        {space: np.concatenate([found[row] for row in kept]) for space, found in codes.items()},
        photos["labels"].combine_chunks().take(pa.array(kept)),
    )


def _say(what: str, names: list[str]) -> None:
    if names:
        log.warning("  left out: %s %s: %s", counted(len(names), "query photo"), what, some(names))
