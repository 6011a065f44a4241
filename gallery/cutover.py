"""Give readers the code space of a new teacher, or take it back: each in one commit, so that no reader sees it half.

Before, the new table must pass gates: its rows are sound, its items those of the served one, and its codes find no
less.  Students of the served and of the previous code space are answered meanwhile; those of a retired one are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gallery.codes import Codes, hamming
from gallery.database import (
    FAILED,
    LEDGER,
    RESTORE,
    SPACES,
    Database,
    column_codes,
    now,
    owner_columns,
    quoted,
    table_name,
)
from gallery.errors import CorruptFile, InputError
from gallery.ingest import same_columns
from gallery.metrics import expected_precision
from gallery.store import GalleryStore, SpaceRecord, State

if TYPE_CHECKING:
    import pyarrow as pa

SEARCHED = 100_000  # items that are searched for the gate: with 1,000 queries it takes seconds


class CutoverLimits(NamedTuple):
    """What a cut-over allows.

    missing: the share of items without a new code; map_drop: of the mean average precision; queries: items searched for
    """

    missing: float = 0.001
    map_drop: float = 0.01
    queries: int = 1000


class CutoverGate(NamedTuple):
    """What was checked, what was found, what is allowed, and what to do if it is not."""

    gate: str
    found: str
    allowed: str
    passed: bool
    fix: str = ""


def candidate(store: GalleryStore, space_id: str | None = None) -> SpaceRecord:
    """Return the code space to cut over to: the one named, the one being built, or one that was rolled back.

    Raises `InputError` where there is none.
    """
    records = store.spaces()
    if space_id is not None:
        record = records.get(space_id)
        if record is None or record.state not in ("building", "previous"):
            found = f"{space_id!a}, which is {record.state if record else 'not in it'}"
            fix = "Fill it: gallery/run.py backfill."
            raise InputError(f"a code space of {store.uri} that is built beside the served one", found, fix)
        return record
    building, previous, served = store.spaces_in("building", "previous", "serving")
    if served is not None and building is not None:
        return building
    if served is None or previous is None or _began(store, previous) < _began(store, served):
        fix = "Fill one: gallery/run.py backfill GALLERY --run runs/NEW.  The way back is gallery/run.py rollback."
        raise InputError(f"a code space newer than the one that {store.uri} serves", "none", fix)
    return previous


def _began(store: GalleryStore, record: SpaceRecord) -> Any:
    """Return the time of the first commit of a code space."""
    times = store.ledger(record.space)["at"]
    return times[0].as_py() if len(times) else record.since


def check_gates(store: GalleryStore, space_id: str, limits: CutoverLimits) -> list[CutoverGate]:
    """Return how a code space does beside the one that is served."""
    served = store.space_in("serving")
    if served is None:
        raise InputError(f"a code space that is served in {store.uri}", "none", "Publish it: gallery/run.py publish.")
    found = store.verify(space_id)
    sound = CutoverGate("rows match their checks", found.problem or f"{found.found.rows:,} rows", "all",
                        not found.problem, f"Delete it (retire --delete) and fill it again: {RESTORE}")  # fmt: skip
    gates = [sound, *_compare_items(store, served.space, space_id, limits.missing)]
    return gates if found.problem else [*gates, _compare_retrieval(store, served.space, space_id, limits)]


def _compare_items(store: GalleryStore, served: str, space_id: str, allowed: float) -> list[CutoverGate]:
    import pyarrow.compute as pc

    ids, others = (store.read(store.open_table(one), ["id"])["id"].combine_chunks() for one in (served, space_id))
    missing = ids.filter(pc.invert(pc.is_in(ids, others)))
    noted = store.failures(space_id)["id"].combine_chunks()
    unnoted = len(missing) - int(pc.sum(pc.is_in(missing, noted)).as_py() or 0)
    extra = len(others) - int(pc.sum(pc.is_in(others, ids)).as_py() or 0)
    changed = _count_changed(store, served, space_id, noted)
    share = len(missing) / max(len(ids), 1)
    again = "Run gallery/run.py backfill again: it does what is left."
    fix = "See gallery/run.py failures, mend the images and backfill with --retry; or --missing-allowed."
    return [
        CutoverGate("items without a new code", f"{len(missing):,} of {len(ids):,} ({share:.3%})", f"{allowed:.3%}",
                    share <= allowed, fix),
        CutoverGate("... that are not in `failures`", f"{unnoted:,}", "0", not unnoted, again),
        CutoverGate("items that the served one has not", f"{extra:,}", "0", not extra, again),
        CutoverGate("items with another image, labels or columns", f"{changed:,}", "0", not changed, again),
    ]  # fmt: skip


def _count_changed(store: GalleryStore, served: str, space_id: str, noted: pa.Array) -> int:
    """Return how many items of both have other images, labels or columns than the served one says, failures aside."""
    import pyarrow.compute as pc

    tables = [store.open_table(one) for one in (served, space_id)]
    own, there = (owner_columns(table.schema.names) for table in tables)
    names = ["labels", *(name for name in own if name in there)]
    old, new = (store.read(table, ["id", "etag", *names]) for table in tables)
    old = old.filter(pc.and_(pc.is_in(old["id"], new["id"].combine_chunks()), pc.invert(pc.is_in(old["id"], noted))))
    if set(own) - set(there):
        return len(old)
    new = new.take(pc.index_in(old["id"].combine_chunks(), new["id"].combine_chunks()))
    other_image = pc.fill_null(pc.not_equal(old["etag"], new["etag"]), False).to_numpy()
    return int((other_image | ~same_columns(old, new, names)).sum())


def _compare_retrieval(store: GalleryStore, served: str, space_id: str, limits: CutoverLimits) -> CutoverGate:
    """Compare mean average precisions of items that are searched in their own tables, where there are labels."""
    import pyarrow as pa
    import pyarrow.compute as pc

    allowed = f"a drop of {limits.map_drop:g}"
    rows = store.read(store.open_table(served), ["id", "labels", "code"])
    rows = rows.filter(pc.greater(pc.fill_null(pc.list_value_length(rows["labels"]), 0), 0))
    other = store.read(store.open_table(space_id), ["id", "code"])
    rows = rows.filter(pc.is_in(rows["id"], other["id"].combine_chunks())).sort_by("id")
    chosen = np.random.default_rng(0).permutation(len(rows))[:SEARCHED]
    rows = rows.take(pa.array(chosen))
    other = other.take(pc.index_in(rows["id"].combine_chunks(), other["id"].combine_chunks()))
    if len(rows) < 2:
        return CutoverGate("retrieval", "not compared: no items with labels and both codes", allowed, True)
    tables = [column_codes(one) for one in (rows, other)]
    before, now_, queries = _leave_one_out(tables, rows["labels"].combine_chunks(), limits.queries)
    if not queries:
        return CutoverGate("retrieval", "not compared: no two items share a label", allowed, True)
    protocol = f"mAP {before:.4f} -> {now_:.4f}, {queries:,} items each among {len(rows) - 1:,} others"
    fix = "Train a better teacher, or allow it: --map-drop."
    return CutoverGate("retrieval", protocol, allowed, bool(before - now_ <= limits.map_drop), fix)


def _leave_one_out(tables: list[Codes], labels: pa.ListArray, count: int) -> tuple[float, float, int]:
    """Return the tie-aware mAP of two tables of codes of the same items, and the number of queries.

    The queries are the first `count` items; each is searched among all others of its table, and relevant is what shares
    a label.  Items without another of their labels are left out.
    """
    names = labels.flatten().dictionary_encode().indices.to_numpy()
    starts = np.concatenate([[0], np.cumsum(labels.value_lengths().to_numpy())])
    owner = np.repeat(np.arange(len(labels)), np.diff(starts))
    counts: list[list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = []
    for query in range(min(count, len(labels))):
        relevant = np.zeros(len(labels), bool)
        relevant[owner[np.isin(names, names[starts[query] : starts[query + 1]])]] = True
        relevant[query] = False
        if relevant.any():
            counts.append([_count(codes, query, relevant) for codes in tables])
    if not counts:
        return 0.0, 0.0, 0
    sides = ([np.stack([pair[side][kind] for pair in counts]) for kind in (0, 1)] for side in range(len(tables)))
    before, after = (float(expected_precision(everyone, relevant).mean()) for everyone, relevant in sides)
    return before, after, len(counts)


def _count(codes: Codes, query: int, relevant: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the other items at distance 0..bits from one of them, `[bits+1]`: all, and the relevant ones."""
    bins = codes.shape[1] * 8 + 1
    distances = hamming(codes[query : query + 1], codes)[0]
    everyone = np.bincount(distances, minlength=bins)
    everyone[0] -= 1  # itself
    return everyone, np.bincount(distances[relevant], minlength=bins)


def cut_over(store: GalleryStore, space_id: str) -> None:
    """Publish a code space and serve it, in one commit: the served one becomes the previous, an older one retired."""
    store.publish(space_id)
    others = "replace(replace(state, 'previous', 'retired'), 'serving', 'previous')"
    _change_states(store, space_id, "serving", others)


def roll_back(store: GalleryStore) -> SpaceRecord:
    """Serve the previous code space again, in one commit, and return it; raises `InputError` where there is none."""
    previous, served = store.spaces_in("previous", "serving")
    if previous is None or not previous.version or served is None:
        raise InputError("a previous code space to go back to", f"none in {store.uri}", "There was no cut-over.")
    if problem := store.verify(previous.space, previous.version).problem:
        raise CorruptFile(f"a sound version {previous.version} of {previous.space} in {store.uri}", problem, RESTORE)
    _change_states(store, previous.space, "serving", "replace(state, 'serving', 'previous')")
    return store.spaces()[previous.space]


def retire(store: GalleryStore, space_id: str) -> None:
    """Answer students of a code space no longer; raises `InputError` for the one that is served, or an unknown one."""
    record = store.spaces().get(space_id)
    if record is None or record.state == "serving":
        found = f"{space_id!a}, which is {'served' if record else 'not in it'}"
        others = ", ".join(name for name, one in store.spaces().items() if one.state != "serving")
        raise InputError(f"a code space of {store.uri} that is not served", found, f"It has: {others or 'none'}.")
    _change_states(store, space_id, "retired")


def resume_building(store: GalleryStore, space_id: str) -> None:
    """Have a code space built again, if it is retired."""
    record = store.spaces().get(space_id)
    if record is not None and record.state == "retired":
        _change_states(store, space_id, "building")


def delete_space(store: GalleryStore, space_id: str) -> None:
    """Delete the table of a retired code space, and what is noted about it."""
    database, one = Database(store.uri), f"space = {quoted([space_id])}"
    database.call(database.table(SPACES).delete, f"{one} AND state = 'retired'")
    if space_id in store.spaces():
        raise InputError(
            "a retired code space", f"{space_id!a}, which is not", "Retire it first: gallery/run.py retire."
        )
    database.drop(table_name(space_id))
    for name in (LEDGER, FAILED):
        database.call(database.table(name).delete, one)


def _change_states(store: GalleryStore, space_id: str, state: State, others: str = "state") -> None:
    """Give a code space a state, in one commit, which is worked out anew where another comes first.

    others: the states of the served and the previous one after it, in SQL; by default all is left to the one, if it is
    not served.  LanceDB's SQL has no CASE: `nullif` is null for the one.
    """
    database, one = Database(store.uri), quoted([space_id])
    since = f"CAST('{now().isoformat()}' AS TIMESTAMP)"
    values = {"state": f"coalesce(replace(nullif(space, {one}), space, {others}), '{state}')", "since": since}
    where = f"space = {one} OR state IN ('serving', 'previous')"
    if others == "state":
        where = f"space = {one} AND state <> 'serving'"
    database.call(database.table(SPACES).update, where, values_sql=values)
