"""Run a grid of configurations, data sets, code lengths and seeds; write a table, a plot and JSON."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks import trial as results
from benchmarks.trial import SweepTrial, data_source, mean_and_half_range, measure, write_results
from distill.config import StrictModel, StudentTrainConfig, TeacherTrainConfig, TrainConfig
from gallery.console import log

COLUMNS = {
    "student_gallery": "student->gallery", "teacher_teacher": "teacher->teacher", "student_student": "student->student",
    "student_gallery_unseen": "student->gallery, unseen classes", "teacher_teacher_unseen": "teacher->teacher, unseen",
    "student_gallery_seen": "student->gallery, seen classes", "bit_agreement": "bit agreement",
    "low_margin_bits": "low-margin bits",
}  # fmt: skip
Key = tuple[str, int, str]


class Sweep(StrictModel):
    """A table of rows by data, bits and seeds; each row is one configuration."""

    grid: ClassVar[dict[str, dict[str, Any]]] = {}
    """What each row changes of the base configuration."""
    base: ClassVar[str] = ""
    """The row whose teacher and gallery the others reuse unless they change the teacher."""
    data: tuple[str, ...]
    bits: tuple[int, ...]
    rows: tuple[str, ...]
    """Names in the grid."""
    name: str
    """Of the files in benchmarks/results."""
    figure: str = "student_gallery"
    """The figure that is plotted and compared."""
    reference: str
    """The row that the others are compared with, below the table."""
    seeds: tuple[int, ...] = (0, 1, 2)
    note: str = ""
    """How to read the figures; below the table."""
    unseen: int = 0
    """Number of classes without labels."""
    teacher: str = "mobilenetv2"
    student: str = "mobilenetv3_small"
    size: int = 96
    """Input size of both networks, pixels."""
    epochs: int = 8
    """Of the teacher, of the student, and of both at once."""
    runs: Path = Path("runs/bench")
    """Run folders of the trials, shared by all sweeps."""

    def run(self) -> None:
        """Measure all trials, reading finished ones, and write the results, the table and the plot."""
        trials = []
        for seed, bits, data, row in itertools.product(self.seeds, self.bits, self.data, self.rows):
            log.info("[%s, %d bits, seed %d] %s", data, bits, seed, row)
            if self.shares_teacher(row):
                self.measure(data, bits, seed, self.base)
            trial = self.measure(data, bits, seed, row)
            log.info("  student->gallery %.4f, teacher->teacher %.4f", trial.student_gallery, trial.teacher_teacher)
            trials.append(trial)
            self.write(trials)

    def write(self, trials: Sequence[SweepTrial]) -> None:
        """Write `<name>.json`, `<name>.md` and `<name>.svg` to `benchmarks/results`."""
        table, sentences = ("\n".join(lines) for lines in (
            markdown(trials), compare_to_reference(trials, self.figure, self.reference),
        ))  # fmt: skip
        text = "\n\n".join(
            filter(None, (table, "Seconds are wall-clock time on a shared machine.", self.note, sentences))
        )
        write_results(self.name, self.model_dump(mode="json", exclude={"runs"}), trials, text)
        plot(trials, self.figure, results.RESULTS / f"{self.name}.svg")

    def measure(self, data: str, bits: int, seed: int, row: str) -> SweepTrial:
        """Train and measure one trial."""
        key = data, bits, seed, row
        return measure(row, self.learning(*key), self.folder(*key), self.runs / "cache")

    def folder(self, data: str, bits: int, seed: int, row: str) -> Path:
        """Return the run folder of one trial."""
        networks = f"{self.teacher}-{self.student}-{self.size}-{self.epochs}"
        name = f"{Path(data).stem}-{self.unseen}-{networks}-{bits}-{seed}-{row}"
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
            teacher_img_size=self.size, student_img_size=self.size, num_unseen_classes=self.unseen,
            teacher_train=TeacherTrainConfig(**teaching), student_train=StudentTrainConfig(**terms), **changes,
        )  # fmt: skip


def group(trials: Sequence[SweepTrial]) -> dict[Key, list[SweepTrial]]:
    """Group trials by (data, bits, row): sorted by data and bits, rows in the order of the trials."""
    groups: dict[Key, list[SweepTrial]] = {}
    for trial in sorted(trials, key=lambda trial: (trial.data, trial.bits)):
        groups.setdefault((trial.data, trial.bits, trial.row), []).append(trial)
    return groups


def markdown(trials: Sequence[SweepTrial]) -> Iterator[str]:
    """Yield a table: means, and half of the distance between the largest and the smallest, over seeds."""
    columns = [name for name in COLUMNS if all(getattr(trial, name) is not None for trial in trials)]
    yield f"| data | bits | row | {' | '.join(COLUMNS[name] for name in columns)} | seeds | steps | seconds |"
    yield "|---" * (len(columns) + 6) + "|"
    for (data, bits, row), own in group(trials).items():
        figures = " | ".join(mean_and_half_range([getattr(trial, name) for trial in own]) for name in columns)
        seconds = np.mean([sum(trial.seconds.values()) for trial in own])
        yield f"| {data} | {bits} | {row} | {figures} | {len(own)} | {own[0].student_steps} | {seconds:.0f} |"


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


def plot(trials: Sequence[SweepTrial], figure: str, path: Path) -> None:
    """Plot rows from top to bottom, one mark for each length of code: the mean, and the range over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": path.stem, "svg.fonttype": "none"}  # the same figures give the same file
    import matplotlib.pyplot as plt

    groups = group(trials)
    datasets, lengths = ([*dict.fromkeys(getattr(trial, name) for trial in trials)] for name in ("data", "bits"))
    rows = [*dict.fromkeys(trial.row for trial in trials)][::-1]
    size = (1.5 + 4.5 * len(datasets), 1.2 + 0.35 * len(rows))
    page, axes = plt.subplots(1, len(datasets), figsize=size, squeeze=False, sharey=True, layout="constrained")
    for axis, data in zip(axes[0], datasets, strict=True):
        for bits in sorted(lengths):
            own = [[getattr(trial, figure) for trial in groups.get((data, bits, row), ())] for row in rows]
            heights = [height for height, values in enumerate(own) if values]
            means = [float(np.mean(values)) for values in own if values]
            errors = [[mean - min(v), max(v) - mean] for mean, v in zip(means, filter(None, own), strict=True)]
            axis.errorbar(means, heights, xerr=np.reshape(errors, (-1, 2)).T, fmt="o", capsize=3, label=f"{bits} bits")
        axis.set(title=data, xlabel=COLUMNS[figure] + " mAP")
        axis.set_yticks(range(len(rows)), rows)
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    page.savefig(path, metadata={"Date": None})
    plt.close(page)
