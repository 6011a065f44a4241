"""Majority votes against loops, and centers that vote well against every single turn of a bit."""

import math
import os
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import data
from distill.hash_centers.constructions import hash_centers
from distill.hash_centers.multilabel import MIDDLE, SCALE, SETS, optimise_centers, target_codes
from gallery.codes import pack
from gallery.metrics import mean_average_precision


def test_targets_are_the_majority_vote_and_ties_are_fixed_by_the_label_set() -> None:
    centers = hash_centers(6, 64)
    hot = np.zeros((4, 6), bool)
    hot[0, [0, 1]] = hot[1, [0, 1, 2]] = hot[2, [0, 1]] = hot[3, [2, 3]] = True
    target = target_codes(hot, centers)
    for row, labels in enumerate([(0, 1), (0, 1, 2), (0, 1), (2, 3)]):
        votes = centers[list(labels)].sum(0, dtype=int)
        assert np.array_equal(target[row][votes != 0], np.sign(votes[votes != 0]))
    assert set(np.unique(target)) == {-1, 1}
    assert np.array_equal(target[0], target[2])
    assert np.array_equal(target_codes(hot[[3, 0]], centers), target[[3, 0]])  # whatever else is in the batch
    tied = (centers[0] + centers[1]) == 0
    assert 0.2 < (target[0][tied] > 0).mean() < 0.8


def test_single_labels_and_one_hot_rows_have_the_same_targets() -> None:
    centers, labels = hash_centers(5, 16), np.array([4, 0, 2])
    assert np.array_equal(target_codes(labels, centers), target_codes(np.eye(5, dtype=bool)[labels], centers))


def sets_of(seed: int, images: int, classes: int) -> np.ndarray:
    """Images of classes that come in company: each of three scenes has its own."""
    rng = np.random.default_rng(seed)
    scenes = rng.random((3, classes)) ** 2
    return rng.random((images, classes)) < scenes[rng.integers(0, 3, images)]


def slow_surprise(centers: np.ndarray, positive: np.ndarray) -> float:
    """L, by loops over all pairs of different images."""
    words, total = target_codes(positive, centers).astype(int), 0.0
    for i, j in product(range(len(words)), repeat=2):
        x = SCALE * (sum(words[i] * words[j]) / centers.shape[1] - MIDDLE)
        total += math.log1p(math.exp(x)) - x * bool(set(np.flatnonzero(positive[i])) & set(np.flatnonzero(positive[j])))
    return total


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999))
def test_no_turn_of_a_bit_makes_optimised_centers_better(seed: int) -> None:
    positive, centers = sets_of(seed, 12, 4), hash_centers(4, 16, seed)
    found = optimise_centers(centers, positive)
    least = slow_surprise(found, positive)
    assert least <= slow_surprise(centers, positive) + 1e-6
    for c, bit in product(range(4), range(16)):
        turned = found.copy()
        turned[c, bit] *= -1
        assert slow_surprise(turned, positive) >= least - 1e-6, (c, bit)


def test_what_is_optimised_is_centers_again_and_depends_on_nothing_but_the_images() -> None:
    positive, centers = sets_of(3, 200, 9), hash_centers(9, 32)
    before = centers.copy()
    found = optimise_centers(centers, positive)
    assert np.array_equal(centers, before)
    assert found.dtype == np.int8
    assert set(np.unique(found)) == {-1, 1}
    assert not np.array_equal(found, centers)
    assert np.array_equal(found, optimise_centers(centers, positive[::-1]))
    assert np.array_equal(found, optimise_centers(found, positive))
    assert np.array_equal(found, optimise_centers(centers, np.repeat(positive, 3, axis=0)))  # only shares count


def test_a_class_without_images_keeps_its_center_and_images_without_a_class_do_no_harm() -> None:
    positive, centers = sets_of(4, 60, 6), hash_centers(6, 32)
    positive[:, 2] = False
    positive[:5] = False
    assert np.array_equal(optimise_centers(centers, positive)[2], centers[2])


def test_only_the_most_frequent_sets_vote() -> None:
    rng = np.random.default_rng(0)
    often = rng.random((SETS, 12)) < 0.4
    often = np.unique(often, axis=0)
    rare = np.array([row for row in np.unique(rng.random((4 * SETS, 12)) < 0.4, axis=0) if (row != often).any(1).all()])
    many = np.concatenate([often, often, rare[: SETS - len(often) + 1]])
    fewer = np.concatenate([often, often, rare[: SETS - len(often)]])
    assert len(np.unique(many, axis=0)) == SETS + 1
    centers = hash_centers(12, 16)
    ranked = np.unique(many, axis=0)  # of sets as frequent as each other, the first in order vote
    alone = ranked[[(row != often).any(1).all() for row in ranked]][-1]
    left = many[(many != alone).any(1)]
    assert len(left) == len(fewer)
    assert np.array_equal(optimise_centers(centers, many), optimise_centers(centers, left))


@pytest.mark.skipif("TWINHASH_DATA" not in os.environ, reason="TWINHASH_DATA is not set")
@pytest.mark.parametrize(("bits", "least"), [(32, 0.99), (64, 0.998)])
def test_target_codes_of_real_images_find_those_that_share_a_class(bits: int, least: float, tmp_path: Path) -> None:
    images = data.load("ucmerced_multi", {32}, tmp_path, data.DataConfig(seed=0))
    train, query, rest = (images.labels[part] for part in (images.train, images.query, images.gallery))
    separated = hash_centers(train.shape[1], bits)

    def found(centers: np.ndarray) -> float:
        asked, kept = (pack(target_codes(labels, centers).astype(np.float32)) for labels in (query, rest))
        return mean_average_precision(asked, kept, query, rest).map

    assert found(optimise_centers(separated, train)) > least > found(separated) + 0.02
