"""Fill the table of a new teacher's code space beside the one that is served, from the same images.

Each item of the served table is read from its source and encoded again; labels and the owner's columns are copied.
Commits are those of `ingest`, and what has the etag of the served row is not read again: a backfill that was killed
resumes when the same command is given again.  What the served table got meanwhile is done in further rounds, until
nothing is left.  The served table is only read.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gallery.batch_encoder import EncodeImages
from gallery.console import log
from gallery.database import owner_columns
from gallery.errors import InputError
from gallery.ingest import IngestCounts, IngestOptions, ingest
from gallery.record import Record
from gallery.sources.listing import Listing
from gallery.store import GalleryStore, SpaceRecord

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from gallery.codespace import CodeSpace

NO_SOURCE = "no source is known, as of a run's own images: backfill it with --images"


class BackfillCounts(Record):
    """What a backfill did.

    items: those of the served code space; same: encoded before; encoded, updated, removed: of all rounds; failed: those
    without a new code, or with a stale one; without_source: those of them that have no address; changed: items whose
    images are others by now than those that the served codes were made of
    """

    code_space: str
    served: str
    items: int = 0
    same: int = 0
    encoded: int = 0
    updated: int = 0
    removed: int = 0
    failed: int = 0
    without_source: int = 0
    changed: int = 0
    rounds: int = 0
    seconds: float = 0.0
    version: int = 0


def backfill(
    store: GalleryStore, space: CodeSpace, centers: NDArray[np.int8], images: Listing | None, options: IngestOptions,
    load_encoder: Callable[[], EncodeImages],
) -> BackfillCounts:  # fmt: skip
    """Bring the table of a code space up to date with the one that is served, and return what was done.

    images: where items without a source are, by id; load_encoder: loads the space's teacher, when it is needed
    Raises `InputError` where nothing is served, or that very space.
    """
    start, served = time.monotonic(), served_beside(store, space.id)
    load, counts = functools.cache(load_encoder), BackfillCounts(code_space=space.id, served=served.space)
    own = _own_columns(store, served.space)
    store.add_space(space, centers, own)
    while True:
        known = store.read(store.open_table(space.id), ["id"])["id"]  # before the items, which `add` writes first
        version = int(store.open_table(served.space).version)
        items, absent = _items(store, store.open_table(served.space, version), images)
        _note_absent(store, space.id, absent, known, counts.rounds == 0)
        log.info("[backfill] %d items of code space %s in %s", len(items) + len(absent), served.space, space.id)
        done = ingest(store, space, Listing(items), options._replace(add_columns=own.names), load)
        removed = _remove_others(store, space.id, known, [items["id"], absent["id"]])
        counts = _add(counts, done, removed, len(absent))
        options = options._replace(retry=False)
        if version == store.open_table(served.space).version or not (done.encoded or done.updated or removed):
            break
        own = _own_columns(store, served.space)
    seconds = round(time.monotonic() - start, 2)
    failed = len(store.failures(space.id))
    changed = _count_changed(store, served.space, space.id)
    return counts.model_copy(update={"failed": failed, "changed": changed, "seconds": seconds})


def served_beside(store: GalleryStore, space_id: str) -> SpaceRecord:
    """Return the code space that is served; raises `InputError` without, and where it is this one."""
    served = store.space_in("serving")
    if served is None:
        raise InputError(f"a code space that is served in {store.uri}", "none", "Fill it with gallery/run.py add.")
    if served.space == space_id:
        fix = "Name the run of another teacher; this one's items are brought up to date by gallery/run.py add."
        raise InputError("a code space beside the one that is served", f"{space_id}, which is served", fix)
    return served


def _own_columns(store: GalleryStore, space_id: str) -> pa.Schema:
    import pyarrow as pa

    schema = store.open_table(space_id).schema
    return pa.schema([schema.field(name) for name in owner_columns(schema.names)])


def _items(store: GalleryStore, table: Any, images: Listing | None) -> tuple[pa.Table, pa.Table]:
    """Return what is to be encoded, as `ingest` takes it, and the items of which no source is known."""
    import pyarrow.compute as pc

    own = owner_columns(table.schema.names)
    rows = store.read(table, ["id", "source", "etag", "labels", *own]).sort_by("id").combine_chunks()
    absent = pc.equal(pc.fill_null(rows["source"], ""), "")
    if images is not None and pc.any(absent).as_py():
        place = pc.index_in(rows["id"].combine_chunks(), images.items["id"].combine_chunks())
        for name in ("source", "etag"):
            found = images.items[name].combine_chunks().take(place)
            column = pc.if_else(absent, found, rows[name].combine_chunks())
            rows = rows.set_column(rows.schema.get_field_index(name), name, column)
        absent = pc.equal(pc.fill_null(rows["source"], ""), "")
    return rows.filter(pc.invert(absent)), rows.filter(absent)


def _note_absent(store: GalleryStore, space_id: str, absent: pa.Table, known: pa.ChunkedArray, say: bool) -> None:
    """Note items without a source that have no code as failures, and say so."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not len(absent):
        return
    noted = pa.chunked_array([*known.chunks, *store.failures(space_id)["id"].chunks], pa.string())
    new = absent.filter(pc.invert(pc.is_in(absent["id"], noted.combine_chunks())))
    store.fail(space_id, [{"id": id, "source": "", "etag": "", "reason": NO_SOURCE} for id in new["id"].to_pylist()])
    without = int(pc.sum(pc.invert(pc.is_in(absent["id"], known.combine_chunks()))).as_py() or 0)
    if say and without:
        text = "  %d items have no source, as the images of a run's own data: they get no code, and are in `failures`."
        log.warning(text + "  Name the folder that their ids are below: --images FOLDER", without)


def _remove_others(store: GalleryStore, space_id: str, known: pa.ChunkedArray, wanted: list[pa.ChunkedArray]) -> int:
    """Remove what the served table does not have any more, and what is noted about it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kept = pa.chunked_array([chunk for column in wanted for chunk in column.chunks], pa.string()).combine_chunks()
    gone = [ids.filter(pc.invert(pc.is_in(ids, kept))).to_pylist() for ids in (known, store.failures(space_id)["id"])]
    store.forget_failures(space_id, gone[1])
    return store.remove(space_id, gone[0], "backfill").removed if gone[0] else 0


def _add(counts: BackfillCounts, done: IngestCounts, removed: int, absent: int) -> BackfillCounts:
    return counts.model_copy(update={
        "items": done.seen + absent, "same": counts.same if counts.rounds else done.same,
        "encoded": counts.encoded + done.encoded, "updated": counts.updated + done.updated,
        "removed": counts.removed + removed, "without_source": absent, "rounds": counts.rounds + 1,
    })  # fmt: skip


def _count_changed(store: GalleryStore, served: str, space_id: str) -> int:
    """Return how many items were encoded from other bytes in two code spaces, and say so."""
    import pyarrow.compute as pc

    left, right = (store.read(store.open_table(space), ["id", "sha256"]) for space in (served, space_id))
    other = right["sha256"].take(pc.index_in(left["id"].combine_chunks(), right["id"].combine_chunks()))
    changed = int(pc.sum(pc.fill_null(pc.not_equal(left["sha256"], other), False)).as_py() or 0)
    if changed:
        text = "  %d images are others by now than when they were added: bring both code spaces up to date by `add`"
        log.warning(text, changed)
    return changed
