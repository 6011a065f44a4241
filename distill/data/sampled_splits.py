"""Protocols whose splits are sampled here, class by class and by the seed: nobody published theirs.

What is sampled of a class depends on the seed, its name and the order of its own images, so a set packed in another
order has another split; each run saves its own.
"""

import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.data.dataset import GALLERY, QUERY, TRAIN, ImageList
from distill.data.fashion_mnist import ImageArrays
from distill.data.image_folder import list_folder
from distill.data.protocol_specs import CIFAR10, UCMERCED
from gallery.errors import CorruptFile, InputError

Splits = tuple[frozenset[str], ...]
TRAIN_ONLY, GALLERY_ONLY, TRAIN_AND_GALLERY = frozenset({TRAIN}), frozenset({GALLERY}), frozenset({TRAIN, GALLERY})
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR_EDGE, CIFAR_BATCHES = 32, (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
CIFAR_PROTOCOLS = {  # queries and training images a class, the splits of the latter, and the published sizes
    "cifar10": (100, 500, TRAIN_ONLY, (5_000, 54_000, 1_000)),
    "cifar10-1": (100, 500, TRAIN_AND_GALLERY, (5_000, 59_000, 1_000)),
    "cifar10-2": (1_000, 5_000, TRAIN_AND_GALLERY, (50_000, 50_000, 10_000)),
}
ALL = "in the literature mAP@all"


def sample_splits(
    groups: Sequence[str], seed: int, queries: int, train: int | None, train_splits: frozenset[str] = TRAIN_AND_GALLERY
) -> Splits:
    """Sample `queries` of each group, then `train` (None: all others) for `train_splits`; the rest is gallery."""
    members = defaultdict[str, list[int]](list)
    for i, group in enumerate(groups):
        members[group].append(i)
    splits = [GALLERY_ONLY] * len(groups)
    for group, own in members.items():
        order = np.random.default_rng([seed, zlib.crc32(group.encode())]).permutation(own)
        for i in order[:queries]:
            splits[i] = frozenset({QUERY})
        for i in order[queries : None if train is None else queries + train]:
            splits[i] = train_splits
    return tuple(splits)


def list_cifar10(name: str, root: Path, seed: int) -> ImageList:
    """List CIFAR-10's binary version; raises `InputError` and `CorruptFile`."""
    queries, train, train_splits, sizes = CIFAR_PROTOCOLS[name]
    folder = root / CIFAR10.folder / "cifar-10-batches-bin"
    if not folder.is_dir():
        raise CIFAR10.missing_error(root)
    batches = {batch: _read_batch(folder / f"{batch}.bin") for batch in CIFAR_BATCHES}
    records = np.concatenate(list(batches.values()))
    labels = [CIFAR_CLASSES[label] for label in records[:, 0]]
    return ImageList(
        name=name, names=tuple(f"{batch}/{i:05d}" for batch, own in batches.items() for i in range(len(own))),
        labels=tuple((label,) for label in labels), splits=sample_splits(labels, seed, queries, train, train_splits),
        source=ImageArrays(records[:, 1:].reshape(-1, 3, CIFAR_EDGE, CIFAR_EDGE).transpose(0, 2, 3, 1)),
        split_source=f"CIFAR-10, {queries} queries and {train} of train a class sampled here by seed {seed} ({ALL})",
        classes=CIFAR_CLASSES, published_sizes=sizes,
    )  # fmt: skip


def _read_batch(path: Path) -> NDArray[np.uint8]:
    """Return the records of a batch: a label and 3 x 32 x 32 bytes each."""
    try:
        record = 1 + 3 * CIFAR_EDGE**2
        records = np.fromfile(path, np.uint8, 10_000 * record + 1).reshape(-1, record)
    except (OSError, ValueError) as error:
        raise CorruptFile(f"a batch of CIFAR-10's binary version at {path}", str(error), "Unpack it again.") from error
    if records[:, 0].max(initial=0) >= len(CIFAR_CLASSES):
        raise CorruptFile(f"labels below {len(CIFAR_CLASSES)} in {path}", str(records[:, 0].max()), "Unpack it again.")
    return records


def list_ucmerced(name: str, root: Path, seed: int) -> ImageList:
    """List UC Merced as it unpacks; both names have the same split.  Raises `InputError`."""
    folder = root / UCMERCED.folder / "UCMerced_LandUse" / "Images"
    if not folder.is_dir():
        raise UCMERCED.missing_error(root)
    scenes = list_folder(folder)
    splits, labeled = sample_splits([own[0] for own in scenes.labels], seed, 20, None), scenes
    if name == "ucmerced_multi":
        labeled = _with_multi_labels(scenes, root)
    source = f"UC Merced, 20 queries a scene class sampled here by seed {seed} ({ALL})"
    return replace(labeled, name=name, splits=splits, split_source=source, published_sizes=(1_680, 1_680, 420))


def _with_multi_labels(scenes: ImageList, root: Path) -> ImageList:
    """Return the images with the labels of the published table: a header with the classes; names without suffix."""
    path = root / UCMERCED.folder / "LandUse_Multilabeled.txt"
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UCMERCED.missing_error(root, str(error)) from error
    header, *rows = [line.split("\t") for line in text.splitlines() if line.strip()] or [[""]]
    classes, table = tuple(map(str.strip, header[1:])), dict[str, tuple[str, ...]]()
    for stem, *bits in rows:
        if len(bits) != len(classes) or not re.fullmatch("[01]+", "".join(map(str.strip, bits))):
            fix = "Download the table again; it is separated by tabs."
            raise InputError(f"{len(classes)} labels of 0 or 1 for {stem!r} in {path}", f"{bits}", fix)
        table[stem.strip()] = tuple(c for c, bit in zip(classes, bits, strict=True) if bit.strip() == "1")
    if lost := [name for name in scenes.names if Path(name).stem not in table]:
        raise InputError(f"labels of {lost[0]} in {path}", "none", "Download the table again.")
    labels = tuple(table[Path(name).stem] for name in scenes.names)
    return replace(scenes, labels=labels, multi=True, classes=classes)
