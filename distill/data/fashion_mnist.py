"""Fashion-MNIST: the embedded subset, and the full set where it is installed or can be had.

`python -m distill.data.fashion_mnist make` writes the subset again, from the full set.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import math
import socket
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distill.data.dataset import GALLERY, QUERY, TRAIN, ImageList
from gallery.errors import CorruptFile, InputError
from gallery.files import atomic_path

SUBSET = Path(__file__).with_name("fashion_mnist_7k.npz")  # uint8 images [7000, 28, 28], labels, rows of the full set
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
TIMEOUT_S = 3.0
EDGE, TRAIN_A_CLASS, QUERIES_A_CLASS, SEED = 28, 600, 100, 0
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class ImageArrays:
    """Bare pixels, uint8 `[N, height, width]` (grey) or `[N, height, width, 3]`."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = np.ascontiguousarray(images)

    def stamp(self) -> str:
        return hashlib.sha256(self.images.data).hexdigest()

    def read(self, index: int) -> tuple[Image.Image, str]:
        image = self.images[index]
        return Image.fromarray(image).convert("RGB"), hashlib.sha256(image.data).hexdigest()

    def shorter_side(self, index: int) -> int:
        return min(self.images.shape[1:3])


def _subset(_: Path) -> ImageList:
    with np.load(SUBSET, allow_pickle=False) as file:
        images, labels, rows = (file[name] for name in ("images", "labels", "rows"))
    origin = f"{TRAIN_A_CLASS} pictures a class of Fashion-MNIST's train set, and {QUERIES_A_CLASS} of its test set "
    return _listing(SUBSET.stem, images, labels, rows, 6_000, origin + f"as queries, picked by seed {SEED}")


def _full(cache: Path) -> ImageList:
    folder = DEBIAN if DEBIAN.is_dir() else _download(cache)
    (images, labels), (others, their_labels) = _part(folder, "train"), _part(folder, "t10k")
    rows = np.concatenate([np.arange(len(images)), np.arange(len(others))])
    images, labels = np.concatenate([images, others]), np.concatenate([labels, their_labels])
    origin = "Fashion-MNIST's own train set, and its test set as queries"
    return _listing("fashion_mnist", images, labels, rows, len(images) - len(others), origin)


SOURCES = {"embedded": _subset, "fashion_mnist": _full}  # each takes the folder for downloads


def _listing(
    name: str, images: NDArray[np.uint8], labels: NDArray[np.uint8], rows: NDArray[np.int64], train: int, origin: str
) -> ImageList:
    return ImageList(
        name=name,
        names=tuple(f"{'train' if i < train else 'test'}/{row:05d}" for i, row in enumerate(rows)),
        labels=tuple((CLASSES[label],) for label in labels),
        parts=(frozenset({TRAIN, GALLERY}),) * train + (frozenset({QUERY}),) * (len(images) - train),
        pictures=ImageArrays(images),
        origin=origin,
        classes=CLASSES,
    )


def _download(cache: Path) -> Path:
    from distill.models.hash_net import import_timm

    import_timm()  # makes torchvision importable beside a CPU build of torch
    from torchvision.datasets import FashionMNIST

    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        FashionMNIST(str(cache), download=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        folder = cache / "FashionMNIST" / "raw"
        fix = f"Install Debian's package dataset-fashion-mnist, put its files into {folder}, or use --data embedded."
        raise InputError("Fashion-MNIST on this machine, or its server", str(error).strip(), fix) from error
    finally:
        socket.setdefaulttimeout(patience)
    return cache / "FashionMNIST" / "raw"


def _part(folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images `[n, EDGE, EDGE]` and labels `[n]`; raises `CorruptFile`."""
    images = _idx(folder / f"{part}-images-idx3-ubyte.gz", 3)
    labels = _idx(folder / f"{part}-labels-idx1-ubyte.gz", 1)
    if images.shape != (len(labels), EDGE, EDGE) or labels.max(initial=0) >= len(CLASSES):
        found = f"{images.shape}, and {len(labels)} labels up to {labels.max(initial=0)}"
        raise CorruptFile(f"pictures and labels of Fashion-MNIST in {folder}", found, "Install it again.")
    return images, labels


def _idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """A gzipped IDX array of uint8: the bytes 0, 0, 8 and the number of axes; their big-endian lengths; the data."""
    start, limit = 4 + 4 * axes, 16 + 70_000 * EDGE * EDGE
    try:
        with gzip.open(path) as stream:
            raw = stream.read(limit + 1)
        magic, *shape = struct.unpack(f">4s{axes}I", raw[:start])
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise CorruptFile(f"a gzipped IDX file at {path}", str(error), "Install it again.") from error
    if magic != bytes((0, 0, 8, axes)) or len(raw) != start + math.prod(shape):
        raise CorruptFile(
            f"{axes} axes of uint8 in {path}", f"{magic!r}, {shape}, {len(raw)} bytes", "Install it again."
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def make(path: Path = SUBSET) -> None:
    """Picks the subset from the full set and writes it."""
    random = np.random.default_rng(SEED)
    picked = []
    for part, share in (("train", TRAIN_A_CLASS), ("t10k", QUERIES_A_CLASS)):
        images, labels = _part(DEBIAN, part)
        each = [random.choice(np.flatnonzero(labels == c), share, replace=False) for c in range(len(CLASSES))]
        rows = np.sort(np.concatenate(each))
        picked.append((images[rows], labels[rows], rows.astype(np.uint16)))
    arrays = [np.concatenate(parts) for parts in zip(*picked, strict=True)]
    with atomic_path(path) as draft:
        np.savez_compressed(draft, images=arrays[0], labels=arrays[1], rows=arrays[2])


if __name__ == "__main__":
    if sys.argv[1:] != ["make"]:
        sys.exit("usage: python -m distill.data.fashion_mnist make")
    make()
