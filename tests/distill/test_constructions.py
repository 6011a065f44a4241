"""Centers: constructions against definitions, distances against popcounts and bounds, determinism, refusals."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.hash_centers import mdshc
from distill.hash_centers.constructions import MAKERS, Construction, hadamard, hash_centers, min_distance
from gallery.codes import pack
from gallery.errors import InputError


def slow_min_distance(centers: np.ndarray) -> int:
    """By packed words and popcount, pair by pair."""
    words = [int.from_bytes(row.tobytes(), "little") for row in pack(centers)]
    return min((a ^ b).bit_count() for a, b in combinations(words, 2))


def plotkin(classes: int, bits: int) -> int:
    """No set of words is farther apart than its mean distance can be: bits * M / (2 (M - 1)), M made even."""
    even = classes + classes % 2
    return bits * even // (2 * (even - 1))


@pytest.mark.parametrize("order", [1, 2, 4, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128])
def test_hadamard_rows_are_orthogonal_and_the_first_row_and_column_constant(order: int) -> None:
    matrix = hadamard(order)
    assert matrix is not None
    assert set(np.unique(matrix)) <= {-1, 1}
    assert np.array_equal(matrix.astype(int) @ matrix.T.astype(int), order * np.eye(order, dtype=int))
    assert abs(int(matrix[0].sum())) == abs(int(matrix[:, 0].sum())) == order


def test_hadamard_says_when_it_knows_no_construction() -> None:
    assert hadamard(92) is None  # exists, but neither by Sylvester nor by Paley I


@pytest.mark.parametrize(("classes", "bits", "least"), [
    (100, 16, 6), (100, 24, 10), (100, 32, 14), (100, 48, 22), (100, 64, 32), (100, 128, 64),
    (10, 16, 8), (10, 24, 12), (10, 32, 17), (10, 48, 26), (10, 64, 35), (10, 128, 70),
    (20, 16, 8), (21, 16, 8), (21, 32, 16), (21, 64, 33), (64, 64, 32), (80, 16, 6), (80, 48, 24), (100, 40, 18),
    (100, 56, 26), (200, 16, 6), (200, 24, 8), (200, 32, 13), (200, 48, 21), (200, 64, 28), (200, 128, 64),
    (555, 16, 4), (555, 32, 12), (555, 64, 28), (1000, 40, 16), (1000, 48, 20), (1000, 64, 28), (1000, 128, 58),
])  # fmt: skip
def test_distances(classes: int, bits: int, least: int) -> None:
    centers = hash_centers(classes, bits)
    assert centers.shape == (classes, bits)
    assert centers.dtype == np.int8
    assert set(np.unique(centers)) == {-1, 1}
    assert min_distance(centers) == slow_min_distance(centers)
    assert least <= min_distance(centers) <= plotkin(classes, bits)


@pytest.mark.parametrize("construction", ["auto", "bernoulli", "csch"])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes_leave_no_bit_dead(classes: int, construction: Construction) -> None:
    for bits in (16, 24, 64):
        centers = hash_centers(classes, bits, construction=construction)
        assert np.abs(centers.sum(0, dtype=int)).max() < classes
        assert min_distance(centers) == slow_min_distance(centers)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 300), st.integers(1, 18).map(lambda n: 8 * n), st.integers(0, 9))
def test_any_number_of_classes_and_bytes(classes: int, bits: int, seed: int) -> None:
    if classes > 2**bits:
        return
    centers = hash_centers(classes, bits, seed)
    assert centers.shape == (classes, bits)
    assert 1 <= min_distance(centers) == slow_min_distance(centers) <= plotkin(classes, bits)
    assert np.array_equal(centers, hash_centers(classes, bits, seed))
    assert np.abs(centers.sum(0, dtype=int)).max() < classes  # no dead bit


@pytest.mark.parametrize(
    ("classes", "bits"), [(5, 24), (5, 128), (37, 16), (37, 56), (37, 64), (130, 40), (130, 72), (130, 112), (257, 88)]
)
def test_auto_is_never_below_the_samplers(classes: int, bits: int) -> None:
    best = min_distance(hash_centers(classes, bits))
    assert best >= min_distance(hash_centers(classes, bits, construction="csch"))
    assert best >= min_distance(hash_centers(classes, bits, construction="bernoulli"))


@pytest.mark.parametrize("bits", [16, 24, 48, 64])
def test_many_classes(bits: int) -> None:
    centers = hash_centers(5000, bits)
    packed = pack(centers)
    assert len(np.unique(packed, axis=0)) == 5000
    nearest = [int(np.bitwise_count(packed ^ row).sum(1)[1 + i :].min()) for i, row in enumerate(packed[:-1])]
    assert min_distance(centers) == min(nearest) >= {16: 2, 24: 6, 48: 14, 64: 24}[bits]


@pytest.mark.parametrize(
    ("classes", "bits"), [(10, 64), (21, 64), (64, 64), (100, 64), (20, 48), (100, 32), (1000, 48)]
)
def test_each_bit_parts_the_classes_nearly_in_half(classes: int, bits: int) -> None:
    assert np.abs(hash_centers(classes, bits).sum(0, dtype=int)).max() <= (classes // 2 if classes < 100 else 12)


@pytest.mark.parametrize(("classes", "bits"), [(128, 48), (256, 16), (4096, 64), (1024, 48), (128, 64)])
def test_whole_codes_are_balanced_exactly(classes: int, bits: int) -> None:
    assert not hash_centers(classes, bits).sum(0, dtype=int).any()


@pytest.mark.parametrize("construction", ["auto", "hadamard_pm", "linear", "nordstrom_robinson", "bernoulli", "csch"])
def test_the_seed_decides_and_nothing_else(construction: str) -> None:
    np.random.seed(1)
    first = hash_centers(24, 16, 5, construction)
    np.random.seed(2)
    assert np.array_equal(first, hash_centers(24, 16, 5, construction))
    assert not np.array_equal(first, hash_centers(24, 16, 6, construction))


def test_hadamard_rows_are_equidistant_and_the_complements_double_them() -> None:
    words = hash_centers(60, 64, construction="hadamard").astype(int)
    assert set(((64 - words @ words.T) // 2)[np.triu_indices(60, 1)]) == {32}
    words = hash_centers(100, 64, construction="hadamard_pm").astype(int)
    assert set(((64 - words @ words.T) // 2)[np.triu_indices(100, 1)]) == {32, 64}


def test_nordstrom_robinson_and_its_kin() -> None:
    for classes, bits, least in ((256, 16, 6), (256, 32, 12), (4096, 64, 28)):
        assert min_distance(hash_centers(classes, bits, construction="nordstrom_robinson")) >= least


def test_half_of_each_bernoulli_center_is_minus_one() -> None:
    words = hash_centers(100, 64, construction="bernoulli")
    assert not words.sum(1, dtype=int).any()
    assert min_distance(words) >= 18  # CSQ: 20, or 18 for a faster search


@pytest.mark.parametrize(("classes", "bits", "least"), [(100, 16, 5), (100, 32, 11), (100, 48, 18), (80, 64, 26)])
def test_the_sampler_reaches_what_the_literature_reports(classes: int, bits: int, least: int) -> None:
    assert min_distance(hash_centers(classes, bits, construction="csch")) >= least


@pytest.mark.parametrize(
    ("classes", "bits", "target"), [(80, 16, 5), (100, 16, 4), (100, 32, 10), (100, 48, 17), (10, 64, 28)]
)
def test_mdshc_reaches_its_target(classes: int, bits: int, target: int) -> None:
    assert mdshc.gilbert_varshamov(classes, bits) == target  # as the released get_margin has it
    assert slow_min_distance(hash_centers(classes, bits, construction="mdshc")) >= target


@pytest.mark.parametrize("bits", [16, 24])
def test_mdshc_never_leaves_its_start_for_worse_and_says_where_it_stops(
    bits: int, caplog: pytest.LogCaptureFixture
) -> None:
    start = np.random.default_rng(0).choice(np.array([-1, 1], np.int8), (150, bits))
    ended = mdshc.admm_centers(start, np.random.default_rng(1))
    assert mdshc.min_distance_and_score(ended)[0] > mdshc.min_distance_and_score(start)[0]
    assert ("--hash-centers auto" in caplog.text) == (slow_min_distance(ended) < mdshc.gilbert_varshamov(150, bits))


def test_mdshc_scores_by_mean_minimum_and_variance() -> None:
    words = hash_centers(12, 16, construction="csch")
    distances = [int((a != b).sum()) for a, b in combinations(words, 2)]
    score = np.mean(distances) + min(distances) - np.var(distances)
    assert mdshc.min_distance_and_score(words) == (min(distances), pytest.approx(score, rel=1e-5))


@pytest.mark.parametrize(("classes", "bits", "construction", "says"), [
    (1, 64, "auto", "two classes"), (9, 12, "auto", "whole bytes"), (300, 8, "auto", "256"), (9, 16, "best", "one of"),
    (65, 64, "hadamard", "64 words"), (9, 56, "hadamard", "0 words"), (97, 48, "hadamard_pm", "96 words"),
    (257, 16, "nordstrom_robinson", "4096"), (9, 24, "nordstrom_robinson", "4096"), (80, 8, "bernoulli", "agree"),
    (250, 8, "csch", ".2 of the bits"), (2001, 16, "mdshc", "2000"),
])  # fmt: skip
def test_errors_name_the_fix(classes: int, bits: int, construction: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        hash_centers(classes, bits, construction=construction)
    assert any(word in error.value.fix for word in ("Add", "Use", "Choose"))


def test_the_registry_and_the_type_name_the_same_constructions() -> None:
    from typing import get_args

    from distill.hash_centers.constructions import Construction

    assert set(MAKERS) == set(get_args(Construction))
