"""The retrieval grid: some queries, and what the real index returns for them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gallery.codes import Codes
from gallery.index import GalleryIndex
from gallery.results import RetrievalExample, Thumbnail

Picture = NDArray[np.uint8]
THUMBNAIL = 56  # pixels: eight rows of eleven stay below 150 kB
ROWS, TOP = 8, 10


def spread(average_precision: NDArray[np.float64], count: int = ROWS) -> NDArray[np.int64]:
    """Queries evenly spaced in rank from the worst to the best: a fair sample that hides no failure."""
    ranked = np.argsort(average_precision, kind="stable")
    return ranked[np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)]


def retrieval_grid(
    index: GalleryIndex, chosen: NDArray[np.int64], codes: Codes, labels: NDArray[Any],
    query_picture: Callable[[int], Picture], gallery_picture: Callable[[int], Picture], classes: Sequence[str],
) -> tuple[RetrievalExample, ...]:  # fmt: skip
    """The queries at `chosen`, each with its ten nearest.

    codes, labels: of all queries, `[Q, bytes]` and int `[Q]` or multi-hot `[Q, C]`
    query_picture, gallery_picture: place among the queries, or id in the gallery, to uint8 `[S, S, 3]`
    """
    found, known = index.search(codes[chosen], min(TOP, len(index))), index.labels()

    def hit(query: int, id: int, distance: int) -> Thumbnail:
        tile = _tile(gallery_picture(id), known[id], classes)
        return tile.model_copy(update={"distance": distance, "right": _share(labels[query], known[id])})

    return tuple(
        RetrievalExample(
            query=_tile(query_picture(query), labels[query], classes),
            hits=tuple(hit(query, int(i), int(d)) for i, d in zip(ids, distances, strict=True)),
        )
        for query, ids, distances in zip(chosen.tolist(), found.ids, found.distances, strict=True)
    )


def _share(a: Any, b: Any) -> bool:
    return bool(np.any(np.logical_and(a, b))) if np.ndim(a) else bool(a == b)


def _tile(picture: Picture, label: Any, classes: Sequence[str]) -> Thumbnail:
    own = np.flatnonzero(label) if np.ndim(label) else [label]
    return Thumbnail(image=_thumbnail(picture), label=", ".join(classes[int(i)] for i in own))


def _thumbnail(picture: Picture) -> str:
    """uint8 `[S, S, 3]` as a small JPEG in a data: URI."""
    from PIL import Image

    image, out = Image.fromarray(np.asarray(picture)), io.BytesIO()
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    image.save(out, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
