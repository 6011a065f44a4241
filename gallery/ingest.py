"""Bring a table of codes up to date with a source: read what is new or changed, encode it, and commit as it goes.

Of an item with the etag that its row has nothing is read; of one with the same bytes (SHA-256) nothing is encoded; what
cannot be decoded is noted with the reason, and its old code stays.  Each commit is whole, and what is in the table is
not done again: an ingestion that was killed resumes when the same command is given again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gallery.batch_encoder import BATCH, BatchEncoder, EncodedImage, EncodeImages, EncodeJob
from gallery.codespace import CodeSpace
from gallery.console import log, track
from gallery.database import call, check_column, code_array, item_columns
from gallery.errors import CorruptFile, InputError
from gallery.record import Record
from gallery.sources.folder import LISTED
from gallery.sources.reader import ImageRequest
from gallery.store import GalleryStore

if TYPE_CHECKING:
    import pyarrow as pa

    from gallery.sources.listing import Listing


class IngestOptions(NamedTuple):
    """How to ingest; see `gallery/run.py add --help`. after_slice: called after each slice of the engine "ray" """

    commit_rows: int = 4096
    rehash: bool = False
    retry: bool = False
    allow_http: bool = False
    add_columns: Sequence[str] = ()
    engine: Literal["local", "ray"] = "local"
    slice_rows: int = 100_000
    after_slice: Callable[[], object] = lambda: None


class IngestCounts(Record):
    """What an ingestion did.

    seen: items listed; same: left as they are; updated: of other columns or times, but of the same bytes; stale: failed
    ones whose old code stays; removed: no longer in the source; passed_over: files that are no images;
    images_per_second: of those encoded, without the time in which the network was loaded
    """

    code_space: str
    seen: int = 0
    same: int = 0
    updated: int = 0
    encoded: int = 0
    failed: int = 0
    stale: int = 0
    removed: int = 0
    passed_over: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    version: int = 0


def ingest(
    store: GalleryStore, space: CodeSpace, listing: Listing, options: IngestOptions,
    load_encoder: Callable[[], EncodeImages],
) -> IngestCounts:  # fmt: skip
    """Bring the table of a code space up to date with what a source lists, and return what was done.

    load_encoder: loads the space's teacher; called when the first image is to be encoded, if there is one
    Raises `InputError` for columns that the gallery does not have.
    """
    start = time.monotonic()
    add_columns(store, space.id, listing.items.schema, options.add_columns)
    plan = _plan(store, space.id, listing, options)
    writer = _Writer(store, space, listing.items, plan)
    for at in range(0, len(plan.updated), options.commit_rows):
        writer.update(plan.updated[at : at + options.commit_rows])
    sources = listing.items["source"].to_pylist() if plan.requests else []
    requests = [ImageRequest(row, sources[row], known) for row, known in plan.requests]
    reading = time.monotonic()
    job = EncodeJob(space, load_encoder, options.allow_http, min(BATCH, options.commit_rows))
    with _engine(job, options, bool(requests)) as engine:
        size = options.slice_rows if options.engine == "ray" else len(requests)
        for at in range(0, len(requests), max(size, 1)):
            part = requests[at : at + size]
            for image in track(engine.encode(part), "encoding images", len(requests), at):
                writer.add(image)
                if writer.pending >= options.commit_rows:
                    writer.commit(len(requests))
            if writer.pending:
                writer.commit(len(requests))
            if at + size < len(requests):
                options.after_slice()
    seconds = time.monotonic()
    rate = writer.encoded / max(seconds - reading - engine.loading, 1e-9)
    return IngestCounts(
        code_space=space.id, seen=len(listing.items), same=plan.same, updated=writer.updated, encoded=writer.encoded,
        failed=plan.failed + writer.failed, stale=plan.stale + writer.stale, seconds=round(seconds - start, 2),
        passed_over=listing.others + len(listing.skipped), images_per_second=round(rate, 1),
    )  # fmt: skip


@contextmanager
def _engine(job: EncodeJob, options: IngestOptions, is_needed: bool) -> Iterator[BatchEncoder]:
    if options.engine == "ray" and is_needed:
        from gallery.ray_engine import ray_engine

        with ray_engine(job) as engine:
            yield engine
    else:
        yield BatchEncoder(job)


def add_columns(store: GalleryStore, space_id: str, given: pa.Schema, wanted: Sequence[str]) -> None:
    """Add the owner's columns in `wanted` to a table; raises `InputError` for others that it does not have."""
    import pyarrow as pa

    table = store.open_table(space_id)
    own = item_columns(1).names
    known = table.schema.names  # read once: another writer may add to them meanwhile
    new = [given.field(name) for name in given.names if name not in {*known, *own}]
    alike = {name.lower(): name for name in known}
    for field in new:
        check_column(field.name)
        if field.name.lower() in alike:  # SQL engines take them for one
            fix = f"Call it {alike[field.name.lower()]}, or give it another name."
            raise InputError("columns whose names differ by more than case", field.name, fix)
    if missing := [field.name for field in new if field.name not in wanted]:
        fix = f"Run it again with --add-column {' '.join(missing)}, or leave these out of the manifest."
        raise InputError(f"columns that the gallery {store.uri} has", f"{', '.join(missing)} beside them", fix)
    if new:
        try:
            call(store.uri, table.add_columns, pa.schema(new))
        except (CorruptFile, InputError):  # it is there already, or another commit came first
            if not {field.name for field in new} <= set(store.open_table(space_id).schema.names):
                raise  # else another process added them


class _Plan(NamedTuple):
    """What is to be done about each item, by row. requests: rows to read, with the SHA-256 that is known of each

    was_failed: rows whose failure is noted; known: rows that have a code
    """

    same: int
    failed: int
    stale: int
    updated: Sequence[int]
    requests: Sequence[tuple[int, str | None]]
    was_failed: set[int]
    known: NDArray[np.bool_]


def _plan(store: GalleryStore, space_id: str, listing: Listing, options: IngestOptions) -> _Plan:
    import pyarrow.compute as pc

    items = listing.items
    stated = [name for name in items.column_names if name not in ("id", "etag")]
    rows = store.read(store.open_table(space_id), ["id", "etag", "sha256", *stated])
    place = pc.index_in(items["id"].combine_chunks(), rows["id"].combine_chunks())
    known = place.is_valid().to_numpy(zero_copy_only=False)
    rows = rows.take(place)
    failures = store.failures(space_id)
    noted = dict(zip(failures["id"].to_pylist(), failures["etag"].to_pylist(), strict=True))
    etags, ids = items["etag"].to_pylist(), items["id"].to_pylist()
    was_failed = {row for row, id in enumerate(ids) if id in noted} if noted else set()
    again = {row for row in was_failed if etags[row] and etags[row] == noted[ids[row]]}
    again = set() if options.retry or options.rehash else again
    same_etag = pc.fill_null(pc.equal(items["etag"], rows["etag"]), False).to_numpy()
    same_etag &= known & (not options.rehash)
    unchanged = same_columns(items, rows, stated)
    skipped = np.zeros(len(ids), bool)
    skipped[list(again)] = True
    updated = np.flatnonzero(same_etag & ~unchanged & ~skipped).tolist()
    to_read = np.flatnonzero(~same_etag & ~skipped).tolist()
    sums = rows["sha256"].to_pylist()
    stale = int((known & skipped).sum())
    same = int((same_etag & unchanged & ~skipped).sum())
    return _Plan(same, len(again), stale, updated, [(row, sums[row]) for row in to_read], was_failed, known)


def same_columns(items: pa.Table, rows: pa.Table, names: Sequence[str]) -> NDArray[np.bool_]:
    """Return of each item whether its row says what the source says."""
    import pyarrow as pa
    import pyarrow.compute as pc

    same = np.ones(len(items), bool)
    for name in names:
        left, right = items[name], rows[name]
        if pa.types.is_list(left.type):
            same &= np.array([a == b for a, b in zip(left.to_pylist(), right.to_pylist(), strict=True)], bool)
        else:
            equal = pc.fill_null(pc.equal(left, right.cast(left.type)), False)
            both_null = pc.and_(pc.is_null(left), pc.is_null(right))
            same &= pc.or_(equal, both_null).to_numpy()
    return same


class _Writer:
    """Commits rows."""

    def __init__(self, store: GalleryStore, space: CodeSpace, items: pa.Table, plan: _Plan) -> None:
        self._store, self._space, self._items, self._plan = store, space, items, plan
        self._encoded: list[EncodedImage] = []
        self._touched: list[EncodedImage] = []
        self._failed: list[EncodedImage] = []
        self.updated = self.encoded = self.failed = self.stale = self.done = 0

    @property
    def pending(self) -> int:
        """The number of images that wait for the next commit."""
        return len(self._encoded) + len(self._touched) + len(self._failed)

    def update(self, rows: Sequence[int]) -> None:
        """Write what the source says of items whose bytes are known: their codes stay."""
        self._store.put(self._space.id, self._rows(rows), "update")
        self._forget(rows)
        self.updated += len(rows)

    def add(self, image: EncodedImage) -> None:
        """Keep an image for the next commit."""
        kind = self._failed if image.reason else self._touched if image.code is None else self._encoded
        kind.append(image)

    def commit(self, total: int) -> None:
        """Write what was encoded, touched and failed since the last commit, and say so."""
        if self._encoded:
            rows = [image.row for image in self._encoded]
            table = self._rows(rows, [image.sha256 for image in self._encoded])
            packed = b"".join(image.code for image in self._encoded if image.code is not None)
            codes = np.frombuffer(packed, np.uint8).reshape(len(rows), -1)
            table = table.append_column("code", code_array(codes))
            self._store.put(self._space.id, table)
            self._forget(rows)
        if self._touched:
            rows = [image.row for image in self._touched]
            self._store.put(self._space.id, self._rows(rows, [image.sha256 for image in self._touched]), "update")
            self._forget(rows)
        if self._failed:
            self._note_failures()
        self.encoded, self.updated = self.encoded + len(self._encoded), self.updated + len(self._touched)
        self.done += self.pending
        log.info("  %d of %d: %d encoded, %d failed", self.done, total, self.encoded, self.failed)
        self._encoded, self._touched, self._failed = [], [], []

    def _rows(self, rows: Sequence[int], sums: Sequence[str] | None = None) -> pa.Table:
        import pyarrow as pa

        table = self._items.take(pa.array(rows, pa.int64()))
        return table if sums is None else table.append_column("sha256", pa.array(sums, pa.string()))

    def _note_failures(self) -> None:
        rows = self._rows([image.row for image in self._failed]).select(["id", "source", "etag"]).to_pylist()
        noted = [row | {"reason": image.reason} for row, image in zip(rows, self._failed, strict=True)]
        self._store.fail(self._space.id, noted)
        self.failed += len(noted)
        self.stale += sum(bool(self._plan.known[image.row]) for image in self._failed)

    def _forget(self, rows: Sequence[int]) -> None:
        if mended := [row for row in rows if row in self._plan.was_failed]:
            self._store.forget_failures(self._space.id, self._rows(mended)["id"].to_pylist())


def ids_not_in(store: GalleryStore, space_id: str, listing: Listing, most: float) -> list[str]:
    """Return the ids in a table that a source does not list any more.

    most: the share of the table that may be removed; raises `InputError` beyond it, and where the source could not be
    listed whole
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = store.read(store.open_table(space_id), ["id"])["id"]
    missing = ids.filter(pc.invert(pc.is_in(ids, pa.array(listing.items["id"].combine_chunks())))).to_pylist()
    unknown = [one for one in listing.skipped if one.reason != LISTED]
    if missing and unknown:
        found = f"{unknown[0].path!a}: {unknown[0].reason}"
        raise InputError("a source that can be listed whole, to prune by it", found, "Correct that, or do not prune.")
    if len(missing) > most * len(ids):
        found = f"{len(missing):,} of {len(ids):,} items that are not in the source"
        needed = min(1.0, -(-100 * len(missing) // len(ids)) / 100)
        fix = f"Check the source; if it is right, allow it: --prune-most {needed:g}."
        raise InputError(f"at most {most:.0%} of the gallery to be removed", found, fix)
    return sorted(missing)
