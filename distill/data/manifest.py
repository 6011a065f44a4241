"""Pictures listed in a CSV or Parquet file: columns `path`, `label` (or `labels`) and, optionally, `split`.

`labels` holds several, separated by `;` (in Parquet a list column will do too), and makes the set multi-label.
`split` is train, gallery or query; a picture in both train and gallery has two rows, or `train;gallery`.  Paths are
relative to the manifest's folder and may not leave it, neither by `..`, nor absolutely, nor through a link: a
manifest is a text that may come from anywhere, and must not point at the rest of the disk.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from distill.data.dataset import PARTS, ImageList
from distill.data.image_folder import ImageFiles
from gallery.errors import InputError

COLUMNS = ("path", "label", "labels", "split")
Rows = Iterator[tuple[int, Sequence[Any]]]  # row number in the file, values; the header comes first


@dataclass
class _Entry:
    labels: tuple[str, ...]
    parts: set[str] = field(default_factory=set)


def list_manifest(path: Path) -> ImageList:
    """Reads a manifest; pictures come sorted by path.  Raises `InputError` that names the row and what is wrong."""
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _parquet_rows(path)
    header = [str(column).strip().lower() for column in next(rows, (0, ()))[1]]
    _check_header(header, path)
    root, entries = Path(os.path.realpath(path.parent)), dict[str, _Entry]()
    for number, values in rows:
        where = f"row {number} of {path.name}"
        if len(values) != len(header):
            raise InputError(f"{len(header)} fields in {where}", str(len(values)), "Quote fields that hold a comma.")
        _add(entries, root, dict(zip(header, values, strict=True)), where)
    names = tuple(sorted(entries))
    return ImageList(
        name=path.stem if path.stem != "manifest" else root.name,
        names=names,
        labels=tuple(entries[name].labels for name in names),
        parts=tuple(frozenset(entries[name].parts) for name in names),
        pictures=ImageFiles(root, [root / name for name in names]),
        origin="split given by the manifest",
        multi="labels" in header,
    )


def _csv_rows(path: Path) -> Rows:
    try:
        text = io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")
        reader = csv.reader(text, strict=True)
        yield from ((reader.line_num, row) for row in reader if row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"a CSV file in UTF-8 at {path}", str(error), "Save it again as UTF-8 CSV.") from error


def _parquet_rows(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            header = file.schema_arrow.names
            yield 0, header
            wanted = [name for name in header if name.strip().lower() in COLUMNS]
            count = 0
            for batch in file.iter_batches(columns=wanted):
                columns = [batch[name].to_pylist() if name in wanted else [None] * len(batch) for name in header]
                yield from enumerate(zip(*columns, strict=True), count + 1)
                count += len(batch)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(f"a Parquet file at {path}", str(error), "Write it again.") from error


def _check_header(header: Sequence[str], path: Path) -> None:
    known = [column for column in header if column in COLUMNS]
    if len(known) == len(set(known)) and "path" in known and ("label" in known) != ("labels" in known):
        return
    found = ", ".join(header) or "none"
    raise InputError(
        f"columns path, label (or labels; not both) and optionally split in {path}",
        found,
        "Rename the columns, and separate CSV fields by commas.",
    )


def _add(entries: dict[str, _Entry], root: Path, row: dict[str, Any], where: str) -> None:
    name = _inside(root, _text(row["path"]), where)
    labels = _texts(row["labels"]) if "labels" in row else tuple(filter(None, [_text(row["label"])]))
    if not labels:
        raise InputError(f"a label in {where}", "none", "Fill it in, or remove the row.")
    entry = entries.setdefault(name, _Entry(labels))
    if entry.labels != labels:
        found = f"{'; '.join(entry.labels)} and {'; '.join(labels)} for {name}"
        raise InputError(f"the same labels in every row of a picture ({where})", found, "Use a `labels` column.")
    parts = _texts(row["split"]) if "split" in row else ()
    if ("split" in row and not parts) or not {part.lower() for part in parts} <= set(PARTS):
        raise InputError(f"train, gallery or query as split in {where}", repr(row["split"]), "Correct it.")
    entry.parts.update(part.lower() for part in parts)


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _texts(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list) else _text(value).split(";")
    return tuple(sorted({text for item in items if (text := _text(item))}))


def _inside(root: Path, text: str, where: str) -> str:
    """The name below `root` of what `text` points at; raises `InputError` if that is not below `root`."""
    path = os.path.normpath(os.path.join(root, text)).replace("\0", "")
    path = os.path.join(_real(os.path.dirname(path)), os.path.basename(path))
    real = os.path.realpath(path) if os.path.islink(path) else path
    if not text or "\0" in text or os.path.commonpath([root, real]) != str(root) or real == str(root):
        raise InputError(
            f"a path inside {root} in {where}",
            repr(text),
            "Put the manifest in a folder above its pictures; copy linked ones into it with `cp -rL`.",
        )
    return os.path.relpath(path, root)


@lru_cache(4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)
