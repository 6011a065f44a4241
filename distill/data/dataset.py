"""Dataset (decoded), and ImageList, which it is made from (before decoding)."""

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

from gallery.results import Skipped

if TYPE_CHECKING:
    from PIL.Image import Image

Indices = NDArray[np.int64]
TRAIN, GALLERY, QUERY = SPLITS = ("train", "gallery", "query")
VALIDATION, UNLABELED = "validation", "unlabeled"


@dataclass(frozen=True)
class Dataset:
    """N decoded images with labels and splits.

    protocol:    one sentence: where train, gallery and query come from, who made the split, by which seed
    labels:      int64 `[N]` into `classes`, or multi-hot bool `[N, C]`; -1 or an empty row where there is none
    names:       a relative path, or another name of each image
    train, validation, gallery, query: indices into N; validation is held out of train but stays in the gallery
    pixels:      input size -> uint8 `[N, size, size, 3]`, memory-mapped
    fingerprint: SHA-256 over classes, names, labels, splits and the contents of the image files
    unlabeled:   indices into N of images to learn from without a label, in no other split
    unseen:      classes of which no image is in train or validation, by choice
    top_k:       R of the mAP@R in which results on this protocol are published; None for the whole gallery

    A few of the N may be in no split, such as the training images of an unseen class.
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
    unlabeled: Indices = field(default_factory=lambda: np.zeros(0, np.int64))
    unseen: tuple[str, ...] = ()
    top_k: int | None = None

    @cached_property
    def seen(self) -> Indices:
        """The classes that occur in train, as sorted indices into `classes`: those that need a center."""
        return np.flatnonzero(present(self.labels[self.train], len(self.classes)))


def present(labels: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Return which of `count` classes occur in `labels`, int `[n]` or multi-hot `[n, count]`."""
    return np.asarray(labels.any(0) if labels.ndim == 2 else np.bincount(labels, minlength=count) > 0)


class ImageSource(Protocol):
    """Where the pixels come from.  An `InputError` from `read` or `shorter_side` means that one image is skipped."""

    def stamp(self) -> str:
        """Return a hash of all that changes when an image does, found without decoding any."""

    def read(self, index: int) -> tuple[Image, str]:
        """Return the upright RGB image, and the SHA-256 of what it was read from."""

    def shorter_side(self, index: int) -> int:
        """Return the shorter side in pixels, from the header alone."""


@dataclass(frozen=True)
class ImageList:
    """The images of a source before any is decoded; names, labels and splits are in the order of `source`.

    labels:  of each image, exactly one where not `multi`; none of those that are unlabeled
    splits:  those of `SPLITS` each image is in, or `UNLABELED`; all others empty where the split is to be sampled
    split_source: who made the split, where it is not sampled
    classes: their order where the source fixes it, else sorted
    skipped: files found that are no candidates
    published_sizes: numbers of images in train, gallery and query as published, where they are known
    top_k:   as in `Dataset`
    """

    name: str
    names: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    splits: tuple[frozenset[str], ...]
    source: ImageSource
    split_source: str = ""
    multi: bool = False
    classes: tuple[str, ...] | None = None
    skipped: tuple[Skipped, ...] = ()
    published_sizes: tuple[int | None, ...] = ()
    top_k: int | None = None


class ConcatSource:
    """The images of several lists, one after another."""

    def __init__(self, lists: Sequence[ImageList]) -> None:
        self.sources = [images.source for images in lists]
        self.starts = [0, *accumulate(len(images.names) for images in lists)]

    def stamp(self) -> str:
        return hashlib.sha256("".join(source.stamp() for source in self.sources).encode()).hexdigest()

    def read(self, index: int) -> tuple[Image, str]:
        which = bisect(self.starts, index) - 1
        return self.sources[which].read(index - self.starts[which])

    def shorter_side(self, index: int) -> int:
        which = bisect(self.starts, index) - 1
        return self.sources[which].shorter_side(index - self.starts[which])


def join(*lists: ImageList) -> ImageList:
    """Return the first list with the images of all."""
    columns = ("names", "labels", "splits", "skipped")
    joined: dict[str, Any] = {c: tuple(chain.from_iterable(getattr(one, c) for one in lists)) for c in columns}
    return replace(lists[0], **joined, source=ConcatSource(lists))
