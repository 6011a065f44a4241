"""Give readers the code space of a new teacher, or take it back: each in one commit, so that no reader sees it half.

Before, the new table must pass the gates of `cutover_gates`.  Students of the served and of the previous code space are
answered meanwhile; those of a retired one are not.
"""

from __future__ import annotations

from typing import Any

from gallery.database import FAILED, LEDGER, RESTORE, SPACES, Database, now, quoted, table_name
from gallery.errors import CorruptFile, InputError
from gallery.store import GalleryStore, SpaceRecord, State


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
