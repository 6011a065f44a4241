"""Centers: constructions against definitions, distances against a loop, determinism, refusals."""

from itertools import combinations

import numpy as np
import pytest

from distill.centers import _sampled, hadamard, hash_centers, min_distance
from gallery.errors import InputError


def slow_min_distance(centers: np.ndarray) -> int:
    return min(sum(int(x != y) for x, y in zip(a, b, strict=True)) for a, b in combinations(centers, 2))


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128])
def test_hadamard_rows_are_orthogonal_and_the_first_is_constant(order: int) -> None:
    matrix = hadamard(order)
    assert matrix is not None
    assert set(np.unique(matrix)) <= {-1, 1}
    assert np.array_equal(matrix.astype(int) @ matrix.T.astype(int), order * np.eye(order, dtype=int))
    assert abs(int(matrix[0].sum())) == order


def test_hadamard_says_when_it_knows_no_construction() -> None:
    assert hadamard(92) is None  # exists, but neither by Sylvester nor by Paley I


@pytest.mark.parametrize(
    ("classes", "bits", "least"),
    [(10, 16, 8), (10, 32, 16), (10, 48, 24), (10, 64, 32), (10, 128, 64), (21, 64, 32), (64, 64, 32), (100, 64, 32),
     (100, 128, 64), (20, 16, 8), (80, 48, 24)],
)
def test_distances(classes: int, bits: int, least: int) -> None:
    centers = hash_centers(classes, bits)
    assert centers.shape == (classes, bits)
    assert centers.dtype == np.int8
    assert min_distance(centers) == slow_min_distance(centers) == least


@pytest.mark.parametrize(("classes", "bits"), [(10, 64), (21, 64), (64, 64), (100, 64), (20, 48)])
def test_no_bit_is_the_same_for_all_classes(classes: int, bits: int) -> None:
    assert np.abs(hash_centers(classes, bits).sum(0, dtype=int)).max() < classes


def test_the_seed_decides_and_nothing_else() -> None:
    np.random.seed(1)
    first = hash_centers(40, 16, seed=5)
    np.random.seed(2)
    assert np.array_equal(first, hash_centers(40, 16, seed=5))
    assert not np.array_equal(first, hash_centers(40, 16, seed=6))


@pytest.mark.parametrize(("classes", "bits", "least"), [(100, 32, 11), (100, 48, 18)])
def test_the_sampler_reaches_what_the_literature_reports(classes: int, bits: int, least: int) -> None:
    centers = _sampled(classes, bits, np.random.default_rng(0))
    assert min_distance(centers) >= least
    assert len(np.unique(centers, axis=0)) == classes


@pytest.mark.parametrize(("classes", "bits", "says"), [(1, 64, "two classes"), (9, 12, "whole bytes"), (300, 8, "256")])
def test_refusals(classes: int, bits: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        hash_centers(classes, bits)
