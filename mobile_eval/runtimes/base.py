"""Runtime: the interface of every inference engine."""

from abc import ABC, abstractmethod
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from export.artifact import ANY_SIZE, ModelMetadata
from gallery.codes import Codes
from gallery.errors import CorruptFile, InputError

Images = NDArray[np.uint8]


class ModelOutput(NamedTuple):
    """Packed codes uint8 `[N, bits/8]` and logits float32 `[N, bits]`."""

    codes: Codes
    logits: NDArray[np.float32]


class Runtime(ABC):
    """An open model file."""

    metadata: ModelMetadata
    engine: str  # its name for tables, "ONNX Runtime 1.31.1 CPU"
    batch: int = 1  # images the engine takes at a time
    timed: bool = True  # whether its latency means anything for a device

    def run(self, images: Images) -> ModelOutput:
        """Run uint8 RGB images `[N, S, S, 3]` of the metadata's size, any N; raises `InputError` for anything else.

        A model that resizes inside takes `[N, H, W, 3]`.
        """
        check_images(images, self.metadata)
        starts = [0, *range(1, len(images), self.batch)]  # the first one alone, as an app has them
        parts = [self._run(images[start:end]) for start, end in pairwise([*starts, len(images)]) if start < end]
        bits = self.metadata.bits
        empty = ModelOutput(np.empty((0, bits // 8), np.uint8), np.empty((0, bits), np.float32))
        return ModelOutput(*map(np.concatenate, zip(empty, *parts, strict=True)))

    def encode(self, images: Images) -> Codes:
        """Return the packed codes alone."""
        return self.run(images).codes

    @abstractmethod
    def _run(self, images: Images) -> ModelOutput:
        """Run 1 to `batch` images."""


def check_images(images: Images, metadata: ModelMetadata) -> None:
    """Raise `InputError` unless `images` is uint8 `[N, S, S, 3]`, or of any size where the model resizes inside."""
    size, any_size = metadata.size, metadata.layout == ANY_SIZE
    height, width = images.shape[1:3] if any_size and images.ndim == 4 else (size, size)
    if images.ndim == 4 and images.shape[1:] == (height, width, 3) and height * width and images.dtype == np.uint8:
        return
    fix = f"Resize to {size} x {size} pixels by the rule in the metadata."
    if images.ndim == 3:
        fix = "Add the batch dimension: images[None]."
    elif images.dtype != np.uint8:
        fix = "Pass the decoded pixels, 0..255; the model normalises them itself."
    elif images.ndim == 4 and images.shape[1] == 3:
        fix = "Put the channels last: images.transpose(0, 2, 3, 1)."
    sides = "H, W" if any_size else f"{size}, {size}"
    raise InputError(f"uint8 images [N, {sides}, 3]", f"{images.dtype} {list(images.shape)}", fix)


def check_tensors(metadata: ModelMetadata, path: Path, image: Any, codes: Any, logits: Any) -> None:
    """Raise `CorruptFile` unless the model's shapes are those of its metadata; batch dimensions are not compared."""
    found = [tuple(shape[1:]) for shape in (image, codes, logits)]
    sides = ("height", "width") if metadata.layout == ANY_SIZE else (metadata.size, metadata.size)
    expected = [(*sides, 3), (metadata.bits // 8,), (metadata.bits,)]
    if found != expected:
        what = f"image, codes and logits of shapes {expected} in {path.name}"
        raise CorruptFile(what, str(found), "Export it again.")
