"""The gallery of record: a LanceDB database with one table of codes for each code space.

`GALLERY` is a folder, `s3://bucket/path`, `gs://`, `az://`, or `memory://`.  Its tables:

- `codes_<space>`: the items.  Its schema's metadata hold the code space and the hash centers
- `spaces`: the state of each code space, and the version of its table that readers are given
- `ledger`: a line for each commit, with what it changed.  It is begun before the rows and ended after them, so that a
  writer that was killed between leaves a line without a version, and what it did is told from damage
- `failed`: what could not be encoded, with the reason

A reader is given published versions alone, each whole.  Writers upsert and delete by id, several at once.
"""

from __future__ import annotations

import os
import re
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gallery.codes import Codes
from gallery.codespace import CodeSpace
from gallery.console import log
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError
from gallery.row_checks import Checks, Totals, check_ids, row_checks
from gallery.tables import (
    FAILED,
    LEDGER,
    MAX_ROWS,
    RESTORE,
    SCHEMAS,
    SPACES,
    TIME,
    call,
    check_schema,
    code_schema,
    column_codes,
    connect,
    holds_gallery,
    is_local,
    now,
    quoted,
    table_name,
)  # fmt: skip

State = Literal["building", "serving", "previous", "retired"]
CHECKED = "id", "code", "labels", "check"
PATIENCE_S = 5.0  # for a commit that another writer has begun
IDS_IN_A_FILTER = 10_000
KILLED = -1  # the version in a ledger's line whose writer was killed
T = TypeVar("T")
P = ParamSpec("P")


class SpaceRecord(NamedTuple):
    """The state of a code space in a gallery.  version: the one published, 0 if none; rows, sum: its totals."""

    space: str
    state: State
    version: int
    rows: int
    sum: int
    since: datetime


class Commit(NamedTuple):
    """What a commit did, and the version of the table after it."""

    version: int
    added: int = 0
    replaced: int = 0
    removed: int = 0


class Verification(NamedTuple):
    """What was found in a version of a table.  expected: by the ledger; damaged, repeated: ids of such rows"""

    version: int
    found: Totals
    expected: Totals
    damaged: tuple[str, ...]
    repeated: tuple[str, ...]

    @property
    def problem(self) -> str:
        """What is wrong, in words; empty if nothing is."""
        if self.damaged:
            return f"{len(self.damaged)} rows that do not match their checks, such as {self.damaged[0]!a}"
        if self.repeated:
            return f"{len(self.repeated)} ids in more than one row, such as {self.repeated[0]!a}"
        if self.found.rows != self.expected.rows:
            return f"{self.found.rows:,} rows where the ledger has {self.expected.rows:,}"
        return "" if self.found == self.expected else "other rows than those in the ledger"


class GalleryStore:
    """A gallery that is written to; see the module."""

    def __init__(self, uri: str | Path, create: bool = False) -> None:
        """Open a gallery, or with `create` make an empty one where there is none; raises `InputError` without."""
        self.uri = str(uri)
        absent = InputError("a Twinhash gallery", f"none at {self.uri}", "Check it, or make one: gallery/run.py add.")
        if is_local(self.uri) and not create and not holds_gallery(Path(self.uri)):
            raise absent
        self._db = self._call(connect, self.uri)
        names = set(self._call(self._db.list_tables).tables)
        if not create and SPACES not in names:
            raise absent
        for name in SCHEMAS.keys() - names if create else ():
            self._call(self._db.create_table, name, schema=SCHEMAS[name], exist_ok=True)

    def spaces(self) -> dict[str, SpaceRecord]:
        """Return the state of each code space, by its id."""
        records = [SpaceRecord(**row) for row in self._rows(SPACES).to_pylist()]
        if any(None in record or record.state not in get_args(State) for record in records):
            raise CorruptFile(f"the spaces of the gallery {self.uri}", "damaged ones", RESTORE)
        return {record.space: record for record in records}

    def space_in(self, state: State) -> SpaceRecord | None:
        """Return the newest code space in a state, None without one."""
        found = [record for record in self.spaces().values() if record.state == state]
        return max(found, key=lambda record: record.since) if found else None

    def find_space(self, space_id: str | None = None) -> SpaceRecord:
        """Return the record of a code space that is published, by default of the one that is served.

        Raises `InputError` where nothing is published, and `CodeSpaceMismatch` for another space than those that are.
        """
        known = {name: record for name, record in self.spaces().items() if record.version}
        if not known:
            fix = "Publish one: gallery/run.py publish."
            raise InputError(f"a published version in the gallery {self.uri}", "none", fix)
        record = self.space_in("serving") if space_id is None else known.get(space_id)
        if record is None:
            expected = f"code space {', '.join(known)}, as in the gallery {self.uri}"
            fix = (
                "What is compared with it is stale or belongs to another teacher: make it again from the gallery's run."
            )
            raise CodeSpaceMismatch(expected, space_id or "none that is served", fix)
        return record

    def add_space(self, space: CodeSpace, centers: NDArray[np.int8], columns: pa.Schema | None = None) -> SpaceRecord:
        """Make the empty table of a code space, which is "building" until it is published; a known one is returned.

        centers: +-1 `[classes, bits]`; columns: the owner's own
        """
        if known := self.spaces().get(space.id):
            return known
        schema = code_schema(space, centers, columns)
        self._call(self._db.create_table, table_name(space.id), schema=schema, exist_ok=True)
        record = SpaceRecord(space.id, "building", 0, 0, 0, now())
        self.write_spaces([record])
        return record

    def write_spaces(self, records: Sequence[SpaceRecord]) -> None:
        """Write the states of several code spaces in one commit."""
        self._upsert(SPACES, "space", pa.Table.from_pylist([one._asdict() for one in records], SCHEMAS[SPACES]))

    def open_table(self, space_id: str, version: int | str | None = None) -> Any:
        """Return the LanceDB table of a code space, at a version or tag; raises `InputError` where it is not there."""
        known = self.spaces()
        if space_id not in known:
            found = f"{', '.join(known) or 'none'} in {self.uri}"
            fix = "Add items with a run of that space, or name one of these."
            raise InputError(f"code space {space_id!a}", found, fix)
        table = self._table(table_name(space_id))
        if version is not None:
            self._call(table.checkout, version)
        return table

    def read(self, table: Any, columns: Sequence[str]) -> pa.Table:
        """Return columns of all rows of an open table, in any order."""
        check_schema(self.uri, table.name, table.schema)
        return self._call(lambda: table.search().select(list(columns)).limit(MAX_ROWS).to_arrow())

    def rows_of(self, table: Any, ids: pa.ChunkedArray, columns: Sequence[str]) -> pa.Table:
        """Return the rows of an open table with these ids, in any order: `id` and `columns`."""
        parts = []
        for start in range(0, max(len(ids), 1), IDS_IN_A_FILTER):
            where = f"id IN ({quoted(ids.slice(start, IDS_IN_A_FILTER).to_pylist())})"
            query = table.search().where(where).select(["id", *columns]).limit(MAX_ROWS)
            parts.append(self._call(query.to_arrow))
        return pa.concat_tables(parts)

    def put(self, space_id: str, rows: pa.Table, op: str = "add") -> Commit:
        """Upsert items by id, in one commit.

        rows: `id` and `code`; where known `labels`, `source`, `etag`, `sha256` and the owner's columns.  What is not
        said of an item that is there stays as it is.
        """
        rows, line = self._complete(space_id, rows), self._begin(space_id, op)
        done = self._upsert(table_name(space_id), "id", rows)
        before = self._totals_of(space_id, done.version - 1, rows["id"]) if done.num_updated_rows else Totals()
        commit = Commit(done.version, done.num_inserted_rows, done.num_updated_rows)
        self._end(line, commit, Totals.of(rows["check"].to_numpy()).minus(before))
        return commit

    def remove(self, space_id: str, ids: Sequence[str], op: str = "remove") -> Commit:
        """Delete items by id, in a commit for each 10,000; ids that are not there are passed over."""
        table, removed = self.open_table(space_id), 0
        for start in range(0, len(ids), IDS_IN_A_FILTER):
            part, line = ids[start : start + IDS_IN_A_FILTER], self._begin(space_id, op)
            done = self._call(table.delete, f"id IN ({quoted(part)})")
            before = pa.chunked_array([part], pa.string())
            gone = self._totals_of(space_id, done.version - 1, before) if done.num_deleted_rows else Totals()
            self._end(line, Commit(done.version, removed=gone.rows), Totals().minus(gone))
            removed += gone.rows
        return Commit(table.version, removed=removed)

    def verify(self, space_id: str, version: int | None = None) -> Verification:
        """Compute every row's check again, and compare the totals with the ledger's; a commit under way is waited for.

        What a killed writer had begun and not noted is noted now, if the rows are sound.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found, pending = self._verify(space_id, version), self._pending(space_id)
            if not found.problem or found.damaged or found.repeated or not pending:
                return found
            if time.monotonic() > deadline:
                self._heal(space_id, pending, found)
                return self._verify(space_id, found.version)
            time.sleep(PATIENCE_S / 50)

    def publish(self, space_id: str, tag: str | None = None) -> SpaceRecord:
        """Verify the newest version and give it to readers; raises `CorruptFile` for one that is not sound.

        tag: a name by which this version is kept for good.  The first space of a gallery to be published is served.
        """
        found = self.verify(space_id)
        if found.problem:
            raise CorruptFile(f"a sound table of {space_id} in {self.uri}", found.problem, RESTORE)
        tags = self.open_table(space_id).tags
        for name in (f"v{found.version}", *([tag] if tag else [])):
            if name in self._call(tags.list):
                self._call(tags.delete, name)
            self._call(tags.create, name, found.version)
        state: State = self.spaces()[space_id].state if self.space_in("serving") else "serving"
        record = SpaceRecord(space_id, state, found.version, *found.found, now())
        self.write_spaces([record])
        return record

    def checked_codes(self, space_id: str, rows: pa.Table) -> Codes:
        """Return the packed codes of rows; raises `CorruptFile` for rows that do not match their checks."""
        if wrong := np.flatnonzero(self._checks(space_id, rows) != rows["check"].to_numpy()).tolist():
            found = f"{len(wrong)} that do not, such as {rows['id'][wrong[0]].as_py()!a}"
            raise CorruptFile(f"rows of the gallery {self.uri} that match their checks", found, RESTORE)
        return column_codes(rows)

    def fail(self, space_id: str, failures: Sequence[dict[str, str]]) -> None:
        """Note what could not be encoded: `id`, `source`, `etag` and `reason` of each."""
        rows = [{"space": space_id, "at": now(), **row} for row in failures]
        self._upsert(FAILED, ["space", "id"], pa.Table.from_pylist(rows, SCHEMAS[FAILED]))

    def failures(self, space_id: str) -> pa.Table:
        """Return what could not be encoded, sorted by id."""
        rows = self._rows(FAILED)
        return rows.filter(pc.equal(rows["space"], space_id)).sort_by("id")

    def forget_failures(self, space_id: str, ids: Sequence[str]) -> None:
        """Remove what is noted about these ids."""
        if known := set(self.failures(space_id)["id"].to_pylist()).intersection(ids):
            self._call(self._table(FAILED).delete, f"space = '{space_id}' AND id IN ({quoted(sorted(known))})")

    def ledger(self, space_id: str) -> pa.Table:
        """Return the lines of the ledger for a code space, in the order in which they were begun."""
        rows = self._rows(LEDGER)
        return rows.filter(pc.equal(rows["space"], space_id)).sort_by("at")

    def compact(self, space_id: str, keep: timedelta) -> bool:
        """Join small files, publish the result where readers have all rows, and delete versions older than `keep`.

        Returns whether older versions could be deleted: LanceDB keeps all of them while a tag other than the published
        version's is on an old one, such as a run's training version, or while there are rows that are not published.
        """
        table, record = self.open_table(space_id), self.spaces()[space_id]
        current = self._verify(space_id, None).found == (record.rows, record.sum)
        self._call(table.optimize)
        if current:
            record = self.publish(space_id)
        tags = set(self._call(table.tags.list))
        old = {tag for tag in tags if re.fullmatch(r"v\d+", tag)} - {f"v{record.version}"}
        for tag in old if current else ():
            self._call(table.tags.delete, tag)
        if not current or tags - old - {f"v{record.version}"}:
            return False
        self._call(table.optimize, cleanup_older_than=keep)
        return True

    def _complete(self, space_id: str, rows: pa.Table) -> pa.Table:
        """Return rows with all columns of the table: what is not said of known items is read from it."""
        table, ids = self.open_table(space_id), rows["id"].to_pylist()
        schema = table.schema
        check_ids(ids)
        if unknown := sorted(set(rows.schema.names) - set(schema.names)):
            fix = "Add it with --add-column, or leave it out."
            raise InputError(f"columns of the gallery {self.uri}", ascii(unknown[0]), fix)
        if missing := [name for name in schema.names if name not in {*rows.schema.names, "encoded_at", "check"}]:
            known = self.rows_of(table, rows["id"], missing)
            places = pc.index_in(rows["id"], known["id"].combine_chunks())
            for name in missing:
                rows = rows.append_column(schema.field(name), known[name].take(places))
        rows = rows.append_column("check", pa.array(self._checks(space_id, rows)))
        rows = rows.append_column("encoded_at", pa.array([now()] * len(ids), TIME))
        try:
            return rows.select(schema.names).cast(schema)
        except (pa.ArrowException, ValueError) as error:
            expected = f"values of the types of the gallery's columns in {self.uri}"
            raise InputError(expected, str(error)[:300], "Change the column's values.") from error

    def _verify(self, space_id: str, version: int | None) -> Verification:
        table = self.open_table(space_id, version)
        at = int(table.version)
        table.checkout(at)
        rows, lines = self.read(table, CHECKED), self.ledger(space_id)
        ids, stored = rows["id"].to_pylist(), rows["check"].to_numpy()
        damaged = tuple(ids[row] for row in np.flatnonzero(self._checks(space_id, rows) != stored))
        repeated = tuple(id for id, count in Counter(ids).items() if count > 1) if len(set(ids)) < len(ids) else ()
        lines = lines.filter(pc.less_equal(lines["version"], at))
        expected = Totals(int(lines["rows"].to_numpy().sum()), int(lines["sum"].to_numpy().sum(dtype=np.uint64)))
        return Verification(at, Totals.of(stored), expected, damaged, repeated)

    def _checks(self, space_id: str, rows: pa.Table) -> Checks:
        try:
            return row_checks(space_id, rows["id"].to_pylist(), column_codes(rows), rows["labels"].to_pylist())
        except (ValueError, TypeError, AttributeError) as error:
            raise CorruptFile(f"readable rows in {self.uri}", str(error), RESTORE) from error

    def _totals_of(self, space_id: str, version: int, ids: pa.ChunkedArray) -> Totals:
        """Return the totals of the rows with these ids in a version."""
        return Totals.of(self.rows_of(self.open_table(space_id, version), ids, ["check"])["check"].to_numpy())

    def _begin(self, space_id: str, op: str) -> str:
        """Write a line of the ledger for a commit that follows, and return its name."""
        line, none = uuid.uuid4().hex, dict.fromkeys(("version", "rows", "sum", "added", "replaced", "removed"), 0)
        values = {"line": line, "space": space_id, "at": now(), "op": op, "by": f"{socket.gethostname()} {os.getpid()}"}
        self._call(self._table(LEDGER).add, pa.Table.from_pylist([values | none], SCHEMAS[LEDGER]))
        return line

    def _end(self, line: str, commit: Commit, change: Totals) -> None:
        """Note in a line of the ledger what its commit did, unless another process has taken its writer for dead."""
        values = {name: str(value) for name, value in {**commit._asdict(), **change._asdict()}.items()}
        values["sum"] = f"CAST({change.sum} AS BIGINT UNSIGNED)"
        done = self._call(self._table(LEDGER).update, f"line = '{line}' AND version = 0", values_sql=values)
        if not done.rows_updated:
            log.warning("  this commit took so long that its writer was taken for dead: the ledger has it under `heal`")

    def _pending(self, space_id: str) -> list[str]:
        """Return the lines of commits that were begun and not ended."""
        rows = self.ledger(space_id)
        return list(rows.filter(pc.equal(rows["version"], 0))["line"].to_pylist())

    def _heal(self, space_id: str, pending: Sequence[str], found: Verification) -> None:
        """Give up lines whose writers were killed, and note together what they did."""
        change = found.found.minus(found.expected)
        log.warning("  a writer of %s was killed; what it did (%+d rows) is noted now", self.uri, change.rows)
        for line in pending:
            self._end(line, Commit(KILLED), Totals())
        commit = Commit(found.version, max(change.rows, 0), removed=max(-change.rows, 0))
        self._end(self._begin(space_id, "heal"), commit, change)

    def _upsert(self, name: str, keys: str | list[str], rows: pa.Table) -> Any:
        merge = self._table(name).merge_insert(keys).when_matched_update_all().when_not_matched_insert_all()
        return self._call(merge.execute, rows)

    def _rows(self, name: str) -> pa.Table:
        return self.read(self._table(name), SCHEMAS[name].names)

    def _table(self, name: str) -> Any:
        return self._call(self._db.open_table, name)

    def _call(self, action: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        return call(self.uri, action, *args, **options)
