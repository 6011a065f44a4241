"""Run a grid of configurations, data sets, code lengths and seeds; write a table, a plot and JSON."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from benchmarks.trial import Benchmark, Trial, data_source, mean_and_half_range, panels, table
from distill.config import StudentTrainConfig, TeacherTrainConfig, TrainConfig
from gallery.console import log
from gallery.results import STUDENT_GALLERY, STUDENT_STUDENT, TEACHER_TEACHER

if TYPE_CHECKING:
    from distill.context import RunContext

COLUMNS = {
    "student_gallery": "student->gallery", "teacher_teacher": "teacher->teacher", "student_student": "student->student",
    "bit_agreement": "bit agreement", "low_margin_bits": "low-margin bits",
}  # fmt: skip


class SweepTrial(Trial):
    """A teacher and a student.  mAP is tie-aware, over the whole gallery."""

    row: str
    center_distance: int
    teacher_teacher: float
    student_gallery: float
    student_student: float
    student_gallery_retrieved: float
    """With the literature's denominator."""
    bit_agreement: float
    """Share of bits that are equal between student and teacher on the queries."""
    low_margin_bits: float
    """Share of the student's query logits within 0.1 standard deviations of their bit from zero."""
    student_steps: int
    seconds: dict[str, float]
    protocol: str


class Sweep(Benchmark):
    """A table of rows by data, bits and seeds; each row is one configuration."""

    grid: ClassVar[dict[str, dict[str, Any]]] = {}
    """What each row changes of the base configuration."""
    base: ClassVar[str] = ""
    """The row whose teacher and gallery the others reuse unless they change the teacher."""
    data: tuple[str, ...]
    bits: tuple[int, ...]
    rows: tuple[str, ...]
    """Names in the grid."""
    figure: str = "student_gallery"
    """The figure that is plotted and compared."""
    reference: str
    """The row that the others are compared with, below the table."""
    seeds: tuple[int, ...] = (0, 1, 2)
    note: str = ""
    """How to read the figures; below the table."""
    teacher: str = "mobilenetv2"
    student: str = "mobilenetv3_small"
    size: int = 96
    """Input size of both networks, pixels."""
    epochs: int = 8
    """Epochs of the teacher, of the student, and of both at once."""

    def trials(self) -> Iterator[SweepTrial]:
        """Yield the trials by seed, bits, data and row, and with each the base row whose teacher it shares."""
        for seed, bits, data, row in itertools.product(self.seeds, self.bits, self.data, self.rows):
            log.info("[%s, %d bits, seed %d] %s", data, bits, seed, row)
            if self.shares_teacher(row):
                self.trial(data, bits, seed, self.base)
            trial = self.trial(data, bits, seed, row)
            log.info("  student->gallery %.4f, teacher->teacher %.4f", trial.student_gallery, trial.teacher_teacher)
            yield trial

    def trial(self, data: str, bits: int, seed: int, row: str) -> SweepTrial:
        """Train and measure one trial, or read it."""
        key = data, bits, seed, row
        return self.measured(SweepTrial, self.learning(*key), self.folder(*key), lambda context: score(row, context))

    def folder(self, data: str, bits: int, seed: int, row: str) -> Path:
        """Return the run folder of one trial."""
        networks = f"{self.teacher}-{self.student}-{self.size}-{self.epochs}"
        name = f"{Path(data).stem}-{networks}-{bits}-{seed}-{row}"
        return self.runs / re.sub(r"[^\w+-]+", "_", name)

    def shares_teacher(self, row: str) -> bool:
        """Whether a row is a student of the base row's teacher."""
        return row != self.base and not {"distillation", "teaching"} & self.grid[row].keys()

    def learning(self, data: str, bits: int, seed: int, row: str) -> TrainConfig:
        """Return the configuration of one trial."""
        changes = dict(self.grid[row])
        terms = {"unlabeled_ratio": 0.0, "epochs": self.epochs, **changes.pop("terms", {})}
        teaching = {"finetune": "full", "epochs": self.epochs, **changes.pop("teaching", {})}
        if self.shares_teacher(row):
            changes["reuse_gallery"] = self.folder(data, bits, seed, self.base)
        return TrainConfig(
            teacher=self.teacher, student=self.student, data=data_source(data), bits=bits, seed=seed,
            teacher_img_size=self.size, student_img_size=self.size,
            teacher_train=TeacherTrainConfig(**teaching), student_train=StudentTrainConfig(**terms), **changes,
        )  # fmt: skip

    def text(self, trials: Sequence[SweepTrial]) -> str:
        """Return the table of means over seeds, how to read it, and the comparison with the reference row."""
        sentences = "\n".join(compare_to_reference(trials, self.figure, self.reference))
        parts = markdown(trials), "Seconds are wall-clock time on a shared machine.", self.note, sentences
        return "\n\n".join(filter(None, parts))

    def plot(self, trials: Sequence[SweepTrial], path: Path) -> None:
        """Plot rows from top to bottom, one mark for each length of code: the mean, and the range over seeds."""
        groups = group(trials)
        datasets, lengths = ([*dict.fromkeys(getattr(trial, name) for trial in trials)] for name in ("data", "bits"))
        rows = [*dict.fromkeys(trial.row for trial in trials)][::-1]
        with panels(path, datasets, (1.5 + 4.5 * len(datasets), 1.2 + 0.35 * len(rows))) as (_, axes):
            for axis, data in zip(axes, datasets, strict=True):
                for bits in sorted(lengths):
                    own = [[getattr(t, self.figure) for t in groups.get((data, bits, row), ())] for row in rows]
                    heights = [height for height, values in enumerate(own) if values]
                    means = [float(np.mean(values)) for values in own if values]
                    errors = [[mean - min(v), max(v) - mean] for mean, v in zip(means, filter(None, own), strict=True)]
                    ranges = np.reshape(errors, (-1, 2)).T
                    axis.errorbar(means, heights, xerr=ranges, fmt="o", capsize=3, label=f"{bits} bits")
                axis.set_xlabel(COLUMNS[self.figure] + " mAP")
                axis.set_yticks(range(len(rows)), rows)
            axes[0].legend(fontsize=8)


def score(row: str, context: RunContext) -> SweepTrial:
    """Train both networks of a trial and measure them."""
    from distill.codebook import hash_centers_of
    from distill.hash_centers.constructions import min_distance
    from distill.metrics_log import read_metrics
    from distill.pipeline import train_all
    from distill.summary import pair_logits
    from gallery.codes import pack
    from mobile_eval.retrieval_pairs import PairLabels, retrieval_pairs

    models = train_all(context)
    pairs, gallery, data = pair_logits(context, models), models.gallery, context.data
    assert pairs.teacher_queries is not None  # every trial trains or reuses a teacher with its weights
    teacher, student, logits = pack(pairs.teacher_queries), pack(pairs.student_queries), pairs.student_queries
    labels = PairLabels(data.labels[data.query], data.labels[context.indexed_images])
    scores = retrieval_pairs(teacher, student, gallery.codes, pack(pairs.student_gallery), labels)
    points = read_metrics(context.run_dir.folder / "train.jsonl")
    return SweepTrial(
        row=row, data=data.name, bits=context.config.bits, seed=context.config.seed,
        center_distance=min_distance(hash_centers_of(context)),
        teacher_teacher=scores[TEACHER_TEACHER].map, student_gallery=scores[STUDENT_GALLERY].map,
        student_student=scores[STUDENT_STUDENT].map,
        student_gallery_retrieved=scores[STUDENT_GALLERY].map_retrieved,
        bit_agreement=float((np.unpackbits(teacher ^ student, axis=1) == 0).mean()),
        low_margin_bits=float((np.abs(logits) < 0.1 * logits.std(0)).mean()),
        student_steps=max(point.step for point in points if point.stage in ("student", "pair")),
        seconds=context.run_dir.seconds, protocol=context.protocol,
    )  # fmt: skip


def group(trials: Sequence[SweepTrial]) -> dict[tuple[str, int, str], list[SweepTrial]]:
    """Group trials by (data, bits, row): sorted by data and bits, rows in the order of the trials."""
    groups: dict[tuple[str, int, str], list[SweepTrial]] = {}
    for trial in sorted(trials, key=lambda trial: (trial.data, trial.bits)):
        groups.setdefault((trial.data, trial.bits, trial.row), []).append(trial)
    return groups


def markdown(trials: Sequence[SweepTrial]) -> str:
    """Return a table: means, and half of the distance between the largest and the smallest, over seeds."""
    rows = []
    for key, own in group(trials).items():
        figures = (mean_and_half_range([getattr(trial, name) for trial in own]) for name in COLUMNS)
        seconds = np.mean([sum(trial.seconds.values()) for trial in own])
        rows.append([*key, *figures, len(own), own[0].student_steps, f"{seconds:.0f}"])
    return table(["data", "bits", "row", *COLUMNS.values(), "seeds", "steps", "seconds"], rows)


def compare_to_reference(trials: Sequence[SweepTrial], figure: str, reference: str) -> Iterator[str]:
    """Yield a sentence a row: the difference of its mean from the reference row's, and the range over seeds."""
    groups = group(trials)
    for (data, bits, row), own in groups.items():
        values = [getattr(trial, figure) for trial in own]
        other = [getattr(trial, figure) for trial in groups.get((data, bits, reference), ())]
        if row == reference or min(len(values), len(other)) < 2:
            continue
        difference, seeds = np.mean(values) - np.mean(other), max(np.ptp(values), np.ptp(other)) / 2
        result = f"more than the spread over seeds ({seeds:.3f})" if abs(difference) > seeds else "within the spread"
        yield f"- {data}, {bits} bits: {row} is {difference:+.3f} from {reference} in {COLUMNS[figure]}: {result}."
