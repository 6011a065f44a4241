"""Retrieval examples: some queries, and the gallery images that the index returns for them."""

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gallery.codes import Codes
from gallery.index import GalleryIndex
from gallery.results import RetrievalExample, Thumbnail

Pixels = NDArray[np.uint8]
THUMBNAIL = 56  # pixels: eight rows of eleven stay below 150 kB
ROWS, TOP = 8, 10


def spread(quality: NDArray[np.float64], count: int = ROWS) -> NDArray[np.int64]:
    """Choose queries evenly spaced in rank from the worst to the best: a fair sample that hides no failure."""
    ranked = np.argsort(quality, kind="stable")
    return ranked[np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)]


def retrieval_grid(
    index: GalleryIndex, codes: Codes, labels: NDArray[Any], images: NDArray[np.uint8],
    gallery_image: Callable[[int], Pixels], classes: Sequence[str],
) -> tuple[RetrievalExample, ...]:  # fmt: skip
    """Retrieve the ten nearest gallery images of each query.

    codes, labels, images: of the queries: packed `[Q, bits/8]`, int `[Q]` or multi-hot `[Q, C]`, uint8 `[Q, S, S, 3]`
    gallery_image: from the row in the gallery to uint8 `[S, S, 3]`; classes: their names, none without labels
    """
    found, known = index.search(codes, min(TOP, len(index))), index.class_labels(classes, labels.ndim == 2)

    def hit(label: Any, row: int, distance: int) -> Thumbnail:
        same = np.any(np.logical_and(label, known[row])) if np.ndim(label) else label == known[row]
        right = bool(same) if len(classes) else None
        return _thumbnail(gallery_image(int(row)), known[row], classes, distance=int(distance), right=right)

    return tuple(
        RetrievalExample(
            query=_thumbnail(image, label, classes),
            hits=tuple(hit(label, row, distance) for row, distance in zip(rows, distances, strict=True)),
        )
        for image, label, rows, distances in zip(images, labels, found.rows, found.distances, strict=True)
    )


def _thumbnail(image: Pixels, label: Any, classes: Sequence[str], **hit: Any) -> Thumbnail:
    """Shrink uint8 `[S, S, 3]` to a small JPEG in a data: URI."""
    from PIL import Image

    small, out = Image.fromarray(np.asarray(image)), io.BytesIO()
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    small.save(out, "JPEG", quality=82)
    own = np.flatnonzero(label) if np.ndim(label) else [label] if label >= 0 else []
    uri = f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
    return Thumbnail(image=uri, label=", ".join(classes[int(i)] for i in own), **hit)
