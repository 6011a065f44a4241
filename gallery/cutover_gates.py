"""What a new code space must pass before it is served: sound rows, the served one's items, and as good retrieval.

Retrieval is compared twice: by the gallery's own items, which the teachers hashed, and, where there are held-out query
photos, by those as each code space's student hashes them, which is what an app will see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gallery.codes import Codes, hamming
from gallery.database import RESTORE, column_codes, owner_columns
from gallery.errors import InputError
from gallery.ingest import same_columns
from gallery.metrics import expected_precision
from gallery.store import GalleryStore

if TYPE_CHECKING:
    import pyarrow as pa

    from gallery.query_photos import QueryPhotos

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


def check_gates(
    store: GalleryStore, space_id: str, limits: CutoverLimits, photos: QueryPhotos | None = None
) -> list[CutoverGate]:
    """Return how a code space does beside the one that is served.

    photos: held-out queries as hashed by the students of both
    """
    served = store.space_in("serving")
    if served is None:
        raise InputError(f"a code space that is served in {store.uri}", "none", "Publish it: gallery/run.py publish.")
    found = store.verify(space_id)
    sound = CutoverGate("rows match their checks", found.problem or f"{found.found.rows:,} rows", "all",
                        not found.problem, f"Delete it (retire --delete) and fill it again: {RESTORE}")  # fmt: skip
    gates = [sound, *_compare_items(store, served.space, space_id, limits.missing)]
    if found.problem:
        return gates
    items = _labelled_items(store, served.space, space_id)
    queries = [photos.codes[one] for one in (served.space, space_id)] if photos else None
    by_students = _compare_students(items, queries, photos.labels if photos else None, limits)
    return [*gates, _compare_teachers(items, limits), by_students]


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


class _LabelledItems:
    """Up to `SEARCHED` random items (seed 0) that have labels, and codes in both tables.

    tables: their packed codes `[n, bytes]` in each; labels: the class names of each
    """

    def __init__(self, tables: list[Codes], labels: pa.ListArray) -> None:
        encoded = labels.flatten().dictionary_encode()
        self.tables, self.labels = tables, labels
        self._number = {name: number for number, name in enumerate(encoded.dictionary.to_pylist())}
        self._numbers = encoded.indices.to_numpy()
        self._owner = np.repeat(np.arange(len(labels)), labels.value_lengths().to_numpy())

    def relevant(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """Return which items share a label, `[n]`."""
        numbers = [self._number[name] for name in names if name in self._number]
        found = np.zeros(len(self.labels), bool)
        found[self._owner[np.isin(self._numbers, numbers)]] = True
        return found


def _labelled_items(store: GalleryStore, served: str, space_id: str) -> _LabelledItems:
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = store.read(store.open_table(served), ["id", "labels", "code"])
    rows = rows.filter(pc.greater(pc.fill_null(pc.list_value_length(rows["labels"]), 0), 0))
    other = store.read(store.open_table(space_id), ["id", "code"])
    rows = rows.filter(pc.is_in(rows["id"], other["id"].combine_chunks())).sort_by("id")
    rows = rows.take(pa.array(np.random.default_rng(0).permutation(len(rows))[:SEARCHED]))
    other = other.take(pc.index_in(rows["id"].combine_chunks(), other["id"].combine_chunks()))
    return _LabelledItems([column_codes(one) for one in (rows, other)], rows["labels"].combine_chunks())


def _compare_teachers(items: _LabelledItems, limits: CutoverLimits) -> CutoverGate:
    """Compare the retrieval of items, each searched among all others of its own table."""
    gate, allowed = "retrieval by the gallery's own items", f"a drop of {limits.map_drop:g}"
    if len(items.labels) < 2:
        return CutoverGate(gate, "not compared: no items with labels and both codes", allowed, True)
    before, after, queries = _leave_one_out(items, limits.queries)
    if not queries:
        return CutoverGate(gate, "not compared: no two items share a label", allowed, True)
    protocol = f"mAP {before:.4f} -> {after:.4f}, {queries:,} items each among {len(items.labels) - 1:,} others"
    fix = "Train a better teacher, or allow it: --map-drop."
    return CutoverGate(gate, protocol, allowed, bool(before - after <= limits.map_drop), fix)


def _compare_students(
    items: _LabelledItems, queries: Sequence[Codes] | None, labels: pa.ListArray | None, limits: CutoverLimits
) -> CutoverGate:
    """Compare the retrieval of held-out photos, by the student of each code space in its own table."""
    gate, allowed = "retrieval by the students' queries", f"a drop of {limits.map_drop:g}"
    if queries is None or labels is None:
        return CutoverGate(gate, "not compared: no --query-images", allowed, True)
    wanted = labels.to_pylist()
    before, after, count = _compare(items, queries, lambda query: items.relevant(wanted[query]), itself=0)
    if not count:
        fix = "Label the photos as the gallery's items are labelled."
        raise InputError("query photos that share labels with the gallery's items", "none", fix)
    protocol = f"mAP {before:.4f} -> {after:.4f}, {count:,} photos each among {len(items.labels):,} items"
    fix = "Train a better student for the new code space, or allow it: --map-drop."
    return CutoverGate(gate, protocol, allowed, bool(before - after <= limits.map_drop), fix)


def _leave_one_out(items: _LabelledItems, count: int) -> tuple[float, float, int]:
    """Compare tables by their own items: the first `count` are searched, each among all others."""
    labels = items.labels.slice(0, count).to_pylist()

    def relevant(query: int) -> NDArray[np.bool_]:
        found = items.relevant(labels[query])
        found[query] = False
        return found

    return _compare(items, [codes[:count] for codes in items.tables], relevant, itself=1)


def _compare(
    items: _LabelledItems, queries: Sequence[Codes], relevant: Callable[[int], NDArray[np.bool_]], itself: int
) -> tuple[float, float, int]:
    """Return the tie-aware mAP in both tables, and the number of queries that have a relevant item.

    queries: packed codes `[q, bytes]` for each table; relevant: of a query, which items are, `[n]`
    itself: how many of the items at distance 0 are the query
    """
    counts: list[list[tuple[NDArray[np.int64], ...]]] = []
    for query in range(len(queries[0])):
        if (found := relevant(query)).any():
            sides = zip(queries, items.tables, strict=True)
            counts.append([_count(codes[query : query + 1], table, found, itself) for codes, table in sides])
    if not counts:
        return 0.0, 0.0, 0
    stacked = ([np.stack([pair[side][kind] for pair in counts]) for kind in (0, 1)] for side in (0, 1))
    before, after = (float(expected_precision(everyone, relevant).mean()) for everyone, relevant in stacked)
    return before, after, len(counts)


def _count(code: Codes, table: Codes, relevant: NDArray[np.bool_], itself: int) -> tuple[NDArray[np.int64], ...]:
    """Count items at distance 0..bits from a code `[1, bytes]`, `[bits+1]`: all, and the relevant ones."""
    bins = table.shape[1] * 8 + 1
    distances = hamming(code, table)[0]
    everyone = np.bincount(distances, minlength=bins)
    everyone[0] -= itself
    return everyone, np.bincount(distances[relevant], minlength=bins)
