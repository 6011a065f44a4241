"""Pictures for the tests beside this file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

MakeFolder = Callable[..., Path]


def noise(seed: int, width: int = 24, height: int = 20) -> Image.Image:
    """A picture like no other."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))
