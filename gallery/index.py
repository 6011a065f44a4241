"""The gallery: a LanceDB table of record that carries its code space, searched exactly in memory by faiss.

Results are sorted by (distance, id), also where a tie is cut off at k.  A 64-bit code is eight bytes, so an exact
scan is the right default far beyond a million items: 0.8 ms per million on one core with faiss-cpu 1.15.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gallery.codes import Codes
from gallery.codespace import CodeSpace
from gallery.console import log
from gallery.distance_histogram import Labels, check_labelled
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError
from gallery.files import atomic_path

if TYPE_CHECKING:
    import pyarrow as pa

TABLE = "gallery"
SPACE_KEY, SUMS_KEY = b"twinhash.codespace", b"twinhash.sums"
RESTORE = "The table is damaged or was edited: restore it, or encode the gallery again."


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

    def __init__(self, uri: str, table: Any) -> None:
        self.uri, self._table = uri, table
        metadata = table.schema.metadata or {}
        if SPACE_KEY not in metadata or SUMS_KEY not in metadata:
            fix = "Encode the gallery again with Twinhash."
            raise CodeSpaceMismatch(f"the gallery {uri} to carry a code space", "a table without one", fix)
        try:
            space, self._sums = (dict(json.loads(metadata[key])) for key in (SPACE_KEY, SUMS_KEY))
        except (ValueError, TypeError) as error:
            raise CorruptFile(f"readable metadata in the gallery {uri}", str(error), RESTORE) from error
        self.space = CodeSpace.from_dict(space)

    def __len__(self) -> int:
        return int(self._table.count_rows())

    def search(self, codes: Codes, k: int) -> SearchResult:
        """Return the k nearest items of packed codes `[n, bytes]`; `InputError` for a wrong dtype, width or k below 1.

        On one thread: two that spin on a busy machine took 136 ms for what takes one 0.8 ms.
        """
        import faiss

        _check_codes(self.space, codes)
        if k < 1:
            raise InputError("k of at least 1", str(k), "Change k.")
        flat, threads = self._flat, faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            distances, ids = flat.search(np.ascontiguousarray(codes), min(k, len(self)))
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
        codes = self._column("code").flatten().to_numpy().reshape(-1, self.space.bits // 8)
        return self._verified("codes", np.ascontiguousarray(codes, np.uint8))

    @cached_property
    def labels(self) -> Labels:
        """int64 `[len]` or multi-hot bool `[len, classes]`; `CorruptFile` when they are not as written."""
        if "label" in self._table.schema.names:
            return self._verified("labels", self._column("label").to_numpy())
        column = self._column("labels")
        labels = np.zeros((len(column), int(self._sums.get("classes", 0))), bool)
        if column.flatten().to_numpy().max(initial=-1) < labels.shape[1]:
            labels[column.value_parent_indices().to_numpy(), column.flatten().to_numpy()] = True
        return self._verified("labels", labels)

    @cached_property
    def names(self) -> list[str]:
        """The name of each item, e.g. its path."""
        return list(self._column("name").to_pylist())

    def _column(self, name: str) -> Any:
        query = self._table.search().select(["id", name]).limit(len(self))
        rows = _read(self.uri, query.to_arrow).sort_by("id").combine_chunks()
        if not np.array_equal(rows["id"].to_numpy(), np.arange(len(rows))):
            raise CorruptFile(f"ids 0..{len(rows) - 1} in the gallery {self.uri}", "others", RESTORE)
        return rows[name].combine_chunks()

    def _verified(self, what: str, values: NDArray[Any]) -> NDArray[Any]:
        if _checksum(values) != self._sums.get(what):
            raise CorruptFile(f"the {what} the gallery {self.uri} was made with", "others", RESTORE)
        return values


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
    if not _is_remote(uri) and not _holds_gallery(Path(uri)):
        raise InputError("a Twinhash gallery", f"none at {uri}", "Check the path, or run the command that encodes it.")
    gallery = GalleryIndex(str(uri), _read(str(uri), partial(_connect(uri).open_table, TABLE)))
    if expected is not None:
        other = expected if isinstance(expected, str) else expected.id
        gallery.space.check_compatible(other, f"the gallery {uri}", "what is compared with it")
    return gallery


def _rows(space: CodeSpace, codes: Codes, labels: Labels, names: list[str]) -> pa.Table:
    import pyarrow as pa

    columns = {
        "id": pa.array(np.arange(len(codes))),
        "name": pa.array(names, pa.string()),
        "code": pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), space.bits // 8),
    }
    sums: dict[str, Any] = {"codes": _checksum(codes)}
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


def _checksum(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _is_remote(uri: str | Path) -> bool:
    return "://" in str(uri)


def _holds_gallery(folder: Path) -> bool:
    return (folder / f"{TABLE}.lance").is_dir()


def _connect(uri: str | Path) -> Any:
    import lancedb

    return lancedb.connect(str(uri))


def _read(uri: str, read: Any) -> Any:
    """Call `read`: LanceDB raises ValueError, RuntimeError or OSError for whatever is wrong with a table."""
    try:
        return read()
    except (ValueError, RuntimeError, OSError) as error:
        raise CorruptFile(f"a readable gallery at {uri}", str(error), RESTORE) from error
