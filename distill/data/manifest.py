"""Images listed in a CSV or Parquet file: a column `path` and, optionally, `label` (or `labels`) and `split`.

`labels` holds several, separated by `;` (in Parquet a list column will do too), and makes the set multi-label.
`split` is train, validation, gallery or query; an image in both train and gallery has two rows, or `train;gallery`.
Paths are relative to the manifest's folder and may not leave it, neither by `..`, nor absolutely, nor through a link:
a manifest is a text that may come from anywhere, and must not point at the rest of the disk.  One that is not there is
looked for in Unicode's other form (NFC or NFD) and with slashes for backslashes: archives and systems change these.
What a spreadsheet would take for a formula is written as `'=label` and `./=path`, and read back.
"""

import csv
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.dataset import GALLERY, QUERY, SPLITS, TRAIN, VALIDATION, Dataset, ImageList
from distill.data.image_folder import ImageFiles
from gallery.console import plain
from gallery.errors import InputError
from gallery.files import atomic_write
from gallery.names import some
from gallery.sources.manifest import FORMULA, inside, is_empty, label_of, labels_of, read_manifest, text_of, texts_of

COLUMNS = ("path", "label", "labels", "split")
SPLIT_LIKE = re.compile(r"(data_?|sub)?sets?|folds?|partition|phase|(is_)?(train|test|valid?|query)|.*_split", re.I)
Row = dict[str, Any]  # values by column


def list_manifest(path: Path) -> ImageList:
    """Read a manifest, sorted by path.  Raises `InputError` that names the row and what is wrong."""
    listed = read_manifest(path, lambda header: _known_columns(header, path))
    rows, header = listed.rows.to_pylist(), listed.header
    root = Path(os.path.realpath(path.parent))
    labels, splits = dict[str, tuple[str, ...]](), defaultdict[str, set[str]](set)
    for number, row in enumerate(rows, listed.first):
        if all(map(is_empty, row.values())):
            continue
        where = f"row {number} of {path.name}"
        name = inside(root, text_of(row["path"], where), where)
        own, own_splits = _parse(row, where)
        if labels.setdefault(name, own) != own:
            found = f"{some(labels[name])} and {some(own)} for {plain(name)}"
            raise InputError(f"the same labels in every row of an image ({where})", found, "Use a `labels` column.")
        splits[name] |= own_splits
    names = tuple(sorted(labels))
    unread = [column for column in header if SPLIT_LIKE.fullmatch(column.strip())]
    warnings = []
    if unread and "split" not in listed.rows.column_names:
        one_of = "If one holds the split, rename it to split."
        warnings.append(f"Columns of {path.name} that are not read: {some(unread)}. {one_of}")
    others = [column for column in header if column.strip().lower() not in COLUMNS and column not in unread]
    if others and not {"label", "labels"} & {*listed.rows.column_names}:
        one_of = "If one holds the class, rename it to label."
        warnings.append(f"{path.name} has no labels, and columns that are not read: {some(others)}. {one_of}")
    return ImageList(
        name=path.stem if path.stem != "manifest" else root.name, names=names,
        labels=tuple(labels[name] for name in names), splits=tuple(frozenset(splits[name]) for name in names),
        source=ImageFiles(root, [root / name for name in names]), split_source="split given by the manifest",
        multi="labels" in listed.rows.column_names, warnings=tuple(warnings),
    )  # fmt: skip


def save_split(data: Dataset, path: Path) -> Path:
    """Write the split as a manifest, which `--data` reads back from the folder that the paths are relative to.

    Unlabeled images, and those in no split, are left out.
    """
    splits: list[list[str]] = [[] for _ in data.names]
    for own in (TRAIN, VALIDATION, GALLERY, QUERY):
        for i in getattr(data, own):
            splits[i].append(own)
    text, multi = io.StringIO(), data.labels.ndim == 2
    table = csv.writer(text)
    table.writerow(["path", *(["labels" if multi else "label"] if data.classes else []), "split"])
    for name, label, row in zip(data.names, data.labels, splits, strict=True):
        if row:
            labels = [data.classes[c] for c in (np.flatnonzero(label) if multi else [label])] if data.classes else []
            texts = (f"'{one}" if FORMULA.match(one) else one for one in labels)
            place = f"./{name}" if FORMULA.match(name) or name[:1].isspace() else name
            table.writerow([place, *([";".join(texts)] if data.classes else []), ";".join(row)])
    return atomic_write(path, text.getvalue())


def _known_columns(header: Sequence[str], path: Path) -> dict[str, str]:
    """Map the columns' own names to those of a manifest; raises `InputError` where they are others."""
    names = [name.strip().lower() for name in header]
    count = Counter(names)
    if count["path"] != 1 or count["label"] + count["labels"] > 1 or count["split"] > 1:
        expected = f"a column path and optionally label (or labels; not both) and split in {path}"
        raise InputError(expected, ", ".join(names) or "none", "Rename the columns, and separate CSV fields by commas.")
    return {own: name for own, name in zip(header, names, strict=True) if name in COLUMNS}


def _parse(row: Row, where: str) -> tuple[tuple[str, ...], set[str]]:
    """Return the labels and splits of a row."""
    multi, splits = "labels" in row, {own.lower() for own in texts_of(row.get("split"), where)}
    if multi:
        labels = labels_of(row["labels"], where)
    else:
        labels = tuple(filter(None, [label_of(text_of(row.get("label"), where))]))
    if not labels and (multi or "label" in row) and not (multi and splits == {GALLERY}):
        fix = (
            "Fill it in, or remove the row (or the column, if nothing has a label); gallery images of no class take a "
        )
        fix += "column `labels`."
        raise InputError(f"a label in {where}", "none", fix)
    if ("split" in row and not splits) or not splits <= {*SPLITS, VALIDATION}:
        raise InputError(f"train, validation, gallery or query as split in {where}", repr(row["split"]), "Correct it.")
    return labels, splits
