"""What readers have of a gallery: one published version, whole and verified, searched exactly in memory.

Items are in the order of their ids, and results sorted by (distance, id), also where a tie is cut off at k.
"""

from __future__ import annotations

import operator
import re
import time
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gallery.codebook_index import CodebookIndex
from gallery.codes import Codes
from gallery.codespace import CodeSpace
from gallery.console import log
from gallery.database import MAX_ROWS, RESTORE, SPACES, code_array, holds_gallery, is_local, owner_columns, read_space
from gallery.distance_histogram import Labels
from gallery.errors import CorruptFile, InputError, TwinhashError
from gallery.files import atomic_path
from gallery.row_checks import ItemLabels, Totals, check_ids
from gallery.store import CHECKED, GalleryStore, SpaceRecord

TRAINING = "training"  # the version that a run's own evaluation reads, whatever is added later
ROW_ID = "_rowid"  # LanceDB's own number of a row in a version
FEW = 64  # ids, which are quicker one by one: 10 take 6 us for 65
TRIES, WAIT_S = 20, 0.05  # for a folder that is being replaced
MAX_LENGTH, MAX_DEPTH = 4096, 32
TOKEN = re.compile(
    r"\s+|'(?:[^']|'')*'|`[^`]*`|\"(?:[^\"]|\"\")*\"|(?P<word>[A-Za-z_]\w*)|\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+"
    r"|(?P<comment>--|/\*)|<=|>=|<>|!=|\|\||(?P<open>[(\[])|(?P<close>[)\]])|[=<>+*/%,.:-]"
)
STATEMENTS = {"select", "with", "table", "values", "union", "exists", "insert", "update", "delete", "drop"}


class SearchResult(NamedTuple):
    """The nearest items of each query, by (distance, id), each `[queries, min(k, len)]`.

    distances: uint16, in bits; ids: str objects; rows: int64, their places in the gallery
    """

    distances: NDArray[np.uint16]
    ids: NDArray[np.object_]
    rows: NDArray[np.int64]


class GalleryIndex:
    """One published version of a gallery; items are in the order of their ids (as UTF-8 bytes).

    uri, version: where it is; space, centers: its code space, and hash centers +-1 `[classes, bits]`
    ids: of the items; codes: packed uint8 `[len, bytes]`; labels: the class names of each item, null where unknown
    """

    def __init__(self, store: GalleryStore, record: SpaceRecord, version: int | str) -> None:
        table = store.open_table(record.space, version)
        self.uri, self.version, self._table, self._store = store.uri, int(table.version), table, store
        self.space, self.centers = read_space(store.uri, table.schema)
        rows = store.read(table, (*CHECKED, ROW_ID))
        if not is_sorted(rows["id"]):
            rows = rows.take(pc.sort_indices(rows["id"]))
        self.ids, self.labels = (rows[name].combine_chunks() for name in ("id", "labels"))
        self.codes, self._row_ids = store.checked_codes(record.space, rows), rows[ROW_ID].to_numpy()
        published = Totals(record.rows, record.sum)
        expected = published if self.version == record.version else store.totals_at(record.space, self.version)
        found = Totals.of(rows["check"].to_numpy())
        if found != expected or not is_sorted(rows["id"]):
            what = f"the {expected.rows:,} rows of version {self.version} of {store.uri}"
            raise CorruptFile(what, f"{found.rows:,}, or others", RESTORE)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def schema(self) -> pa.Schema:
        """The columns of the table."""
        return self._table.schema

    @property
    def owner_columns(self) -> list[str]:
        """The names of the columns that are the owner's."""
        return owner_columns(self.schema.names)

    @cached_property
    def searcher(self) -> CodebookIndex:
        """The index over the codes; building it takes 0.4 to 1.1 s a million."""
        return CodebookIndex(self.codes, self.centers)

    def search(
        self, codes: Codes, k: SupportsIndex, among: NDArray[Any] | None = None,
    ) -> SearchResult:  # fmt: skip
        """Return the k nearest items of packed codes `[n, bytes]`; `InputError` for a wrong dtype, width or k below 1.

        among: the rows to search, as a mask or by their numbers; all without
        """
        try:
            count = operator.index(k)
        except TypeError as error:
            raise InputError("a whole number as k", repr(k), "Change k.") from error
        if among is None:
            distances, rows = self.searcher.search(codes, count)
        else:
            distances, rows = self.searcher.search_among(codes, count, among)
        return SearchResult(distances, self.ids_of(rows), rows)

    def ids_of(self, rows: NDArray[np.int64]) -> NDArray[np.object_]:
        """Return the ids of rows, of the same shape."""
        if rows.size <= FEW:
            few = [self.ids[row].as_py() for row in rows.reshape(-1).tolist()]
            return np.array(few, object).reshape(rows.shape)
        ids = self.ids.take(pa.array(rows.reshape(-1))).to_numpy(zero_copy_only=False)
        return np.asarray(ids, object).reshape(rows.shape)

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each id; raises `InputError` for one that is not in the gallery."""
        rows = [bisect_left(self.ids, id, key=pa.StringScalar.as_py) for id in ids]
        for row, id in zip(rows, ids, strict=True):
            if row == len(self) or self.ids[row].as_py() != id:
                raise InputError(f"an item of {self.uri}", f"none with the id {ascii(id)[:80]}", "Choose another id.")
        return np.array(rows, np.int64)

    def class_labels(self, classes: Sequence[str], multi_hot: bool) -> Labels:
        """Return labels for evaluation: int `[len]` into `classes` (-1: another, or none), or bool `[len, classes]`.

        Raises `InputError` for an item of several classes where one is wanted.
        """
        flat = self.labels.flatten()
        owner = pc.list_parent_indices(self.labels).to_numpy()
        known = pc.fill_null(pc.index_in(flat, pa.array(classes, pa.string())), -1).to_numpy().astype(np.int64)
        if multi_hot:
            hot = np.zeros((len(self), len(classes)), bool)
            hot[owner[known >= 0], known[known >= 0]] = True
            return hot
        labels = np.full(len(self), -1, np.int64)
        if len(np.unique(owner)) < len(owner):
            fix = "Evaluate with multi-label queries."
            raise InputError(f"one class for each item of {self.uri}", "items of several", fix)
        labels[owner] = known
        return labels

    def columns(self, names: Sequence[str], rows: NDArray[np.int64] | None = None) -> pa.Table:
        """Return further columns of all items, or of these rows, in that order; they are read from the table."""
        read = [*dict.fromkeys(("id", *names))]
        if rows is None:
            wanted, found = self.ids, self._store.read(self._table, read)
        else:
            wanted = self.ids.take(pa.array(rows.reshape(-1)))
            row_ids = np.unique(self._row_ids[rows]).tolist()
            found = self._store.take(self._table, row_ids, read)
        return found.take(pc.index_in(wanted, found["id"].combine_chunks())).select(list(names))

    def rows_where(self, where: str) -> NDArray[np.int64]:
        """Return the rows for which SQL's condition over the columns holds, sorted; `InputError` for a wrong one.

        It is DataFusion's SQL, within what `check_where` allows, for people at a command line: a service must not pass
        it on.
        """
        check_where(where)
        query = self._table.search().where(where).with_row_id(True).select([ROW_ID]).limit(MAX_ROWS)
        try:
            found = query.to_arrow()[ROW_ID].to_numpy()
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic of LanceDB's is no Exception
            names = ", ".join(self._table.schema.names)
            raise InputError(f"a condition over the columns {names}", f"{where!a}: {error}", "Change it.") from error
        return np.flatnonzero(np.isin(self._row_ids, found))


def create_gallery(
    folder: str | Path, space: CodeSpace, centers: NDArray[np.int8], codes: Codes, ids: Sequence[str],
    labels: ItemLabels,
) -> GalleryIndex:  # fmt: skip
    """Write a gallery with one version, tagged `TRAINING`, and open it; an earlier one is replaced atomically.

    codes: packed uint8 `[n, bytes]`; ids, labels: of each item, its own, and its class names (None: unknown)
    Raises `InputError` when they do not fit together, or when `folder` holds something else.
    """
    _check_codes(space, codes)
    if not len(codes) == len(ids) == len(labels) > 0:
        found = f"{len(codes)}, {len(ids)} and {len(labels)}"
        raise InputError("as many codes as ids and labels, at least one", found, "Pass lists of one length.")
    check_ids(ids)
    rows = pa.table({
        "id": pa.array(ids, pa.string()), "code": code_array(codes), "labels": pa.array(labels, pa.list_(pa.string()))
    }).sort_by("id")  # fmt: skip
    folder = Path(folder)
    if folder.exists() and not holds_gallery(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError("a new or empty folder, or a gallery to replace", str(folder), "Choose another folder.")
    with atomic_path(folder) as draft:
        store = GalleryStore(draft, create=True)
        store.add_space(space, centers)
        store.put(space.id, rows, TRAINING)
        store.publish(space.id, TRAINING)
    log.info("  gallery of %d codes in %s", len(codes), folder)
    return open_gallery(folder, space, TRAINING)


def later_commits(folder: Path) -> int:
    """Return how many commits changed a gallery after `create_gallery`; none where it cannot be read."""
    try:
        store = GalleryStore(folder)
        return sum(op != TRAINING for space in store.spaces() for op in store.ledger(space)["op"].to_pylist())
    except TwinhashError:
        return 0


def open_gallery(
    uri: str | Path, expected: CodeSpace | str | None = None, version: int | str | None = None,
) -> GalleryIndex:  # fmt: skip
    """Open the published version of a gallery, or another version of its table by number or tag.

    expected: the code space (or its id) of what will be compared with it; without one it is the one that has the tag,
    or is served
    Raises `InputError` where there is none, `CorruptFile` for a damaged one, and `CodeSpaceMismatch` for one without a
    code space or with others than expected.  One that is being replaced is waited for.
    """
    space_id = expected if isinstance(expected, str | None) else expected.id
    for left in reversed(range(TRIES)):
        before = stamp(str(uri))
        try:
            store = GalleryStore(uri)
            record = store.find_space(space_id, version if isinstance(version, str) else None)
            return GalleryIndex(store, record, version or record.version)
        except (CorruptFile, InputError):
            if not left or (before == stamp(str(uri)) and not _is_being_replaced(str(uri))):
                raise
            time.sleep(WAIT_S)
    raise AssertionError("the last try returns or raises")


def stamp(uri: str) -> tuple[int, int] | None:
    """Return what tells a gallery in a local folder from one that replaced it; None where there is none."""
    try:
        status = Path(uri, f"{SPACES}.lance").stat()
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_ctime_ns


def is_sorted(ids: pa.ChunkedArray) -> bool:
    """Return whether ids are in the order of their UTF-8 bytes, each once."""
    joined = ids.combine_chunks()
    return len(joined) < 2 or bool(pc.all(pc.less(joined[:-1], joined[1:])).as_py())


def _is_being_replaced(uri: str) -> bool:
    """Whether another process is about to put a gallery at `uri`."""
    folder = Path(uri).absolute()
    if not is_local(uri) or folder.exists() or not folder.parent.is_dir():
        return False
    return any(path.name.startswith(f".{folder.name}.") for path in folder.parent.iterdir())


def _check_codes(space: CodeSpace, codes: Codes) -> None:
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] * 8 != space.bits:
        expected = f"packed uint8 codes [n, {space.bits // 8}] of code space {space.id}"
        raise InputError(expected, f"{codes.dtype} {codes.shape}", "Pack logits of that space with gallery.codes.pack.")


def check_where(where: str) -> None:
    """Raise `InputError` unless `where` is one condition, without comments, statements and subqueries.

    LanceDB silently ignores what follows a semicolon: a filter that is longer than it seems would leave items out.
    """
    at, depth = 0, 0
    problem = f"{len(where):,} characters, more than {MAX_LENGTH:,}" if len(where) > MAX_LENGTH else ""
    while not problem and at < len(where):
        token = TOKEN.match(where, at)
        if token is None:
            problem = f"{where[at]!a} at character {at + 1}"
            break
        depth += bool(token["open"]) - bool(token["close"])
        if token["comment"]:
            problem = "a comment"
        elif (token["word"] or "").lower() in STATEMENTS:
            problem = f"the word {token[0]}; a column of that name is written `{token[0]}`"
        elif not 0 <= depth <= MAX_DEPTH:
            problem = "brackets that do not match, or too many"
        at = token.end()
    if not problem and (depth or not where.strip()):
        problem = "brackets that do not match" if depth else "nothing"
    if problem:
        fix = "Write one condition, such as: price < 10 AND brand = 'acme'"
        raise InputError("one condition on the columns of the gallery", problem, fix)
