"""A trial: one configuration trained in its own run folder, and the mAP figures of its models."""

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
from gallery.results import STUDENT_GALLERY, STUDENT_STUDENT, TEACHER_TEACHER

if TYPE_CHECKING:
    from distill.context import RunContext
    from distill.trained_models import TrainedModels

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
    with trained(learning, folder, cache) as (context, models):
        trial = _score(row, context, models)
        write_json(folder / RECORD, trial.model_dump())
        shutil.rmtree(context.run_dir.cache)
    return trial


@contextmanager
def trained(learning: TrainConfig, folder: Path, cache: Path) -> Iterator[tuple[RunContext, TrainedModels]]:
    """Train `learning` in the run folder `folder`, which stays locked inside of the block."""
    from distill import pipeline

    with opened(learning, folder, cache) as context:
        yield context, pipeline.train_all(context)


@contextmanager
def opened(learning: TrainConfig, folder: Path, cache: Path) -> Iterator[RunContext]:
    """Open the run folder `folder` of `learning`, which stays locked inside of the block."""
    from distill import resolve
    from distill.context import open_context
    from distill.run_dir import open_run
    from distill.system import limit_threads, tune_malloc

    limit_threads()
    tune_malloc()
    with open_run(folder) as run_dir:
        learning = resolve.keep_stored(resolve.with_absolute_paths(learning), folder)
        run_dir.check_config("config", learning)
        yield open_context(run_dir, learning, cache)


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


def _score(row: str, context: RunContext, models: TrainedModels) -> SweepTrial:
    from distill.codebook import hash_centers_of
    from distill.hash_centers.constructions import min_distance
    from distill.metrics_log import read_metrics
    from distill.summary import pair_logits
    from gallery.codes import pack
    from mobile_eval.retrieval_pairs import retrieval_pairs

    pairs, gallery = pair_logits(context, models), models.gallery
    assert pairs.teacher_queries is not None  # every trial trains or reuses a teacher with its weights
    learning, teacher, student = context.config, pack(pairs.teacher_queries), pack(pairs.student_queries)
    points, logits = read_metrics(context.run_dir.folder / "train.jsonl"), pairs.student_queries
    labels = context.data.labels[context.data.query]
    scores = retrieval_pairs(teacher, student, pack(pairs.student_gallery), gallery, labels)
    return SweepTrial(
        row=row,
        data=context.data.name,
        bits=learning.bits,
        seed=learning.seed,
        center_distance=min_distance(hash_centers_of(context)),
        teacher_teacher=scores[TEACHER_TEACHER].map,
        student_gallery=scores[STUDENT_GALLERY].map,
        student_student=scores[STUDENT_STUDENT].map,
        student_gallery_retrieved=scores[STUDENT_GALLERY].map_retrieved,
        **_by_novelty(context, teacher, student, gallery.codes()),
        bit_agreement=float((np.unpackbits(teacher ^ student, axis=1) == 0).mean()),
        low_margin_bits=float((np.abs(logits) < 0.1 * logits.std(0)).mean()),
        student_steps=max(point.step for point in points if point.stage in ("student", "pair")),
        seconds=context.run_dir.seconds,
        protocol=context.protocol,
    )


def _map(context: RunContext, queries: Any, gallery: Any, classes: NDArray[np.int64]) -> float:
    """Score the queries of some classes against the gallery images of these classes."""
    from gallery.metrics import mean_average_precision

    query_labels, gallery_labels = (context.data.labels[part] for part in (context.data.query, context.data.gallery))
    q, g = np.isin(query_labels, classes), np.isin(gallery_labels, classes)
    return mean_average_precision(queries[q], gallery[g], query_labels[q], gallery_labels[g]).map


def _by_novelty(context: RunContext, teacher: Any, student: Any, gallery: Any) -> dict[str, float | None]:
    data = context.data
    unseen = np.setdiff1d(np.arange(len(data.classes)), data.seen)
    if not len(unseen):
        return dict.fromkeys(("teacher_teacher_unseen", "student_gallery_unseen", "student_gallery_seen"))
    return {
        "teacher_teacher_unseen": _map(context, teacher, gallery, unseen),
        "student_gallery_unseen": _map(context, student, gallery, unseen),
        "student_gallery_seen": _map(context, student, gallery, data.seen),
    }
