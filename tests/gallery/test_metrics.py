"""mAP with ties: against all orders of tiny rankings, random orders of larger ones, and the literature's code."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gallery.codes import hamming, pack
from gallery.errors import InputError
from gallery.metrics import bit_entropy, mean_average_precision, precision_recall, precision_within_radius

Case = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def ap_of_order(relevant: list[bool], cut: int) -> tuple[Fraction, Fraction]:
    """AP of one order, over min(cut, all relevant) and over the relevant items within the cut."""
    found, total = 0, Fraction(0)
    for place, hit in enumerate(relevant[:cut], 1):
        found += hit
        total += Fraction(found, place) if hit else 0
    return total / max(min(cut, sum(relevant)), 1), total / max(found, 1)


def over_all_orders(distance: list[int], relevant: list[bool], cut: int) -> tuple[float, float]:
    """The literal expectation: every permutation, sorted by distance; `sorted` is stable."""
    items = list(zip(distance, relevant, strict=True))
    orders = [sorted(order, key=lambda item: item[0]) for order in itertools.permutations(items)]
    scores = [ap_of_order([hit for _, hit in order], cut) for order in orders]
    return float(sum(s for s, _ in scores) / len(scores)), float(sum(s for _, s in scores) / len(scores))


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6), st.integers(1, 7))
def test_equals_the_expectation_over_all_orders(items: list[tuple[int, bool]], cut: int) -> None:
    codes = pack([[1] * distance + [0] * (8 - distance) for distance, _ in items])
    labels = np.array([int(hit) for _, hit in items])
    score = mean_average_precision(pack(np.zeros((1, 8))), codes, np.array([1]), labels, cut)
    expected = over_all_orders([d for d, _ in items], [hit for _, hit in items], cut)
    assert (score.map, score.map_retrieved) == pytest.approx(expected, abs=1e-12)
    if cut >= len(items):
        whole = mean_average_precision(pack(np.zeros((1, 8))), codes, np.array([1]), labels)
        assert whole.map == pytest.approx(expected[0], abs=1e-12)


def clustered(seed: int, queries: int, items: int, classes: int = 5, noise: float = 0.15, bits: int = 16) -> Case:
    rng = np.random.default_rng(seed)
    centers = rng.random((classes, bits)) < 0.5
    labels = [rng.integers(0, classes, n) for n in (queries, items)]
    q, g = (pack(centers[which] ^ (rng.random((len(which), bits)) < noise)) for which in labels)
    return q, g, labels[0], labels[1]


def over_random_orders(case: Case, top_k: int | None, orders: int) -> tuple[np.ndarray, float]:
    """Mean over shuffled galleries with a stable argsort: per query, and for the literature's denominator."""
    q, g, ql, gl = case
    rng, per_query, retrieved = np.random.default_rng(9), np.zeros((orders, len(q))), np.zeros((orders, len(q)))
    distance, cut = hamming(q, g), top_k or len(g)
    for n in range(orders):
        shuffle = rng.permutation(len(g))
        for i in range(len(q)):
            rel = gl[shuffle][np.argsort(distance[i, shuffle], kind="stable")] == ql[i]
            precision = (np.cumsum(rel) / np.arange(1, len(g) + 1))[:cut][rel[:cut]]
            per_query[n, i] = precision.sum() / max(min(cut, rel.sum()), 1)
            retrieved[n, i] = precision.mean() if len(precision) else 0
    return per_query.mean(0), float(retrieved.mean())


@pytest.mark.parametrize("top_k", [None, 7, 100])
def test_equals_the_mean_over_random_tie_orders(top_k: int | None) -> None:
    case = clustered(1, 20, 400)
    score = mean_average_precision(*case, top_k)
    per_query, retrieved = over_random_orders(case, top_k, 400)
    assert score.map == pytest.approx(per_query.mean(), abs=1e-3)
    assert score.map_retrieved == pytest.approx(retrieved, abs=1e-3)
    assert np.abs(score.per_query - per_query).max() < 0.02
    assert score.map == pytest.approx(score.per_query.mean(), abs=1e-15)


def literature(q: np.ndarray, g: np.ndarray, ql: np.ndarray, gl: np.ndarray, top_k: int) -> float:
    """The loop that published deep hashing code evaluates with: +-1 codes, one-hot labels, sorted by float distance."""
    total = 0.0
    for code, label in zip(q, ql, strict=True):
        hit = (label @ gl.T > 0)[np.argsort(0.5 * (q.shape[1] - code @ g.T))][:top_k]
        if hit.sum():
            total += np.mean(np.linspace(1, hit.sum(), hit.sum()) / (np.where(hit)[0] + 1.0))
    return total / len(q)


@pytest.mark.parametrize("top_k", [1, 3, 10, 65])
def test_without_ties_equals_the_literature_s_code(top_k: int) -> None:
    rng = np.random.default_rng(5)
    gallery = np.tri(65, 64, -1) > 0  # one item at each distance from all zeros and from all ones
    queries = np.stack([np.zeros(64, bool), np.ones(64, bool)])
    gl, ql = np.eye(3, dtype=int)[rng.integers(0, 3, 65)], np.eye(3, dtype=int)[[0, 1]]
    score = mean_average_precision(pack(queries), pack(gallery), ql.argmax(1), gl.argmax(1), top_k)
    assert score.map_retrieved == pytest.approx(literature(queries * 2 - 1, gallery * 2 - 1, ql, gl, top_k), abs=1e-12)


def test_the_two_denominators_differ_as_documented() -> None:
    gallery = pack(np.tri(5, 8, -1) > 0)  # distances 0..4
    labels = np.array([1, 0, 0, 1, 1])
    score = mean_average_precision(pack(np.zeros((1, 8))), gallery, np.array([1]), labels, top_k=2)
    assert score.map == pytest.approx(1 / 2)  # one of the min(2, 3) it could have found
    assert score.map_retrieved == pytest.approx(1.0)  # the one it retrieved is in the first place
    whole = mean_average_precision(pack(np.zeros((1, 8))), gallery, np.array([1]), labels)
    assert whole.map == whole.map_retrieved == pytest.approx((1 + 2 / 4 + 3 / 5) / 3)


def test_collapsed_codes_score_the_chance_of_a_shuffle() -> None:
    labels = np.array([1] * 3 + [0] * 3)
    codes = np.zeros((6, 8), np.uint8)
    score = mean_average_precision(codes[:1], codes, np.array([1]), labels)
    assert score.map == pytest.approx(over_all_orders([0] * 6, [True] * 3 + [False] * 3, 6)[0], abs=1e-12)


@pytest.mark.parametrize("top_k", [None, 30])
def test_orders_of_gallery_and_queries_do_not_matter(top_k: int | None) -> None:
    q, g, ql, gl = clustered(2, 30, 300)
    score = mean_average_precision(q, g, ql, gl, top_k)
    turned = mean_average_precision(q[::-1], g[::-1], ql[::-1], gl[::-1], top_k)
    assert np.allclose(turned.per_query[::-1], score.per_query, atol=1e-14)
    assert turned.map_retrieved == pytest.approx(score.map_retrieved, abs=1e-14)


def test_one_hot_labels_mean_the_same_as_integers() -> None:
    q, g, ql, gl = clustered(3, 40, 300)
    hot = np.eye(5, dtype=bool)
    single, multi = (mean_average_precision(q, g, *labels, 50) for labels in ((ql, gl), (hot[ql], hot[gl])))
    assert np.array_equal(single.per_query, multi.per_query)
    assert single.map_retrieved == multi.map_retrieved


def test_several_labels_are_relevant_when_they_share_one() -> None:
    gallery = pack(np.tri(4, 8, -1) > 0)  # distances 0..3
    labels = np.array([[0, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1]], bool)
    score = mean_average_precision(pack(np.zeros((2, 8))), gallery, np.array([[0, 1, 0], [0, 0, 0]], bool), labels)
    assert score.per_query == pytest.approx([(1 / 2 + 2 / 4) / 2, 0])
    assert score.unanswerable == 1


def test_queries_without_relevant_items_count_as_zero_and_are_told() -> None:
    q, g, ql, gl = clustered(4, 30, 100)
    ql[:10] = 99
    score = mean_average_precision(q, g, ql, gl)
    rest = mean_average_precision(q[10:], g, ql[10:], gl)
    assert score.unanswerable == 10
    assert (score.per_query[:10] == 0).all()
    assert score.map == pytest.approx(rest.map * 20 / 30)
    assert score.map_retrieved == pytest.approx(rest.map_retrieved * 20 / 30)
    assert "10 queries without relevant items" in score.protocol


def test_the_score_says_what_it_is() -> None:
    q, g, ql, gl = clustered(5, 6, 50)
    score = mean_average_precision(q, g, ql, gl, 10)
    assert (score.queries, score.gallery, score.top_k, score.per_query.shape) == (6, 50, 10, (6,))
    assert "mAP@10" in score.protocol
    assert "mAP@all" in mean_average_precision(q, g, ql, gl).protocol


def test_perfect_and_worst_rankings() -> None:
    codes, labels = pack(np.eye(2, 8, k=0) * 0 + [[0], [1]]), np.array([0, 1])
    assert mean_average_precision(codes, codes, labels, labels).map == 1.0
    assert mean_average_precision(codes, codes, labels, labels[::-1], 1).map == 0.0


@pytest.mark.parametrize("top_k", [0, -1])
def test_a_cut_below_one_is_rejected(top_k: int) -> None:
    with pytest.raises(InputError, match="top_k"):
        mean_average_precision(*clustered(6, 2, 5), top_k)


@pytest.mark.parametrize("radius", [0, 2, 5, 16, 40])
def test_precision_within_a_radius(radius: int) -> None:
    q, g, ql, gl = clustered(7, 25, 200)
    near = hamming(q, g) <= radius
    expected = [(gl[row] == label).mean() if row.any() else 0.0 for row, label in zip(near, ql, strict=True)]
    score = precision_within_radius(q, g, ql, gl, radius)
    assert score.precision == pytest.approx(np.mean(expected))
    assert score.empty == pytest.approx(np.mean([not row.any() for row in near]))
    assert score.radius == radius


def test_a_negative_radius_is_rejected() -> None:
    with pytest.raises(InputError, match="radius"):
        precision_within_radius(*clustered(6, 2, 5), radius=-1)


@pytest.mark.parametrize("seed", [0, 1])
def test_precision_and_recall_by_radius_against_loops(seed: int) -> None:
    q, g, ql, gl = clustered(seed, 7, 40)
    precision, recall = precision_recall(q, g, ql, gl)
    distances = hamming(q, g)
    for radius in range(17):
        within = [[j for j in range(40) if distances[i, j] <= radius] for i in range(7)]
        hits = [sum(gl[j] == ql[i] for j in balls) for i, balls in enumerate(within)]
        shares = [hit / len(ball) for hit, ball in zip(hits, within, strict=True) if ball]
        found = [hit / np.sum(gl == ql[i]) for i, hit in enumerate(hits) if np.sum(gl == ql[i])]
        assert precision[radius] == pytest.approx(np.mean(shares)) if shares else np.isnan(precision[radius])
        assert recall[radius] == pytest.approx(np.mean(found))


def test_a_radius_within_which_nobody_finds_anything_has_no_precision() -> None:
    precision, recall = precision_recall(pack([[0] * 8]), pack([[1] * 8]), np.array([0]), np.array([0]))
    assert np.isnan(precision[:8]).all()
    assert (precision[8], recall.tolist()) == (1, [0] * 8 + [1])


def test_entropy_of_bits() -> None:
    assert bit_entropy(pack([[0, 0, 1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]])) == pytest.approx(2 / 8)
    quarter = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    assert bit_entropy(pack([[0] * 8, [0] * 8, [0] * 8, [1] * 8])) == pytest.approx(quarter)
