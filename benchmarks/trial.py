"""A trial: one configuration trained in its own run folder, and the mAP figures of its networks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distill.config import StrictModel, TrainConfig
from gallery.files import write_json

if TYPE_CHECKING:
    from distill.context import Cells, RunContext
    from distill.pipeline import TrainedModels

RESULTS = Path(__file__).with_name("results")
RECORD = "trial.json"


class Trial(StrictModel):
    """What the trials of every benchmark share: the data set, the length of the code, the seed."""

    data: str
    bits: int
    seed: int


class SweepTrial(Trial):
    """A teacher and a student.  mAP is tie-aware, over the whole gallery.

    Figures that end in `unseen` are of queries and gallery images of the unseen classes alone.
    """

    row: str
    center_distance: int
    teacher_teacher: float
    student_gallery: float
    student_student: float
    student_gallery_retrieved: float
    """With the literature's denominator."""
    teacher_teacher_unseen: float | None
    student_gallery_unseen: float | None
    student_gallery_seen: float | None
    bit_agreement: float
    """Share of bits that are equal between student and teacher on the queries."""
    low_margin_bits: float
    """Share of the student's query logits within 0.1 standard deviations of their bit from zero."""
    student_steps: int
    seconds: dict[str, float]
    protocol: str


def data_source(name: str) -> str:
    """Return the value of --data for a benchmark's data set: imagenet20 has a manifest in TWINHASH_DATA."""
    return f"{os.environ.get('TWINHASH_DATA', '.')}/imagenet20/manifest.csv" if name == "imagenet20" else name


def measure(row: str, learning: TrainConfig, folder: Path, cache: Path) -> SweepTrial:
    """Train `learning` in `folder`, resuming, and measure it; return a finished trial from its record."""
    if (folder / RECORD).exists():
        return SweepTrial.model_validate_json((folder / RECORD).read_text())
    with trained(learning, folder, cache) as (course, networks):
        trial = _score(row, course, course.cells(networks), networks.gallery.codes())
        write_json(folder / RECORD, trial.model_dump())
        shutil.rmtree(course.run.cache)
    return trial


@contextmanager
def trained(learning: TrainConfig, folder: Path, cache: Path) -> Iterator[tuple[RunContext, TrainedModels]]:
    """Train `learning` in the run folder `folder`, which stays locked inside of the block."""
    from distill import pipeline

    with opened(learning, folder, cache) as course:
        yield course, pipeline.learn(course)


@contextmanager
def opened(learning: TrainConfig, folder: Path, cache: Path) -> Iterator[RunContext]:
    """Open the run folder `folder` of `learning`, which stays locked inside of the block."""
    from distill.context import begin
    from distill.engine import keep_freed_memory, limit_threads
    from distill.run_dir import open_run

    limit_threads()
    keep_freed_memory()
    with open_run(folder) as run:
        run.check_config("config", learning)
        yield begin(run, learning, cache)


def write_results(name: str, options: dict[str, Any], trials: Sequence[StrictModel], text: str) -> None:
    """Write `<name>.json` (command, options, system, trials) and `<name>.md` to `benchmarks/results`."""
    from gallery.files import atomic_write
    from mobile_eval.system_info import describe

    write_json(RESULTS / f"{name}.json", {
        "command": f"python benchmarks/run.py {name.replace('_', '-')}", "options": options,
        "machine": describe().model_dump(), "trials": [trial.model_dump(mode="json") for trial in trials],
    })  # fmt: skip
    atomic_write(RESULTS / f"{name}.md", text.rstrip("\n") + "\n")


def mean_and_half_range(values: Sequence[float]) -> str:
    """Format the mean, and half of the distance between the largest and the smallest."""
    return f"{np.mean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}"


def _score(row: str, course: RunContext, cells: Cells, gallery: NDArray[np.uint8]) -> SweepTrial:
    from distill.engine import read_journal
    from distill.hash_centers.constructions import min_distance
    from gallery.codes import pack

    assert cells.teacher_queries is not None  # every trial trains or reuses a teacher with its weights
    learning, teacher, student = course.learning, pack(cells.teacher_queries), pack(cells.student_queries)
    points = read_journal(course.run.folder / "train.jsonl")
    logits = cells.student_queries
    product = _map(course, student, gallery)
    return SweepTrial(
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
        bit_agreement=float((np.unpackbits(teacher ^ student, axis=1) == 0).mean()),
        low_margin_bits=float((np.abs(logits) < 0.1 * logits.std(0)).mean()),
        student_steps=max(point.step for point in points if point.stage in ("student", "pair")),
        seconds=course.run.seconds,
        protocol=course.protocol,
    )


def _map(course: RunContext, queries: Any, gallery: Any, classes: NDArray[np.int64] | None = None) -> Any:
    """Score all queries, or those of some classes against the gallery images of these classes."""
    from gallery.metrics import mean_average_precision

    query_labels, gallery_labels = (course.data.labels[part] for part in (course.data.query, course.data.gallery))
    if classes is None:
        return mean_average_precision(queries, gallery, query_labels, gallery_labels)
    q, g = np.isin(query_labels, classes), np.isin(gallery_labels, classes)
    return mean_average_precision(queries[q], gallery[g], query_labels[q], gallery_labels[g])


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
