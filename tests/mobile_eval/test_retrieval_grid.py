from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from gallery.codes import pack
from gallery.index import GalleryIndex
from mobile_eval.retrieval_grid import TOP, retrieval_grid, spread
from tests.gallery.galleries import index_of, space_of

CLASSES = ("a", "b", "c")


def gallery(codes: Any, labels: Any) -> GalleryIndex:
    return index_of(space_of(8, classes=CLASSES), codes, labels)


def pixels_of(uri: str) -> Any:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")).astype(int)


def flat(value: int) -> Any:
    return np.full((64, 64, 3), value, np.uint8)


def test_the_grid_is_the_search_ties_by_id() -> None:
    logits, labels = np.random.default_rng(0).standard_normal((60, 8)), np.arange(60) % 3  # 8 bits: many ties
    index = gallery(pack(logits[6:]), labels[6:])
    chosen = np.array([0, 4, 2])
    rows = retrieval_grid(
        index,
        pack(logits[chosen]),
        labels[chosen],
        np.stack([flat(200 + q) for q in chosen]),
        lambda g: flat(2 * g),
        CLASSES,
    )
    for query, row in zip(chosen, rows, strict=True):
        distance = ((logits[6:] > 0) != (logits[query] > 0)).sum(axis=1)
        best = sorted(range(54), key=lambda i: (distance[i], i))[:TOP]
        assert [hit.distance for hit in row.hits] == [distance[i] for i in best]
        assert [hit.right for hit in row.hits] == [labels[6 + i] == labels[query] for i in best]
        assert [hit.label for hit in row.hits] == [CLASSES[labels[6 + i]] for i in best]
        assert row.query.label == CLASSES[labels[query]]
        for tile, value in ((row.query, 200 + query), *((hit, 2 * i) for hit, i in zip(row.hits, best, strict=True))):
            assert np.abs(pixels_of(tile.image) - value).max() <= 2


def test_several_labels_and_a_gallery_below_ten() -> None:
    labels = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 1]], bool)
    codes = np.zeros((3, 1), np.uint8)
    row = retrieval_grid(gallery(codes, labels), codes[:1], labels[:1], flat(0)[None], flat, CLASSES)[0]
    assert row.query.label == "a, c"
    assert [hit.right for hit in row.hits] == [True, False, True]


def test_thumbnails_are_small() -> None:
    image = np.zeros((300, 300, 3), np.uint8)
    image[:, 150:] = (250, 20, 20)
    labels, codes = np.array([0]), np.zeros((1, 1), np.uint8)
    row = retrieval_grid(gallery(codes, labels), codes, labels, image[None], lambda _: image, CLASSES)[0]
    seen = pixels_of(row.query.image)
    assert len(row.query.image) < 3000
    assert seen[:, :20].max() < 20
    assert np.abs(seen[:, -20:] - (250, 20, 20)).max() < 20


def test_the_chosen_go_from_the_worst_to_the_best() -> None:
    scores = np.random.default_rng(1).random(101)
    chosen = spread(scores, 5)
    assert scores[chosen].tolist() == np.sort(scores)[[0, 25, 50, 75, 100]].tolist()
    assert sorted(spread(scores[:3]).tolist()) == [0, 1, 2]
