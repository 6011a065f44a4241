"""Assignments: against all permutations, against planted orders, and what cannot matter."""

from itertools import permutations

import numpy as np
import pytest

from distill.hash_centers.assignment import (
    _pca,
    assign,
    class_means,
    class_similarity,
    gram_correlation,
    is_equidistant,
)
from distill.hash_centers.constructions import hash_centers
from gallery.errors import InputError

HOWS = ["none", "hungarian", "quadratic", "csch"]


def images(classes: int, seed: int, per_class: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(classes, 5)) @ rng.normal(size=(5, 20))
    labels = np.arange(classes * per_class) % classes
    return (means[labels] + 0.3 * rng.normal(size=(len(labels), 20))).astype(np.float32), np.eye(classes, dtype=bool)[
        labels
    ]


def spread_words(classes: int, bits: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), (classes, bits))


def test_class_means_and_similarity_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    features, positive = rng.normal(size=(30, 7)), rng.random((30, 5)) < 0.3
    positive[:, 3] = False
    means = class_means(features, positive)
    for c in range(5):
        own = [f / np.sqrt((f**2).sum()) for f, p in zip(features, positive[:, c], strict=True) if p]
        slow = np.mean(own, 0) / np.linalg.norm(np.mean(own, 0)) if own else np.zeros(7)
        np.testing.assert_allclose(means[c], slow, atol=1e-12)
    similarity = class_similarity(means)
    np.testing.assert_allclose(similarity[0, 1], means[0] @ means[1], atol=1e-12)
    assert not similarity[3].any()


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("classes", [2, 7, 40, 230])
def test_every_center_goes_to_one_class_and_repeats(how: str, classes: int) -> None:
    features, positive = images(classes, 1)
    centers = spread_words(classes, 64)
    order = assign(centers, how, features, positive, seed=3)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(classes))
    assert np.array_equal(order, assign(centers, how, features * 4, positive, seed=3))


@pytest.mark.parametrize("seed", range(4))
def test_hungarian_is_the_best_of_all_permutations(seed: int) -> None:
    features, positive = images(6, seed)
    centers = spread_words(6, seed=seed)
    means = _pca(class_means(features, positive), 16)
    profit = np.array([[float(m @ t[: len(m)]) for t in centers] for m in means])
    best = max(sum(profit[c, p] for c, p in enumerate(order)) for order in permutations(range(6)))
    order = assign(centers, "hungarian", features, positive)
    assert sum(profit[c, p] for c, p in enumerate(order)) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(4))
def test_the_released_assignment_is_the_best_for_its_random_head(seed: int) -> None:
    features, positive = images(5, seed)
    centers = spread_words(5, seed=seed)
    outputs = features @ np.random.default_rng(seed).normal(0, 0.01, (20, 16))
    profit = class_means(outputs, positive) @ centers.T
    best = max(sum(profit[c, p] for c, p in enumerate(order)) for order in permutations(range(5)))
    order = assign(centers, "csch", features, positive, seed)
    assert sum(profit[c, p] for c, p in enumerate(order)) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(8))
def test_quadratic_comes_near_the_best_of_all_permutations(seed: int) -> None:
    features, positive = images(7, seed)
    centers, means = spread_words(7, seed=seed), class_means(features, positive)
    every = [gram_correlation(centers[list(order)], means) for order in permutations(range(7))]
    reached = gram_correlation(centers[assign(centers, "quadratic", features, positive)], means)
    assert np.mean(np.array(every) > reached + 1e-9) < 0.01  # the best percent of 5,040
    assert reached >= 0.85 * max(every)


@pytest.mark.parametrize(("classes", "bits"), [(20, 16), (100, 32), (240, 48)])
def test_quadratic_is_above_the_others_and_no_swap_improves_it(classes: int, bits: int) -> None:
    features, positive = images(classes, 2)
    centers, means = hash_centers(classes, bits), class_means(features, positive)
    reached = {how: gram_correlation(centers[assign(centers, how, features, positive)], means) for how in HOWS}
    assert reached["quadratic"] > max(reached[how] for how in ("none", "hungarian", "csch")) + 0.05
    order = assign(centers, "quadratic", features, positive)
    for a, b in np.random.default_rng(0).integers(classes, size=(50, 2)):
        swapped = order.copy()
        swapped[[a, b]] = swapped[[b, a]]
        assert gram_correlation(centers[swapped], means) <= reached["quadratic"] + 1e-9


def test_quadratic_finds_a_planted_order() -> None:
    centers = spread_words(40, 64)
    hidden = np.random.default_rng(4).permutation(40)
    order = assign(centers, "quadratic", centers[hidden].astype(np.float32), np.eye(40, dtype=bool))
    assert gram_correlation(centers[order], class_means(centers[hidden].astype(float), np.eye(40, dtype=bool))) > 0.999


def test_the_figure_of_merit_is_the_same_however_the_space_is_turned() -> None:
    features, positive = images(12, 0)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(20, 20)))[0]
    centers, turned = spread_words(12), (features @ turn).astype(np.float64)
    first, second = class_means(features, positive), class_means(turned, positive)
    assert gram_correlation(centers, first) == pytest.approx(gram_correlation(centers, second), abs=1e-5)
    upper = [(a, b) for a in range(12) for b in range(a)]
    words = centers.astype(int)
    slow = np.corrcoef([words[a] @ words[b] for a, b in upper], [first[a] @ first[b] for a, b in upper])[0, 1]
    assert gram_correlation(centers, first) == pytest.approx(slow)


def test_equidistant_centers_keep_their_order() -> None:
    rows = hash_centers(30, 64, construction="hadamard")
    features, positive = images(30, 0)
    assert is_equidistant(rows)
    assert np.array_equal(assign(rows, "quadratic"), np.arange(30))  # not even features are asked for
    assert gram_correlation(rows, class_means(features, positive)) == 0
    assert not is_equidistant(hash_centers(30, 16))
    assert not is_equidistant(hash_centers(100, 64))
    assert is_equidistant(rows[:1])


@pytest.mark.parametrize("how", ["hungarian", "quadratic", "csch"])
def test_a_class_without_images_takes_what_is_left(how: str) -> None:
    features, positive = images(9, 0)
    positive[:, [2, 5]] = False
    centers, kept = spread_words(9), [0, 1, 3, 4, 6, 7, 8]
    order = assign(centers, how, features, positive)
    assert sorted(order) == list(range(9))
    means = class_means(features, positive)
    assert gram_correlation(centers[order], means) == pytest.approx(gram_correlation(centers[order][kept], means[kept]))


def test_no_images_at_all_still_gives_an_order() -> None:
    order = assign(spread_words(4), "quadratic", np.zeros((3, 5)), np.zeros((3, 4), bool))
    assert sorted(order) == [0, 1, 2, 3]


@pytest.mark.parametrize("how", ["hungarian", "quadratic", "csch"])
def test_refusals(how: str) -> None:
    features, positive = images(4, 0)
    for given in ((None, None), (features, None), (features[1:], positive), (features, positive[:, 1:])):
        with pytest.raises(InputError, match="positive"):
            assign(spread_words(4), how, *given)


def test_unknown_names_and_too_many_classes_are_an_error() -> None:
    with pytest.raises(InputError, match="assignment of"):
        assign(spread_words(4), "best")
    with pytest.raises(InputError, match="2000"):
        assign(spread_words(2001), "quadratic", np.ones((1, 3)), np.ones((1, 2001), bool))
