"""Preprocessing skew: the pipelines are what other libraries do, and the figures are those of a slow count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.golden_photos import draw_photos
from gallery.codes import pack
from gallery.decode import decode, to_square
from gallery.metrics import mean_average_precision
from gallery.skew_results import PreprocessingSkew, SkewRow
from mobile_eval.compare import FloatReference
from mobile_eval.skew import PIPELINES, measure_skew, skewed_squares, subset_for_skew
from tests.gallery.galleries import index_of, space_of

SIZE, BITS = 48, 16


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    folder = tmp_path_factory.mktemp("photos")
    found = []
    for name, data in draw_photos(SIZE).items():
        (path := folder / Path(name).name).write_bytes(data)
        found.append(decode(path))
    return found


def test_every_pipeline_but_the_allowed_one_moves_pixels(photos: list[Image.Image]) -> None:
    squares = skewed_squares(photos, SIZE)
    right = np.stack([to_square(photo, SIZE) for photo in photos]).astype(int)
    assert list(squares) == list(PIPELINES)
    moved = {name: float(np.abs(made - right).mean()) for name, made in squares.items()}
    assert all(made.shape == right.shape and made.dtype == np.uint8 for made in squares.values())
    (allowed,) = (name for name, pipeline in PIPELINES.items() if pipeline.allowed)
    assert moved[allowed] < 1 < min(drop for name, drop in moved.items() if name != allowed)


def test_figures_are_counted_bit_by_bit() -> None:
    rng = np.random.default_rng(0)
    logits, noise = rng.normal(size=(2, 20, BITS)).astype(np.float32)
    codes, labels, known, space = (
        pack(rng.normal(size=(60, BITS))),
        rng.integers(0, 2, 20),
        np.arange(60) % 2,
        space_of(BITS),
    )
    index, other = index_of(space, codes, known), logits + noise
    reference = FloatReference(np.zeros((20, 4, 4, 3), np.uint8), logits, space, labels, index, classes="01")
    row, same = measure_skew({"Lanczos": other, "bicubic": logits}, reference, 2.5).rows
    flips = sum((a > 0) != (b > 0) for a, b in zip(other.ravel().tolist(), logits.ravel().tolist(), strict=True))
    assert row.bit_flip_rate == pytest.approx(flips / logits.size)
    kept = 0
    for one, two in zip(logits, other, strict=True):
        orders = [
            sorted(range(60), key=lambda i: (int(np.unpackbits(index.codes[i] ^ pack(query[None])[0]).sum()), i))[:10]
            for query in (one, two)
        ]
        kept += len({*orders[0]} & {*orders[1]})
    assert row.recall_at_10 == pytest.approx(kept / 200)
    known = index.class_labels("01", False)
    right, own = (mean_average_precision(pack(one), index.codes, labels, known) for one in (logits, other))
    assert row.map_drop == pytest.approx(right.map - own.map)
    assert row.map_drop_error == pytest.approx(np.std(right.per_query - own.per_query) / 20**0.5)
    assert (same.bit_flip_rate, same.recall_at_10, same.map_drop, same.map_drop_error) == (0, 1, 0, 0)


def test_large_photos_are_fewer() -> None:
    space, pixels = space_of(BITS), np.zeros((300, 4, 4, 3), np.uint8)
    reference = FloatReference(pixels, np.zeros((300, BITS), np.float32), space)

    def photos_of(shape: tuple[int, int]) -> object:
        return lambda rows: (Image.new("RGB", shape) for _ in rows)

    small, reduction = subset_for_skew(reference, photos_of((300, 200)), 50)
    assert (len(small.logits), reduction) == (200, 4)
    large, reduction = subset_for_skew(reference, photos_of((3000, 2000)), 50)
    assert (len(large.logits), reduction) == (33, 40)


def test_the_sentence_names_the_loss_and_the_mend() -> None:
    row = SkewRow(pipeline="Lanczos", found_in="iOS", bit_flip_rate=0.032, recall_at_10=0.77, map_drop=-0.00001,
                  map_drop_error=0.003)  # fmt: skip
    skew = PreprocessingSkew(queries=200, reduction=1.75, rows=(row,))
    assert skew.sentence == (
        "An app that resizes by Lanczos (iOS) flips 3.20% of the bits and loses 23% of the ten nearest images, "
        "and mAP changes by +0.0000 (standard error 0.0030): use the bundle's app code."
    )
    unlabeled = skew.model_copy(update={"rows": (row.model_copy(update={"map_drop": None, "map_drop_error": None}),)})
    assert "mAP" not in unlabeled.sentence
    assert "1.75 times" in skew.caption
