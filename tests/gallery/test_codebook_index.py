"""The exact index against sorting everything, for any codes, centers, rounds, subsets and radii."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gallery import codebook_index, flat_scan
from gallery.codebook_index import CodebookIndex, Form
from gallery.codes import Codes, pack
from gallery.errors import InputError

FORMS: tuple[Form, ...] = "buckets", "faiss", "numpy"


def every(codes: Codes, queries: Codes) -> list[list[tuple[int, int]]]:
    """The slow twin: (distance, row) of all rows of each query, sorted."""
    bits = np.unpackbits(codes, axis=1).astype(int)
    return [
        sorted((int(d), row) for row, d in enumerate(np.abs(bits - one).sum(1)))
        for one in np.unpackbits(queries, axis=1).astype(int)
    ]


def found(answer: tuple[NDArray[Any], NDArray[Any]]) -> list[list[tuple[int, int]]]:
    distances, rows = answer
    assert (distances.dtype, rows.dtype) == (np.uint16, np.int64)
    assert distances.shape == rows.shape
    return [list(zip(d, r, strict=True)) for d, r in zip(distances.tolist(), rows.tolist(), strict=True)]


@contextmanager
def rounds(first: int, cost: int) -> Iterator[None]:
    """Small galleries go through both rounds only where a run costs nothing."""
    with patch.object(codebook_index, "FIRST_ROUND", first), patch.object(codebook_index, "RUN_COST", cost):
        yield


@st.composite
def galleries(draw: st.DrawFn) -> tuple[Codes, NDArray[np.int8], Codes]:
    """Codes, centers and queries: uniform, around the centers, or few distinct ones."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bits, n = draw(st.sampled_from([8, 16, 24, 64, 72, 128, 256])), draw(st.integers(1, 400))
    centers = rng.choice(np.array([-1, 1], np.int8), (draw(st.sampled_from([1, 2, 3, 10, 60, 500])), bits))
    flips = draw(st.sampled_from([0, 0.02, 0.1, 0.5]))

    def some(count: int) -> Codes:
        return pack(centers[rng.integers(0, len(centers), count)] * np.where(rng.random((count, bits)) < flips, -1, 1))

    codes = some(n)
    if draw(st.booleans()):
        codes = codes[rng.integers(0, draw(st.integers(1, n)), n)]
    return codes, centers, np.concatenate([some(3), codes[:1], rng.integers(0, 256, (1, bits // 8), np.uint8)])


@settings(deadline=None, max_examples=250)
@given(galleries(), st.integers(1, 500), st.sampled_from([1, 16, 4096]), st.sampled_from([0, 1, 2000]))
def test_the_answer_is_that_of_sorting_everything(data: Any, k: int, first: int, cost: int) -> None:
    codes, centers, queries = data
    expected = [one[:k] for one in every(codes, queries)]
    with rounds(first, cost):
        for form in FORMS:
            index = CodebookIndex(codes, centers, form)
            assert index.form == form
            assert found(index.search(queries, k)) == expected


@settings(deadline=None, max_examples=150)
@given(galleries(), st.integers(1, 100), st.sampled_from([0, 0.01, 0.3, 0.9, 1]), st.integers(0, 2**32))
def test_among_some_rows(data: Any, k: int, share: float, seed: int) -> None:
    codes, centers, queries = data
    rng = np.random.default_rng(seed)
    mask = rng.random(len(codes)) < share
    expected = [[item for item in one if mask[item[1]]][:k] for one in every(codes, queries)]
    with rounds(1, 0):
        for form in FORMS:
            index = CodebookIndex(codes, centers, form)
            assert found(index.search_among(queries, k, mask)) == expected
            assert found(index.search_among(queries, k, rng.permutation(np.flatnonzero(mask)))) == expected


@settings(deadline=None, max_examples=150)
@given(galleries(), st.integers(-1, 300))
def test_within_a_radius(data: Any, radius: int) -> None:
    codes, centers, queries = data
    expected = [[item for item in one if item[0] <= radius] for one in every(codes, queries)]
    for form in FORMS:
        offsets, rows, distances = CodebookIndex(codes, centers, form).within(queries, radius)
        assert (offsets.dtype, rows.dtype, distances.dtype) == (np.int64, np.int64, np.uint16)
        pairs = list(zip(distances.tolist(), rows.tolist(), strict=True))
        assert [pairs[a:b] for a, b in pairwise(offsets)] == expected


def large(n: int = 40_000, classes: int = 50, seed: int = 0) -> tuple[Codes, NDArray[np.int8]]:
    rng = np.random.default_rng(seed)
    centers = rng.choice(np.array([-1, 1], np.int8), (classes, 64))
    which = np.sort(rng.integers(0, classes, n))  # classes side by side, as folders are read
    flips = np.where(rng.random((n, 64)) < rng.choice([0, 0.03, 0.15], n)[:, None], -1, 1)
    return pack(centers[which] * flips), centers


@pytest.mark.parametrize("k", [1, 10, 100, 5000])
def test_large_galleries_go_through_both_rounds(k: int) -> None:
    codes, centers = large()
    queries = np.concatenate([large(30, seed=1)[0], pack(centers[:5]), pack(-centers[:5]), codes[::9999]])
    fast, flat = CodebookIndex(codes, centers, "buckets"), CodebookIndex(codes, None, "faiss")
    assert found(fast.search(queries, k)) == found(flat.search(queries, k))
    mask = np.arange(len(codes)) % 3 == 0
    assert found(fast.search_among(queries, k, mask)) == found(flat.search_among(queries, k, mask))
    assert all(map(np.array_equal, fast.within(queries, 9), flat.within(queries, 9)))


def test_a_filter_that_leaves_none_of_the_nearest() -> None:
    codes, centers = large()
    fast, near = CodebookIndex(codes, centers, "buckets"), codes[:3]
    mask = np.ones(len(codes), bool)
    mask[fast.within(near, 20).rows] = False
    flat = CodebookIndex(codes, None, "numpy").search_among(near, 10, mask)
    assert found(fast.search_among(near, 10, mask)) == found(flat)


def test_the_form_is_chosen_by_time_and_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, centers = large()
    assert CodebookIndex(codes).form == CodebookIndex(codes[:100], centers).form == "faiss"
    answers = []
    for quicker in ("buckets", "faiss"):
        order = iter([0, 1] if quicker == "buckets" else [1, 0])
        monkeypatch.setattr(codebook_index, "_seconds", lambda *_, order=order: next(order))
        index = CodebookIndex(codes, centers)
        assert index.form == quicker
        answers.append(found(index.search(codes[:20], 10)))
    assert answers[0] == answers[1]


def test_it_measures_both_forms() -> None:
    codes, centers = large()
    assert CodebookIndex(codes, centers).form in ("buckets", "faiss")


def test_without_faiss_numpy_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    codes, centers = large(300)
    index = CodebookIndex(codes, centers)
    assert index.form == "numpy"
    assert found(index.search(codes[:5], 10)) == [one[:10] for one in every(codes, codes[:5])]


def test_faiss_counts_a_bounded_number_of_ids_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, _ = large(500)
    expected = found(CodebookIndex(codes).search(codes[:20], 30))
    for counters in (0, 65 * 30 * 3):  # no query at once: numpy; three at once
        monkeypatch.setattr(flat_scan, "COUNTERS", counters)
        assert found(CodebookIndex(codes).search(codes[:20], 30)) == expected


@pytest.mark.parametrize("form", FORMS)
def test_nothing_to_find(form: Form) -> None:
    none, some = np.empty((0, 8), np.uint8), np.zeros((2, 8), np.uint8)
    centers = np.ones((1, 64), np.int8)
    empty, index = CodebookIndex(none, centers, form), CodebookIndex(some, centers, form)
    assert found(empty.search(some, 3)) == found(index.search_among(some, 3, np.zeros(2, bool))) == [[], []]
    assert found(empty.search_among(some, 3, np.empty(0, int))) == [[], []]
    assert index.search(none, 3)[1].shape == index.search_among(none, 3, np.ones(2, bool))[1].shape == (0, 2)
    assert index.within(none, 3).offsets.tolist() == [0]
    assert empty.within(some, 3).offsets.tolist() == [0, 0, 0]


def test_threads_share_an_index() -> None:
    codes, centers = large()
    index = CodebookIndex(codes, centers, "buckets")
    expected = found(index.search(codes[:200], 10))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: found(index.search(codes[i : i + 1], 10))[0], range(200)))
    assert answers == expected


@pytest.mark.parametrize("form", FORMS)
def test_wrong_input_is_refused(form: Form) -> None:
    index = CodebookIndex(np.zeros((4, 2), np.uint8), np.ones((1, 16), np.int8), form)
    query = np.zeros((1, 2), np.uint8)
    for codes in (np.zeros((1, 3), np.uint8), np.zeros(2, np.uint8), np.zeros((1, 2), np.int64)):
        with pytest.raises(InputError, match=r"packed uint8 codes \[n, 2\]"):
            index.search(codes, 1)
        with pytest.raises(InputError, match="packed"):
            index.within(codes, 1)
    with pytest.raises(InputError, match="at least 1"):
        index.search(query, 0)
    for rows in (np.ones(3, bool), np.array([4]), np.array([-1]), np.array([0.5]), np.array(["0"])):
        with pytest.raises(InputError, match="a mask of 4 rows, or row numbers"):
            index.search_among(query, 1, rows)
