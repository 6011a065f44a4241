"""Published list files: in each line a path, then a 0 or 1 for every class.

Those of `coco`, say, are sought below the data root as `coco/{train,test,database}.txt` and
`splits/hashnet_coco_*.txt`, plain or compressed by xz.  A list may come from anywhere: its paths are not followed but
matched against the set's pattern, so that nothing but a picture's own name reaches the file system.
"""

from __future__ import annotations

import lzma
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.data.dataset import GALLERY, QUERY, TRAIN, ImageList
from distill.data.image_folder import ImageFiles
from distill.data.published import PUBLISHED, Protocol
from gallery.errors import InputError

MAX_BYTES = 1 << 28  # of a list, unpacked; the largest real one has 31 MB
FILES = {TRAIN: "train", QUERY: "test", GALLERY: "database"}
OWN_LISTS = (("database_img.txt", "database_label_onehot.txt"), ("test_img.txt", "test_label_onehot.txt"))
PREFIX = r"(?:\./data/\w+/)?"  # HashNet's
Lines = Sequence[tuple[str, str]]  # where, and what


@dataclass
class _Entry:
    fields: dict[str, str]
    bits: list[str]
    parts: set[str] = field(default_factory=set)


def list_published(protocol: str, root: Path, seed: int) -> ImageList:
    """Lists a protocol's pictures, sorted by name.  The split is that of the lists, whatever the `seed`.

    Queries that are in the database list too, as all of COCO's are, are taken out of the gallery: they would find
    themselves.  Raises `InputError` for lists or a set that cannot be had, and for a line that is not of its list.
    """
    spec = PUBLISHED[protocol]
    folder = (root / spec.home.folder).resolve()
    if not folder.is_dir():
        raise spec.home.absent(root)
    classes, entries = _merged(spec, {part: _lines(protocol, part, root) for part in FILES})
    files = sorted(entries)
    labels = [tuple(c for c, bit in zip(classes, entries[f].bits, strict=True) if bit == "1") for f in files]
    names = [_place(folder, spec, entries[f].fields, own) for f, own in zip(files, labels, strict=True)]
    if not any(os.path.exists(f"{folder}/{name}") for name in names):
        raise spec.home.absent(root, "none of its pictures")
    twice = sum({QUERY, GALLERY} <= entry.parts for entry in entries.values())
    return ImageList(
        name=protocol,
        names=tuple(names),
        labels=tuple(labels),
        parts=tuple(frozenset(p - {GALLERY} if QUERY in p else p) for p in (entries[f].parts for f in files)),
        pictures=ImageFiles(folder, [folder / name for name in names]),
        origin=f"{spec.origin}{f', less {twice} queries in its database' if twice else ''} (mAP@{spec.cut or 'all'})",
        multi=bool(spec.classes),
        classes=classes,
        published=spec.sizes,
        cut=spec.cut,
    )


def listed_labels(protocol: str, part: str, root: Path) -> NDArray[np.bool_]:
    """The classes of a part's pictures, `[N, C]`, as its list has them: no picture need be at hand."""
    _, entries = _merged(PUBLISHED[protocol], {TRAIN: (), part: _lines(protocol, part, root)})
    return np.array([entry.bits for entry in entries.values()]) == "1"


def _merged(spec: Protocol, lists: dict[str, Lines]) -> tuple[tuple[str, ...], dict[str, _Entry]]:
    """The classes in the order of the columns, and what the lists together say of each picture."""
    named = set(re.findall(r"/(n\d{8})_", "\n".join(line for _, line in lists[TRAIN])))
    classes, entries = tuple(spec.classes.split(",") if spec.classes else sorted(named)), dict[str, _Entry]()
    pattern = re.compile(PREFIX + spec.path, re.ASCII)
    for part, where, line in ((part, *row) for part, lines in lists.items() for row in lines):
        new = _entry(spec, pattern, len(classes), where, line)
        entry = entries.setdefault(new.fields["file"], new)
        if entry.bits != new.bits:
            fix = f"Take all lists from one place, {spec.lists_from}."
            raise InputError(f"the same labels wherever a picture is listed ({where})", new.fields["file"], fix)
        entry.parts.add(part)
    return classes, entries


def _entry(spec: Protocol, pattern: re.Pattern[str], columns: int, where: str, line: str) -> _Entry:
    text, *bits = line.split()
    match, ones = pattern.fullmatch(text), bits.count("1")
    if match and len(bits) == columns == ones + bits.count("0") and (spec.classes or ones == 1):
        return _Entry(match.groupdict(), bits)
    kind = f"{columns} labels, each 0 or 1" + ("" if spec.classes else " and one of them 1")
    found = f"{text[:80]!r} and {len(bits)} labels, {ones} of them 1"
    raise InputError(f"a path like {spec.path} and {kind}, in {where}", found, f"Take it anew from {spec.lists_from}.")


def _place(folder: Path, spec: Protocol, fields: dict[str, str], labels: Sequence[str]) -> str:
    """Where a picture lies below `folder`: by the first layout that leads to one."""
    places = [layout.format(**fields, label="".join(labels[:1])) for layout in spec.layouts]
    return next((place for place in places if os.path.exists(f"{folder}/{place}")), places[0])


def _lines(name: str, part: str, root: Path) -> Lines:
    """The lines of a part's list; where there is none, perhaps those of the set's own lists."""
    spec, file = PUBLISHED[name], FILES[part]
    stems = (f"{name}/{file}", f"splits/{spec.lists}_{file}")
    places = [root / f"{stem}{ending}" for stem in stems for ending in (".txt", ".txt.xz")]
    if path := next(filter(Path.is_file, places), None):
        return list(_numbered(path))
    if part == GALLERY and spec.own:
        return [row for pair in OWN_LISTS for row in _side_by_side(spec, root, *pair)]
    lost = "  Its only known copy is the one in the archive." if part == GALLERY and spec.lists.endswith("_m") else ""
    fix = f"Take it from {spec.lists_from}, and put it there.{lost}"
    raise InputError(f"the {file} list of {name} at {' or '.join(map(str, places))}", "none", fix)


def _side_by_side(spec: Protocol, root: Path, *names: str) -> Iterator[tuple[str, str]]:
    """Rows of two files, one of paths and one of labels."""
    paths = [root / spec.home.folder / name for name in names]
    if lost := [path.name for path in paths if not path.is_file()]:
        raise spec.home.absent(root, f"no {lost[0]}")
    pictures, labels = (list(_numbered(path)) for path in paths)
    if len(pictures) != len(labels):
        raise spec.home.absent(root, f"{len(pictures)} rows in {names[0]}, {len(labels)} in {names[1]}")
    yield from ((where, f"{text} {bits}") for (where, text), (_, bits) in zip(pictures, labels, strict=True))


def _numbered(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES >> 20} MiB")
        lines = raw.decode().splitlines()
    except (OSError, ValueError, EOFError, lzma.LZMAError) as error:
        raise InputError(f"a list of pictures at {path}", str(error), "Download it again.") from error
    yield from ((f"line {i} of {path.name}", line) for i, line in enumerate(lines, 1) if line.strip())
