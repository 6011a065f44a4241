"""Dataset (decoded), and ImageList, which it is made from (before decoding)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from gallery.results import Skipped

Indices = NDArray[np.int64]
TRAIN, GALLERY, QUERY = SPLITS = ("train", "gallery", "query")
VALIDATION, UNLABELED = "validation", "unlabeled"


@dataclass(frozen=True, kw_only=True)
class Split:
    """Sorted indices into N images; a few may be in no split, such as the training images of an unseen class.

    protocol:   one sentence: where train, gallery and query come from, who made the split, by which seed
    validation: held out of train, but stays in the gallery
    unlabeled:  images to learn from without a label, in no other split
    unseen:     classes of which no image is in train or validation, by choice
    warnings:   sentences on what the user should check in the data, each once
    """

    protocol: str
    train: Indices
    validation: Indices
    gallery: Indices
    query: Indices
    unlabeled: Indices = field(default_factory=lambda: np.zeros(0, np.int64))
    unseen: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Dataset(Split):
    """N decoded images with labels and splits.

    classes:     sorted, unless their source orders them; none where no image has a label
    labels:      int64 `[N]` into `classes`, or multi-hot bool `[N, C]`; -1 or an empty row where there is none
    names:       a relative path, or another name of each image
    pixels:      input size -> uint8 `[N, size, size, 3]`, memory-mapped
    app_pixels:  as apps make them, uint8 `[N, APPS, size, size, 3]` (`distill.data.app_pixels`), where asked for
    fingerprint: SHA-256 over classes, names, labels, splits and the contents of the image files
    top_k:       R of the mAP@R in which results on this protocol are published; None for the whole gallery
    """

    name: str
    classes: tuple[str, ...]
    labels: NDArray[Any]
    names: tuple[str, ...]
    pixels: Mapping[int, NDArray[np.uint8]]
    skipped: tuple[Skipped, ...]
    fingerprint: str
    top_k: int | None = None
    app_pixels: NDArray[np.uint8] | None = None

    @cached_property
    def seen(self) -> Indices:
        """The classes that occur in train, as sorted indices into `classes`: those that need a center."""
        return np.flatnonzero(present(self.labels[self.train], len(self.classes)))

    def class_names(self, images: Indices) -> list[list[str] | None]:
        """Return the names of the classes of each of some images; None for an image without a label."""
        own = self.labels[images]
        if own.ndim == 2:
            return [[self.classes[label] for label in np.flatnonzero(row)] or None for row in own]
        return [[self.classes[label]] if label >= 0 else None for label in own]


def present(labels: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Return which of `count` classes occur in `labels`, int `[n]` or multi-hot `[n, count]`."""
    return np.asarray(labels.any(0) if labels.ndim == 2 else np.bincount(labels[labels >= 0], minlength=count) > 0)


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

    labels:  of each image, exactly one where not `multi`; none of those that are unlabeled, which all may be
    splits:  those of `SPLITS` each image is in, or `UNLABELED`; all others empty where the split is to be sampled
    split_source: who made the split, where it is not sampled
    classes: their order where the source fixes it, else sorted
    skipped: files found that are no candidates
    published_sizes: numbers of images in train, gallery and query as published, where they are known
    unseen:  classes that the source keeps out of train, to be searched for as new ones
    top_k, warnings: as in `Dataset`
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
    unseen: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
