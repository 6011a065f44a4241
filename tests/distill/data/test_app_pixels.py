"""What apps make of images: each filter is its definition, and the file's digest decides which."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from distill.data import app_pixels
from distill.data.app_pixels import APPS, FACTOR, KERNELS, app_squares, through_jpeg
from gallery.decode import resized_shape
from tests.distill.data.factories import noise


def triangle(x: float) -> float:
    return max(0.0, 1 - abs(x))


def box(x: float) -> float:
    return float(-0.5 < x <= 0.5)


def keys(x: float, a: float = -0.5) -> float:
    """The cubic of Keys (1981)."""
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def lanczos(x: float) -> float:
    return float(np.sinc(x) * np.sinc(x / 3)) if abs(x) < 3 else 0.0


def slow_antialiased(pixels: np.ndarray, length: int, kernel: Callable[[float], float], reach: float) -> np.ndarray:
    """The first axis by a filter that is widened by the reduction, rounded to 8 bits as Pillow does after each axis."""
    old, made = len(pixels), []
    scale = old / length
    wide = max(scale, 1.0)
    for i in range(length):
        center = (i + 0.5) * scale
        inside = range(max(0, int(center - reach * wide + 0.5)), min(old, int(center + reach * wide + 0.5)))
        weights = [kernel((j + 0.5 - center) / wide) for j in inside]
        made.append(sum(w * pixels[j] for w, j in zip(weights, inside, strict=True)) / sum(weights))
    return np.clip(np.floor(np.array(made) + 0.5), 0, 255)


def slow_points(pixels: np.ndarray, length: int, linear: bool) -> np.ndarray:
    """The first axis by the nearest pixel, or by the two around each point."""
    old, made = len(pixels), []
    for i in range(length):
        at = (i + 0.5) * old / length
        if not linear:
            made.append(pixels[int(at)])
            continue
        at = min(max(at - 0.5, 0), old - 1)
        low = math.floor(at)
        made.append(pixels[low] * (1 - at + low) + pixels[min(low + 1, old - 1)] * (at - low))
    return np.array(made)


SLOW: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "nearest neighbor": lambda pixels, length: slow_points(pixels, length, linear=False),
    "bilinear without antialiasing": lambda pixels, length: slow_points(pixels, length, linear=True),
    "box filter": lambda pixels, length: slow_antialiased(pixels, length, box, 0.5),
    "bilinear": lambda pixels, length: slow_antialiased(pixels, length, triangle, 1),
    "bicubic": lambda pixels, length: slow_antialiased(pixels, length, keys, 2),
    "Lanczos": lambda pixels, length: slow_antialiased(pixels, length, lanczos, 3),
}


@pytest.mark.parametrize("shape", [(60, 41), (33, 70), (11, 9)])  # the last is enlarged
@pytest.mark.parametrize("name", KERNELS)
def test_each_filter_is_its_definition(name: str, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape[::-1], 3), np.uint8)
    (width, height), (left, top, right, bottom) = resized_shape(shape, 16)
    made = KERNELS[name](Image.fromarray(pixels), 16)
    assert (made.shape, made.dtype) == ((16, 16, 3), np.uint8)

    def resized(image: np.ndarray, axis: int) -> np.ndarray:
        return SLOW[name](image.swapaxes(0, axis), (height, width)[axis]).swapaxes(0, axis)

    slow = (resized(resized(pixels.astype(float), axis), 1 - axis) for axis in (0, 1))  # Pillow takes the faster order
    assert min(np.abs(made - one[top:bottom, left:right]).max() for one in slow) <= 1


def test_a_quarter_of_the_colors_are_kept_as_by_opencvs_jpeg() -> None:
    cv2 = pytest.importorskip("cv2")
    pixels = cv2.GaussianBlur(np.random.default_rng(2).integers(0, 256, (64, 48, 3), np.uint8), (5, 5), 0)
    for quality in (40, 95):
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
                   cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]  # fmt: skip
        other = cv2.imdecode(cv2.imencode(".jpg", pixels[..., ::-1], options)[1], cv2.IMREAD_COLOR)[..., ::-1]
        ours = np.asarray(through_jpeg(Image.fromarray(pixels), quality)).astype(int)
        assert np.abs(ours - other).mean() < 0.5 < np.abs(ours - pixels).mean()


def digest_of(number: int) -> str:
    return hashlib.sha256(b"%d" % number).hexdigest()


def test_the_digest_alone_decides() -> None:
    photo, before = noise(0, 50, 40), noise(0, 50, 40).tobytes()
    first = app_squares(photo, 8, digest_of(0))
    assert (first.shape, first.dtype, first.flags.c_contiguous) == ((APPS, 8, 8, 3), np.uint8, True)
    assert np.array_equal(first, app_squares(noise(0, 50, 40), 8, digest_of(0)))
    assert not np.array_equal(first, app_squares(photo, 8, digest_of(1)))
    assert photo.tobytes() == before


def test_every_filter_occurs_alone_and_each_image_has_two(monkeypatch: pytest.MonkeyPatch) -> None:
    photo, size = noise(3, 90, 80), 8
    reduced = photo.reduce(80 // (FACTOR * size))
    alone = {name: kernel(photo if name in app_pixels.ALIASING else reduced, size) for name, kernel in KERNELS.items()}
    made = [app_squares(photo, size, digest_of(i)) for i in range(300)]
    found = [[name for name, square in alone.items() if np.array_equal(square, one)] for both in made for one in both]
    assert {name for (name,) in filter(None, found)} == set(KERNELS)
    assert 0.25 < sum(map(len, found)) / len(found) < 0.42  # neither JPEG nor sharpened: a half of two thirds
    monkeypatch.setattr(app_pixels, "JPEG_SHARE", 0.0)
    monkeypatch.setattr(app_pixels, "SHARPNESS_SHARE", 0.0)
    for i in range(30):
        both = app_squares(photo, size, digest_of(i))
        first, second = ([name for name, square in alone.items() if np.array_equal(square, one)] for one in both)
        assert first != second


def test_strips_longer_than_a_jpeg_and_images_of_one_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_pixels, "JPEG_SHARE", 1.0)
    monkeypatch.setattr(app_pixels, "JPEG_SIDE", 100)
    for shape in ((400, 9), (9, 400), (1, 1)):
        assert app_squares(noise(4, *shape), 8, digest_of(4)).shape == (APPS, 8, 8, 3)
