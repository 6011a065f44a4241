"""One cell of a benchmark: a configuration learned in a run folder of its own, and the four cells it ends with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distill.config import Learning, Model
from gallery.files import write_json

if TYPE_CHECKING:
    from distill.context import Cells, RunContext
    from distill.pipeline import TrainedModels

RECORD = "cell.json"


class Cell(Model):
    """mAP is tie-aware, over the whole gallery.  `unseen` figures: queries and gallery of the unseen classes alone."""

    row: str
    data: str
    bits: int
    seed: int
    center_distance: int
    teacher_teacher: float
    student_gallery: float
    student_student: float
    student_gallery_retrieved: float
    """As the literature counts it."""
    teacher_teacher_unseen: float | None
    student_gallery_unseen: float | None
    student_gallery_seen: float | None
    agreement: float
    """Share of bits that are equal between student and teacher on the queries."""
    fragile: float
    """Share of the student's query logits within a tenth of their bit's standard deviation from zero."""
    student_steps: int
    seconds: dict[str, float]
    protocol: str


def data_source(name: str) -> str:
    """What --data is for a data set of the benchmarks: imagenet20 has a manifest below TWINHASH_DATA."""
    return f"{os.environ.get('TWINHASH_DATA', '.')}/imagenet20/manifest.csv" if name == "imagenet20" else name


def measure(row: str, learning: Learning, folder: Path, cache: Path) -> Cell:
    """Learns what `learning` says in `folder`, resuming, and measures it; a cell that was measured is read back."""
    if (folder / RECORD).exists():
        return Cell.model_validate_json((folder / RECORD).read_text())
    with learned(learning, folder, cache) as (course, networks):
        cell = _score(row, course, course.cells(networks), networks.gallery.codes())
        write_json(folder / RECORD, cell.model_dump())
        shutil.rmtree(course.run.work)
    return cell


@contextmanager
def learned(learning: Learning, folder: Path, cache: Path) -> Iterator[tuple[RunContext, TrainedModels]]:
    """The networks that `learning` makes in the run folder `folder`, which stays locked for as long."""
    from distill import pipeline

    with opened(learning, folder, cache) as course:
        yield course, pipeline.learn(course)


@contextmanager
def opened(learning: Learning, folder: Path, cache: Path) -> Iterator[RunContext]:
    """What is to be learned in the run folder `folder`, which stays locked for as long."""
    from distill.context import begin
    from distill.engine import keep_freed_memory, limit_threads
    from distill.run_dir import open_run

    limit_threads()
    keep_freed_memory()
    with open_run(folder) as run:
        run.require_same("config", learning)
        yield begin(run, learning, cache)


def _score(row: str, course: RunContext, cells: Cells, gallery: NDArray[np.uint8]) -> Cell:
    from distill.engine import read_journal
    from distill.hash_centers.constructions import min_distance
    from gallery.codes import pack

    assert cells.teacher_queries is not None  # every row of a benchmark has its teacher at hand
    learning, teacher, student = course.learning, pack(cells.teacher_queries), pack(cells.student_queries)
    points = read_journal(course.run.folder / "train.jsonl")
    logits = cells.student_queries
    product = _map(course, student, gallery)
    return Cell(
        row=row,
        data=course.data.name,
        bits=learning.bits,
        seed=learning.seed,
        center_distance=min_distance(course.centers),
        teacher_teacher=_map(course, teacher, gallery).map,
        student_gallery=product.map,
        student_student=_map(course, student, pack(cells.student_gallery)).map,
        student_gallery_retrieved=product.map_retrieved,
        **_by_novelty(course, teacher, student, gallery),
        agreement=float((np.unpackbits(teacher ^ student, axis=1) == 0).mean()),
        fragile=float((np.abs(logits) < 0.1 * logits.std(0)).mean()),
        student_steps=max(point.step for point in points if point.stage in ("student", "pair")),
        seconds=course.run.seconds,
        protocol=course.protocol,
    )


def _map(course: RunContext, queries: Any, gallery: Any, classes: NDArray[np.int64] | None = None) -> Any:
    """The score of all queries, or of those of some classes in the gallery's pictures of these classes."""
    from gallery.metrics import mean_average_precision

    asked, known = (course.data.labels[part] for part in (course.data.query, course.data.gallery))
    if classes is None:
        return mean_average_precision(queries, gallery, asked, known)
    q, g = np.isin(asked, classes), np.isin(known, classes)
    return mean_average_precision(queries[q], gallery[g], asked[q], known[g])


def _by_novelty(course: RunContext, teacher: Any, student: Any, gallery: Any) -> dict[str, float | None]:
    data = course.data
    unseen = np.setdiff1d(np.arange(len(data.classes)), data.seen)
    if not len(unseen):
        return dict.fromkeys(("teacher_teacher_unseen", "student_gallery_unseen", "student_gallery_seen"))
    return {
        "teacher_teacher_unseen": _map(course, teacher, gallery, unseen).map,
        "student_gallery_unseen": _map(course, student, gallery, unseen).map,
        "student_gallery_seen": _map(course, student, gallery, data.seen).map,
    }
