"""CSCH as its authors released it, beside ours: the same backbones, weights, pictures and student steps."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.trial import Cell, data_source, measure
from distill.config import Learning, Model, StudentTrainConfig, TeacherTrainConfig
from distill.distillers import DISTILLERS
from gallery.console import log
from gallery.files import write_json, write_whole

RESULTS = Path(__file__).with_name("results")
COLUMNS = {
    "student_gallery": "student->gallery", "teacher_teacher": "teacher->teacher", "student_student": "student->student",
    "student_gallery_unseen": "student->gallery, unseen classes", "teacher_teacher_unseen": "teacher->teacher, unseen",
    "student_gallery_seen": "student->gallery, seen classes", "agreement": "bits agreed", "fragile": "fragile bits",
}  # fmt: skip
BASE = "csch, staged"  # the row whose teacher and gallery the other staged rows are students of
RELEASED = "csch-released"

# What each row changes; `terms` are the student's, `teaching` is the teacher's, who is another one then.
ROWS: dict[str, dict[str, Any]] = {
    BASE: {},
    "csch, simultaneous": {"schedule": "simultaneous"},
    "labels only": {"terms": {"instance_weight": 0.0}},
    "instance only": {"terms": {"center_weight": 0.0}},
    RELEASED: {
        "schedule": "simultaneous", "centers": "csch", "assignment": "released", "terms": {"instance": "joint"},
    },
    **{f"{mode}, rate {rate:g}": {"teaching": {"mode": mode, "lr": rate}, "terms": {"epochs": 1, "views": 1}}
       for mode in ("full", "head_first") for rate in (1e-3, 3e-4, 1e-4)},
    "quick": {"teaching": {"mode": "quick"}, "terms": {"epochs": 1}},
    "raw": {"terms": {"instance": "raw"}},
    "cosine": {"terms": {"instance": "cosine", "instance_weight": 20.0}},
    "+ similarity": {"terms": {"similarity_weight": 1.0}},
    "+ rank": {"terms": {"rank_weight": 10.0}},
    "+ relation": {"terms": {"relation_weight": 10.0}},
    "+ margin": {"terms": {"margin_weight": 2.0}},
    **{name: {"distiller": name} for name in DISTILLERS.names() if name != "csch"},
    "fresh crops": {"terms": {"views": 0}},
    "unlabelled, a quarter": {"terms": {"unlabelled_share": 0.25}},
    "unlabelled, their share": {"terms": {"unlabelled_share": 0.2963}},  # of UC Merced, 6 of 21 classes unseen
    "unlabelled, half": {"terms": {"unlabelled_share": 0.5}},
    "unlabelled, half, instance only": {"terms": {"unlabelled_share": 0.5, "center_weight": 0.0}},
}  # fmt: skip


class Table(Model):
    """A table of rows by data, bits and seeds."""

    data: tuple[str, ...]
    bits: tuple[int, ...]
    rows: tuple[str, ...]
    """Of those in benchmarks/csch.py."""
    name: str
    """Of the files in benchmarks/results."""
    figure: str = "student_gallery"
    """The figure of a cell that is plotted, and compared."""
    reference: str = BASE
    """The row that the others are compared with, below the table."""
    seeds: tuple[int, ...] = (0, 1, 2)
    note: str = ""
    """What the figures cannot say by themselves; below the table."""
    unseen: int = 0
    """Classes without labels."""
    teacher: str = "mobilenetv2"
    student: str = "mobilenetv3_small"
    size: int = 96
    """Side of both networks' input, pixels."""
    epochs: int = 8
    """Of the teacher, of the student, and of both at once."""
    runs: Path = Path("runs/bench")
    """Run folders of the cells; the tables share them."""

    def run(self) -> None:
        """Measures all cells, the finished ones read back, and writes the results, the table and the plot."""
        cells = []
        for seed, bits, data, row in itertools.product(self.seeds, self.bits, self.data, self.rows):
            log.info("[%s, %d bits, seed %d] %s", data, bits, seed, row)
            if self.borrows(row):
                self.measure(data, bits, seed, BASE)
            cell = self.measure(data, bits, seed, row)
            log.info("  student->gallery %.4f, teacher->teacher %.4f", cell.student_gallery, cell.teacher_teacher)
            cells.append(cell)
            write(self, cells)

    def measure(self, data: str, bits: int, seed: int, row: str) -> Cell:
        """One cell."""
        key = data, bits, seed, row
        return measure(row, self.learning(*key), self.folder(*key), self.runs / "cache")

    def folder(self, data: str, bits: int, seed: int, row: str) -> Path:
        """The run folder of one cell."""
        networks = f"{self.teacher}-{self.student}-{self.size}-{self.epochs}"
        what = f"{Path(data).stem}-{self.unseen}-{networks}-{bits}-{seed}-{row}"
        return self.runs / re.sub(r"[^\w+-]+", "_", what)

    def borrows(self, row: str) -> bool:
        """Whether a row is a student of the base row's teacher."""
        return row != BASE and not {"schedule", "teaching"} & ROWS[row].keys()

    def learning(self, data: str, bits: int, seed: int, row: str) -> Learning:
        """The configuration of one cell."""
        changes = dict(ROWS[row])
        terms = {"unlabelled_share": 0.0, "epochs": self.epochs, **changes.pop("terms", {})}
        teaching = {"mode": "full", "epochs": self.epochs, **changes.pop("teaching", {})}
        if self.borrows(row):
            changes["gallery"] = self.folder(data, bits, seed, BASE)
        return Learning(
            teacher=self.teacher, student=self.student, data=data_source(data), bits=bits, seed=seed,
            teacher_size=self.size, student_size=self.size, unseen=self.unseen,
            teacher_fit=TeacherTrainConfig(**teaching), student_fit=StudentTrainConfig(**terms), **changes,
        )  # fmt: skip


class Csch(Table):
    """CSCH as released, ours in both schedules, labels only and instance only: four cells."""

    data: tuple[str, ...] = ("imagenet20", "ucmerced")
    bits: tuple[int, ...] = (16, 32, 64)
    rows: tuple[str, ...] = (BASE, "csch, simultaneous", "labels only", "instance only", RELEASED)
    name: str = "csch"
    reference: str = RELEASED
    note: str = (
        "UC Merced's gallery is its own training set, on which every teacher is near the ceiling: what the released "
        "code loses there is smaller than on imagenet20, whose gallery holds pictures that nobody was trained on."
    )


class Teachers(Table):
    """The teacher's modes and rates; its student is trained for one epoch only."""

    data: tuple[str, ...] = ("imagenet20", "ucmerced")
    bits: tuple[int, ...] = (64,)
    rows: tuple[str, ...] = tuple(row for row, changes in ROWS.items() if "teaching" in changes)
    name: str = "teachers"
    figure: str = "teacher_teacher"


class Terms(Table):
    """Which terms of the student's loss earn their place, and whether stored views cost anything."""

    data: tuple[str, ...] = ("imagenet20",)
    bits: tuple[int, ...] = (64,)
    rows: tuple[str, ...] = (
        BASE, "labels only", "instance only", "raw", "cosine", "+ similarity", "+ rank", "+ relation", "+ margin",
        "fresh crops", "unlabelled, a quarter", "unlabelled, half",
    )  # fmt: skip
    name: str = "terms"


class Distillers(Table):
    """What a student is distilled by, each beside the center term; all students of one teacher."""

    data: tuple[str, ...] = ("imagenet20", "ucmerced")
    bits: tuple[int, ...] = (64,)
    rows: tuple[str, ...] = (BASE, "labels only", *(name for name in DISTILLERS.names() if name != "csch"))
    name: str = "distillers"


class Unseen(Table):
    """Classes without labels: the student sees their gallery pictures, in several mixes, or does not."""

    data: tuple[str, ...] = ("ucmerced",)
    bits: tuple[int, ...] = (64,)
    rows: tuple[str, ...] = (
        BASE, "labels only", "unlabelled, a quarter", "unlabelled, their share", "unlabelled, half",
        "unlabelled, half, instance only",
    )  # fmt: skip
    unseen: int = 6
    name: str = "unseen"
    figure: str = "student_gallery_unseen"


def write(table: Table, cells: Sequence[Cell]) -> None:
    """`<name>.json`, `<name>.md` and `<name>.svg` in `benchmarks/results`."""
    from mobile_eval.system_info import describe

    options = table.model_dump(mode="json", exclude={"runs"})
    record = {"command": f"python benchmarks/run.py {table.name}", "options": options,
              "machine": describe().model_dump(), "cells": [cell.model_dump() for cell in cells]}  # fmt: skip
    write_json(RESULTS / f"{table.name}.json", record)
    sentences = "\n".join(compared(cells, table.figure, table.reference))
    parts = "\n".join(markdown(cells)), "Seconds are the wall's, whatever else the machine did.", table.note, sentences
    write_whole(RESULTS / f"{table.name}.md", "\n\n".join(filter(None, parts)) + "\n")
    _plot(cells, table.figure, RESULTS / f"{table.name}.svg")


def markdown(cells: Sequence[Cell]) -> Iterator[str]:
    """A table: means, and half of the distance between the largest and the smallest, over seeds."""
    columns = [name for name in COLUMNS if all(getattr(cell, name) is not None for cell in cells)]
    yield f"| data | bits | row | {' | '.join(COLUMNS[name] for name in columns)} | seeds | steps | seconds |"
    yield "|---" * (len(columns) + 6) + "|"
    for data, bits, row in sorted({(cell.data, cell.bits, cell.row) for cell in cells}, key=_order):
        own = [cell for cell in cells if (cell.data, cell.bits, cell.row) == (data, bits, row)]
        figures = " | ".join(spread([getattr(cell, name) for cell in own]) for name in columns)
        seconds = np.mean([sum(cell.seconds.values()) for cell in own])
        yield f"| {data} | {bits} | {row} | {figures} | {len(own)} | {own[0].student_steps} | {seconds:.0f} |"


def compared(cells: Sequence[Cell], figure: str, reference: str) -> Iterator[str]:
    """A sentence for each row: how far its mean is from the reference row's, and whether seeds alone differ as much."""
    values: dict[tuple[str, int, str], list[float]] = {}
    for cell in cells:
        values.setdefault((cell.data, cell.bits, cell.row), []).append(getattr(cell, figure))
    for (data, bits, row), own in sorted(values.items(), key=lambda item: _order(item[0])):
        other = values.get((data, bits, reference))
        if row == reference or not other or min(len(own), len(other)) < 2:
            continue
        apart, seeds = np.mean(own) - np.mean(other), max(np.ptp(own), np.ptp(other)) / 2
        verdict = f"more than the spread over seeds ({seeds:.3f})" if abs(apart) > seeds else "within the spread"
        yield f"- {data}, {bits} bits: {row} is {apart:+.3f} from {reference} in {COLUMNS[figure]}: {verdict}."


def _order(key: tuple[str, int, str]) -> tuple[str, int, int]:
    return key[0], key[1], list(ROWS).index(key[2])


def spread(values: Sequence[float]) -> str:
    """The mean, and half of the distance between the largest and the smallest."""
    return f"{np.mean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}"


def _plot(cells: Sequence[Cell], measure: str, path: Path) -> None:
    """Rows from top to bottom, one mark for each length of code: the mean, and the range over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": path.stem, "svg.fonttype": "none"}  # the same figures give the same file
    import matplotlib.pyplot as plt

    sets, lengths = ([*dict.fromkeys(getattr(cell, name) for cell in cells)] for name in ("data", "bits"))
    rows = sorted({cell.row for cell in cells}, key=[*ROWS].index, reverse=True)
    size = (1.5 + 4.5 * len(sets), 1.2 + 0.35 * len(rows))
    figure, axes = plt.subplots(1, len(sets), figsize=size, squeeze=False, sharey=True, layout="constrained")
    for axis, data in zip(axes[0], sets, strict=True):
        for bits in sorted(lengths):
            own = [[getattr(c, measure) for c in cells if (c.row, c.data, c.bits) == (row, data, bits)] for row in rows]
            places = [place for place, values in enumerate(own) if values]
            means = [float(np.mean(values)) for values in own if values]
            reach = [[mean - min(v), max(v) - mean] for mean, v in zip(means, filter(None, own), strict=True)]
            axis.errorbar(means, places, xerr=np.reshape(reach, (-1, 2)).T, fmt="o", capsize=3, label=f"{bits} bits")
        axis.set(title=data, xlabel=COLUMNS[measure] + " mAP")
        axis.set_yticks(range(len(rows)), rows)
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
