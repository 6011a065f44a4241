"""What is to be in a gallery: a folder of images, a CSV or Parquet manifest, or a prefix of an object store.

A manifest has a column `path`, optionally `id` (by default the path), `label` or `labels` (several, by `;`), and
columns of the owner's own.  Paths are relative to its folder and may not leave it.  Nothing is read but names, sizes,
times and the manifest itself.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gallery.console import plain
from gallery.database import check_column
from gallery.errors import InputError
from gallery.names import clean_label, counted, some
from gallery.results import Skipped
from gallery.row_checks import item_id, problem_of_id
from gallery.sources.column_types import typed_column
from gallery.sources.folder import is_software_folder, may_be_image, name_of, walk
from gallery.sources.http_fetch import is_http
from gallery.sources.manifest import (
    ManifestRows,
    inside,
    is_empty,
    is_manifest,
    label_of,
    labels_of,
    read_manifest,
    text_of,
)
from gallery.sources.object_store import ObjectStore, is_remote

if TYPE_CHECKING:
    import pyarrow as pa

OWN = ("path", "id", "label", "labels")
MAX_COLUMNS = 512
Locate = Callable[[str, str], tuple[str, str, str]]  # of a path and its row in words: name, address and etag


class Listing(NamedTuple):
    """What a source holds.

    items: `id`, `source` (its address), `etag` (null where that is not known without reading it), and what the source
    says beside: `labels` and the owner's columns
    skipped: what is no item, and why; others: the number of files that are clearly no images; warnings: sentences
    """

    items: pa.Table
    skipped: tuple[Skipped, ...] = ()
    others: int = 0
    warnings: tuple[str, ...] = ()


class SourceOptions(NamedTuple):
    """types: those of the owner's columns that the gallery has, by name"""

    labels_from_folders: bool = False
    allow_http: bool = False
    types: Mapping[str, pa.DataType] = {}


def list_source(source: str, options: SourceOptions) -> Listing:
    """List a folder, a manifest or an object store's prefix; raises `InputError` for what is none, or wrong in it."""
    if is_manifest(source.partition("?")[0]):
        if options.labels_from_folders:
            fix = "Give the manifest a column `label`."
            raise InputError("a folder with --labels-from-folders", f"the manifest {plain(source)}", fix)
        return _list_manifest(source, options)
    import pyarrow as pa

    found = _list_store(source) if is_remote(source) else _list_folder(source)
    rows, skipped = dict[str, tuple[str, str]](), list(found.skipped)
    for name, address, etag in found.places:
        id = item_id(name)  # as in training
        if problem := problem_of_id(id) or ("is no UTF-8" if _is_escaped(address) else ""):
            skipped.append(Skipped(path=plain(name), reason=f"its name {problem}"))
        else:
            rows[id] = address, etag
    ids = sorted(rows)
    columns = {"id": ids, "source": [rows[id][0] for id in ids], "etag": [rows[id][1] for id in ids]}
    items = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    if options.labels_from_folders:
        labels = [[label] if (label := _folder_label(id)) else None for id in ids]
        items = items.append_column("labels", pa.array(labels, pa.list_(pa.string())))
    return Listing(items, tuple(skipped), found.others, found.warnings)


class _Files(NamedTuple):
    """places: name, address and etag of each file that may be an image; the rest as in `Listing`"""

    places: Sequence[tuple[str, str, str]]
    others: int
    skipped: Sequence[Skipped] = ()
    warnings: tuple[str, ...] = ()


def _list_folder(source: str) -> _Files:
    if not source.strip() or not (root := Path(source)).is_dir():
        fix = "Give a folder of images, a .csv or .parquet manifest, or an address such as s3://bucket/prefix."
        raise InputError("a source of images", f"none at {plain(source) or 'an empty name'}", fix)
    contents = walk(root)
    places = [(name_of(path, root), os.path.abspath(path), _etag_of(path)) for path in contents.paths]
    return _Files(places, contents.others, contents.skipped, contents.warnings)


def _list_store(uri: str) -> _Files:
    store, places, others = ObjectStore(uri), [], 0
    for name, size, changed in store.list():
        *folders, file = name.split("/")
        if any(is_software_folder(folder) or folder.startswith(".") for folder in folders) or not may_be_image(file):
            others += 1
        else:
            places.append((name, store.address(name), f"{size}-{changed}"))
    return _Files(places, others)


def _is_escaped(source: str) -> bool:
    """Whether a path has bytes that are no text."""
    return any("\udc80" <= character <= "\udcff" for character in source)


def _etag_of(path: Path | str) -> str:
    """Return size and time of a file, empty where it cannot be had."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


def _folder_label(name: str) -> str:
    return clean_label(name.partition("/")[0]) if "/" in name else ""


def _list_manifest(source: str, options: SourceOptions) -> Listing:
    """List what a manifest says; raises `InputError` that names the row and what is wrong with it."""
    import pyarrow as pa

    if is_remote(source):
        folder, _, query = source.partition("?")
        store = ObjectStore(folder.rpartition("/")[0] + (f"?{query}" if query else ""))
        path = Path(folder.rpartition("/")[2])
        table = read_manifest(path, lambda header: _columns(header, path), store.read(path.name))
        etags = {name: f"{size}-{changed}" for name, size, changed in store.list()}
        locate: Locate = partial(_locate_object, store, etags)
    else:
        path = Path(source)
        if not path.is_file():
            raise InputError("a manifest", f"no file at {plain(source)}", "Check its path.")
        table = read_manifest(path, lambda header: _columns(header, path))
        locate = partial(_locate_file, Path(os.path.realpath(path.parent)))
    rows = _Rows(table, path.name)
    located = [
        _web_place(text, where, options.allow_http) if is_http(text) else locate(text, where)
        for text, where in rows.texts("path")
    ]
    ids = rows.ids([name for name, _, _ in located])
    items = pa.table({
        "id": pa.array(ids, pa.string()), "source": pa.array([own for _, own, _ in located], pa.string()),
        "etag": pa.array([etag or None for *_, etag in located], pa.string()),
    })  # fmt: skip
    if "labels" in table.rows.column_names or "label" in table.rows.column_names:
        items = items.append_column("labels", pa.array(rows.labels(), pa.list_(pa.string())))
    for name in table.rows.column_names:
        if name not in OWN:
            column = typed_column(name, table.rows[name].take(pa.array(rows.kept)), options.types.get(name))
            if column is not None:
                check_column(name)
                items = items.append_column(name, column)
    return Listing(items)


def _columns(header: Sequence[str], path: Path) -> dict[str, str]:
    """Map a manifest's columns to those of items; raises `InputError` where they do not fit."""
    if len(header) > MAX_COLUMNS:
        found = f"{len(header):,} in {path.name}"
        raise InputError(f"at most {MAX_COLUMNS} columns", found, "Leave out those that no search filters by.")
    names = [name.strip() for name in header]
    lower = [name.lower() if name.lower() in OWN else name for name in names]
    count = Counter(name.lower() for name in lower)
    if count["path"] != 1 or (count["label"] and count["labels"]) or any(many > 1 for many in count.values()):
        expected = f"a column path, optionally id, label (or labels), and others once each in {path.name}"
        raise InputError(expected, some(names) or "none", "Rename the columns, and separate CSV fields by commas.")
    return dict(zip(header, lower, strict=True))


class _Rows:
    """The rows of a manifest that are not empty. kept: their places in the file."""

    def __init__(self, table: ManifestRows, name: str) -> None:
        own = [column for column in table.rows.column_names if column in OWN]
        self._rows, self._first, self._name = table.rows.select(own).to_pylist(), table.first, name
        self.kept = [place for place, row in enumerate(self._rows) if not all(map(is_empty, row.values()))]
        if not self.kept:
            raise InputError(f"rows in {name}", "none", "List images in it.")

    def where(self, place: int) -> str:
        return f"row {self._first + place} of {self._name}"

    def texts(self, column: str) -> list[tuple[str, str]]:
        """Return a column as text, each with its row in words."""
        return [(text_of(self._rows[place].get(column), self.where(place)), self.where(place)) for place in self.kept]

    def ids(self, names: Sequence[str]) -> list[str]:
        """Return the id of each row, by default its name; raises `InputError` for one that cannot be, or is twice."""
        ids, seen = [], dict[str, str]()
        for (text, where), name in zip(self.texts("id"), names, strict=True):
            id = text or item_id(name)
            if problem := problem_of_id(id):
                raise InputError(f"an id in {where}", f"{ascii(id)[:80]}, which {problem}", "Give it another id.")
            if id in seen:
                found = f"{ascii(id)[:80]} in both {seen[id]} and {where}"
                raise InputError("one row for each id", found, "Remove one, or give it another id.")
            seen[id] = where
            ids.append(id)
        return ids

    def labels(self) -> list[list[str] | None]:
        """Return the labels of each row, None where it has none."""
        found = []
        for place in self.kept:
            row, where = self._rows[place], self.where(place)
            if "labels" in row:
                own = labels_of(row["labels"], where)
            else:
                own = tuple(filter(None, [label_of(text_of(row["label"], where))]))
            found.append(list(own) or None)
        return found


def _locate_file(root: Path, text: str, where: str) -> tuple[str, str, str]:
    name = inside(root, text, where)
    path = os.path.join(root, name)
    return name.replace(os.sep, "/"), path, _etag_of(path)


def _locate_object(store: ObjectStore, etags: Mapping[str, str], text: str, where: str) -> tuple[str, str, str]:
    parts = text.removeprefix("./").split("/")
    if not text or "" in parts or ".." in parts or "." in parts:
        fix = "Put the manifest above its images, and write their names below it."
        raise InputError(f"a name below the manifest in {where}", ascii(text)[:200], fix)
    name = "/".join(parts)
    return name, store.address(name), etags.get(name, "")


def _web_place(text: str, where: str, allowed: bool) -> tuple[str, str, str]:
    if not allowed:
        fix = "Add --allow-http to fetch them, if you trust the manifest."
        raise InputError(f"a file in {where}", f"the address {ascii(text)[:200]}", fix)
    return text, text, ""


def describe(listing: Listing) -> str:
    """Return in words what was listed and what was passed over."""
    text = counted(len(listing.items), "image")
    if listing.others:
        text += f", {counted(listing.others, 'other file')} passed over"
    if listing.skipped:
        text += f", {len(listing.skipped):,} that cannot be listed ({some(one.path for one in listing.skipped)})"
    return text
