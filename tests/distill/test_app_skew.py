"""What apps lose that preprocess otherwise, measured on a run's own queries in full size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from distill.context import RunContext
from distill.pipeline import TrainedModels
from distill.run import measure_app_skew
from distill.run_images import query_photos
from distill.summary import pair_logits
from gallery.decode import to_square
from mobile_eval.compare import FloatReference
from mobile_eval.skew import PIPELINES, skewed_squares
from tests.distill.factories import SIZE, Learn

HALF = SIZE // 2


def reference_of(context: RunContext, models: TrainedModels, size: int) -> FloatReference:
    data, logits = context.data, pair_logits(context, models).student_queries
    pixels, labels = data.pixels[size][data.query], data.labels[data.query]
    return FloatReference(pixels, logits, models.space, labels, models.gallery, classes=data.classes)


def test_queries_larger_than_the_input_tell_what_apps_lose(learn: Learn) -> None:
    context, models = learn(student_img_size=HALF)
    reference = reference_of(context, models, HALF)
    photos = list(query_photos(context)(np.arange(len(context.data.query))))
    squares = np.stack([to_square(photo, HALF) for photo in photos])
    assert np.array_equal(squares, reference.pixels)
    assert np.allclose(context.pixel_logits("student", models.student, squares), reference.logits, atol=1e-5)
    skew = measure_app_skew(context, models, reference)
    assert skew is not None
    assert (skew.reduction, skew.queries) == (2, len(squares))
    assert [row.pipeline for row in skew.rows] == list(PIPELINES)
    for row, pixels in zip(skew.rows, skewed_squares(photos, HALF).values(), strict=True):
        flipped = (context.pixel_logits("student", models.student, pixels) > 0) != (reference.logits > 0)
        assert row.bit_flip_rate == flipped.mean()
    silent = replace(context, config=context.config.model_copy(update={"skew": False}))
    assert measure_app_skew(silent, models, reference) is None


def test_queries_of_the_inputs_size_tell_nothing(learn: Learn) -> None:
    context, models = learn()
    assert measure_app_skew(context, models, reference_of(context, models, SIZE)) is None
