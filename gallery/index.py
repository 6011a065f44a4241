"""The gallery: a LanceDB table of record that carries its code space, and an exact searcher in memory.

Neighbours are sorted by (distance, id), also where a tie is cut off at k.  A 64-bit code is eight bytes, so an exact
scan is the right default far beyond a million items: 0.8 ms per million on one core with faiss-cpu 1.15.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gallery.codes import Codes
from gallery.codespace import CodeSpace
from gallery.console import log
from gallery.distance_histogram import Labels, check_labelled
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError
from gallery.files import whole

if TYPE_CHECKING:
    import pyarrow as pa

TABLE = "gallery"
SPACE_KEY, SUMS_KEY = b"twinhash.codespace", b"twinhash.sums"


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The nearest items of each query, sorted by (distance, id): uint16 and int64, both `[queries, min(k, len)]`."""

    distances: NDArray[np.uint16]
    ids: NDArray[np.int64]


class GalleryIndex(Protocol):
    """What every gallery can do.  Ids are 0..len-1; codes, labels and names come in their order."""

    @property
    def space(self) -> CodeSpace: ...

    def __len__(self) -> int: ...

    def search(self, codes: Codes, k: int) -> SearchResult:
        """The k nearest items of packed codes `[n, bytes]`; `InputError` for a wrong dtype or width or k below 1."""

    def codes(self) -> Codes:
        """Packed, uint8 `[len, bytes]`."""

    def labels(self) -> Labels:
        """int64 `[len]`, or multi-hot bool `[len, classes]`."""

    def names(self) -> list[str]:
        """What each item is called, e.g. its path."""


class MemoryGallery:
    """Exact search in memory by faiss's flat index, whose counting search keeps the first ids of a tie."""

    def __init__(self, space: CodeSpace, codes: Codes, labels: Labels, names: list[str]) -> None:
        import faiss

        _check_rows(space, codes, labels, names)
        self.space, self._codes, self._labels, self._names = space, codes, labels, names
        self._flat = faiss.IndexBinaryFlat(space.bits)
        self._flat.use_heap = False  # type: ignore[attr-defined]  # faiss's stubs leave it out
        self._flat.add(np.ascontiguousarray(codes))

    def __len__(self) -> int:
        return len(self._codes)

    def search(self, codes: Codes, k: int) -> SearchResult:
        """See `GalleryIndex`.  One thread: two that spin on a busy machine took 136 ms for what takes one 0.8 ms."""
        import faiss

        k = _check_query(self.space, codes, k, len(self))
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            distances, ids = self._flat.search(np.ascontiguousarray(codes), k)
        finally:
            faiss.omp_set_num_threads(threads)
        return SearchResult(distances.astype(np.uint16), ids)

    def codes(self) -> Codes:
        """See `GalleryIndex`."""
        return self._codes

    def labels(self) -> Labels:
        """See `GalleryIndex`."""
        return self._labels

    def names(self) -> list[str]:
        """See `GalleryIndex`."""
        return self._names


class LanceGallery:
    """The gallery of record, a LanceDB table: a folder, or `s3://bucket/path`, or `db://project` in LanceDB's cloud.

    Columns: id, code (fixed_size_list<uint8>), name, and label (int64) or labels (list<int32>, the classes of an item).
    The schema's metadata hold the code space and checksums of codes and labels, verified whenever these are read.
    """

    def __init__(self, uri: str, table: Any) -> None:
        self.uri, self._table = uri, table
        metadata = table.schema.metadata or {}
        if SPACE_KEY not in metadata or SUMS_KEY not in metadata:
            raise CodeSpaceMismatch(
                f"the gallery {uri} to carry a code space",
                "a table without one",
                "Encode the gallery again with Twinhash.",
            )
        self.space = CodeSpace.from_dict(_json(uri, metadata[SPACE_KEY]))
        self._sums = _json(uri, metadata[SUMS_KEY])

    def __len__(self) -> int:
        return int(self._table.count_rows())

    def search(self, codes: Codes, k: int) -> SearchResult:
        """See `GalleryIndex`.  Scans the table for each query; for many of them use `in_memory()`."""
        k = _check_query(self.space, codes, k, len(self))
        found = [self._nearest(code, k) for code in codes]
        return SearchResult(
            np.array([d for d, _ in found], np.uint16).reshape(-1, k),
            np.array([i for _, i in found], np.int64).reshape(-1, k),
        )

    def _nearest(self, code: Codes, k: int) -> tuple[Any, Any]:
        """Distances and ids of the k nearest; a tie that is cut off at k is fetched whole, to keep its first ids."""
        distances, ids = self._scan(code, k + 1, None)
        if len(ids) > k and distances[k] == distances[k - 1]:
            distances, ids = self._scan(code, len(self), float(distances[k]) + 1)
        return distances[:k], ids[:k]

    def _scan(self, code: Codes, limit: int, below: float | None) -> tuple[Any, Any]:
        query = self._table.search(code, vector_column_name="code").distance_type("hamming").bypass_vector_index()
        query = query if below is None else query.distance_range(None, below)
        rows = _read(self.uri, query.limit(limit).select(["id", "_distance"]).to_arrow)
        distances, ids = rows["_distance"].to_numpy(), rows["id"].to_numpy()
        order = np.lexsort((ids, distances))
        return distances[order], ids[order]

    def codes(self) -> Codes:
        """See `GalleryIndex`; raises `CorruptFile` when they are not the codes that were written."""
        codes = _flat(self._column("code")["code"]).reshape(-1, self.space.bits // 8)
        return self._verified("codes", np.ascontiguousarray(codes, np.uint8))

    def labels(self) -> Labels:
        """See `GalleryIndex`; raises `CorruptFile` when they are not the labels that were written."""
        if "label" in self._table.schema.names:
            return self._verified("labels", self._column("label")["label"].to_numpy())
        column = self._column("labels")["labels"].combine_chunks()
        labels = np.zeros((len(column), int(self._sums.get("classes", 0))), bool)
        if column.flatten().to_numpy().max(initial=-1) < labels.shape[1]:
            labels[column.value_parent_indices().to_numpy(), column.flatten().to_numpy()] = True
        return self._verified("labels", labels)

    def names(self) -> list[str]:
        """See `GalleryIndex`."""
        names: list[str] = self._column("name")["name"].to_pylist()
        return names

    def in_memory(self) -> MemoryGallery:
        """All of it as an exact searcher, 8 bytes an item and its name."""
        return MemoryGallery(self.space, self.codes(), self.labels(), self.names())

    def _column(self, name: str) -> pa.Table:
        rows = _read(self.uri, self._table.search().select(["id", name]).limit(len(self)).to_arrow).sort_by("id")
        if not np.array_equal(rows["id"].to_numpy(), np.arange(len(rows))):
            raise CorruptFile(f"ids 0..{len(rows) - 1} in the gallery {self.uri}", "others", _AGAIN)
        return rows

    def _verified(self, what: str, values: NDArray[Any]) -> NDArray[Any]:
        if _sum(values) != self._sums.get(what):
            raise CorruptFile(f"the {what} the gallery {self.uri} was made with", "others", _AGAIN)
        return values


_AGAIN = "The table is damaged or was edited: restore it, or encode the gallery again."


def create_gallery(uri: str | Path, space: CodeSpace, codes: Codes, labels: Labels, names: list[str]) -> LanceGallery:
    """Writes a gallery and opens it.  One that stands in a local folder is replaced in one step, or not at all.

    codes: packed uint8 `[n, bytes]`; labels: int `[n]` or multi-hot bool `[n, classes]`; ids follow their order.
    Raises `InputError` when they do not fit together, or when `uri` is a folder that holds something else.
    """
    _check_rows(space, codes, labels, names)
    rows = _rows(space, codes, labels, names)
    if _is_remote(uri):
        _connect(uri).create_table(TABLE, data=rows, mode="overwrite")
        return open_gallery(uri, space)
    folder = Path(uri)
    if folder.exists() and not _holds_gallery(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError("a new or empty folder, or a gallery to replace", str(folder), "Choose another place.")
    with whole(folder) as draft:
        _connect(draft).create_table(TABLE, data=rows)
    log.info("  gallery of %d codes in %s", len(codes), folder)
    return open_gallery(folder, space)


def open_gallery(uri: str | Path, expected: CodeSpace | str | None = None) -> LanceGallery:
    """Opens a gallery; `expected` is the code space (or its id) of what will be compared with it.

    Raises `InputError` where there is none, `CorruptFile` for a damaged one, and `CodeSpaceMismatch` for one without a
    code space or with another one than expected.
    """
    if not _is_remote(uri) and not _holds_gallery(Path(uri)):
        raise InputError("a Twinhash gallery", f"none at {uri}", "Check the path, or run the command that encodes it.")
    gallery = LanceGallery(str(uri), _read(str(uri), partial(_connect(uri).open_table, TABLE)))
    if expected is not None:
        other = expected if isinstance(expected, str) else expected.id
        gallery.space.require(other, f"the gallery {uri}", "what is compared with it")
    return gallery


def _rows(space: CodeSpace, codes: Codes, labels: Labels, names: list[str]) -> pa.Table:
    import pyarrow as pa

    width = space.bits // 8
    columns = {
        "id": pa.array(np.arange(len(codes))),
        "name": pa.array(names, pa.string()),
        "code": pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1)), width),
    }
    sums: dict[str, Any] = {"codes": _sum(codes)}
    if labels.ndim == 1:
        labels = labels.astype(np.int64)
        columns["label"] = pa.array(labels)
    else:
        ends = np.concatenate([[0], labels.sum(1).cumsum()]).astype(np.int32)
        columns["labels"] = pa.ListArray.from_arrays(pa.array(ends), pa.array(labels.nonzero()[1].astype(np.int32)))
        sums["classes"] = labels.shape[1]
    metadata = {SPACE_KEY: json.dumps(space.to_dict()), SUMS_KEY: json.dumps({**sums, "labels": _sum(labels)})}
    return pa.table(columns).replace_schema_metadata(metadata)


def _check_rows(space: CodeSpace, codes: Codes, labels: Labels, names: list[str]) -> None:
    check_labelled("gallery", codes, labels)
    _check_codes(space, codes)
    if len(names) != len(codes):
        raise InputError(
            "one name for each code", f"{len(codes)} codes and {len(names)} names", "Pass lists of one length."
        )


def _check_codes(space: CodeSpace, codes: Codes) -> None:
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] * 8 != space.bits:
        raise InputError(
            f"packed uint8 codes [n, {space.bits // 8}] of code space {space.id}",
            f"{codes.dtype} {codes.shape}",
            "Pack logits of that space with gallery.codes.pack.",
        )


def _check_query(space: CodeSpace, codes: Codes, k: int, size: int) -> int:
    _check_codes(space, codes)
    if k < 1:
        raise InputError("k of at least 1", str(k), "Change k.")
    return min(k, size)


def _sum(values: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _flat(column: pa.ChunkedArray) -> NDArray[Any]:
    values: NDArray[Any] = column.combine_chunks().flatten().to_numpy()
    return values


def _is_remote(uri: str | Path) -> bool:
    return "://" in str(uri)


def _holds_gallery(folder: Path) -> bool:
    return (folder / f"{TABLE}.lance").is_dir()


def _connect(uri: str | Path) -> Any:
    import lancedb

    return lancedb.connect(str(uri))


def _read(uri: str, read: Any) -> Any:
    """LanceDB says ValueError, RuntimeError or OSError for whatever is wrong with a table."""
    try:
        return read()
    except (ValueError, RuntimeError, OSError) as error:
        raise CorruptFile(f"a readable gallery at {uri}", str(error), _AGAIN) from error


def _json(uri: str, text: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise CorruptFile(f"readable metadata in the gallery {uri}", str(error), _AGAIN) from error
