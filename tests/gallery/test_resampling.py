"""Resizing without antialiasing is what other libraries do, and its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from export.golden_photos import draw_photos
from gallery.decode import decode, to_square
from gallery.resampling import square_without_antialiasing, without_antialiasing

SIZE = 48


def test_without_antialiasing_is_opencvs_and_skias_linear() -> None:
    cv2, skia = pytest.importorskip("cv2"), pytest.importorskip("skia")
    for photo in map(decode, draw_photos(SIZE).values()):
        pixels, shape = np.asarray(photo), (SIZE, SIZE + 9)
        ours = without_antialiasing(photo, shape).astype(int)
        opencv = cv2.resize(pixels, shape, interpolation=cv2.INTER_LINEAR)
        assert np.abs(ours - opencv).max() <= 2  # of 255: OpenCV's weights have 11 bits
        rgba = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
        image = skia.Image.fromarray(np.ascontiguousarray(rgba), skia.kRGBA_8888_ColorType)
        linear = image.resize(*shape, skia.SamplingOptions(skia.FilterMode.kLinear)).toarray(
            colorType=skia.kRGBA_8888_ColorType
        )
        assert np.abs(ours - linear[..., :3]).mean() < 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_without_antialiasing_is_its_definition(width: int, height: int, size: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    ours = without_antialiasing(Image.fromarray(pixels), (size, size)).astype(float)

    def places(old: int) -> list[tuple[int, int, float]]:
        found = []
        for i in range(size):
            at = min(max((i + 0.5) * old / size - 0.5, 0), old - 1)
            low = int(at)
            found.append((low, min(low + 1, old - 1), at - low))
        return found

    for y, (top, bottom, down) in enumerate(places(height)):
        for x, (left, right, across) in enumerate(places(width)):
            upper = pixels[top, left] * (1 - across) + pixels[top, right] * across
            lower = pixels[bottom, left] * (1 - across) + pixels[bottom, right] * across
            assert np.abs(ours[y, x] - (upper * (1 - down) + lower * down)).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("shape", [(20, 31), (31, 20), (20, 20)])
def test_its_square_is_the_part_that_the_rule_crops(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape[::-1], 3), np.uint8)
    photo = Image.fromarray(pixels)
    assert np.abs(square_without_antialiasing(photo, 40).astype(int) - to_square(photo, 40)).max() <= 1  # enlarged
    assert np.array_equal(square_without_antialiasing(photo, 20), to_square(photo, 20))
