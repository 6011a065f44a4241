"""The proof: every file of a bundle executed over all queries, beside the retrieval pairs of the float networks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.artifact import ExportedModel, ExportFailure
from export.bundle import Manifest
from gallery.codes import Codes, pack
from gallery.console import log
from gallery.index import GalleryIndex
from gallery.metrics import MapResult
from gallery.results import ModelResult, RetrievalPair, Thresholds
from mobile_eval.compare import Shipped, check_file, reference
from mobile_eval.retrieval_pairs import retrieval_pairs
from mobile_eval.runtimes import open_model


@dataclass(frozen=True, eq=False)
class QuerySet:
    """pixels: uint8 `[Q, S, S, 3]` at the student's size; labels: int `[Q]` or multi-hot `[Q, C]`

    student, teacher: logits of the float networks, `[Q, bits]`; the teacher's are None where it is not at hand
    top_k: what mAP is over, None for all
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[Any]
    student: NDArray[np.float32]
    teacher: NDArray[np.float32] | None
    top_k: int | None = None


@dataclass(frozen=True, eq=False)
class QueryResults:
    """score: of the float student in the real index, the product's number, query by query."""

    pairs: tuple[RetrievalPair, ...]
    models: tuple[ModelResult, ...]
    score: MapResult


def prove(
    bundle: Path,
    manifest: Manifest,
    queries: QuerySet,
    student_gallery: Codes,
    index: GalleryIndex,
    thresholds: Thresholds,
) -> QueryResults:
    """Runs the files that `manifest` lists in `bundle`; what could not be exported is a row that says why."""
    teacher = None if queries.teacher is None else pack(queries.teacher)
    student, labels = pack(queries.student), queries.labels
    cut = queries.top_k
    pairs, score = retrieval_pairs(teacher, student, student_gallery, index, labels, cut)
    against = reference(queries.pixels, queries.student, labels, index, cut, thresholds.logit_tolerance)
    rows = [check_file(_shipped(model, bundle), against, open_model) for model in manifest.files]
    rows += [refusal(one) for one in manifest.refused]
    for row in rows:
        log.info("  %s", _line(row))
    return QueryResults(pairs, tuple(rows), score)


def _shipped(model: ExportedModel, bundle: Path) -> Shipped:
    path = model.path.relative_to(bundle).as_posix()
    return Shipped(model.form, model.format, model.card.precision, path, bundle, model.sha256)


def _line(row: ModelResult) -> str:
    if row.status != "ran" or row.bit_flip_rate is None or row.map is None:
        return f"{row.variant}: {row.status}: {row.reason}"
    timing = "" if row.p50_ms is None else f", p50 {row.p50_ms:.2f} ms on this host"
    return f"{row.variant}: {row.bit_flip_rate:.3%} of bits flipped, mAP {row.map:.4f}{timing}"


def refusal(one: ExportFailure) -> ModelResult:
    """The row of a form that could not be made."""
    format, _, precision = one.form.partition("-")
    return ModelResult(
        variant=one.form, format=format, precision=precision, path="", status="skipped", reason=one.reason
    )
