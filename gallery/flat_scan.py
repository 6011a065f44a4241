"""A flat scan of packed codes, by faiss where it is installed and by numpy elsewhere: both answer the same.

Answers are sorted by (distance, row); a tie at the cut goes to the lower rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gallery.codes import Codes, words

Words = NDArray[np.uint64]
Found = tuple[NDArray[Any], NDArray[Any]]  # distances, and rows or places
Runs = list[tuple[int, int]]  # first and last + 1 of codes side by side

BLOCK = 32_768  # codes, whose differences stay in the cache
COUNTERS = 1 << 25  # ids that faiss may count at once: 256 MB, of which it touches few


class FlatScan:
    """All packed codes `[n, bytes]`, compared one after the other: 0.5 ms a million by faiss, 1.2 by numpy."""

    def __init__(self, codes: Codes, use_faiss: bool = True) -> None:
        self._words, self._bits = words(codes), codes.shape[1] * 8
        self.faiss = _faiss_flat(codes) if use_faiss else None

    @property
    def nbytes(self) -> int:
        """The bytes beside the codes: faiss copies them."""
        return 0 if self.faiss is None else len(self._words) * self._bits // 8

    def search(self, codes: Codes, k: int) -> Found:
        """Return uint16 distances and int64 rows of the k nearest, both `[queries, k]`; k is n at most."""
        at_once = COUNTERS // ((self._bits + 1) * max(k, 1))
        if self.faiss is None or not at_once or not k * len(codes):
            return stack([self._nearest(query, k) for query in words(codes)], k)
        parts = [_faiss_search(self.faiss, codes[at : at + at_once], k) for at in range(0, len(codes), at_once)]
        distances, rows = zip(*parts, strict=True)
        return np.concatenate(distances).astype(np.uint16), np.concatenate(rows)

    def within(self, query: Words, radius: int) -> Found:
        """Return distances and rows of all within the radius."""
        distances = distances_in(self._words.T, query, [(0, len(self._words))])
        rows = np.flatnonzero(distances <= radius)
        return first_items(distances[rows], rows, len(rows))

    def _nearest(self, query: Words, k: int) -> Found:
        distances = distances_in(self._words.T, query, [(0, len(self._words))])
        rows = np.flatnonzero(distances <= kth_distance(distances, k, self._bits))
        return first_items(distances[rows], rows, k)


def distances_in(columns: Words, query: Words, runs: Runs) -> NDArray[Any]:
    """Return the distances from a code `[words]` to the codes `[words, n]` in the runs, one run after the other."""
    total = sum(end - start for start, end in runs)
    distances = np.empty(total, np.uint16 if len(query) > 3 else np.uint8)  # 256 bits do not fit into a byte
    differences, at = np.empty(min(total, BLOCK), np.uint64), 0
    for first, last in runs:
        for start in range(first, last, BLOCK):
            end = min(start + BLOCK, last)
            block, different = distances[at : at + end - start], differences[: end - start]
            np.bitwise_count(np.bitwise_xor(columns[0, start:end], query[0], out=different), out=block)
            for column, word in zip(columns[1:], query[1:], strict=True):
                np.add(block, np.bitwise_count(np.bitwise_xor(column[start:end], word, out=different)), out=block)
            at += end - start
    return distances


def kth_distance(distances: NDArray[Any], k: int, most: int) -> int:
    """Return the k-th least distance, `most` where that is less; counting is quicker than sorting."""
    if len(distances) > BLOCK:
        most = kth_distance(distances[::16].copy(), k, most)  # the k-th of some is no less than that of all
    least = 0
    while least < most:
        middle = least + (most - least) // 4  # it is small more often than not
        if np.count_nonzero(distances <= middle) >= k:
            most = middle
        else:
            least = middle + 1
    return most


def first_items(distances: NDArray[Any], rows: NDArray[Any], k: int) -> Found:
    """Return the first k by (distance, row)."""
    keys = (distances.astype(np.int64) << 48) | rows
    if len(keys) > 2 * k > 0:
        keys = np.partition(keys, k - 1)[:k]
    keys = np.sort(keys)[:k]
    return keys >> 48, keys & ((1 << 48) - 1)


def stack(found: list[Found], k: int) -> Found:
    """Return uint16 distances and int64 rows `[queries, k]`."""
    distances, rows = np.empty((len(found), k), np.uint16), np.empty((len(found), k), np.int64)
    for i, (one, their) in enumerate(found):
        distances[i], rows[i] = one, their
    return distances, rows


def _faiss_flat(codes: Codes) -> Any:
    """Return faiss's flat index, in the counting mode that keeps the first rows of a tie; None without faiss."""
    try:
        import faiss
    except ImportError:
        return None
    flat = faiss.IndexBinaryFlat(codes.shape[1] * 8)
    flat.use_heap = False  # type: ignore[attr-defined]
    flat.add(np.ascontiguousarray(codes))
    return flat


def _faiss_search(flat: Any, codes: Codes, k: int) -> Found:
    """Search on one thread: two that spin on a busy machine took 136 ms for what takes one 0.8 ms."""
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        found: Found = flat.search(np.ascontiguousarray(codes), k)
    finally:
        faiss.omp_set_num_threads(threads)
    return found
