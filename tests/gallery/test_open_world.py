"""The four protocols: against plain loops over single queries, for codes and for float features."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gallery.codes import hamming, pack
from gallery.errors import InputError
from gallery.metrics import mean_average_precision
from gallery.open_world import OpenWorldMaps, open_world_float, open_world_maps, open_world_protocols

PROTOCOLS = {
    "seen_seen": ("seen", "seen"),
    "seen_all": ("seen", "all"),
    "unseen_unseen": ("unseen", "unseen"),
    "unseen_all": ("unseen", "all"),
}


def classes_of(label: Any) -> set[int]:
    if np.ndim(label):
        return {c for c, there in enumerate(label) if there}
    return {int(label)} - {-1}


def kind(label: Any, seen: set[int]) -> str:
    own = classes_of(label)
    if not own:
        return "none"
    return "seen" if all(c in seen for c in own) else "unseen"


def expected_ap(distances: list[float], relevant: list[bool]) -> Fraction:
    """The expectation of AP over the orders of ties, item by item.

    A relevant item of a tie of n with p relevant ones is at place t of its n with chance 1/n each, and each of the
    t - 1 places before it holds one of the other p - 1 relevant ones with chance (p-1)/(n-1).
    """
    total = Fraction(0)
    for distance in set(distances):
        n = sum(d == distance for d in distances)
        p = sum(r for d, r in zip(distances, relevant, strict=True) if d == distance)
        before = sum(d < distance for d in distances)
        found = sum(r for d, r in zip(distances, relevant, strict=True) if d < distance)
        for t in range(1, n + 1):
            others = Fraction(p - 1, n - 1) * (t - 1) if n > 1 else 0
            total += Fraction(p, n) * (found + others + 1) / (before + t)
    return total / max(1, sum(relevant))


def by_loops(distances: np.ndarray, query_labels: np.ndarray, gallery_labels: np.ndarray, seen: set[int]) -> list[Any]:
    """mAP of the four protocols from distances `[queries, gallery]`, query by query."""
    maps: list[Any] = []
    for asked, searched in PROTOCOLS.values():
        items = [g for g, label in enumerate(gallery_labels) if searched in ("all", kind(label, seen))]
        rows = [q for q, label in enumerate(query_labels) if kind(label, seen) == asked]
        scores = [
            expected_ap(
                [float(distances[q, g]) for g in items],
                [bool(classes_of(query_labels[q]) & classes_of(gallery_labels[g])) for g in items],
            )
            for q in rows
        ]
        maps.append(float(sum(scores) / len(scores)) if rows and items else None)
    return maps


def check(maps: OpenWorldMaps, expected: list[Any]) -> None:
    assert list(type(maps).model_fields) == list(PROTOCOLS)
    for (name, found), wanted in zip(maps.model_dump().items(), expected, strict=True):
        assert found == (None if wanted is None else pytest.approx(wanted, abs=1e-9)), name


def labels(draw: st.DrawFn, count: int, multi: bool) -> np.ndarray:
    if not multi:
        return np.array(draw(st.lists(st.integers(-1, 3), min_size=count, max_size=count)), np.int64)
    rows = draw(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=count, max_size=count))
    return np.array(rows, bool)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    multi = draw(st.booleans())
    query, gallery = (labels(draw, draw(st.integers(1, 6)), multi) for _ in range(2))
    return query, gallery, np.array(sorted(draw(st.sets(st.integers(0, 3)))), np.int64)


@settings(max_examples=150, deadline=None)
@given(cases(), st.integers(0, 2**32 - 1))
def test_codes_equal_plain_loops(case: tuple[np.ndarray, np.ndarray, np.ndarray], seed: int) -> None:
    query, gallery, seen = case
    rng = np.random.default_rng(seed)
    q, g = (pack(rng.random((len(own), 8)) < 0.2) for own in (query, gallery))  # most distances are ties
    check(open_world_maps(q, g, query, gallery, seen), by_loops(hamming(q, g), query, gallery, set(seen.tolist())))


@settings(max_examples=150, deadline=None)
@given(cases(), st.integers(0, 2**32 - 1))
def test_float_features_equal_plain_loops(case: tuple[np.ndarray, np.ndarray, np.ndarray], seed: int) -> None:
    """Features of which all cosines are exact in float32, and many equal: corners of a cube."""
    query, gallery, seen = case
    rng = np.random.default_rng(seed)
    q, g = (rng.choice(np.float32([-1, 1]), (len(own), 4)) * rng.choice([0.5, 2.0], (len(own), 1)) for own in case[:2])
    cosines = np.array([[sum(a * b) / np.sqrt(sum(a * a) * sum(b * b)) for b in g] for a in q])
    check(open_world_float(q, g, query, gallery, seen), by_loops(-cosines, query, gallery, set(seen.tolist())))


def test_blocks_of_queries_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    q, g = (rng.standard_normal((n, 16)).astype(np.float32) for n in (41, 90))
    known = rng.integers(0, 6, 41), rng.integers(0, 6, 90), np.arange(4)
    at_once = open_world_float(q, g, *known)
    monkeypatch.setattr("gallery.open_world.BLOCK_BYTES", 90 * 4 * 3)
    assert open_world_float(q, g, *known).model_dump() == pytest.approx(at_once.model_dump(), abs=1e-6)


def test_where_all_is_seen_only_seen_is_asked() -> None:
    rng = np.random.default_rng(1)
    q, g = (pack(rng.random((n, 16)) < 0.5) for n in (20, 60))
    asked, there = rng.integers(0, 4, 20), rng.integers(0, 4, 60)
    maps = open_world_maps(q, g, asked, there, np.arange(4), top_k=30)
    whole = mean_average_precision(q, g, asked, there, 30).map
    assert maps == OpenWorldMaps(seen_seen=whole, seen_all=whole, unseen_unseen=None, unseen_all=None)


def test_a_query_with_any_unseen_class_is_unseen_and_one_without_classes_is_none() -> None:
    hot = np.array([[1, 0, 0], [1, 0, 1], [0, 0, 1], [0, 0, 0]], bool)
    protocols = open_world_protocols(hot, hot, np.array([0, 1]))
    assert protocols["seen_all"].queries.tolist() == [True, False, False, False]
    assert protocols["unseen_unseen"].database.tolist() == [False, True, True, False]
    assert protocols["unseen_all"].database.all()


@pytest.mark.parametrize("shapes", [((3, 4), (5, 6)), ((2, 4), (5, 4)), ((3,), (5, 4))])
def test_features_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    q, g = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(InputError, match="features"):
        open_world_float(q, g, np.zeros(3, int), np.zeros(5, int), np.arange(2))
