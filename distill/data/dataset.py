"""A set of labelled pictures as the rest of the house sees it, and the listing it is made from."""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

Indices = NDArray[np.int64]
TRAIN, GALLERY, QUERY = PARTS = ("train", "gallery", "query")
VALIDATION, UNLABELLED = "validation", "unlabelled"


@dataclass(frozen=True)
class Skipped:
    """A picture that could not be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """N decoded pictures with labels and splits.

    protocol:    one sentence: where train, gallery and query come from, who drew the split, by which seed
    labels:      int64 `[N]` into `classes`, or multi-hot bool `[N, C]`; -1 or an empty row where there is none
    names:       what a person calls each picture, a relative path
    train, validation, gallery, query: indices into N; validation is held out of train but stays in the gallery
    pixels:      input size -> uint8 `[N, size, size, 3]`, memory-mapped
    fingerprint: SHA-256 over classes, names, labels, splits and the contents of the picture files
    unlabelled:  indices into N of pictures to learn from without a label, in no other part
    unseen:      classes of which no picture is in train or validation, by choice
    cut:         R of the mAP@R in which results on this protocol are published; None for the whole gallery

    A few of the N may be in no part, such as the training pictures of an unseen class.
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
    unlabelled: Indices = field(default_factory=lambda: np.zeros(0, np.int64))
    unseen: tuple[str, ...] = ()
    cut: int | None = None

    @cached_property
    def seen(self) -> Indices:
        """The classes that occur in train, as sorted indices into `classes`: those that need a center."""
        return np.flatnonzero(present(self.labels[self.train], len(self.classes)))


def present(labels: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Which of `count` classes occur in `labels`, int `[n]` or multi-hot `[n, count]`."""
    return np.asarray(labels.any(0) if labels.ndim == 2 else np.bincount(labels, minlength=count) > 0)


class ImageSource(Protocol):
    """Where a listing's pixels come from.  An `InputError` from `read` or `shorter_side` condemns one picture."""

    def stamp(self) -> str:
        """A hash of all that changes when a picture does, found without decoding any."""

    def read(self, index: int) -> tuple[Image, str]:
        """The upright RGB picture, and the SHA-256 of what it was read from."""

    def shorter_side(self, index: int) -> int:
        """Pixels, from the header alone."""


@dataclass(frozen=True)
class ImageList:
    """What a source says of its pictures before any is decoded; names, labels, parts and pictures are aligned.

    labels:  of each picture, exactly one where not `multi`; none of those that are unlabelled
    parts:   those of `PARTS` each picture is in, or `UNLABELLED`; all others empty where the split is to be drawn
    origin:  who made the split, where it is not drawn
    classes: their order where the source fixes it, else sorted
    skipped: files found that are no candidates
    published: pictures in train, gallery and query as published, where they are known
    cut:     as in `Dataset`
    """

    name: str
    names: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    parts: tuple[frozenset[str], ...]
    pictures: ImageSource
    origin: str = ""
    multi: bool = False
    classes: tuple[str, ...] | None = None
    skipped: tuple[Skipped, ...] = ()
    published: tuple[int | None, ...] = ()
    cut: int | None = None


class ConcatSource:
    """The pictures of several listings, one after another."""

    def __init__(self, listings: Sequence[ImageList]) -> None:
        self.sources = [listing.pictures for listing in listings]
        self.starts = [0, *accumulate(len(listing.names) for listing in listings)]

    def stamp(self) -> str:
        return hashlib.sha256("".join(source.stamp() for source in self.sources).encode()).hexdigest()

    def read(self, index: int) -> tuple[Image, str]:
        source, place = self._find(index)
        return source.read(place)

    def shorter_side(self, index: int) -> int:
        source, place = self._find(index)
        return source.shorter_side(place)

    def _find(self, index: int) -> tuple[ImageSource, int]:
        which = bisect(self.starts, index) - 1
        return self.sources[which], index - self.starts[which]


def join(*listings: ImageList) -> ImageList:
    """The first listing with the pictures of all."""
    columns = ("names", "labels", "parts", "skipped")
    joined: dict[str, Any] = {c: tuple(chain.from_iterable(getattr(part, c) for part in listings)) for c in columns}
    return replace(listings[0], **joined, pictures=ConcatSource(listings))
