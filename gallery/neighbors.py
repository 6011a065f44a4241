"""The true neighbors of images without labels: the nearest by cosine of float features, and how many a code finds."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gallery.codebook_index import CodebookIndex
from gallery.codes import Codes
from gallery.errors import InputError
from gallery.open_world import BLOCK_BYTES, Features, normalize_rows

MOST = 100  # neighbors of a query that are kept
DEPTHS = (1, 10, MOST)  # k of recall@k
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class NeighborRecall:
    """Recall of float neighbors over some queries.

    at:        by k, the mean share of a query's k nearest by float features that are among its k nearest by code; only
               for k below the size of the gallery, in which everything is found otherwise
    per_query: float64 `[queries]`, recall@10
    """

    at: dict[int, float]
    per_query: NDArray[np.float64]

    @property
    def at_10(self) -> float:
        """Recall@10; recall@1 in a gallery of ten images or less."""
        return float(self.per_query.mean())


def nearest_by_cosine(queries: Features, items: Features, k: int = MOST) -> Rows:
    """Return the rows of the k items nearest to each query, `[queries, min(k, items)]`, by (-cosine, row).

    queries, items: features `[n, D]`; a row of zeros is at cosine 0 to everything
    Raises `InputError` for features that are not finite.
    """
    if not (np.isfinite(queries).all() and np.isfinite(items).all()):
        raise InputError("features that are finite", "others", "Check the pretrained weights.")
    k, unit_queries, unit_items = min(k, len(items)), normalize_rows(queries), normalize_rows(items)
    step, found = max(1, BLOCK_BYTES // (4 * len(items))), np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), step):
        similarity = unit_queries[start : start + step] @ unit_items.T
        least = -np.partition(-similarity, k - 1, axis=1)[:, k - 1] if k < len(items) else similarity.min(1)
        for query, (row, bound) in enumerate(zip(similarity, least, strict=True), start):
            near = np.flatnonzero(row >= bound)  # those that tie with the k-th too
            found[query] = near[np.argsort(-row[near], kind="stable")[:k]]
    return found


def neighbor_recall(query_codes: Codes, index: CodebookIndex, neighbors: Rows) -> NeighborRecall:
    """Measure how many float neighbors codes find; codes that are equally far are ranked by row.

    query_codes: packed `[Q, bytes]`; index: of the gallery's codes; neighbors: the rows of the nearest by float
    features, nearest first, `[Q, n]` of `nearest_by_cosine`
    """
    depths = [k for k in DEPTHS if k <= neighbors.shape[1] and k < len(index)] or [1]
    _, rows = index.search(query_codes, max(depths))
    shares = {k: recall_at(rows, neighbors, k) for k in depths}
    return NeighborRecall({k: float(share.mean()) for k, share in shares.items()}, shares.get(10, shares[1]))


def recall_at(found: Rows, neighbors: Rows, k: int) -> NDArray[np.float64]:
    """Return the share of the first k `neighbors` that are among the first k found, `[Q]`; both `[Q, k or more]`."""
    return np.array([np.isin(true, own).mean() for true, own in zip(neighbors[:, :k], found[:, :k], strict=True)])
