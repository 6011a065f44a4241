"""The k nearest codes by Hamming distance, exactly: by buckets around the hash centers, or by a flat scan.

A code x is in the cell of its nearest center c, and there in the ring of its distance r to c.  For a query q whose own
nearest center is c', two lower bounds hold for every code in that bucket:

    d(q, x) >= |d(q, c) - r|               the triangle inequality
    d(q, x) >= (d(q, c) - d(q, c')) / 2    as d(q, c) <= d(q, x) + d(x, c) <= d(q, x) + d(x, c') <= 2 d(q, x) + d(q, c')

Some buckets of small bounds are scanned, until k items lie within a distance t; then all buckets with bounds up to t.
No other bucket can hold an item within t.  So every item of the k least distances was seen, with all that tie with the
k-th; they are cut by (distance, row).  That is the answer of a flat scan, whatever the centers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gallery.codes import Codes, pack, words
from gallery.errors import InputError
from gallery.flat_scan import BLOCK, FlatScan, Found, Runs, Words, distances_in, first_items, kth_distance, stack

Form = Literal["buckets", "faiss", "numpy"]
FIRST_ROUND = 4096  # codes
FEW_LEFT = 128  # among fewer than n / 128 rows, a flat scan of them is quicker: 0.6 ms at a million
FEW_ROWS, MANY_CENTERS = 16_384, 4096  # a flat scan takes 0.02 ms; 1,000 centers of a million codes take 0.9 s to sort
ENOUGH = 4  # times k codes in the cell of a query are enough for the first round
RUN_COST = 2000  # a run of buckets side by side costs as much as scanning that many codes
NONE = np.empty(0, np.uint8), np.empty(0, np.int64)
SAMPLE, SECONDS, COMPARED_K = 100, 0.3, (10, 100)  # codes and CPU time to compare the two forms by


class RowsWithin(NamedTuple):
    """Rows within a radius; those of query i are `offsets[i] : offsets[i + 1]`, sorted by (distance, row)."""

    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]
    distances: NDArray[np.uint16]


class CodebookIndex:
    """The nearest of packed codes `[n, bytes]`; a row is a place in that array.

    centers: +-1 `[classes, bits]`; those of the code space make it quick.  When it is built, both forms are timed on
    codes of the gallery, for about a second, and the quicker one is kept, unless `form` names one; the answers are the
    same.  The codes are not copied where they fill whole 64-bit words.  Beside them the buckets take 4 bytes an item
    and 16 a distinct code of 64 bits, and faiss 8 an item.  Searches may run in several threads.
    """

    def __init__(self, codes: Codes, centers: NDArray[np.int8] | None = None, form: Form | None = None) -> None:
        self._codes = codes
        few = centers is None or len(codes) < FEW_ROWS or not 0 < len(centers) <= MANY_CENTERS
        self._scan: Buckets | FlatScan
        if form == "buckets" and centers is not None and len(codes) and len(centers):
            self._scan = Buckets(codes, centers)
            return
        self._scan = FlatScan(codes, form != "numpy")
        if form is None and centers is not None and not few:
            buckets = Buckets(codes, centers)
            if _seconds(buckets.search, codes) < _seconds(self._scan.search, codes):
                self._scan = buckets

    def __len__(self) -> int:
        return len(self._codes)

    @property
    def form(self) -> Form:
        """What searches: `buckets`, or a flat scan by `faiss` or `numpy`."""
        if isinstance(self._scan, Buckets):
            return "buckets"
        return "numpy" if self._scan.faiss is None else "faiss"

    @property
    def nbytes(self) -> int:
        """The size in bytes of what searches, beside the codes themselves."""
        return self._scan.nbytes

    def search(self, codes: Codes, k: int) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        """Return distances and rows of the k nearest, both `[queries, min(k, n)]`, sorted by (distance, row).

        Raises `InputError` for other codes than packed ones of this width, and for k below 1.
        """
        self._check(codes, k)
        return self._scan.search(codes, min(k, len(self)))

    def search_among(self, codes: Codes, k: int, rows: NDArray[Any]) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        """Return what `search` does, among the rows of a mask, bool `[n]`, or of row numbers in any order."""
        self._check(codes, k)
        mask = self._mask(np.asarray(rows))
        left = int(np.count_nonzero(mask))
        k = min(k, left)
        if isinstance(self._scan, Buckets) and left * FEW_LEFT > len(self):
            return stack([self._nearest_among(code, k, mask, left) for code in codes], k)
        return self._flat_among(codes, k, mask)

    def within(self, codes: Codes, radius: int) -> RowsWithin:
        """Return all rows at a distance of at most `radius` from each code, however many they are."""
        self._check(codes)
        found = [self._scan.within(query, radius) for query in words(codes)]
        offsets = np.cumsum([0, *(len(rows) for _, rows in found)])
        distances = np.concatenate([np.empty(0, np.uint16), *(distances for distances, _ in found)])
        rows = np.concatenate([np.empty(0, np.int64), *(rows for _, rows in found)])
        return RowsWithin(offsets, rows, distances.astype(np.uint16))

    def _check(self, codes: Codes, k: int = 1) -> None:
        if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != self._codes.shape[1]:
            expected = f"packed uint8 codes [n, {self._codes.shape[1]}]"
            raise InputError(expected, f"{codes.dtype} {codes.shape}", "Pack logits with gallery.codes.pack.")
        if k < 1:
            raise InputError("k of at least 1", str(k), "Change k.")

    def _mask(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        if rows.dtype == bool and rows.shape == (len(self),):
            return rows
        inside = rows.dtype.kind in "iu" and 0 <= rows.min(initial=0) <= rows.max(initial=0) < max(len(self), 1)
        if not inside:
            fix = "Choose among the rows of this index."
            raise InputError(f"a mask of {len(self)} rows, or row numbers", f"{rows.dtype} {rows.shape}", fix)
        mask = np.zeros(len(self), bool)
        mask[rows] = True
        return mask

    def _nearest_among(self, code: Codes, k: int, mask: NDArray[np.bool_], left: int) -> Found:
        """Look among more and more of the nearest: the first of them in the mask are the first of the mask."""
        more = 2 * k * len(self) // left
        while 16 * more < len(self):
            distances, rows = self._scan.search(code[None], more)
            kept = np.flatnonzero(mask[rows[0]])[:k]
            if len(kept) == k:
                return distances[0, kept], rows[0, kept]
            more *= 4
        distances, rows = self._flat_among(code[None], k, mask)
        return distances[0], rows[0]

    def _flat_among(self, codes: Codes, k: int, mask: NDArray[np.bool_]) -> Found:
        chosen = np.flatnonzero(mask)
        distances, places = FlatScan(self._codes[chosen], use_faiss=False).search(codes, k)
        return distances, chosen[places]


class Buckets:
    """Distinct codes sorted by (cell, ring), and the rows of each: equal codes are scanned once.

    Bucket i holds the codes `offsets[i] : offsets[i + 1]`, one at least; code j stands in `sizes[j]`
    rows from `rows[firsts[j]]` on, which ascend.
    """

    def __init__(self, packed: Codes, signs: NDArray[np.int8]) -> None:
        """Sort codes: 0.2 s for a million and 100 centers."""
        codes, centers, bits = words(packed), words(pack(signs)), packed.shape[1] * 8
        order = np.lexsort(codes.T)
        ordered = codes[order]
        new = np.ones(len(codes), bool)
        new[1:] = (ordered[1:] != ordered[:-1]).any(1)
        starts = np.flatnonzero(new)
        columns = np.ascontiguousarray(ordered[starts].T)
        bucket = _bucket(columns, centers, bits)
        by_bucket = np.argsort(bucket, kind="stable")
        sizes = np.diff(starts, append=len(codes))[by_bucket]
        counts = np.bincount(bucket, minlength=len(centers) * (bits + 1))
        self.bits, self.centers, self.columns = bits, np.ascontiguousarray(centers.T), columns[:, by_bucket]
        self.cells, rings = np.divmod(np.flatnonzero(counts), bits + 1)
        self.rings, self.counts = rings.astype(np.int16), counts[counts > 0].astype(float)  # as bincount takes them
        self.offsets = np.concatenate([[0], counts[counts > 0].cumsum()])
        self.cell_sizes = counts.reshape(len(centers), -1).sum(1)
        self.cell_starts = np.searchsorted(self.cells, np.arange(len(centers) + 1))
        place = np.int64 if len(codes) >> 32 else np.uint32
        self.sizes, self.firsts = sizes.astype(place), (sizes.cumsum() - sizes).astype(place)
        self.rows = order[_spread(starts[by_bucket], sizes)].astype(place)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in vars(self).values() if isinstance(part, np.ndarray))

    def search(self, codes: Codes, k: int) -> Found:
        """Return uint16 distances and int64 rows of the k nearest, both `[queries, k]`; k is n at most."""
        return stack([self._nearest(query, k) for query in words(codes)], k)

    def _nearest(self, query: Words, k: int) -> Found:
        """Return distances and rows of the k nearest, in two rounds."""
        near, all_codes = self._center_distances(query), self.columns.shape[1]
        own, part = int(near.argmin()), slice(0, len(self.cells))
        if self.cell_sizes[own] >= ENOUGH * k:  # a first round in the query's own cell will do
            part = slice(self.cell_starts[own], self.cell_starts[own + 1])
        bounds = self._bounds(near, part)
        up_to = np.bincount(bounds, self.counts[part], self.bits + 1).cumsum()  # codes of a bound up to each distance
        level = int(up_to.searchsorted(min(max(FIRST_ROUND, k), up_to[-1])))
        first = part.start + (bounds <= level).nonzero()[0]
        distances, codes = self._within(query, self._runs(first), k, self.bits)
        kth = int(np.bincount(distances, self.sizes[codes]).cumsum().searchsorted(k))
        alone = len(bounds) == len(self.cells) or np.count_nonzero(near <= near[own] + 2 * kth) == 1
        second = NONE[1] if alone and kth <= level else self._buckets_within(near, kth, first)
        if len(second):
            runs = self._runs(second)
            if self.counts[second].sum() + RUN_COST * len(runs) > all_codes:  # a scan of everything costs less
                runs, (distances, codes) = [(0, all_codes)], NONE
            more = self._within(query, runs, k, kth)
            distances, codes = np.concatenate([distances, more[0]]), np.concatenate([codes, more[1]])
            kth = int(np.bincount(distances, self.sizes[codes]).cumsum().searchsorted(k))
        kept = distances <= kth
        return self._first(distances[kept], codes[kept], k)

    def within(self, query: Words, radius: int) -> Found:
        """Return distances and rows of all within the radius."""
        buckets = self._buckets_within(self._center_distances(query), radius, np.empty(0, np.intp))
        return self._first(*self._within(query, self._runs(buckets), len(self.rows) + 1, radius), len(self.rows))

    def _center_distances(self, query: Words) -> NDArray[np.int16]:
        return distances_in(self.centers, query, [(0, self.centers.shape[1])]).astype(np.int16)

    def _bounds(self, near: NDArray[np.int16], buckets: NDArray[np.intp] | slice) -> NDArray[np.int16]:
        """Return the lower bound by the triangle inequality for the codes of each bucket."""
        return np.abs(near[self.cells[buckets]] - self.rings[buckets])

    def _buckets_within(self, near: NDArray[np.int16], radius: int, seen: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return the buckets whose two bounds are at most the radius, but for those seen, in their order."""
        cells = (near - near.min() <= 2 * radius).nonzero()[0]
        starts = self.cell_starts[cells]
        buckets = _spread(starts, self.cell_starts[cells + 1] - starts)
        buckets = buckets[self._bounds(near, buckets) <= radius]
        unseen = np.ones(len(self.cells), bool)
        unseen[seen] = False
        return buckets[unseen[buckets]]

    def _runs(self, buckets: NDArray[np.intp]) -> Runs:
        starts, ends = self.offsets[buckets], self.offsets[buckets + 1]
        edges = np.ones(len(buckets) + 1, bool)
        edges[1:-1] = starts[1:] != ends[:-1]
        return list(zip(starts[edges[:-1]].tolist(), ends[edges[1:]].tolist(), strict=True))

    def _within(self, query: Words, runs: Runs, k: int, limit: int) -> Found:
        """Return distances and places of the codes in the runs within the limit, and within the k-th of them."""
        distances = distances_in(self.columns, query, runs)
        places = (distances <= kth_distance(distances, k, limit)).nonzero()[0]
        starts, ends = np.array(runs, np.int64).reshape(-1, 2).T
        begins = (ends - starts).cumsum() - ends  # minus where a run starts in the columns: where it does in distances
        return distances[places], places - begins[np.searchsorted(begins + starts, places, "right") - 1]

    def _first(self, distances: NDArray[Any], codes: NDArray[np.int64], k: int) -> Found:
        """Return the first k items of these codes by (distance, row); of each code, its first k rows will do."""
        sizes = np.minimum(self.sizes[codes], k)
        rows = self.rows[_spread(self.firsts[codes], sizes)]
        return first_items(np.repeat(distances, sizes), rows, k)


def _bucket(columns: Words, centers: Words, bits: int) -> NDArray[Any]:
    """Return cell * (bits + 1) + ring of each code; of centers equally near, the first."""
    bucket = np.empty(columns.shape[1], np.min_scalar_type(len(centers) * (bits + 1)))
    for at in range(0, len(bucket), BLOCK):
        block = columns[:, at : at + BLOCK]
        nearest = np.full(block.shape[1], np.iinfo(np.uint32).max, np.uint32)
        for cell, center in enumerate(centers):
            distances = distances_in(block, center, [(0, block.shape[1])])
            np.minimum(nearest, distances * np.uint32(len(centers)) + np.uint32(cell), out=nearest)
        rings, cells = np.divmod(nearest, np.uint32(len(centers)))
        bucket[at : at + BLOCK] = cells * np.uint32(bits + 1) + rings
    return bucket


def _spread(firsts: NDArray[Any], sizes: NDArray[Any]) -> NDArray[Any]:
    """Return firsts[0], firsts[0] + 1, ... of sizes[0] numbers, then those of firsts[1] and so on."""
    ends = sizes.cumsum(dtype=np.int64)
    return np.repeat(firsts - (ends - sizes), sizes) + np.arange(ends[-1] if len(ends) else 0)


def _seconds(search: Callable[[Codes, int], Found], codes: Codes) -> float:
    """Return the mean CPU time of a search by codes of the gallery, each of which also finds itself."""
    sample = codes[np.random.default_rng(0).integers(0, len(codes), SAMPLE)]
    start, searches = time.thread_time(), 0
    while searches < len(sample) and time.thread_time() - start < SECONDS:
        for k in COMPARED_K:
            search(sample[searches][None], k + 1)
        searches += 1
    return (time.thread_time() - start) / searches
