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

from distill.data.dataset import GALLERY, QUERY, TRAIN, ImageList
from distill.data.image_folder import list_folder
from distill.data.protocol_specs import UCMERCED
from gallery.errors import InputError

Splits = tuple[frozenset[str], ...]
GALLERY_ONLY, TRAIN_AND_GALLERY = frozenset({GALLERY}), frozenset({TRAIN, GALLERY})
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
