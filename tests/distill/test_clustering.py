"""Centers of clusters of codes, and the search that they serve: exact, whatever the centers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.hash_centers.clustering import k_majority
from gallery.codebook_index import CodebookIndex
from gallery.codes import pack


def drawn(seed: int, groups: int, count: int, bits: int = 64, flips: float = 0.1) -> np.ndarray:
    """Codes +-1 around a few random ones."""
    rng = np.random.default_rng(seed)
    centers = np.where(rng.random((groups, bits)) < 0.5, -1, 1)
    noise = np.where(rng.random((count, bits)) < flips, -1, 1)
    return (centers[rng.integers(groups, size=count)] * noise).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.integers(1, 20))
def test_centers_are_different_codes_about_the_root_of_their_number(seed: int, count: int, groups: int) -> None:
    signs = drawn(seed, groups, count)
    centers = k_majority(signs, 0)
    assert np.isin(centers, (-1, 1)).all()
    assert 1 <= len(centers) <= min(64, int(np.ceil(np.sqrt(count))))
    assert len(np.unique(centers, axis=0)) == len(centers)
    assert np.array_equal(centers, k_majority(signs, 0))


def test_well_separated_groups_are_found() -> None:
    signs = drawn(0, 8, 400, flips=0.05)
    distance = (64 - signs @ k_majority(signs, 3).T) / 2
    assert distance.min(1).mean() < 4  # of 64 bits, of which 5 % differ from the group's


def test_few_and_equal_codes() -> None:
    assert len(k_majority(np.ones((1, 16), np.float32), 0)) == 1
    assert k_majority(np.ones((50, 16), np.float32), 0).tolist() == [[1] * 16]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_search_by_such_centers_is_a_flat_scan(seed: int) -> None:
    signs = drawn(seed, 30, 3000)
    codes, queries = pack(signs), pack(drawn(seed + 10, 30, 40))
    index, flat = CodebookIndex(codes, k_majority(signs, seed), "buckets"), CodebookIndex(codes, None, "numpy")
    assert index.form == "buckets"
    for k in (1, 10, 333):
        for one, other in zip(index.search(queries, k), flat.search(queries, k), strict=True):
            assert np.array_equal(one, other)
