"""Codes: distances by comparing all pairs of words, closure, known weight distributions."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from distill.hash_centers import linear_codes as codes

DISTANCES = {  # (n, k): what the tables of best known linear codes give, or a little less
    (24, 7): 10, (24, 12): 8, (32, 7): 14, (32, 8): 13, (40, 7): 18, (40, 10): 16, (48, 7): 22, (48, 8): 21,
    (48, 10): 20, (48, 11): 18, (56, 7): 26, (56, 9): 24, (128, 9): 60, (128, 10): 58,
}  # fmt: skip
BCH = {(8, 4): 4, (16, 5): 8, (16, 7): 6, (16, 11): 4, (32, 6): 16, (32, 11): 12, (32, 16): 8, (64, 7): 32,
       (64, 10): 28, (64, 16): 24, (64, 18): 22, (128, 8): 64, (128, 15): 56}  # fmt: skip


def slow_words(generator: np.ndarray) -> list[int]:
    """All words as Python integers: message by message."""
    rows = [int("".join(map(str, row)), 2) for row in generator]
    words = []
    for message in range(2 ** len(rows)):
        word = 0
        for i, row in enumerate(rows):
            word ^= row if message >> i & 1 else 0
        words.append(word)
    return words


def test_every_stored_code_has_the_distance_it_was_found_with() -> None:
    assert {key: codes.min_weight(codes.stored(*key)) for key in codes.COLUMNS} == DISTANCES


@pytest.mark.parametrize(("length", "dimension"), BCH)
def test_bch_codes_have_their_textbook_distances(length: int, dimension: int) -> None:
    assert codes.min_weight(codes.bch(length.bit_length() - 1)[:dimension]) == BCH[length, dimension]


@pytest.mark.parametrize("key", [(24, 7), (32, 8), (48, 7)])
def test_span_min_weight_and_closure_against_integers(key: tuple[int, int]) -> None:
    generator = codes.stored(*key)
    slow = slow_words(generator)
    fast = {int("".join(map(str, word)), 2) for word in codes.span(generator)}
    assert fast == set(slow)
    assert len(fast) == 2 ** key[1]
    assert all(a ^ b in fast for a, b in combinations(slow[::3], 2))
    assert min((a ^ b).bit_count() for a, b in combinations(slow, 2)) == codes.min_weight(generator)


def test_the_weights_of_golays_code() -> None:
    weights = Counter(codes.span(codes.stored(24, 12)).sum(1).tolist())
    assert weights == {0: 1, 8: 759, 12: 2576, 16: 759, 24: 1}


@pytest.mark.parametrize("m", codes.FEEDBACK)
def test_a_bch_basis_spans_the_space_and_ends_with_even_weights(m: int) -> None:
    basis = codes.bch(m)
    assert basis.shape == (2**m, 2**m)
    assert round(abs(np.linalg.det(basis.astype(float)))) % 2 == 1 or m > 4  # the determinant mod 2, where exact
    assert not (basis[:-1].sum(1) % 2).any()
    assert rank(basis) == 2**m


def rank(matrix: np.ndarray) -> int:
    """Over GF(2), on Python integers."""
    pivots: dict[int, int] = {}
    for value in (int("".join(map(str, row)), 2) for row in matrix):
        while value and value.bit_length() in pivots:
            value ^= pivots[value.bit_length()]
        if value:
            pivots[value.bit_length()] = value
    return len(pivots)


@pytest.mark.parametrize(("m", "dimension", "by"), [(4, 9, 4), (5, 14, 8), (6, 26, 16)])
def test_shortening_keeps_the_distance_and_only_words_of_the_code(m: int, dimension: int, by: int) -> None:
    long, short = codes.bch(m)[:dimension], codes.shortened(codes.bch(m)[:dimension], by)
    assert short.shape == (dimension - by, 2**m - by)
    assert rank(short) == dimension - by
    padded = np.hstack([np.zeros((len(short), by), np.uint8), short])
    assert rank(np.vstack([long, padded])) == dimension
    assert codes.min_weight(short) >= (codes.min_weight(long) if dimension < 20 else 14)  # [64, 30, 14]


@pytest.mark.parametrize(("m", "distribution"), [
    (3, {0: 1, 6: 112, 8: 30, 10: 112, 16: 1}), (5, {0: 1, 28: 1984, 32: 126, 36: 1984, 64: 1}),
])  # fmt: skip
def test_from_every_word_of_kerdocks_codes_the_distances_are_the_known_ones(m: int, distribution: dict) -> None:
    words = codes.kerdock(m)
    assert words.shape == (4 ** (m + 1), 2 ** (m + 1))
    for word in words[:: len(words) // 64]:
        assert Counter((words ^ word).sum(1).tolist()) == distribution


def test_nordstrom_robinson_is_not_linear() -> None:
    words = {tuple(word) for word in codes.kerdock(3).tolist()}
    assert any(tuple(x ^ y for x, y in zip(a, b, strict=True)) not in words for a, b in combinations(sorted(words), 2))


def test_dependent_rows_have_no_distance() -> None:
    assert codes.min_weight(np.array([[1, 0, 1], [1, 0, 1]], np.uint8)) == 0
