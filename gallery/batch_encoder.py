"""Read images and hash them with a teacher, in batches: what every engine of an ingestion does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gallery.codes import pack
from gallery.codespace import CodeSpace
from gallery.errors import InputError
from gallery.sources.reader import DecodedImage, ImageReader, ImageRequest

BATCH = 128  # images the network takes at once, as in training: logits depend on it by rounding
Logits = NDArray[np.float32]
EncodeImages = Callable[[NDArray[np.uint8]], Logits]  # uint8 [n, S, S, 3] -> [n, bits]


class EncodeJob(NamedTuple):
    """How images are read and hashed. load_encoder: loads the space's teacher; called if there is an image to encode"""

    space: CodeSpace
    load_encoder: Callable[[], EncodeImages]
    allow_http: bool = False
    batch: int = BATCH


class EncodedImage(NamedTuple):
    """row: as requested; sha256: of the bytes; code: packed, None where the bytes are the known ones, or where there is
    a reason why they cannot be read."""

    row: int
    sha256: str
    reason: str
    code: bytes | None


class BatchEncoder:
    """Encodes in this process. loading: seconds in which the network was loaded"""

    def __init__(self, job: EncodeJob) -> None:
        self._job, self.loading = job, 0.0
        self._encoder: EncodeImages | None = None

    def encode(self, requests: Sequence[ImageRequest]) -> Iterator[EncodedImage]:
        """Yield each image, in any order; raises `InputError` for logits that cannot be."""
        reader = ImageReader(self._job.space.preprocessing.size, self._job.allow_http)
        for batch in batches(reader.read_all(requests), self._job.batch):
            yield from self._encode(batch)

    def _encode(self, images: Sequence[DecodedImage]) -> list[EncodedImage]:
        pixels = [image.pixels for image in images if image.pixels is not None]
        if pixels and self._encoder is None:
            start = time.monotonic()
            self._encoder = self._job.load_encoder()
            self.loading = time.monotonic() - start
        if pixels and self._encoder is not None:
            logits = check_logits(self._encoder(np.stack(pixels)), len(pixels), self._job.space)
            codes = iter(pack(logits))
        return [
            EncodedImage(image.row, image.sha256, image.reason, None if image.pixels is None else next(codes).tobytes())
            for image in images
        ]


def check_logits(logits: Logits, count: int, space: CodeSpace) -> Logits:
    """Return logits; raises `InputError` unless they are `[count, bits]` and finite."""
    if logits.shape != (count, space.bits) or not np.isfinite(logits).all():
        found = f"{logits.shape}, {int(np.isfinite(logits).sum())} of {logits.size} finite"
        raise InputError(f"finite logits [{count}, {space.bits}] from the teacher", found, "Check its weights.")
    return logits


def batches(items: Iterable[DecodedImage], size: int) -> Iterator[list[DecodedImage]]:
    """Yield lists of `size` items, the last one shorter."""
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch
