"""Calibration images, golden inputs, and what else an export of a run's student needs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.codebook import hash_centers_of
from distill.context import RunContext
from distill.infer import Logits, code_logits, evenly_spaced
from distill.models.hash_net import HashNet
from gallery.codes import Codes, pack
from gallery.codespace import CodeSpace

NUM_GOLDEN = 8  # images of the bundle with known codes
NUM_CALIBRATION = 256  # images for 8-bit ranges, and as many at most to choose layers on


def export_request(context: RunContext, student: HashNet, space: CodeSpace) -> dict[str, Any]:
    """Return the fields of `export.exporter.ExportRequest` for a run's student."""
    return {
        "net": student, "name": context.resolved.student.name, "preprocessing": context.preprocessing("student"),
        "space": space, "centers": hash_centers_of(context), "calibration": calibration_images(context),
        "golden": golden_inputs(context, student),
    }  # fmt: skip


def calibration_images(context: RunContext) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images to quantize by, uint8 `[n, S, S, 3]`: of train, and others to choose the layers by, never queries.

    The others are of validation; without that split of train, on which a quantized network looks better than it is.
    """
    data, pixels = context.data, context.data.pixels[context.resolved.student_img_size]
    others = data.validation if len(data.validation) else data.train[1:]
    train, holdout = (evenly_spaced(index, NUM_CALIBRATION) for index in (data.train, others))
    return np.asarray(pixels[train]), np.asarray(pixels[holdout])


def golden_inputs(context: RunContext, student: HashNet) -> tuple[NDArray[np.uint8], Codes, Logits]:
    """Return a few queries with the float student's codes and logits: the bundle's own test."""
    index = evenly_spaced(context.data.query, NUM_GOLDEN)
    logits = code_logits(student)(context.image_loader("student").load(index)).cpu().numpy()
    return np.asarray(context.data.pixels[context.resolved.student_img_size][index]), pack(logits), logits
