"""Images listed in a CSV or Parquet file: columns `path`, `label` (or `labels`) and, optionally, `split`.

`labels` holds several, separated by `;` (in Parquet a list column will do too), and makes the set multi-label.
`split` is train, validation, gallery or query; an image in both train and gallery has two rows, or `train;gallery`.
Paths are relative to the manifest's folder and may not leave it, neither by `..`, nor absolutely, nor through a link:
a manifest is a text that may come from anywhere, and must not point at the rest of the disk.  One that is not there is
looked for in Unicode's other form (NFC or NFD) and with slashes for backslashes: archives and systems change these.
What a spreadsheet would take for a formula is written as `'=label` and `./=path`, and read back.
"""

import csv
import io
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from distill.data.dataset import GALLERY, QUERY, SPLITS, TRAIN, VALIDATION, Dataset, ImageList
from distill.data.image_folder import ImageFiles
from distill.data.names import clean_label, some
from gallery.console import plain
from gallery.errors import InputError
from gallery.files import atomic_write

COLUMNS = ("path", "label", "labels", "split")
SPLIT_LIKE = re.compile(r"(data_?|sub)?sets?|folds?|partition|phase|(is_)?(train|test|valid?|query)|.*_split", re.I)
MAX_BYTES = 1 << 30  # of a CSV file, or of the columns of a Parquet file in memory
BLOCK = 1 << 26  # bytes of a CSV parsed at once, more than its longest row
BATCH = 1024  # rows of a Parquet file read at once
FORMULA = re.compile(r"'*[=+\-@]")
Row = dict[str, Any]  # values by column
real_folder = lru_cache(4096)(os.path.realpath)


def list_manifest(path: Path) -> ImageList:
    """Read a manifest, sorted by path.  Raises `InputError` that names the row and what is wrong."""
    first, rows, header = _read_rows(path)
    root = Path(os.path.realpath(path.parent))
    labels, splits = dict[str, tuple[str, ...]](), defaultdict[str, set[str]](set)
    for number, row in enumerate(rows, first):
        if all(map(_is_empty, row.values())):
            continue
        where = f"row {number} of {path.name}"
        name = _inside(root, _text(row["path"], where), where)
        own, own_splits = _parse(row, where)
        if labels.setdefault(name, own) != own:
            found = f"{some(labels[name])} and {some(own)} for {plain(name)}"
            raise InputError(f"the same labels in every row of an image ({where})", found, "Use a `labels` column.")
        splits[name] |= own_splits
    names = tuple(sorted(labels))
    unread = [column for column in header if SPLIT_LIKE.fullmatch(column.strip())]
    sampled = f"Columns of {path.name} that are not read: {some(unread)}. If one holds the split, rename it to split."
    return ImageList(
        name=path.stem if path.stem != "manifest" else root.name, names=names,
        labels=tuple(labels[name] for name in names), splits=tuple(frozenset(splits[name]) for name in names),
        source=ImageFiles(root, [root / name for name in names]), split_source="split given by the manifest",
        multi=any("labels" in row for row in rows[:1]),
        warnings=(sampled,) if unread and not any("split" in row for row in rows[:1]) else (),
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
    table.writerow(["path", "labels" if multi else "label", "split"])
    for name, label, row in zip(data.names, data.labels, splits, strict=True):
        if row:
            labels = [data.classes[c] for c in (np.flatnonzero(label) if multi else [label])]
            texts = (f"'{one}" if FORMULA.match(one) else one for one in labels)
            place = f"./{name}" if FORMULA.match(name) or name[:1].isspace() else name
            table.writerow([place, ";".join(texts), ";".join(row)])
    return atomic_write(path, text.getvalue())


def _read_rows(path: Path) -> tuple[int, list[Row], Sequence[str]]:
    """Return the number of the first row, the rows, and the names of all columns."""
    import pyarrow

    is_csv = path.suffix.lower() == ".csv"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES >> 20} MiB")
        return (2, *_read_csv(path)) if is_csv else (1, *_read_parquet(path))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        expected = "a CSV file in UTF-8" if is_csv else "a Parquet file"
        fix = "Save it again as UTF-8 CSV, and quote fields that hold a comma." if is_csv else "Write it again."
        raise InputError(f"{expected} at {path}", plain(str(error))[:200], fix) from error


def _read_csv(path: Path) -> tuple[list[Row], Sequence[str]]:
    import pyarrow.csv

    table = pyarrow.csv.read_csv(
        path,
        pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK),  # without threads, errors name the row
        pyarrow.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        pyarrow.csv.ConvertOptions(default_column_type=pyarrow.string()),
    )
    columns = _known_columns(table.schema.names, path)
    return table.select(list(columns)).rename_columns(list(columns.values())).to_pylist(), table.schema.names


def _read_parquet(path: Path) -> tuple[list[Row], Sequence[str]]:
    """Read a file in parts: a few bytes may stand for any number of rows."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        header = file.schema_arrow.names
        columns, rows, size = _known_columns(header, path), list[Row](), 0
        for batch in file.iter_batches(BATCH, columns=list(columns)):
            size += batch.nbytes
            if size > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES >> 20} MiB")
            rows += batch.select(list(columns)).rename_columns(list(columns.values())).to_pylist()
        return rows, header


def _known_columns(header: Sequence[str], path: Path) -> dict[str, str]:
    """Map the columns' own names to those of a manifest; raises `InputError` where they are others."""
    names = [name.strip().lower() for name in header]
    count = Counter(names)
    if count["path"] != 1 or count["label"] + count["labels"] != 1 or count["split"] > 1:
        expected = f"columns path, label (or labels; not both) and optionally split in {path}"
        raise InputError(expected, ", ".join(names) or "none", "Rename the columns, and separate CSV fields by commas.")
    return {own: name for own, name in zip(header, names, strict=True) if name in COLUMNS}


def _parse(row: Row, where: str) -> tuple[tuple[str, ...], set[str]]:
    """Return the labels and splits of a row."""
    multi, splits = "labels" in row, {own.lower() for own in _texts(row.get("split"), where)}
    if multi:
        labels = tuple(sorted({label for text in _texts(row["labels"], where) if (label := _label(text))}))
    else:
        labels = tuple(filter(None, [_label(_text(row["label"], where))]))
    if any(label.startswith("[") and label.endswith("]") for label in labels if multi):
        found = plain(str(row["labels"]))[:80]
        raise InputError(f"labels separated by `;` in {where}", found, "Write each list as text, joined by `;`.")
    if not labels and not (multi and splits == {GALLERY}):
        fix = "Fill it in, or remove the row; gallery images of no class take a column `labels`."
        raise InputError(f"a label in {where}", "none", fix)
    if ("split" in row and not splits) or not splits <= {*SPLITS, VALIDATION}:
        raise InputError(f"train, validation, gallery or query as split in {where}", repr(row["split"]), "Correct it.")
    return labels, splits


def _label(text: str) -> str:
    label = clean_label(text)
    return label[1:] if label.startswith("'") and FORMULA.match(label) else label


def _is_empty(value: Any) -> bool:
    blank = isinstance(value, str | bytes) and not value.strip()
    return blank or value is None or (isinstance(value, float) and math.isnan(value))


def _text(value: Any, where: str) -> str:
    """Return a field as text, whole numbers included, which other software may have stored as 1.0."""
    if _is_empty(value):
        return ""
    try:
        value = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise InputError(f"text in UTF-8 in {where}", repr(value[:40]), "Write the column as text.") from error
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int):
        found = f"{type(value).__name__} {plain(repr(value)[:80])}"
        raise InputError(f"text in {where}", found, "Write the column as text; for several labels call it `labels`.")
    return str(value).strip()


def _texts(value: Any, where: str) -> tuple[str, ...]:
    items = value if isinstance(value, list) else _text(value, where).split(";")
    return tuple(sorted({text for item in items if (text := _text(item, where))}))


def _inside(root: Path, text: str, where: str) -> str:
    """Return the name below `root` of what `text` points at; raises `InputError` if that is not below `root`."""
    forms = dict.fromkeys((text, normalize("NFC", text), normalize("NFD", text), text.replace("\\", "/")))
    if len(forms) > 1:
        text = next((form for form in forms if os.path.lexists(os.path.join(root, form))), text)
    path = os.path.normpath(os.path.join(root, text)).replace("\0", "")
    path = os.path.join(real_folder(os.path.dirname(path)), os.path.basename(path))
    real = os.path.realpath(path) if os.path.islink(path) else path
    if not text or "\0" in text or os.path.commonpath([root, real]) != str(root) or real == str(root):
        fix = "Put the manifest in a folder above its images; copy linked ones into it with `cp -rL`."
        raise InputError(f"a path inside {root} in {where}", repr(text), fix)
    return os.path.relpath(path, root)
