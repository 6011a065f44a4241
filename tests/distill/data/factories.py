"""Images for the tests beside this file."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distill.data import fashion_mnist

MakeFolder = Callable[..., Path]


def noise(seed: int, width: int = 24, height: int = 20) -> Image.Image:
    """An image like no other."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def photo(index: int) -> Image.Image:
    """A real photograph of the embedded set, 28 x 28."""
    return Image.fromarray(_photos()[index % 7000]).convert("RGB")


@cache
def _photos() -> NDArray[np.uint8]:
    with np.load(fashion_mnist.SUBSET, allow_pickle=False) as file:
        return file["images"]


def encoded(index: int, form: str = "PNG") -> bytes:
    """The file of a photograph."""
    buffer = io.BytesIO()
    photo(index).save(buffer, form)
    return buffer.getvalue()
