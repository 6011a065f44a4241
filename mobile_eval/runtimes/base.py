"""What every engine offers, whatever runs below."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.card import ANY_SIZE, ModelMetadata
from gallery.codes import Codes
from gallery.errors import CorruptFile, InputError

Images = NDArray[np.uint8]


class ModelOutput(NamedTuple):
    """Packed codes uint8 `[N, bits/8]` and logits float32 `[N, bits]`."""

    codes: Codes
    logits: NDArray[np.float32]


class Runtime(ABC):
    """An open model file.

    card:   what the file says about itself
    engine: the name for tables, e.g. "ONNX Runtime 1.31.1 CPU"
    batch:  pictures the engine takes at a time
    timed:  whether the time it takes says anything about a device
    """

    card: ModelMetadata
    engine: str
    batch: int = 1
    timed: bool = True

    def run(self, images: Images) -> ModelOutput:
        """uint8 RGB pictures `[N, S, S, 3]` of the card's size, any N; raises `InputError` for anything else.

        A file that resizes inside takes `[N, H, W, 3]`.
        """
        check_images(images, self.card)
        if 0 < len(images) <= self.batch:
            return self._run(images)
        parts = [self._run(images[start : start + self.batch]) for start in range(0, len(images), self.batch)]
        empty = ModelOutput(np.empty((0, self.card.bits // 8), np.uint8), np.empty((0, self.card.bits), np.float32))
        return ModelOutput(*map(np.concatenate, zip(empty, *parts, strict=True)))

    def encode(self, images: Images) -> Codes:
        """The packed codes alone."""
        return self.run(images).codes

    @abstractmethod
    def _run(self, images: Images) -> ModelOutput:
        """Between 1 and `batch` pictures."""


def check_images(images: Images, card: ModelMetadata) -> None:
    """Raises `InputError` unless `images` is uint8 `[N, S, S, 3]`, or any size where the file resizes inside."""
    height, width = images.shape[1:3] if card.layout == ANY_SIZE and images.ndim == 4 else (card.size, card.size)
    if images.ndim == 4 and images.shape[1:] == (height, width, 3) and height * width and images.dtype == np.uint8:
        return
    fix = f"Resize to {card.size} x {card.size} pixels by the rule on the card."
    if images.ndim == 3:
        fix = "Add the batch dimension: images[None]."
    elif images.dtype != np.uint8:
        fix = "Pass the decoded pixels, 0..255; the file normalises them itself."
    elif images.ndim == 4 and images.shape[1] == 3:
        fix = "Put the channels last: images.transpose(0, 2, 3, 1)."
    sides = "H, W" if card.layout == ANY_SIZE else f"{card.size}, {card.size}"
    raise InputError(f"uint8 pictures [N, {sides}, 3]", f"{images.dtype} {list(images.shape)}", fix)


def check_tensors(card: ModelMetadata, path: Path, image: Any, codes: Any, logits: Any) -> None:
    """Raises `CorruptFile` unless the file's shapes are those of its card; batch dimensions are not compared."""
    found = [tuple(shape[1:]) for shape in (image, codes, logits)]
    sides = ("height", "width") if card.layout == ANY_SIZE else (card.size, card.size)
    expected = [(*sides, 3), (card.bits // 8,), (card.bits,)]
    if found != expected:
        what = f"image, codes and logits of shapes {expected} in {path.name}"
        raise CorruptFile(what, str(found), "Export it again.")
