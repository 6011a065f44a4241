"""The gallery of record: a LanceDB database with one table of codes for each code space.

`GALLERY` is a folder, `s3://bucket/path`, `gs://` or `az://`.  Its tables:

- `codes_<space>`: the items.  Its schema's metadata hold the code space and the hash centers
- `spaces`: the state of each code space, and the version of its table that readers are given
- `ledger`: a line for each commit, with what it changed.  It is begun (version 0) before the rows and ended after them,
  so that what a killed writer did is told from damage.  Where one was killed, a line `recount` has the totals
- `failed`: what could not be encoded, with the reason

A reader is given published versions alone, each whole.  Writers upsert and delete by id, several at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gallery.codes import Codes
from gallery.codespace import CodeSpace
from gallery.database import (
    FAILED,
    MAX_ROWS,
    RESTORE,
    SCHEMAS,
    SPACES,
    TIME,
    Database,
    code_schema,
    column_codes,
    holds_gallery,
    is_local,
    make_folder,
    now,
    quoted,
    sql_sum,
    table_name,
)
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError
from gallery.ledger import Commit, Ledger, Verification, totals_at
from gallery.row_checks import Checks, Totals, check_ids, check_labels, problem_of_id, row_checks

State = Literal["building", "serving", "previous", "retired"]
CHECKED = "id", "code", "labels", "check"
IDS_IN_A_FILTER = 10_000


class SpaceRecord(NamedTuple):
    """The state of a code space in a gallery.  version: the one published, 0 if none; rows, sum: its totals."""

    space: str
    state: State
    version: int
    rows: int
    sum: int
    since: datetime


class GalleryStore:
    """A gallery that is written to; see the module."""

    def __init__(self, uri: str | Path, create: bool = False) -> None:
        """Open a gallery, or with `create` make an empty one where there is none; raises `InputError` without."""
        self.uri = str(uri)
        absent = InputError("a Twinhash gallery", f"none at {self.uri}", "Check it, or make one: gallery/run.py add.")
        if is_local(self.uri) and not create and not holds_gallery(Path(self.uri)):
            raise absent
        if is_local(self.uri) and create:
            make_folder(self.uri)
        self._db = Database(self.uri)
        self._ledger = Ledger(self._db)
        names = self._db.names()
        if not create and SPACES not in names:
            raise absent
        for name in sorted(SCHEMAS.keys() - names) if create else ():  # `spaces` is the last: it tells a gallery
            self._db.create(name, SCHEMAS[name])

    def spaces(self) -> dict[str, SpaceRecord]:
        """Return the state of each code space, by its id."""
        records = [SpaceRecord(**row) for row in self._db.rows(SPACES).to_pylist()]
        if any(None in record or record.state not in get_args(State) for record in records):
            raise CorruptFile(f"the spaces of the gallery {self.uri}", "damaged ones", RESTORE)
        return {record.space: record for record in records}

    def space_in(self, state: State) -> SpaceRecord | None:
        """Return the newest code space in a state, None without one."""
        return self.spaces_in(state)[0]

    def spaces_in(self, *states: State) -> list[SpaceRecord | None]:
        """Return the newest code space in each state, of one moment."""
        records = sorted(self.spaces().values(), key=lambda record: record.since)
        newest = {record.state: record for record in records}
        return [newest.get(state) for state in states]

    def find_space(self, space_id: str | None = None, tag: str | None = None) -> SpaceRecord:
        """Return a code space that is published, by default the one with a version of this tag, or that is served.

        A retired one is found by a tag alone.  Raises `InputError` where nothing is published, and `CodeSpaceMismatch`
        for another space than those that are.
        """
        records = {name: record for name, record in self.spaces().items() if record.version}
        known = {name: record for name, record in records.items() if tag is not None or record.state != "retired"}
        if not known:
            fix = "Publish one: gallery/run.py publish."
            raise InputError(f"a published version in the gallery {self.uri}", "none", fix)
        if space_id is not None:
            record = known.get(space_id)
        elif tag is not None:
            record = next((one for one in known.values() if tag in self._tags(one.space)), None)
        else:
            record = self.space_in("serving")
        if record is None:
            expected = f"code space {', '.join(known)}, as in the gallery {self.uri}"
            fix = "What is compared with it is stale or of another teacher: make it again from the gallery's run."
            raise CodeSpaceMismatch(expected, space_id or f"none {f'tagged {tag}' if tag else 'that is served'}", fix)
        return record

    def add_space(self, space: CodeSpace, centers: NDArray[np.int8], columns: pa.Schema | None = None) -> SpaceRecord:
        """Make the empty table of a code space, which is "building" until it is published; a known one is returned.

        centers: +-1 `[classes, bits]`; columns: the owner's own
        """
        if known := self.spaces().get(space.id):
            return known
        schema = code_schema(space, centers, columns)
        self._db.create(table_name(space.id), schema)
        record = SpaceRecord(space.id, "building", 0, 0, 0, now())
        rows = pa.Table.from_pylist([record._asdict()], SCHEMAS[SPACES])
        self._db.call(self._db.table(SPACES).merge_insert("space").when_not_matched_insert_all().execute, rows)
        return self.spaces()[space.id]

    def open_table(self, space_id: str, version: int | str | None = None) -> Any:
        """Return the LanceDB table of a code space, at a version or tag; raises `InputError` where it is not there."""
        known = self.spaces()
        if space_id not in known:
            found = f"{', '.join(known) or 'none'} in {self.uri}"
            fix = "Add items with a run of that space, or name one of these."
            raise InputError(f"code space {space_id!a}", found, fix)
        table = self._db.table(table_name(space_id))
        if version is not None:
            self._db.call(table.checkout, version)
        return table

    def read(self, table: Any, columns: Sequence[str]) -> pa.Table:
        """Return columns of all rows of an open table, in any order."""
        return self._db.read(table, columns)

    def take(self, table: Any, row_ids: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Return columns of rows of an open table by LanceDB's own numbers for them, in any order."""
        return self._db.call(lambda: table.take_row_ids(list(row_ids)).select(list(columns)).to_arrow())

    def rows_of(self, table: Any, ids: pa.ChunkedArray, columns: Sequence[str]) -> pa.Table:
        """Return the rows of an open table with these ids, in any order: `id` and `columns`."""
        parts = []
        for start in range(0, max(len(ids), 1), IDS_IN_A_FILTER):
            where = f"id IN ({quoted(ids.slice(start, IDS_IN_A_FILTER).to_pylist())})"
            query = table.search().where(where).select(["id", *columns]).limit(MAX_ROWS)
            parts.append(self._db.call(query.to_arrow))
        return pa.concat_tables(parts)

    def put(self, space_id: str, rows: pa.Table, op: str = "add") -> Commit:
        """Upsert items by id, in one commit.

        rows: `id`, and where known `code`, `labels`, `source`, `etag`, `sha256` and the owner's columns.  What is not
        said of an item that is there stays as it is; a new one needs a code.
        """
        table = self.open_table(space_id)
        if not len(rows):
            return Commit(int(table.version))
        rows, line = self._complete(table, space_id, rows), self._ledger.begin(space_id, op)
        done = self._db.upsert(table.name, "id", rows)
        before = self._totals_of(space_id, done.version - 1, rows["id"]) if done.num_updated_rows else Totals()
        commit = Commit(done.version, done.num_inserted_rows, done.num_updated_rows)
        self._ledger.end(line, commit, Totals.of(rows["check"].to_numpy()).minus(before))
        return commit

    def remove(self, space_id: str, ids: Sequence[str], op: str = "remove") -> Commit:
        """Delete items by id, in a commit for each 10,000; ids that are not there are passed over."""
        table, removed = self.open_table(space_id), 0
        version, ids = int(table.version), [id for id in ids if not problem_of_id(id)]
        for start in range(0, len(ids), IDS_IN_A_FILTER):
            part = pa.chunked_array([ids[start : start + IDS_IN_A_FILTER]], pa.string())
            line = self._ledger.begin(space_id, op)
            done = self._db.call(table.delete, f"id IN ({quoted(part.to_pylist())})")
            version = done.version
            gone = self._totals_of(space_id, version - 1, part) if done.num_deleted_rows else Totals()
            if gone.rows != done.num_deleted_rows:  # another writer put one of them back
                gone = gone.minus(self._totals_of(space_id, version, part))
            self._ledger.end(line, Commit(version, removed=gone.rows), Totals().minus(gone))
            removed += gone.rows
        return Commit(version, removed=removed)

    def verify(self, space_id: str, version: int | None = None) -> Verification:
        """Compute every row's check again, and compare the totals with the ledger's; a commit under way is waited for.

        What killed writers did is noted in the ledger, if the rows are sound and the version is the newest.
        """
        table = self.open_table(space_id)
        newest = int(table.version)
        at = newest if version is None else version
        self._db.call(table.checkout, at)
        rows = self.read(table, CHECKED)
        rows = rows.take(pc.sort_indices(rows["id"]))
        ids, stored = rows["id"].combine_chunks(), rows["check"].to_numpy()
        damaged = ids.filter(pa.array(self._checks(space_id, rows) != stored)).to_pylist()
        repeated = ids[1:].filter(pc.equal(ids[1:], ids[:-1])).unique().to_pylist()
        found, heals = Totals.of(stored), at == newest and not damaged and not repeated
        expected = self._ledger.expected(space_id, at, found, heals)
        return Verification(at, found, expected, tuple(damaged), tuple(repeated))

    def totals_at(self, space_id: str, version: int) -> Totals:
        """Return the totals of a version by the ledger; those of a commit that is not ended are not among them."""
        return totals_at(self.ledger(space_id), version)

    def publish(self, space_id: str, tag: str | None = None) -> SpaceRecord:
        """Verify the newest version and give it to readers; raises `CorruptFile` for one that is not sound.

        tag: a name by which this version is kept for good.  The first space of a gallery to be published is served.
        """
        found = self.verify(space_id)
        if found.problem:
            raise CorruptFile(f"a sound table of {space_id} in {self.uri}", found.problem, RESTORE)
        for name in (f"v{found.version}", *([tag] if tag else [])):
            self._tag(space_id, name, found.version)
        fields = {"version": found.version, "rows": found.found.rows, "sum": sql_sum(found.found)}
        fields["since"] = f"CAST('{now().isoformat()}' AS TIMESTAMP)"
        if not self.space_in("serving"):
            fields["state"] = "'serving'"
        values = {name: str(value) for name, value in fields.items()}  # the state is left to who cuts over meanwhile
        self._db.call(self._db.table(SPACES).update, f"space = '{space_id}'", values_sql=values)
        return self.spaces()[space_id]

    def checked_codes(self, space_id: str, rows: pa.Table) -> Codes:
        """Return the packed codes of rows; raises `CorruptFile` for rows that do not match their checks."""
        if wrong := np.flatnonzero(self._checks(space_id, rows) != rows["check"].to_numpy()).tolist():
            found = f"{len(wrong)} that do not, such as {rows['id'][wrong[0]].as_py()!a}"
            raise CorruptFile(f"rows of the gallery {self.uri} that match their checks", found, RESTORE)
        return column_codes(rows)

    def fail(self, space_id: str, failures: Sequence[dict[str, str]]) -> None:
        """Note what could not be encoded: `id`, `source`, `etag` and `reason` of each."""
        if not failures:
            return
        rows = [{"space": space_id, "at": now(), **row} for row in failures]
        self._db.upsert(FAILED, ["space", "id"], pa.Table.from_pylist(rows, SCHEMAS[FAILED]))

    def failures(self, space_id: str) -> pa.Table:
        """Return what could not be encoded, sorted by id."""
        rows = self._db.rows(FAILED)
        return rows.filter(pc.equal(rows["space"], space_id)).sort_by("id")

    def forget_failures(self, space_id: str, ids: Sequence[str]) -> None:
        """Remove what is noted about these ids."""
        if known := set(self.failures(space_id)["id"].to_pylist()).intersection(ids):
            self._db.call(self._db.table(FAILED).delete, f"space = '{space_id}' AND id IN ({quoted(sorted(known))})")

    def ledger(self, space_id: str) -> pa.Table:
        """Return the lines of the ledger for a code space, in the order in which they were begun."""
        return self._ledger.lines(space_id)

    def compact(self, space_id: str, keep: timedelta) -> bool:
        """Join small files, publish the result where readers have all rows, and delete versions older than `keep`.

        Returns whether older versions could be deleted: LanceDB keeps all of them while a tag other than the published
        version's is on an old one, such as a run's training version, or while there are rows that are not published.
        """
        table, record = self.open_table(space_id), self.spaces()[space_id]
        current = self.verify(space_id).found == (record.rows, record.sum)
        self._db.call(table.optimize)
        for name in SCHEMAS:
            self._db.forget(self._db.table(name), keep)
        if not current:
            return False
        kept = f"v{self.publish(space_id).version}"
        tags = self._tags(space_id)
        old = {tag for tag in tags if re.fullmatch(r"v\d+", tag)} - {kept}
        for tag in old:
            self._db.call(table.tags.delete, tag)
        if tags.keys() - old - {kept}:
            return False
        self._db.forget(table, keep)
        return True

    def _complete(self, table: Any, space_id: str, rows: pa.Table) -> pa.Table:
        """Return rows with all columns of the table: what is not said of known items is read from it."""
        schema, ids = table.schema, rows["id"].to_pylist()
        check_ids(ids)
        if unknown := sorted(set(rows.schema.names) - set(schema.names)):
            fix = "Add it with --add-column, or leave it out."
            raise InputError(f"columns of the gallery {self.uri}", ascii(unknown[0]), fix)
        made = {"check", *(["encoded_at"] if "code" in rows.schema.names else [])}
        columns = {name: rows[name] for name in rows.schema.names if name not in made}
        if missing := [name for name in schema.names if name not in {*columns, *made}]:
            known = self.rows_of(table, rows["id"], missing)
            places = pc.index_in(rows["id"].cast(pa.string()), known["id"].combine_chunks())
            columns |= {name: known[name].take(places) for name in missing}
        fields = [field for field in schema if field.name not in made]
        try:
            rows = pa.table([columns[field.name].cast(field.type) for field in fields], pa.schema(fields))
        except (pa.ArrowException, ValueError) as error:
            expected = f"values of the types of the gallery's columns in {self.uri}"
            raise InputError(expected, str(error)[:300], "Change the column's values.") from error
        check_labels(rows["labels"])
        if rows["code"].null_count or pc.list_flatten(rows["code"]).null_count:
            raise InputError("a code for each new item", "none", "Encode it, or leave it out.")
        stamps = pa.array([now()] * len(ids), TIME)
        rows = rows.append_column("check", pa.array(self._checks(space_id, rows)))
        rows = rows.append_column("encoded_at", stamps) if "encoded_at" in made else rows
        return rows.select(schema.names).cast(schema)

    def _checks(self, space_id: str, rows: pa.Table) -> Checks:
        try:
            ids, labels = rows["id"].combine_chunks(), rows["labels"].combine_chunks()
            return row_checks(space_id, ids, column_codes(rows), labels)
        except (ValueError, TypeError, AttributeError) as error:
            raise CorruptFile(f"readable rows in {self.uri}", str(error), RESTORE) from error

    def _totals_of(self, space_id: str, version: int, ids: pa.ChunkedArray) -> Totals:
        """Return the totals of the rows with these ids in a version."""
        return Totals.of(self.rows_of(self.open_table(space_id, version), ids, ["check"])["check"].to_numpy())

    def _tags(self, space_id: str) -> dict[str, Any]:
        tags: dict[str, Any] = self._db.call(self._db.table(table_name(space_id)).tags.list)
        return tags

    def _tag(self, space_id: str, name: str, version: int) -> None:
        tags = self._db.table(table_name(space_id)).tags
        try:
            self._db.call(tags.update if name in self._tags(space_id) else tags.create, name, version)
        except CorruptFile:
            if name not in self._tags(space_id):  # another publisher came first
                raise
