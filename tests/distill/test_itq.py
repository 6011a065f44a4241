"""Iterative quantization: against the paper's algorithm in plain steps, and what it promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.itq import ItqHash, fit_itq
from gallery.codes import pack
from gallery.errors import InputError
from gallery.metrics import mean_average_precision


def features(seed: int, count: int, width: int) -> np.ndarray:
    """Clusters, with variances that differ from direction to direction."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((5, width))
    made = centers[rng.integers(0, 5, count)] + rng.standard_normal((count, width)) * np.linspace(0.9, 0.1, width)
    return made.astype(np.float32)


def slow_itq(x: np.ndarray, bits: int, seed: int, iterations: int) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Section 3.2 of the paper in float64, image by image; principal components by an SVD of the data."""
    x = np.stack([row / np.sqrt((row * row).sum()) for row in x.astype(np.float64)])
    mean = sum(x) / len(x)
    axes = np.linalg.svd(x - mean)[2][:bits]
    axes = np.stack([axis if axis[np.abs(axis).argmax()] > 0 else -axis for axis in axes])
    v = np.stack([[(row - mean) @ axis for axis in axes] for row in x])
    v /= np.sqrt((v * v).mean())
    r, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((bits, bits)))
    errors = []
    for step in range(iterations + 1):
        rotated = np.stack([row @ r for row in v])
        b = np.array([[1.0 if value > 0 else -1.0 for value in row] for row in rotated])
        errors.append(((b - rotated) ** 2).mean())
        if step < iterations:
            s, _, s_hat = np.linalg.svd(b.T @ v)  # the paper's B^T V = S Omega S_hat^T, R = S_hat S^T
            r = s_hat.T @ s.T
    return mean, axes.T @ r, errors


@pytest.mark.parametrize(("bits", "iterations"), [(8, 0), (8, 12), (16, 5)])
def test_equals_the_paper_in_plain_steps(bits: int, iterations: int) -> None:
    x = features(3, 160, 24)
    made, (mean, projection, errors) = fit_itq(x, bits, 7, iterations), slow_itq(x, bits, 7, iterations)
    assert np.allclose(made.mean, mean, atol=1e-5)
    assert np.allclose(made.projection, projection, atol=1e-3)
    assert made.errors == pytest.approx(errors, abs=1e-4)
    logits = np.stack([(row / np.linalg.norm(row) - mean) @ projection for row in x.astype(np.float64)])
    assert np.allclose(made.logits(x), logits, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(16, 80), st.integers(8, 20), st.integers(0, 2**31))
def test_the_quantization_error_never_rises(data_seed: int, count: int, width: int, seed: int) -> None:
    made = fit_itq(features(data_seed, count, width), 8, seed, 20)
    assert len(made.errors) == 21
    assert (np.diff(made.errors) < 1e-5).all()
    assert np.allclose(made.projection.T @ made.projection, np.eye(8), atol=1e-4), "a rotation of components"


def test_the_same_seed_gives_the_same_codes_whatever_the_length_of_the_features() -> None:
    x = features(1, 200, 32)
    first, again, other, longer = (fit_itq(*made) for made in ((x, 16, 5), (x, 16, 5), (x, 16, 6), (4 * x, 16, 5)))
    assert np.array_equal(first.projection, again.projection)
    assert not np.array_equal(first.projection, other.projection)
    assert np.array_equal(pack(first.logits(x)), pack(longer.logits(8 * x)))


def test_its_codes_retrieve_better_than_a_rotation_that_was_not_fitted() -> None:
    rng = np.random.default_rng(2)
    known = rng.integers(0, 12, 600)
    x = (rng.standard_normal((12, 40))[known] + 0.9 * rng.standard_normal((600, 40))).astype(np.float32)

    def score(made: ItqHash) -> float:
        codes = pack(made.logits(x))
        return mean_average_precision(codes[:100], codes[100:], known[:100], known[100:]).map

    assert score(fit_itq(x[100:], 16, 0)) > score(fit_itq(x[100:], 16, 0, iterations=0))


def test_images_that_are_all_equal_are_no_fault() -> None:
    made = fit_itq(np.ones((20, 12), np.float32), 8, 0)
    assert np.isfinite(made.logits(np.ones((3, 12), np.float32))).all()


@pytest.mark.parametrize("shape", [(15, 40), (40, 15)])
def test_too_few_images_or_features_are_said(shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=rf"at least 16 images and features for 16 bits; found {shape[0]} of"):
        fit_itq(np.ones(shape, np.float32), 16, 0)


def test_values_that_are_not_finite_are_said() -> None:
    x = features(0, 30, 10)
    x[3, 3] = np.nan
    with pytest.raises(InputError, match="finite"):
        fit_itq(x, 8, 0)
