"""Counts by distance against a loop over pairs, on every road through the code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gallery import distance_histogram
from gallery.distance_histogram import count_by_distance
from gallery.errors import InputError


def shares_a_label(q: Any, g: Any) -> bool:
    return bool(q == g) if np.ndim(q) == 0 else any(a and b for a, b in zip(q, g, strict=True))


def slow(q_codes: np.ndarray, g_codes: np.ndarray, q_labels: np.ndarray, g_labels: np.ndarray) -> tuple[Any, Any]:
    every = np.zeros((len(q_codes), q_codes.shape[1] * 8 + 1), np.int64)
    relevant = every.copy()
    for i, q in enumerate(q_codes):
        for j, g in enumerate(g_codes):
            distance = sum(bin(a ^ b).count("1") for a, b in zip(q.tolist(), g.tolist(), strict=True))
            every[i, distance] += 1
            relevant[i, distance] += shares_a_label(q_labels[i], g_labels[j])
    return every, relevant


def some(rng: np.random.Generator, n: int, width: int, classes: int, multi: bool) -> tuple[np.ndarray, np.ndarray]:
    codes = rng.integers(0, 256, (n, width), dtype=np.uint8)
    codes[rng.random(n) < 0.4] = rng.choice([0, 255, 7])  # ties, and the extreme distances
    return codes, rng.random((n, classes)) < 0.3 if multi else rng.integers(-1, classes, n)


def same(result: tuple[Any, Any], expected: tuple[Any, Any]) -> bool:
    return all(a.shape == b.shape and np.array_equal(a, b) for a, b in zip(result, expected, strict=True))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 30),
       st.sampled_from([1, 2, 3, 6, 8, 9, 15, 16, 20, 32]), st.integers(1, 4), st.booleans())  # fmt: skip
def test_equals_a_loop_over_pairs(seed: int, queries: int, items: int, width: int, classes: int, multi: bool) -> None:
    rng = np.random.default_rng(seed)
    q, ql = some(rng, queries, width, classes, multi)
    g, gl = some(rng, items, width, classes, multi)
    assert same(count_by_distance(q, g, ql, gl), slow(q, g, ql, gl))


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("road", ["blocks", "rows", "both", "float", "one thread"])
def test_every_path_gives_the_same_counts(road: str, width: int, multi: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    q, ql = some(rng, 41, width, 5, multi)
    g, gl = some(rng, 67, width, 5, multi)
    expected = slow(q, g, ql, gl)
    monkeypatch.setattr(distance_histogram, "BLOCK", 10 if road in ("blocks", "both") else distance_histogram.BLOCK)
    monkeypatch.setattr(distance_histogram, "ROWS", 3 if road in ("rows", "both") else distance_histogram.ROWS)
    if road == "float":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        monkeypatch.delattr(torch, "_int_mm")
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if road == "one thread" else 3)
    try:
        assert same(count_by_distance(q, g, ql, gl), expected)
    finally:
        torch.set_num_threads(threads)


def test_no_pair_is_lost_in_a_large_gallery() -> None:
    rng = np.random.default_rng(0)
    q, ql = some(rng, 130, 8, 3, False)
    g, gl = some(rng, distance_histogram.BLOCK + 1000, 8, 3, False)
    every, relevant = count_by_distance(q, g, ql, gl)
    assert (every.sum(1) == len(g)).all()
    assert relevant.sum(1).tolist() == [(gl == label).sum() for label in ql]
    distance = np.bitwise_count(q[77] ^ g).sum(1)
    assert np.array_equal(every[77], np.bincount(distance, minlength=65))
    assert np.array_equal(relevant[77], np.bincount(distance[gl == ql[77]], minlength=65))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_labels_may_be_any_integers(dtype: type) -> None:
    rng = np.random.default_rng(1)
    q, g = rng.integers(0, 256, (9, 4), dtype=np.uint8), rng.integers(0, 256, (20, 4), dtype=np.uint8)
    ql, gl = rng.integers(0, 3, 9).astype(dtype), rng.integers(0, 3, 20).astype(dtype)
    assert same(count_by_distance(q, g, ql, gl), slow(q, g, ql, gl))


def test_inputs_are_left_alone_and_may_be_read_only() -> None:
    rng = np.random.default_rng(2)
    arrays = [*some(rng, 5, 8, 3, False)[:1], *some(rng, 9, 8, 3, False)[:1], np.arange(5) % 3, np.arange(9) % 3]
    copies = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    count_by_distance(*arrays)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, copies, strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_the_number_of_torch_threads_is_put_back(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    codes, labels = np.zeros((4, 8), np.uint8), np.zeros(4, int)
    torch.set_num_threads(3)
    try:
        if fails:
            monkeypatch.setattr(distance_histogram, "_histograms", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                count_by_distance(codes, codes, labels, labels)
        else:
            count_by_distance(codes, codes, labels, labels)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


CODES, INTS, HOT = np.zeros((4, 8), np.uint8), np.zeros(4, int), np.ones((4, 3), bool)


@pytest.mark.parametrize(("arguments", "word"), [
    ((CODES, CODES, INTS[:3], INTS), "one label for each query"),
    ((CODES, CODES, INTS, INTS[:3]), "one label for each gallery"),
    ((CODES, CODES[:, :4], INTS, INTS), "one length"),
    ((CODES, CODES, INTS, HOT), "same kind of labels"),
    ((CODES, CODES, HOT, HOT[:, :2]), "same kind of labels"),
    ((CODES[:0], CODES, INTS[:0], INTS), "query codes"),
    ((CODES, CODES[:0], INTS, INTS[:0]), "gallery codes"),
    ((CODES.astype(np.int8), CODES, INTS, INTS), "query codes"),
    ((CODES, CODES[0], INTS, INTS), "gallery codes"),
    ((CODES, CODES, INTS.astype(float), INTS), "query labels"),
    ((CODES, CODES, INTS, HOT.astype(int)), "gallery labels"),
], ids=lambda x: x if isinstance(x, str) else "")  # fmt: skip
def test_what_does_not_fit_is_rejected(arguments: tuple[Any, ...], word: str) -> None:
    with pytest.raises(InputError, match=word):
        count_by_distance(*arguments)
