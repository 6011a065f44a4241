"""The ledger of a gallery: what each commit changed, by which damage is told from what killed writers did.

A commit's line is begun (version 0) before its rows are written, and ended after them.  Where rows are there that no
ended line speaks of, a line that was begun explains them: its writer is waited for and then taken for dead, and a line
`recount` says what there is at a version.  It holds in the place of all lines up to that version, so a writer that was
only slow may still end its own.  Lines may be ended in any order, and several processes may recount at once.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from gallery.console import log
from gallery.database import LEDGER, SCHEMAS, Database, now, sql_sum
from gallery.row_checks import Totals

RECOUNT = "recount"
PATIENCE_S = 5.0  # for a commit that another writer has begun
LONGEST_COMMIT = timedelta(minutes=10)  # a line that was begun earlier, and before a recount, explains nothing more


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


class Ledger:
    """The ledger of a database; see the module."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def lines(self, space_id: str) -> pa.Table:
        """Return the lines for a code space, in the order in which they were begun."""
        rows = self._db.rows(LEDGER)
        return rows.filter(pc.equal(rows["space"], space_id)).sort_by("at")

    def begin(self, space_id: str, op: str) -> str:
        """Write the line of a commit that follows, and return its name."""
        self._db.check_room()
        line, none = uuid.uuid4().hex, dict.fromkeys(("version", "rows", "sum", *Commit._fields), 0)
        values = {"line": line, "space": space_id, "at": now(), "op": op, "by": f"{socket.gethostname()} {os.getpid()}"}
        self._db.call(self._db.table(LEDGER).add, pa.Table.from_pylist([none | values], SCHEMAS[LEDGER]))
        return line

    def end(self, line: str, commit: Commit, totals: Totals) -> None:
        """Note what a commit did: `totals` is the change, or of a recount all there is."""
        values = {name: str(value) for name, value in {**commit._asdict(), "rows": totals.rows}.items()}
        values["sum"] = sql_sum(totals)
        self._db.call(self._db.table(LEDGER).update, f"line = '{line}'", values_sql=values)

    def expected(self, space_id: str, version: int, found: Totals, newest: bool) -> Totals:
        """Return the totals of a version, when the commits that are under way are ended, or their writers killed.

        found: what is there, in sound rows.  If it is the newest version, what killed writers did is noted.
        """
        deadline, start = time.monotonic() + PATIENCE_S, now()
        while True:
            lines = self.lines(space_id)
            totals, begun = totals_at(lines, version), _begun(lines, start)
            if not newest or not begun:
                return totals
            if found == totals and min(begun) > start - LONGEST_COMMIT:
                return totals
            if found == totals or time.monotonic() > deadline:
                break
            time.sleep(PATIENCE_S / 50)
        change = found.rows - totals.rows
        log.warning("  a writer was killed: what it did (%+d rows) is noted now", change)
        self.end(self.begin(space_id, RECOUNT), Commit(version, max(change, 0), removed=max(-change, 0)), found)
        return found


def totals_at(lines: pa.Table, version: int) -> Totals:
    """Return the totals of a version: those of the last recount up to it, and what was changed since."""
    lines = lines.filter(pc.less_equal(lines["version"], version))
    is_recount = pc.and_(pc.equal(lines["op"], RECOUNT), pc.greater(lines["version"], 0))
    last = lines.filter(is_recount).sort_by([("version", "ascending"), ("at", "ascending")]).to_pylist()[-1:]
    base, at = (Totals(last[0]["rows"], last[0]["sum"]), last[0]["version"]) if last else (Totals(), 0)
    changes = lines.filter(pc.and_(pc.greater(lines["version"], at), pc.not_equal(lines["op"], RECOUNT)))
    return base.plus(Totals(int(changes["rows"].to_numpy().sum()), int(changes["sum"].to_numpy().sum())))


def _begun(lines: pa.Table, at: datetime) -> list[datetime]:
    """Return when the commits were begun that may be under way, or whose writers may have been killed since."""
    known = list(zip(*(lines[name].to_pylist() for name in ("version", "op", "at")), strict=True))
    recounted = max((begun for version, op, begun in known if version and op == RECOUNT), default=datetime.min)
    counted = min(recounted.replace(tzinfo=UTC), at - LONGEST_COMMIT)
    return [begun for version, _, begun in known if not version and begun > counted]
