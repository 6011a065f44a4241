"""CIFAR-10 and CIFAR-100 from their binary versions: sampled splits, and the open-world ones with unseen classes.

The splits with unseen classes are those of *An Empirical Study on Training Paradigms for Deep Supervised Hashing* (code
aassxun/DSH_Analysis): the set's own test images are the queries and its training images the gallery, those of the seen
classes are trained on, and the last classes are unseen.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.data.dataset import QUERY, TRAIN, ImageList
from distill.data.fashion_mnist import ImageArrays
from distill.data.protocol_specs import CIFAR10, CIFAR100, OPEN_WORLD, OPEN_WORLD_TOP_K, DatasetSource
from distill.data.sampled_splits import ALL, GALLERY_ONLY, TRAIN_AND_GALLERY, Splits, sample_splits
from gallery.errors import CorruptFile

EDGE = 32
RECORD = 3 * EDGE**2  # bytes of an image, red, green and blue; one or two label bytes precede them
MAX_RECORDS = 50_000  # of a file
CIFAR_PROTOCOLS = {  # queries and training images a class, the splits of the latter, and the published sizes
    "cifar10": (100, 500, frozenset({TRAIN}), (5_000, 54_000, 1_000)),
    "cifar10-1": (100, 500, TRAIN_AND_GALLERY, (5_000, 59_000, 1_000)),
    "cifar10-2": (1_000, 5_000, TRAIN_AND_GALLERY, (50_000, 50_000, 10_000)),
}
ZERO_SHOT = {"cifar10-zs": 2, "cifar100-zs5": 5, "cifar100-zs15": 15, "cifar100-zs25": 25}  # unseen classes
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_NAMES = (
    "apple,aquarium_fish,baby,bear,beaver,bed,bee,beetle,bicycle,bottle,bowl,boy,bridge,bus,butterfly,"
    "camel,can,castle,caterpillar,cattle,chair,chimpanzee,clock,cloud,cockroach,couch,crab,crocodile,"
    "cup,dinosaur,dolphin,elephant,flatfish,forest,fox,girl,hamster,house,kangaroo,keyboard,lamp,"
    "lawn_mower,leopard,lion,lizard,lobster,man,maple_tree,motorcycle,mountain,mouse,mushroom,oak_tree,"
    "orange,orchid,otter,palm_tree,pear,pickup_truck,pine_tree,plain,plate,poppy,porcupine,possum,rabbit,"
    "raccoon,ray,road,rocket,rose,sea,seal,shark,shrew,skunk,skyscraper,snail,snake,spider,squirrel,"
    "streetcar,sunflower,sweet_pepper,table,tank,telephone,television,tiger,tractor,train,trout,tulip,"
    "turtle,wardrobe,whale,willow_tree,wolf,woman,worm"
)
CIFAR100_CLASSES = tuple(CIFAR100_NAMES.split(","))
CIFAR10_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")  # the last is the set's own test images
CIFAR100_FILES = ("train", "test")


def list_cifar(name: str, root: Path, seed: int) -> ImageList:
    """List a protocol on CIFAR; raises `InputError` and `CorruptFile`."""
    if name.startswith("cifar100"):
        images = _list_files(CIFAR100, root / CIFAR100.folder / "cifar-100-binary", CIFAR100_FILES, CIFAR100_CLASSES)
    else:
        images = _list_files(CIFAR10, root / CIFAR10.folder / "cifar-10-batches-bin", CIFAR10_FILES, CIFAR10_CLASSES)
    return _sampled(name, images, seed) if name in CIFAR_PROTOCOLS else _zero_shot(name, images)


def _sampled(name: str, images: ImageList, seed: int) -> ImageList:
    queries, train, train_splits, sizes = CIFAR_PROTOCOLS[name]
    splits = sample_splits([own for (own,) in images.labels], seed, queries, train, train_splits)
    source = f"CIFAR-10, {queries} queries and {train} of train a class sampled here by seed {seed} ({ALL})"
    return replace(images, name=name, splits=splits, split_source=source, published_sizes=sizes)


def _zero_shot(name: str, images: ImageList) -> ImageList:
    classes, count = images.classes or (), ZERO_SHOT[name]
    unseen = classes[-count:]
    test = (CIFAR100_FILES if len(classes) == 100 else CIFAR10_FILES)[-1]

    def split_of(image: str, label: str) -> frozenset[str]:
        if image.startswith(f"{test}/"):
            return frozenset({QUERY})
        return GALLERY_ONLY if label in unseen else TRAIN_AND_GALLERY

    splits: Splits = tuple(split_of(image, own) for image, (own,) in zip(images.names, images.labels, strict=True))
    source = (
        f"CIFAR-{len(classes)}, its test set as queries and its train set as gallery, "
        f"{OPEN_WORLD.format(count=count, classes=len(classes))} (mAP@{OPEN_WORLD_TOP_K})"
    )
    sizes = 50_000 - count * (50_000 // len(classes)), 50_000, 10_000
    return replace(
        images, name=name, splits=splits, split_source=source, published_sizes=sizes, top_k=OPEN_WORLD_TOP_K,
        unseen=unseen,
    )  # fmt: skip


def _list_files(dataset: DatasetSource, folder: Path, files: tuple[str, ...], classes: tuple[str, ...]) -> ImageList:
    """Return the images of a binary version, in no split yet; an image is named by its file and its place there."""
    if not folder.is_dir():
        raise dataset.missing_error(folder.parents[1])
    records = {file: _read(folder / f"{file}.bin", len(classes)) for file in files}
    every = np.concatenate(list(records.values()))
    return ImageList(
        name=dataset.folder, names=tuple(f"{file}/{i:05d}" for file, own in records.items() for i in range(len(own))),
        labels=tuple((classes[label],) for label in every[:, 0]), splits=(),
        source=ImageArrays(every[:, 1:].reshape(-1, 3, EDGE, EDGE).transpose(0, 2, 3, 1)), classes=classes,
    )  # fmt: skip


def _read(path: Path, classes: int) -> NDArray[np.uint8]:
    """Return the records of a file, a label and 3 x 32 x 32 bytes each; of CIFAR-100's two labels the fine one."""
    labels, fix = (2 if classes == 100 else 1), "Unpack it again."
    try:
        records = np.fromfile(path, np.uint8, MAX_RECORDS * (labels + RECORD) + 1).reshape(-1, labels + RECORD)
    except (OSError, ValueError) as error:
        raise CorruptFile(f"a file of CIFAR-{classes}'s binary version at {path}", str(error), fix) from error
    records = records[:, labels - 1 :]
    if records[:, 0].max(initial=0) >= classes:
        raise CorruptFile(f"labels below {classes} in {path}", str(records[:, 0].max()), fix)
    return records
