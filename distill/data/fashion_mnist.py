"""Fashion-MNIST: the embedded subset, and the full set where it is installed or can be downloaded."""

import gzip
import hashlib
import http.client
import math
import struct
import zlib
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distill.data.dataset import GALLERY, QUERY, TRAIN, ImageList
from gallery.errors import CorruptFile, InputError
from gallery.files import atomic_write

SUBSET = Path(__file__).with_name("fashion_mnist_7k.npz")  # uint8 images [7000, 28, 28], labels, rows of the full set
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
MIRROR, TIMEOUT_S = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com", 3.0
FILES = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}  # and their MD5
EDGE = 28
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
FIX = "Install Debian's package dataset-fashion-mnist, put its files into {}, or use --data embedded."


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


def list_subset(_: Path) -> ImageList:
    """List the 7,000 images that come with Twinhash."""
    with np.load(SUBSET, allow_pickle=False) as file:
        images, labels, rows = (file[name] for name in ("images", "labels", "rows"))
    of = "600 images a class of Fashion-MNIST's train set, and 100 of its test set as queries, sampled by seed 0"
    return _list(SUBSET.stem, images, labels, rows, of)


def list_full(cache_dir: Path) -> ImageList:
    """List all 70,000 images, from Debian's package or downloaded; raises `InputError` and `CorruptFile`."""
    folder = DEBIAN if DEBIAN.is_dir() else _download(cache_dir / "fashion_mnist")
    (images, labels), (test, test_labels) = read_idx(folder, "train"), read_idx(folder, "t10k")
    rows = np.concatenate([np.arange(len(images)), np.arange(len(test))])
    images, labels = np.concatenate([images, test]), np.concatenate([labels, test_labels])
    return _list("fashion_mnist", images, labels, rows, "Fashion-MNIST's own train set, and its test set as queries")


SOURCES = {"embedded": list_subset, "fashion_mnist": list_full}  # each takes the folder for downloads


def _list(
    name: str, images: NDArray[np.uint8], labels: NDArray[np.uint8], rows: NDArray[np.int64], split_source: str
) -> ImageList:
    train = int(np.argmax(rows[1:] < rows[:-1])) + 1  # rows of train, then of test, each sorted
    return ImageList(
        name=name, names=tuple(f"{'train' if i < train else 'test'}/{row:05d}" for i, row in enumerate(rows)),
        labels=tuple((CLASSES[label],) for label in labels),
        splits=(frozenset({TRAIN, GALLERY}),) * train + (frozenset({QUERY}),) * (len(images) - train),
        source=ImageArrays(images), split_source=split_source, classes=CLASSES,
    )  # fmt: skip


def _download(folder: Path) -> Path:
    for name, md5 in FILES.items():
        if (folder / name).exists() and hashlib.md5((folder / name).read_bytes()).hexdigest() == md5:
            continue
        try:
            with urlopen(f"{MIRROR}/{name}", timeout=TIMEOUT_S) as response:
                content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise InputError("Fashion-MNIST on this machine, or its server", str(error), FIX.format(folder)) from error
        if (found := hashlib.md5(content).hexdigest()) != md5:
            raise CorruptFile(f"{name} with MD5 {md5} at {MIRROR}", found, FIX.format(folder))
        atomic_write(folder / name, content)
    return folder


def read_idx(folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the images `[n, EDGE, EDGE]` and labels `[n]` of "train" or "t10k"; raises `CorruptFile`."""
    images = _read_idx(folder / f"{part}-images-idx3-ubyte.gz", EDGE, EDGE)
    labels = _read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    if len(images) != len(labels) or labels.max(initial=0) >= len(CLASSES):
        found = f"{len(images)} images, and {len(labels)} labels up to {labels.max(initial=0)}"
        raise CorruptFile(f"images and labels of Fashion-MNIST in {folder}", found, "Install it again.")
    return images, labels


def _read_idx(path: Path, *shape: int) -> NDArray[np.uint8]:
    """Read a gzipped IDX array of uint8 `[n, *shape]`: bytes 0, 0, 8, number of axes; big-endian lengths; the data."""
    try:
        with gzip.open(path) as stream:
            raw = stream.read(16 + 70_000 * EDGE * EDGE + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise CorruptFile(f"a gzipped IDX file at {path}", str(error), "Install it again.") from error
    start, axes = 8 + 4 * len(shape), 1 + len(shape)
    n, rest = divmod(max(0, len(raw) - start), math.prod(shape))
    if not n or rest or raw[:start] != struct.pack(f">4B{axes}I", 0, 0, 8, axes, n, *shape):
        found = f"{raw[:start]!r}, {len(raw)} bytes"
        raise CorruptFile(f"{axes} axes of uint8 in {path}", found, "Install it again.")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(n, *shape)
