"""Encoded pictures one after another in an `.npz`: `data`, `offsets`, `names`, `labels` and `classes`, or for several
labels a picture `multilabels` and `multilabel_classes`.  Written by `numpy.savez`, so that `data` can be memory-mapped.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from distill.data.dataset import ImageList
from distill.data.decode import read, shorter_side
from distill.data.image_folder import ImageFiles
from gallery.errors import InputError

LOCAL_HEADER = struct.Struct("<26x2H")  # of a zip's member: the lengths of its name and of what follows that


class PackedImages:
    """Picture i is the file in `data[offsets[i]:offsets[i + 1]]`."""

    def __init__(self, path: Path, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self.path, self.data, self.offsets = path, data, offsets

    def stamp(self) -> str:
        return ImageFiles(self.path.parent, [self.path]).stamp()

    def read(self, index: int) -> tuple[Image, str]:
        return read(self._file(index))

    def shorter_side(self, index: int) -> int:
        return shorter_side(self._file(index))

    def _file(self, index: int) -> bytes:
        return self.data[self.offsets[index] : self.offsets[index + 1]].tobytes()


def list_container(path: Path, multi: bool | None = None) -> ImageList:
    """Lists a container by its single labels, or by several a picture where `multi`, or where there are no others.

    Raises `InputError` for what is no such file: every member is checked before a picture is opened.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            multi = "labels" not in file if multi is None else multi
            kinds = ("multilabels", "multilabel_classes") if multi else ("labels", "classes")
            offsets, names, labels, classes = (file[kind] for kind in ("offsets", "names", *kinds))
        data = _mapped(path)
        _check(data, offsets, names, labels, classes, multi)
        known, called = tuple(map(str, classes)), tuple(map(str, names.astype(str)))
    except Exception as error:  # zipfile and numpy raise a dozen types on hostile bytes; the reason is kept
        fix = "Write it again with numpy.savez."
        raise InputError(f"a container of pictures at {path}", str(error) or type(error).__name__, fix) from error
    rows = ([known[c] for c in np.flatnonzero(row)] for row in labels) if multi else ([known[c]] for c in labels)
    return ImageList(
        name=path.stem,
        names=called,
        labels=tuple(map(tuple, rows)),
        parts=(frozenset[str](),) * len(called),
        pictures=PackedImages(path, data, offsets),
        multi=multi,
        classes=known,
    )


def _mapped(path: Path) -> NDArray[np.uint8]:
    """The member `data` where it lies in the file: a container may be larger than the memory."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        member = archive.getinfo("data.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError("compressed data, which cannot be memory-mapped")
        stream.seek(member.header_offset)
        stream.seek(sum(LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))), 1)
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("data of an unknown version of numpy's format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype != np.uint8 or len(shape) != 1:
            raise ValueError(f"data of {dtype}{shape}, not a row of uint8")
        return np.memmap(path, np.uint8, "r", stream.tell(), shape)


def _check(
    data: NDArray[np.uint8], offsets: NDArray[Any], names: NDArray[Any], labels: NDArray[Any], classes: NDArray[Any],
    multi: bool,
) -> None:  # fmt: skip
    count, shape = len(names), (len(names), len(classes)) if multi else (len(names),)
    if names.ndim != 1 or classes.ndim != 1 or names.dtype.kind not in "SU" or classes.dtype.kind != "U":
        raise ValueError(f"names of {names.dtype}{names.shape} and classes of {classes.dtype}{classes.shape}")
    if offsets.dtype != np.int64 or offsets.shape != (count + 1,):
        raise ValueError(f"offsets of {offsets.dtype}{offsets.shape} for {count} names")
    if offsets[0] < 0 or offsets[-1] > len(data) or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"offsets that do not rise from 0 to at most {len(data)}")
    if labels.dtype.kind not in "biu" or labels.shape != shape:
        raise ValueError(f"labels of {labels.dtype}{labels.shape}, not integers {shape}")
    if labels.size and not 0 <= labels.min() <= labels.max() <= (1 if multi else len(classes) - 1):
        raise ValueError(f"labels from {labels.min()} to {labels.max()} for {len(classes)} classes")
    if len(set(classes.tolist())) < len(classes):
        raise ValueError("a class that is named twice")
