"""Images listed in a CSV or Parquet file: columns `path`, `label` (or `labels`) and, optionally, `split`.

`labels` holds several, separated by `;` (in Parquet a list column will do too), and makes the set multi-label.
`split` is train, validation, gallery or query; an image in both train and gallery has two rows, or `train;gallery`.
Paths are relative to the manifest's folder and may not leave it, neither by `..`, nor absolutely, nor through a link:
a manifest is a text that may come from anywhere, and must not point at the rest of the disk.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from distill.data.dataset import GALLERY, SPLITS, VALIDATION, ImageList
from distill.data.image_folder import ImageFiles
from gallery.errors import InputError

COLUMNS = ("path", "label", "labels", "split")
BLOCK = 1 << 26  # bytes of a CSV parsed at once, more than its longest row
Rows = tuple[int, list[dict[str, Any]]]  # number of the first row, and values by column


@dataclass
class _ManifestEntry:
    labels: tuple[str, ...]
    splits: set[str] = field(default_factory=set)


def list_manifest(path: Path) -> ImageList:
    """Read a manifest, sorted by path.  Raises `InputError` that names the row and what is wrong."""
    first, rows = _read_rows(path)
    root, entries = Path(os.path.realpath(path.parent)), dict[str, _ManifestEntry]()
    for number, row in enumerate(rows, first):
        if any(value is not None and value != "" for value in row.values()):
            _add(entries, root, row, f"row {number} of {path.name}")
    names = tuple(sorted(entries))
    return ImageList(
        name=path.stem if path.stem != "manifest" else root.name,
        names=names,
        labels=tuple(entries[name].labels for name in names),
        splits=tuple(frozenset(entries[name].splits) for name in names),
        source=ImageFiles(root, [root / name for name in names]),
        split_source="split given by the manifest",
        multi=any("labels" in row for row in rows[:1]),
    )


def _read_rows(path: Path) -> Rows:
    import pyarrow
    from pyarrow import csv, parquet

    is_csv = path.suffix.lower() == ".csv"
    try:
        if is_csv:
            table = csv.read_csv(
                path,
                csv.ReadOptions(use_threads=False, block_size=BLOCK),  # without threads, errors name the row
                csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
                csv.ConvertOptions(default_column_type=pyarrow.string()),
            )
            columns = _known_columns(table.schema.names, path)
        else:
            with parquet.ParquetFile(path) as file:
                columns = _known_columns(file.schema_arrow.names, path)
                table = file.read(columns=list(columns))
        return 2 if is_csv else 1, table.select(list(columns)).rename_columns(list(columns.values())).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        expected = "a CSV file in UTF-8" if is_csv else "a Parquet file"
        fix = "Save it again as UTF-8 CSV, and quote fields that hold a comma." if is_csv else "Write it again."
        raise InputError(f"{expected} at {path}", str(error)[:200], fix) from error


def _known_columns(header: Sequence[str], path: Path) -> dict[str, str]:
    """Map the columns' own names to those of a manifest; raises `InputError` where they are others."""
    names = [name.strip().lower() for name in header]
    known = [name for name in names if name in COLUMNS]
    if len(known) != len(set(known)) or "path" not in known or ("label" in known) == ("labels" in known):
        raise InputError(
            f"columns path, label (or labels; not both) and optionally split in {path}",
            ", ".join(names) or "none",
            "Rename the columns, and separate CSV fields by commas.",
        )
    return {own: name for own, name in zip(header, names, strict=True) if name in COLUMNS}


def _add(entries: dict[str, _ManifestEntry], root: Path, row: dict[str, Any], where: str) -> None:
    name = _inside(root, _text(row["path"]), where)
    labels = _texts(row["labels"]) if "labels" in row else tuple(filter(None, [_text(row["label"])]))
    splits = {own.lower() for own in _texts(row["split"])} if "split" in row else set()
    if not labels and not ("labels" in row and splits == {GALLERY}):
        raise InputError(f"a label in {where}", "none", "Fill it in, or remove the row.")
    entry = entries.setdefault(name, _ManifestEntry(labels))
    if entry.labels != labels:
        found = f"{'; '.join(entry.labels)} and {'; '.join(labels)} for {name}"
        raise InputError(f"the same labels in every row of an image ({where})", found, "Use a `labels` column.")
    if ("split" in row and not splits) or not splits <= {*SPLITS, VALIDATION}:
        raise InputError(f"train, validation, gallery or query as split in {where}", repr(row["split"]), "Correct it.")
    entry.splits |= splits


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _texts(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list) else _text(value).split(";")
    return tuple(sorted({text for item in items if (text := _text(item))}))


def _inside(root: Path, text: str, where: str) -> str:
    """Return the name below `root` of what `text` points at; raises `InputError` if that is not below `root`."""
    path = os.path.normpath(os.path.join(root, text)).replace("\0", "")
    path = os.path.join(_real(os.path.dirname(path)), os.path.basename(path))
    real = os.path.realpath(path) if os.path.islink(path) else path
    if not text or "\0" in text or os.path.commonpath([root, real]) != str(root) or real == str(root):
        raise InputError(
            f"a path inside {root} in {where}",
            repr(text),
            "Put the manifest in a folder above its images; copy linked ones into it with `cp -rL`.",
        )
    return os.path.relpath(path, root)


@lru_cache(4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)
