"""The rows of a manifest, a CSV or Parquet file that lists images: read within limits, since it may come from anywhere.

What a spreadsheet would take for a formula is written as `'=label` and `./=path`, and read back.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unicodedata import normalize

from gallery.console import plain
from gallery.errors import InputError
from gallery.names import clean_label

if TYPE_CHECKING:
    import pyarrow as pa

MAX_BYTES = 1 << 30  # of a CSV file, or of the columns of a Parquet file in memory
BLOCK = 1 << 26  # bytes of a CSV parsed at once, more than its longest row
BATCH = 1024  # rows of a Parquet file read at once
FORMULA = re.compile(r"'*[=+\-@]")
real_folder = lru_cache(4096)(os.path.realpath)
Columns = Callable[[Sequence[str]], Mapping[str, str]]


class ManifestRows(NamedTuple):
    """first: the number of the first row; rows: the columns that were asked for; header: the names of all columns"""

    first: int
    rows: pa.Table
    header: Sequence[str]


def is_manifest(name: str) -> bool:
    """Return whether a file of this name is a manifest."""
    return name.lower().endswith((".csv", ".parquet"))


def read_manifest(path: Path, columns: Columns, data: bytes | None = None) -> ManifestRows:
    """Read the columns that `columns` maps, from their own names to those of the result; those of a CSV file are text.

    data: the contents of the file, where they are known already
    Raises `InputError` for what is no CSV or Parquet file, or too large.
    """
    import pyarrow

    is_csv = path.suffix.lower() == ".csv"
    try:
        if (path.stat().st_size if data is None else len(data)) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES >> 20} MiB")
        return (_read_csv if is_csv else _read_parquet)(path if data is None else BytesIO(data), columns)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        expected = "a CSV file in UTF-8" if is_csv else "a Parquet file"
        fix = "Save it again as UTF-8 CSV, and quote fields that hold a comma." if is_csv else "Write it again."
        raise InputError(f"{expected} at {path}", plain(str(error))[:200], fix) from error


def _read_csv(source: Path | BytesIO, columns: Columns) -> ManifestRows:
    import pyarrow.csv

    table = pyarrow.csv.read_csv(
        source,
        pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK),  # without threads, errors name the row
        pyarrow.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        pyarrow.csv.ConvertOptions(default_column_type=pyarrow.string()),
    )
    chosen = columns(table.schema.names)
    return ManifestRows(2, table.select(list(chosen)).rename_columns(list(chosen.values())), table.schema.names)


def _read_parquet(source: Path | BytesIO, columns: Columns) -> ManifestRows:
    """Read a file in parts: a few bytes may stand for any number of rows."""
    import pyarrow
    from pyarrow import parquet

    with parquet.ParquetFile(source) as file:
        header, parts, size = file.schema_arrow.names, [], 0
        chosen = columns(header)
        for batch in file.iter_batches(BATCH, columns=list(chosen)):
            size += batch.nbytes
            if size > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES >> 20} MiB")
            parts.append(batch.select(list(chosen)).rename_columns(list(chosen.values())))
        schema = pyarrow.schema([file.schema_arrow.field(own).with_name(name) for own, name in chosen.items()])
        return ManifestRows(1, pyarrow.Table.from_batches(parts, None if parts else schema), header)


def label_of(text: str) -> str:
    """Return a label as it is shown everywhere."""
    label = clean_label(text)
    return label[1:] if label.startswith("'") and FORMULA.match(label) else label


def is_empty(value: Any) -> bool:
    """Return whether a field says nothing."""
    blank = isinstance(value, str | bytes) and not value.strip()
    return blank or value is None or (isinstance(value, float) and math.isnan(value))


def text_of(value: Any, where: str) -> str:
    """Return a field as text, whole numbers included, which other software may have stored as 1.0."""
    if is_empty(value):
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


def texts_of(value: Any, where: str) -> tuple[str, ...]:
    """Return the texts of a list, or those in a field that are separated by `;`, sorted."""
    items = value if isinstance(value, list) else text_of(value, where).split(";")
    return tuple(sorted({text for item in items if (text := text_of(item, where))}))


def labels_of(value: Any, where: str) -> tuple[str, ...]:
    """Return the labels in a field of `labels`; raises `InputError` for a list that was written as text."""
    labels = tuple(sorted({label for text in texts_of(value, where) if (label := label_of(text))}))
    if any(label.startswith("[") and label.endswith("]") for label in labels):
        found = plain(str(value))[:80]
        raise InputError(f"labels separated by `;` in {where}", found, "Write each list as text, joined by `;`.")
    return labels


def inside(root: Path, text: str, where: str) -> str:
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
