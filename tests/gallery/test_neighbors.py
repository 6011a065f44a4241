"""True neighbors by float features, and how many of them codes find."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gallery import neighbors
from gallery.codebook_index import CodebookIndex
from gallery.codes import hamming, pack
from gallery.errors import InputError
from gallery.neighbors import nearest_by_cosine, neighbor_recall, recall_at


def slow_nearest(queries: np.ndarray, items: np.ndarray, k: int) -> list[list[int]]:
    """Sort every item by its cosine, of equal ones by row."""
    found = []
    for query in queries.astype(np.float64):
        cosines = [
            float(query @ item) / max(np.linalg.norm(query) * np.linalg.norm(item), 1e-12)
            for item in items.astype(np.float64)
        ]
        found.append(sorted(range(len(items)), key=lambda row: (-round(cosines[row], 6), row))[:k])
    return found


def slow_recall(queries: np.ndarray, codes: np.ndarray, true: np.ndarray, k: int) -> float:
    """Sort every item by its Hamming distance, of equal ones by row, and count."""
    shares = []
    for distances, own in zip(hamming(queries, codes).tolist(), true.tolist(), strict=True):
        first = sorted(range(len(codes)), key=lambda row: (distances[row], row))[:k]
        shares.append(len(set(first) & set(own[:k])) / k)
    return sum(shares) / len(shares)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 8), st.integers(1, 50))
def test_nearest_is_the_slow_twin(seed: int, items: int, queries: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, (items, 5)).astype(np.float32)  # with duplicates, and rows of zeros
    q = rng.integers(-2, 3, (queries, 5)).astype(np.float32)
    found = nearest_by_cosine(q, x, k)
    assert found.shape == (queries, min(k, items))
    for query, rows, expected in zip(q, found, slow_nearest(q, x, k), strict=True):
        of = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        assert np.allclose(np.sort(of[rows] @ query), np.sort(of[expected] @ query), atol=1e-5)
        assert len(set(rows.tolist())) == len(rows)


def test_nearest_of_real_numbers_and_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, q = (rng.standard_normal((n, 16)).astype(np.float32) for n in (300, 40))
    expected = slow_nearest(q, x, 20)
    assert nearest_by_cosine(q, x, 20).tolist() == expected
    monkeypatch.setattr(neighbors, "BLOCK_BYTES", 4 * 300 * 7)  # seven queries at a time
    assert nearest_by_cosine(q, x, 20).tolist() == expected
    assert nearest_by_cosine(3 * q, 5 * x, 20).tolist() == expected
    copies = nearest_by_cosine(x[:3], np.concatenate([x, x]), 2)
    assert copies.tolist() == [[0, 300], [1, 301], [2, 302]]


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="pretrained weights"):
        nearest_by_cosine(np.ones((2, 3), np.float32), np.full((4, 3), np.nan, np.float32))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 130), st.sampled_from([8, 16, 64]))
def test_recall_is_the_slow_twin(seed: int, items: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    codes, queries = (pack(rng.standard_normal((n, bits)).astype(np.float32)) for n in (items, 6))
    true = np.stack([rng.permutation(items)[:100] for _ in range(6)])
    found = neighbor_recall(queries, CodebookIndex(codes), true)
    assert set(found.at) == {k for k in (1, 10, 100) if k < items}
    for k, share in found.at.items():
        assert share == pytest.approx(slow_recall(queries, codes, true, k))
    assert found.at_10 == pytest.approx(found.at.get(10, found.at[1]))
    assert found.per_query.shape == (6,)


def test_codes_that_are_the_features_find_all_and_random_ones_as_many_as_chance() -> None:
    rng = np.random.default_rng(1)
    signs = np.where(rng.random((400, 64)) < 0.5, -1.0, 1.0).astype(np.float32)
    true = nearest_by_cosine(signs[:80], signs)  # the order of cosines is that of Hamming distances
    assert neighbor_recall(pack(signs[:80]), CodebookIndex(pack(signs)), true).at == {1: 1.0, 10: 1.0, 100: 1.0}
    other = pack(rng.standard_normal((400, 64)).astype(np.float32))
    assert neighbor_recall(other[:80], CodebookIndex(other), true[::-1]).at_10 == pytest.approx(10 / 400, abs=0.02)


def test_recall_counts_the_first_k_of_both() -> None:
    found, true = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[3, 1, 9], [4, 6, 5]])
    assert recall_at(found, true, 1).tolist() == [0.0, 1.0]
    assert recall_at(found, true, 2).tolist() == [0.5, 0.5]
    assert recall_at(found, true, 3).tolist() == pytest.approx([2 / 3, 1.0])
