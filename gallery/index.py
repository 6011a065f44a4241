"""The gallery: a LanceDB table of record that carries its code space, searched exactly in memory by faiss.

Results are sorted by (distance, id), also where a tie is cut off at k.  A 64-bit code is eight bytes, so an exact
scan is the right default far beyond a million items: 0.8 ms per million on one core with faiss-cpu 1.15.
"""

from __future__ import annotations

import hashlib
import json
import operator
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex, TypeVar

import numpy as np
from numpy.typing import NDArray

from gallery.codes import Codes
from gallery.codespace import CodeSpace
from gallery.console import log
from gallery.distance_histogram import Labels, check_labelled
from gallery.errors import CodeSpaceMismatch, CorruptFile, GalleryReplaced, InputError
from gallery.files import atomic_path, check_regular

if TYPE_CHECKING:
    import pyarrow as pa

TABLE = "gallery"
SPACE_KEY, SUMS_KEY = b"twinhash.codespace", b"twinhash.sums"
RESTORE = "The table is damaged or was edited: restore it, or encode the gallery again."
MAX_CLASSES = 1 << 16
TRIES, WAIT_S = 20, 0.05  # for a folder that is being replaced
T = TypeVar("T")


class SearchResult(NamedTuple):
    """The nearest items of each query, sorted by (distance, id): uint16 and int64, both `[queries, min(k, len)]`."""

    distances: NDArray[np.uint16]
    ids: NDArray[np.int64]


class GalleryIndex:
    """The codes, labels and names of a gallery; ids are 0..len-1, and everything comes in their order.

    The table is a folder, or `s3://bucket/path`, `db://project` in LanceDB's cloud, or `memory://`.  Its columns: id,
    code (fixed_size_list<uint8>), name, and label (int64) or labels (list<int32>, the classes of an item).  Its
    metadata hold the code space and checksums of codes and labels, which are read once and verified.
    """

    def __init__(self, uri: str, table: Any, stamp: tuple[int, int] | None = None) -> None:
        self.uri, self._table, self._stamp = uri, table, stamp
        metadata = table.schema.metadata or {}
        if SPACE_KEY not in metadata or SUMS_KEY not in metadata:
            fix = "Encode the gallery again with Twinhash."
            raise CodeSpaceMismatch(f"the gallery {uri} to carry a code space", "a table without one", fix)
        try:
            space, self._sums = (dict(json.loads(metadata[key])) for key in (SPACE_KEY, SUMS_KEY))
        except (ValueError, TypeError, RecursionError) as error:
            raise CorruptFile(f"readable metadata in the gallery {uri}", str(error), RESTORE) from error
        self.space = CodeSpace.from_dict(space)
        self._length: int = self._read(table.count_rows)

    def __len__(self) -> int:
        return self._length

    def search(self, codes: Codes, k: SupportsIndex) -> SearchResult:
        """Return the k nearest items of packed codes `[n, bytes]`; `InputError` for a wrong dtype, width or k below 1.

        The gallery's codes are verified before the first search.
        On one thread: two that spin on a busy machine took 136 ms for what takes one 0.8 ms.
        """
        import faiss

        _check_codes(self.space, codes)
        try:
            count = operator.index(k)
        except TypeError as error:
            raise InputError("a whole number as k", repr(k), "Change k.") from error
        if count < 1:
            raise InputError("k of at least 1", str(k), "Change k.")
        flat, threads = self._flat, faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            distances, ids = flat.search(np.ascontiguousarray(codes), min(count, len(self)))
        finally:
            faiss.omp_set_num_threads(threads)
        return SearchResult(distances.astype(np.uint16), ids)

    @cached_property
    def _flat(self) -> Any:
        import faiss

        flat = faiss.IndexBinaryFlat(self.space.bits)
        flat.use_heap = False  # type: ignore[attr-defined]  # a counting search, which keeps the first ids of a tie
        flat.add(self.codes)
        return flat

    @cached_property
    def codes(self) -> Codes:
        """The packed codes, uint8 `[len, bytes]`; `CorruptFile` when they are not those that were written."""

        def convert(column: Any) -> Codes:
            codes = column.flatten().to_numpy(zero_copy_only=False).reshape(len(self), self.space.bits // 8)
            return np.ascontiguousarray(codes, np.uint8)

        return self._column("codes", "code", convert)

    @cached_property
    def labels(self) -> Labels:
        """int64 `[len]` or multi-hot bool `[len, classes]`; `CorruptFile` when they are not as written."""

        def multi_hot(column: Any) -> Labels:
            classes, found = int(self._sums["classes"]), column.flatten().to_numpy(zero_copy_only=False)
            if not 0 < classes <= MAX_CLASSES or not 0 <= found.min(initial=0) <= found.max(initial=0) < classes:
                raise ValueError(f"{classes} classes")
            labels = np.zeros((len(self), classes), bool)
            labels[column.value_parent_indices().to_numpy(), found] = True
            return labels

        if "label" in self._table.schema.names:
            return self._column("labels", "label", lambda column: column.to_numpy(zero_copy_only=False))
        return self._column("labels", "labels", multi_hot)

    @cached_property
    def names(self) -> list[str]:
        """The name of each item, e.g. its path; `CorruptFile` when they are not as written."""
        return self._column("names", "name", lambda column: [str(name) for name in column.to_pylist()])

    def _column(self, what: str, name: str, convert: Callable[[Any], Any]) -> Any:
        """Read a column in the order of the ids, and compare it with its checksum."""
        query = self._table.search().select(["id", name]).limit(len(self))

        def read() -> Any:
            rows = query.to_arrow().sort_by("id").combine_chunks()
            if not np.array_equal(rows["id"].to_numpy(), np.arange(len(self))):
                raise ValueError(f"ids that are not 0..{len(self) - 1}")
            return convert(rows[name].combine_chunks())

        values = self._read(read)
        if _checksum(values) != self._sums.get(what):
            raise CorruptFile(f"the {what} the gallery {self.uri} was made with", "others", RESTORE)
        return values

    def _read(self, read: Callable[[], T]) -> T:
        """Call `read`; `GalleryReplaced` where another process has put a new gallery in the place of this one."""
        try:
            return _call(self.uri, read)
        except CorruptFile as error:
            if _stamp(self.uri) == self._stamp:
                raise
            found = "a new one in its place, made by another process"
            raise GalleryReplaced(f"the gallery {self.uri} as it was opened", found, "Open it again.") from error


def create_gallery(uri: str | Path, space: CodeSpace, codes: Codes, labels: Labels, names: list[str]) -> GalleryIndex:
    """Write a gallery and open it; an earlier one in a local folder is replaced atomically.

    codes: packed uint8 `[n, bytes]`; labels: int `[n]` or multi-hot bool `[n, classes]`; ids follow their order.
    Raises `InputError` when they do not fit together, or when `uri` is a folder that holds something else.
    """
    check_labelled("gallery", codes, labels)
    _check_codes(space, codes)
    if len(names) != len(codes):
        found = f"{len(codes)} codes and {len(names)} names"
        raise InputError("one name for each code", found, "Pass lists of one length.")
    _check_names(names)
    rows = _rows(space, codes, labels, names)
    if _is_remote(uri):
        return GalleryIndex(str(uri), _connect(uri).create_table(TABLE, data=rows, mode="overwrite"))
    folder = Path(uri)
    if folder.exists() and not _holds_gallery(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError("a new or empty folder, or a gallery to replace", str(folder), "Choose another folder.")
    with atomic_path(folder) as draft:
        _connect(draft).create_table(TABLE, data=rows)
    log.info("  gallery of %d codes in %s", len(codes), folder)
    return open_gallery(folder, space)


def open_gallery(uri: str | Path, expected: CodeSpace | str | None = None) -> GalleryIndex:
    """Open a gallery; `expected` is the code space (or its id) of what will be compared with it.

    Raises `InputError` where there is none, `CorruptFile` for a damaged one, and `CodeSpaceMismatch` for one without a
    code space or with another one than expected.
    """
    gallery = _open(str(uri))
    if expected is not None:
        other = expected if isinstance(expected, str) else expected.id
        gallery.space.check_compatible(other, f"the gallery {uri}", "what is compared with it")
    return gallery


def _open(uri: str) -> GalleryIndex:
    """Open a gallery; one that is being replaced is waited for."""
    for left in reversed(range(TRIES)):
        before = _stamp(uri)
        try:
            if not _is_remote(uri) and not _holds_gallery(Path(uri)):
                fix = "Check the path, or run the command that encodes it."
                raise InputError("a Twinhash gallery", f"none at {uri}", fix)
            _call(uri, lambda: _check_files(Path(uri)))
            return GalleryIndex(uri, _call(uri, lambda: _connect(uri).open_table(TABLE)), before)
        except (CorruptFile, GalleryReplaced, InputError):
            if not left or (before == _stamp(uri) and not _is_being_replaced(uri)):
                raise
            time.sleep(WAIT_S)
    raise AssertionError("the last try returns or raises")


def _check_files(folder: Path) -> None:
    """Raise `ValueError` for anything in a local gallery but folders and files: LanceDB would wait for a pipe."""
    for path in folder.rglob("*") if folder.is_dir() else ():
        if not path.is_dir():
            check_regular(path, sys.maxsize)


def _is_being_replaced(uri: str) -> bool:
    """Whether another process is about to put a gallery at `uri`."""
    folder = Path(uri).absolute()
    if _is_remote(uri) or folder.exists() or not folder.parent.is_dir():
        return False
    return any(path.name.startswith(f".{folder.name}.") for path in folder.parent.iterdir())


def _rows(space: CodeSpace, codes: Codes, labels: Labels, names: list[str]) -> pa.Table:
    import pyarrow as pa

    columns = {
        "id": pa.array(np.arange(len(codes))),
        "name": pa.array(names, pa.string()),
        "code": pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), space.bits // 8),
    }
    sums: dict[str, Any] = {"codes": _checksum(codes), "names": _checksum(names)}
    if labels.ndim == 1:
        labels = labels.astype(np.int64)
        columns["label"] = pa.array(labels)
    else:
        ends = np.concatenate([[0], labels.sum(1).cumsum()]).astype(np.int32)
        columns["labels"] = pa.ListArray.from_arrays(pa.array(ends), pa.array(labels.nonzero()[1].astype(np.int32)))
        sums["classes"] = labels.shape[1]
    metadata = {SPACE_KEY: json.dumps(space.to_dict()), SUMS_KEY: json.dumps({**sums, "labels": _checksum(labels)})}
    return pa.table(columns).replace_schema_metadata(metadata)


def _check_codes(space: CodeSpace, codes: Codes) -> None:
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] * 8 != space.bits:
        expected = f"packed uint8 codes [n, {space.bits // 8}] of code space {space.id}"
        raise InputError(expected, f"{codes.dtype} {codes.shape}", "Pack logits of that space with gallery.codes.pack.")


def _check_names(names: list[str]) -> None:
    """Raise `InputError` for a name that is no text, such as the name of a file in another encoding."""
    for name in names:
        try:
            name.encode()
        except (AttributeError, UnicodeEncodeError) as error:
            raise InputError("names that are text", ascii(name), "Rename it in UTF-8.") from error


def _checksum(values: NDArray[Any] | list[str]) -> str:
    if isinstance(values, list):
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _is_remote(uri: str | Path) -> bool:
    return "://" in str(uri)


def _holds_gallery(folder: Path) -> bool:
    return (folder / f"{TABLE}.lance").is_dir()


def _stamp(uri: str) -> tuple[int, int] | None:
    """What tells a gallery in a local folder from one that replaced it; None where there is none."""
    try:
        status = Path(uri, f"{TABLE}.lance").stat()
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_ctime_ns


def _connect(uri: str | Path) -> Any:
    import lancedb

    return lancedb.connect(str(uri))


def _call(uri: str, read: Callable[[], T]) -> T:
    """Call `read`: LanceDB and pyarrow raise a dozen types for whatever is wrong with a table, or panic."""
    try:
        return read()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise CorruptFile(f"a readable gallery at {uri}", f"{type(error).__name__}: {error}", RESTORE) from error
