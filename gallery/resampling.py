"""Resizing without antialiasing, as many apps do: not by the rule of `gallery.codespace.RULE_TEXT`."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gallery.decode import resized_shape

Indices = NDArray[np.int64]


def without_antialiasing(photo: Image.Image, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize to `shape`, width and height, by the 2 x 2 pixels around each point, however large the photo is.

    Returns uint8 `[height, width, 3]`.
    """
    pixels = np.asarray(photo)
    (left, right, across), (top, bottom, down) = map(_neighbors, photo.size, shape)
    across, down = across[:, None], down[:, None, None]
    upper, lower = (
        pixels[rows[:, None], left] * (1 - across) + pixels[rows[:, None], right] * across for rows in (top, bottom)
    )
    resized: NDArray[np.uint8] = (upper * (1 - down) + lower * down).round().astype(np.uint8)
    return resized


def square_without_antialiasing(photo: Image.Image, size: int) -> NDArray[np.uint8]:
    """Return uint8 `[size, size, 3]`: resized by `without_antialiasing` to the rule's shape, and cropped as by it."""
    shape, (left, top, right, bottom) = resized_shape(photo.size, size)
    return without_antialiasing(photo, shape)[top:bottom, left:right]


def _neighbors(old: int, new: int) -> tuple[Indices, Indices, NDArray[np.float64]]:
    """Return the pixels before and behind each of `new` points along a side of `old`, and the weight of the latter."""
    at = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
    before = at.astype(np.int64)
    return before, np.minimum(before + 1, old - 1), at - before
