"""Published list files: in each line a path, then a 0 or 1 for every class.

Those of `coco`, say, are searched for below the data root as `coco/{train,test,database}.txt` and
`splits/hashnet_coco_*.txt`, plain or compressed by xz.  A list may come from anywhere: its paths are not followed but
matched against the set's pattern, so that nothing but an image's own name reaches the file system.
"""

import lzma
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.data.dataset import GALLERY, QUERY, TRAIN, ImageList
from distill.data.image_folder import ImageFiles
from distill.data.protocol_specs import PUBLISHED, PublishedSplit
from gallery.errors import InputError

MAX_BYTES = 1 << 28  # of a list, unpacked; the largest real one has 31 MB
FILES = {TRAIN: "train", QUERY: "test", GALLERY: "database"}
OWN_LISTS = (("database_img.txt", "database_label_onehot.txt"), ("test_img.txt", "test_label_onehot.txt"))
PREFIX = r"(?:\./data/\w+/)?"  # HashNet's
Lines = Sequence[tuple[str, str]]  # where, and what


@dataclass
class _ListEntry:
    fields: dict[str, str]
    bits: list[str]
    splits: set[str] = field(default_factory=set)


def list_published(protocol: str, root: Path, seed: int) -> ImageList:
    """List a protocol's images, sorted by name.  The split is that of the lists, whatever the `seed`.

    Queries that are in the database list too, as all of COCO's are, are taken out of the gallery: they would find
    themselves.  Raises `InputError` for lists or a set that cannot be had, and for a line that is not of its list.
    """
    spec = PUBLISHED[protocol]
    folder = (root / spec.dataset.folder).resolve()
    if not folder.is_dir():
        raise spec.dataset.missing_error(root)
    classes, entries = _merge(spec, {split: _read_list(protocol, split, root) for split in FILES})
    unseen = frozenset(classes[len(classes) - spec.unseen :])
    names, labels, splits, twice = [], [], [], 0
    for _, entry in sorted(entries.items()):
        own = tuple(c for c, bit in zip(classes, entry.bits, strict=True) if bit == "1")
        places = [layout.format(**entry.fields, label="".join(own[:1])) for layout in spec.layouts]
        names.append(next((place for place in places if os.path.exists(f"{folder}/{place}")), places[0]))
        labels.append(own)
        twice += {QUERY, GALLERY} <= entry.splits
        added = {GALLERY} if spec.train_in_gallery and TRAIN in entry.splits else set()
        left_out = ({GALLERY} if QUERY in entry.splits else set()) | ({TRAIN} if unseen & set(own) else set())
        splits.append(frozenset((entry.splits | added) - left_out))
    if not any(os.path.exists(f"{folder}/{name}") for name in names):
        raise spec.dataset.missing_error(root, "none of its images")
    less = f", less {twice} queries in its database" if twice else ""
    return ImageList(
        name=protocol, names=tuple(names), labels=tuple(labels), splits=tuple(splits),
        source=ImageFiles(folder, [folder / name for name in names]),
        split_source=f"{spec.split_source}{less} (mAP@{spec.top_k or 'all'})", multi=bool(spec.classes),
        classes=classes, published_sizes=spec.sizes, top_k=spec.top_k, unseen=tuple(sorted(unseen, key=classes.index)),
    )  # fmt: skip


def listed_labels(protocol: str, split: str, root: Path) -> NDArray[np.bool_]:
    """Return the classes of a split's images, `[N, C]`, as its list has them: no image need be there."""
    _, entries = _merge(PUBLISHED[protocol], {TRAIN: (), split: _read_list(protocol, split, root)})
    return np.array([entry.bits for entry in entries.values()]) == "1"


def _merge(spec: PublishedSplit, lists: dict[str, Lines]) -> tuple[tuple[str, ...], dict[str, _ListEntry]]:
    """Return the classes in the order of the columns, and the labels and splits of each image."""
    named = set(re.findall(r"/(n\d{8})_", "\n".join(line for _, line in lists[TRAIN])))
    classes, entries = tuple(spec.classes.split(",") if spec.classes else sorted(named)), dict[str, _ListEntry]()
    pattern = re.compile(PREFIX + spec.path, re.ASCII)
    for split, where, line in ((split, *row) for split, lines in lists.items() for row in lines):
        text, *bits = line.split()
        match, ones = pattern.fullmatch(text), bits.count("1")
        sound = len(bits) == len(classes) == ones + bits.count("0") and (spec.classes or ones == 1)
        if not match or not sound:
            kind = f"{len(classes)} labels, each 0 or 1" + ("" if spec.classes else " and one of them 1")
            found = f"{text[:80]!r} and {len(bits)} labels, {ones} of them 1"
            fix = f"Download it again from {spec.lists_url}."
            raise InputError(f"a path like {spec.path} and {kind}, in {where}", found, fix)
        entry = entries.setdefault(match["file"], _ListEntry(match.groupdict(), bits))
        if entry.bits != bits:
            fix = f"Take all lists from one place, {spec.lists_url}."
            raise InputError(f"the same labels wherever an image is listed ({where})", match["file"], fix)
        entry.splits.add(split)
    return classes, entries


def _read_list(name: str, split: str, root: Path) -> Lines:
    """Return the lines of a split's list; where there is none, perhaps those of the set's own lists."""
    spec, file = PUBLISHED[name], FILES[split]
    stems = (f"{name}/{file}", f"splits/{spec.lists}_{file}")
    places = [root / f"{stem}{ending}" for stem in stems for ending in (".txt", ".txt.xz")]
    if path := next(filter(Path.is_file, places), None):
        return _read_lines(path)
    if split == GALLERY and spec.database_from_set:
        return [row for pair in OWN_LISTS for row in _zip_lists(spec, root, *pair)]
    lost = "  Its only known copy is the one in the archive." if split == GALLERY and spec.lists.endswith("_m") else ""
    fix = f"Take it from {spec.lists_url}, and put it there.{lost}"
    raise InputError(f"the {file} list of {name} at {' or '.join(map(str, places))}", "none", fix)


def _zip_lists(spec: PublishedSplit, root: Path, *names: str) -> Lines:
    """Join the rows of two files, one of paths and one of labels."""
    paths = [root / spec.dataset.folder / name for name in names]
    if lost := [path.name for path in paths if not path.is_file()]:
        raise spec.dataset.missing_error(root, f"no {lost[0]}")
    images, labels = map(_read_lines, paths)
    if len(images) != len(labels):
        raise spec.dataset.missing_error(root, f"{len(images)} rows in {names[0]}, {len(labels)} in {names[1]}")
    return [(where, f"{text} {bits}") for (where, text), (_, bits) in zip(images, labels, strict=True)]


def _read_lines(path: Path) -> Lines:
    try:
        with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES >> 20} MiB")
        lines = raw.decode().splitlines()
    except (OSError, ValueError, EOFError, lzma.LZMAError) as error:
        raise InputError(f"a list of images at {path}", str(error), "Download it again.") from error
    return [(f"line {i} of {path.name}", line) for i, line in enumerate(lines, 1) if line.strip()]
