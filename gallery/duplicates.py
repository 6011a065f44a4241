"""Groups of items whose codes are equal or near."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gallery.codebook_index import CodebookIndex
from gallery.codes import Codes, words

if TYPE_CHECKING:
    import pyarrow as pa

    from gallery.index import GalleryIndex

QUERIES = 256  # codes whose neighbours are in memory at once


def duplicate_groups(codes: Codes, centers: NDArray[np.int8], within: int) -> NDArray[np.int64]:
    """Return the group of each packed code `[n, bytes]`: the first row that steps of `within` bits lead to."""
    distinct = np.unique(words(codes), axis=0, return_index=True, return_inverse=True)
    first, number = distinct[1], distinct[2]
    if not within:
        return first[number]
    root = _linked(codes[first], centers, within)
    least = np.full(len(first), len(codes), np.int64)
    np.minimum.at(least, root, first)
    return least[root[number]]


def _linked(codes: Codes, centers: NDArray[np.int8], within: int) -> NDArray[np.int64]:
    """Return for each of distinct codes the first of those that steps of `within` bits lead to."""
    index, parent = CodebookIndex(codes, centers), np.arange(len(codes))

    def find(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = int(parent[row])
        return row

    for start in range(0, len(codes), QUERIES):
        found = index.within(codes[start : start + QUERIES], within)
        queries = np.repeat(np.arange(len(found.offsets) - 1), np.diff(found.offsets))
        pairs = np.unique(_roots(parent, start + queries) * len(parent) + _roots(parent, found.rows))
        for first, second in zip(*divmod(pairs, len(parent)), strict=True):  # few, once most are linked
            left, right = find(int(first)), find(int(second))
            if left != right:
                parent[max(left, right)] = min(left, right)
    return np.array([find(row) for row in range(len(codes))], np.int64)


def _roots(parent: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    while ((above := parent[rows]) != rows).any():
        rows = above
    return rows


def find_duplicates(index: GalleryIndex, within: int) -> pa.Table:
    """Return the members of groups of two and more, largest groups first.

    Columns: `group`, from 0; `id`; `code` in hexadecimal; `distance` to the group's first member, in bits; `sha256` of
    the bytes, where it is known; `same_bytes`: whether another member of the group has the same; `source`
    """
    import pyarrow as pa

    group = duplicate_groups(index.codes, index.centers, within)
    size = np.bincount(group, minlength=len(group))
    rows = np.flatnonzero(size[group] > 1)
    rows = rows[np.lexsort((rows, group[rows], -size[group[rows]]))]
    first = group[rows]
    starts = np.ones(len(rows), bool)
    starts[1:] = first[1:] != first[:-1]
    told = index.columns(["id", "sha256", "source"], rows)
    files = list(zip(first.tolist(), told["sha256"].to_pylist(), strict=True))
    copies = Counter(files)
    apart = np.bitwise_count(words(index.codes)[rows] ^ words(index.codes)[first]).sum(1)
    return pa.table({
        "group": pa.array(np.cumsum(starts) - 1, pa.int64()), "id": told["id"],
        "code": pa.array([code.tobytes().hex() for code in index.codes[rows]], pa.string()),
        "distance": pa.array(apart, pa.int64()), "sha256": told["sha256"],
        "same_bytes": pa.array([bool(file[1]) and copies[file] > 1 for file in files], pa.bool_()),
        "source": told["source"],
    })  # fmt: skip
