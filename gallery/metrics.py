"""Retrieval quality from Hamming distances, with ties counted for what they are.

A ranking by Hamming distance is mostly ties, and the order inside a tie is whatever the sort made of it: on one set of
codes it moved mAP by up to five points.  Here every figure is the expectation over all orders, in closed form.

With distances d = 0..bits, n_d items at d, p_d of them relevant, N_d and P_d those at smaller distances, H the harmonic
numbers, R = top_k and s_d the places of d's items that lie within the first R (McSherry & Najork 2008):

    E[sum of precisions at d] = p_d/n_d sum_{t=N_d+1}^{N_d+s_d} (P_d + 1 + (t-N_d-1) g_d) / t,   g_d = (p_d-1)/(n_d-1)
                              = p_d/n_d [(P_d + 1 - g_d (N_d+1)) (H(N_d+s_d) - H(N_d)) + g_d s_d]
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gallery.codes import Codes
from gallery.distance_histogram import Counts, Labels, count_by_distance
from gallery.errors import InputError

CHUNK = 1024  # queries whose [queries, bits+1] arrays stay in the cache
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MapResult:
    """Mean average precision over `queries` queries against `gallery` items.

    map:           expected AP over min(top_k, all relevant items), averaged over the queries
    map_retrieved: the literature's denominator, the relevant items among the first top_k; flatters a short top_k
    per_query:     float64 `[queries]`, the AP behind `map`
    unanswerable:  queries without any relevant item; their AP is 0 in both means, as in the literature's code
    """

    map: float
    map_retrieved: float
    per_query: Floats
    queries: int
    gallery: int
    top_k: int | None
    unanswerable: int

    @property
    def protocol(self) -> str:
        """One sentence to stand beside the number."""
        cut = self.top_k or "all"
        return (
            f"mAP@{cut}, {self.queries} queries x {self.gallery} gallery items, expected over the order of ties, "
            f"over min({cut}, all relevant); {self.unanswerable} queries without relevant items count as 0"
        )


@dataclass(frozen=True)
class PrecisionAtRadius:
    """Precision among the items within a Hamming radius: 0 for a query with an empty ball; `empty` is their share."""

    precision: float
    empty: float
    radius: int


def mean_average_precision(
    query_codes: Codes, gallery_codes: Codes, query_labels: Labels, gallery_labels: Labels, top_k: int | None = None
) -> MapResult:
    """Tie-aware mAP@top_k (None: the whole gallery) of packed codes uint8 `[n, bytes]`.

    Labels are int `[n]` or multi-hot bool `[n, classes]`: relevant is what shares at least one label.
    Raises `InputError` for shapes that do not fit together and for top_k below 1.
    """
    if top_k is not None and top_k < 1:
        raise InputError("top_k of at least 1, or None for the whole gallery", str(top_k), "Change top_k.")
    everyone, relevant = count_by_distance(query_codes, gallery_codes, query_labels, gallery_labels)
    cut, relevant_items = min(top_k or len(gallery_codes), len(gallery_codes)), relevant.sum(1)
    sums, retrieved = np.empty(len(query_codes)), np.empty(len(query_codes))
    for start in range(0, len(query_codes), CHUNK):
        part = slice(start, start + CHUNK)
        ranks = _Ranks(everyone[part], relevant[part], cut)
        sums[part], retrieved[part] = ranks.precisions.sum(1), _over_retrieved(ranks)
    per_query = sums / np.maximum(np.minimum(cut, relevant_items), 1)
    return MapResult(
        map=float(per_query.mean()), map_retrieved=float(retrieved.mean()), per_query=per_query,
        queries=len(query_codes), gallery=len(gallery_codes), top_k=top_k,
        unanswerable=int((relevant_items == 0).sum()),
    )  # fmt: skip


def expected_precision(everyone: Counts, relevant: Counts) -> Floats:
    """Tie-aware AP of each query over all that is searched, `[queries]`, from counts at each distance 0..bits.

    everyone, relevant: `[queries, bits+1]`, as of `count_by_distance`
    """
    ranks = _Ranks(everyone, relevant, int(everyone.sum(1).max()))
    return np.asarray(ranks.precisions.sum(1) / np.maximum(relevant.sum(1), 1))


def precision_within_radius(
    query_codes: Codes, gallery_codes: Codes, query_labels: Labels, gallery_labels: Labels, radius: int = 2
) -> PrecisionAtRadius:
    """P@(H <= radius), averaged over the queries; arguments as in `mean_average_precision`."""
    if radius < 0:
        raise InputError("a radius of at least 0", str(radius), "Change the radius.")
    everyone, relevant = (
        counts[:, : radius + 1].sum(1)
        for counts in count_by_distance(query_codes, gallery_codes, query_labels, gallery_labels)
    )
    return PrecisionAtRadius(float((relevant / np.maximum(everyone, 1)).mean()), float((everyone == 0).mean()), radius)


def precision_recall(
    query_codes: Codes, gallery_codes: Codes, query_labels: Labels, gallery_labels: Labels
) -> tuple[Floats, Floats]:
    """Precision and recall within each Hamming radius 0..bits, float64 `[bits+1]` each; arguments as above.

    Precision is a mean over the queries whose ball holds anything (NaN where no query's does), recall over those with
    relevant items.  By radius, not by rank: ties cannot move it.
    """
    everyone, relevant = (
        counts.cumsum(1) for counts in count_by_distance(query_codes, gallery_codes, query_labels, gallery_labels)
    )
    answerable = relevant[:, -1] > 0
    recall = (relevant[answerable] / relevant[answerable, -1:]).mean(0)
    filled = (everyone > 0).sum(0)
    precision = (relevant / np.maximum(everyone, 1)).sum(0) / np.where(filled > 0, filled, np.nan)
    return precision, recall


def bit_entropy(codes: Codes) -> float:
    """Mean entropy of the single bits, in [0, 1]: 1 where each is set in half of the codes."""
    share = np.unpackbits(codes, axis=1).mean(0)
    inner = share[(share > 0) & (share < 1)]
    return float(-(inner * np.log2(inner) + (1 - inner) * np.log2(1 - inner)).sum() / len(share))


class _Ranks:
    """Per query and distance, `[queries, bits+1]`: n, p, N, P, s and the sum of precisions of the module text."""

    def __init__(self, n: Counts, p: Counts, cut: int) -> None:
        self.n, self.p, self.before, found = n, p, np.cumsum(n, axis=1) - n, np.cumsum(p, axis=1) - p
        self.slots, self.harmonic = np.clip(cut - self.before, 0, n), _cumulative(np.reciprocal, cut)
        before = np.minimum(self.before, cut)
        self.precisions = _precisions(p, n, before, found, self.slots, self.harmonic)


def _precisions(p: Any, n: Any, before: Any, found: Any, slots: Any, harmonic: Floats) -> Floats:
    """The formula of the module text; any broadcastable integer arrays, 0 where n = 0."""
    growth = (p - 1) / np.maximum(n - 1, 1)  # n = 1: the factor is 0, or p is
    spread = harmonic[before + slots] - harmonic[before]
    sums: Floats = p / np.maximum(n, 1) * ((found + 1 - growth * (before + 1)) * spread + growth * slots)
    return sums


def _over_retrieved(ranks: _Ranks) -> Floats:
    """Expected AP `[queries]` over the relevant items within the cut: a random number where the cut splits a tie."""
    whole = ranks.slots == ranks.n
    sums, hits = (ranks.precisions * whole).sum(1), (ranks.p * whole).sum(1)
    score: Floats = sums / np.maximum(hits, 1)
    split = ~whole & (ranks.slots > 0) & (ranks.p > 0)
    log_factorials = _cumulative(np.log, int(ranks.n[0].sum()))
    for query, d in zip(*np.nonzero(split), strict=True):  # at most one distance a query
        p, n, slots = (int(a[query, d]) for a in (ranks.p, ranks.n, ranks.slots))
        within = np.arange(max(0, slots - (n - p)), min(slots, p) + 1)
        last = _precisions(within, slots, ranks.before[query, d], hits[query], slots, ranks.harmonic)
        chance = _hypergeometric(within, slots, p, n, log_factorials)
        score[query] = chance @ ((sums[query] + last) / np.maximum(hits[query] + within, 1))
    return score


def _hypergeometric(within: Counts, slots: int, p: int, n: int, log_factorials: Floats) -> Floats:
    """The chance that `within` of the p relevant among n items fall into `slots` places."""

    def log_choose(a: int, b: Counts | int) -> Any:
        return log_factorials[a] - log_factorials[b] - log_factorials[a - b]

    chance: Floats = np.exp(log_choose(p, within) + log_choose(n - p, slots - within) - log_choose(n, slots))
    return chance


@lru_cache(maxsize=8)
def _cumulative(term: np.ufunc, n: int) -> Floats:
    """Sum `term` over 1..m for each m = 0..n: the harmonic numbers, or the logarithms of the factorials."""
    return np.concatenate([[0.0], np.cumsum(term(np.arange(1.0, n + 1)))])
