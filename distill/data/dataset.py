"""A set of labelled pictures as the rest of the house sees it, and the listing it is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Indices = NDArray[np.int64]
TRAIN, GALLERY, QUERY = PARTS = ("train", "gallery", "query")


@dataclass(frozen=True)
class Skipped:
    """A picture that could not be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """N decoded pictures with labels and splits.

    protocol:    one sentence: where train, gallery and query come from, who drew the split, by which seed
    labels:      int64 `[N]` into `classes`, or multi-hot bool `[N, C]`
    names:       what a person calls each picture, a relative path
    train, validation, gallery, query: indices into N; validation is held out of train but stays in the gallery
    pixels:      input size -> uint8 `[N, size, size, 3]`, memory-mapped
    fingerprint: SHA-256 over classes, names, labels, splits and the contents of the picture files
    """

    name: str
    classes: tuple[str, ...]
    protocol: str
    labels: NDArray[Any]
    names: tuple[str, ...]
    train: Indices
    validation: Indices
    gallery: Indices
    query: Indices
    pixels: Mapping[int, NDArray[np.uint8]]
    skipped: tuple[Skipped, ...]
    fingerprint: str


class Pictures(Protocol):
    """Where a listing's pixels come from.  An `InputError` from `read` or `shorter_side` condemns one picture."""

    def stamp(self) -> str:
        """A hash of all that changes when a picture does, found without decoding any."""

    def read(self, index: int) -> tuple[Image, str]:
        """The upright RGB picture, and the SHA-256 of what it was read from."""

    def shorter_side(self, index: int) -> int:
        """Pixels, from the header alone."""


@dataclass(frozen=True)
class Listing:
    """What a source says of its pictures before any is decoded; names, labels, parts and pictures are aligned.

    labels:  of each picture, exactly one where not `multi`
    parts:   those of `PARTS` each picture is in; all empty where the split is to be drawn
    origin:  who made the split, where it is not drawn
    classes: their order where the source fixes it, else sorted
    skipped: files found that are no candidates
    """

    name: str
    names: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    parts: tuple[frozenset[str], ...]
    pictures: Pictures
    origin: str
    multi: bool = False
    classes: tuple[str, ...] | None = None
    skipped: tuple[Skipped, ...] = ()
