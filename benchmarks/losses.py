"""Every objective of a teacher on one bench: the same backbone, pictures, crops and steps, and a rate of its own.

The rate is chosen on the validation pictures of the first seed; queries choose nothing.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from benchmarks.csch import RESULTS, spread
from benchmarks.published import PUBLISHED
from benchmarks.trial import data_source, opened
from distill.config import Learning, Model, TeacherTrainConfig
from distill.losses import OBJECTIVES
from gallery.console import log
from gallery.files import write_json, write_whole

if TYPE_CHECKING:
    from distill.context import RunContext
    from distill.models.hash_net import HashNet

RECORD, OURS = "objective.json", "csch"
FACTORS = (0.3, 1.0, 3.0)  # of both rates
HEAD_LR, LR, VIEWS = 3e-3, 3e-4, 8
LEAST = 0.5  # precision that is drawn: below, all curves are the same cliff
COLUMNS = {
    "map": "mAP", "map_retrieved": "as the literature counts", "precision_2": "P@H<=2", "empty_2": "empty balls",
    "entropy": "entropy of a bit", "seconds": "seconds",
}  # fmt: skip


class Cell(Model):
    """One teacher on the queries, in its gallery.

    map: tie-aware, over the whole gallery; validation: of the validation pictures in those of train, where the
    factor of the rates is chosen by it; precision, recall: by radius 0..bits, None where no query's ball holds
    anything; entropy: mean over the bits of the gallery's codes; refused: why there are no figures
    """

    objective: str
    data: str
    bits: int
    seed: int
    transductive: bool
    """Whether the gallery's codes were learned from the gallery's labels."""
    protocol: str = ""
    weights: str = ""
    """Where the backbone's come from."""
    factor: float = 1.0
    validation: float | None = None
    map: float = 0.0
    map_retrieved: float = 0.0
    precision_2: float = 0.0
    empty_2: float = 0.0
    entropy: float = 0.0
    seconds: float = 0.0
    precision: tuple[float | None, ...] = ()
    recall: tuple[float, ...] = ()
    refused: str = ""


class Objectives(Model):
    """Every objective of a teacher: mAP, P@H<=2, precision and recall by radius, entropy, seconds."""

    data: tuple[str, ...] = ("ucmerced", "ucmerced_multi")
    bits: tuple[Literal[16, 24, 32, 48, 64, 128], ...] = (32, 64)
    objectives: tuple[str, ...] = OBJECTIVES.names()
    """Those in distill/objectives."""
    seeds: int = 3
    """How many, from 0."""
    teacher: str = "mobilenetv3_small"
    size: int = 96
    """Side of its input, pixels."""
    head_epochs: int = 30
    """Of the head alone, on stored features."""
    epochs: int = 4
    """Of all layers, after that."""
    runs: Path = Path("runs/bench")
    """Run folders of the cells; those that were measured are read back."""

    def run(self) -> None:
        """Measures all cells and writes the results, the table and the plots."""
        cells = []
        for data, bits, seed, name in itertools.product(self.data, self.bits, range(self.seeds), self.objectives):
            cell = self.cell(data, bits, seed, name)
            log.info("[%s, %d bits, seed %d] %s: %s", data, bits, seed, name, cell.refused or f"mAP {cell.map:.4f}")
            cells.append(cell)
            write(self, cells)

    def folder(self, what: str, data: str, *key: object) -> Path:
        """Where something of this backbone and data set is kept."""
        return self.runs / "-".join(map(str, (what, self.teacher, self.size, Path(data).stem, *key)))

    def cell(self, data: str, bits: int, seed: int, name: str) -> Cell:
        """One cell, at the rate that its method does best with on the validation pictures of seed 0, longest code."""
        tried = {factor: self.trained(data, max(self.bits), 0, name, factor).validation or 0.0 for factor in FACTORS}
        return self.trained(data, bits, seed, name, max(FACTORS, key=tried.__getitem__))

    def trained(self, data: str, bits: int, seed: int, name: str, factor: float) -> Cell:
        """A cell at a given rate; one that was measured is read back."""
        from distill.losses.base import UnsupportedLabels

        folder = self.folder("objective", data, self.epochs, bits, seed, name, f"x{factor:g}")
        if (folder / RECORD).exists():
            return Cell.model_validate_json((folder / RECORD).read_text())
        about = {"objective": name, "data": data, "bits": bits, "seed": seed, "factor": factor}
        about["transductive"] = OBJECTIVES.find(name).learns_codes
        try:
            cell = Cell(**about, **self.measured(self.learning(data, bits, seed, name, factor), folder))
        except UnsupportedLabels as error:  # for pictures of several classes
            cell = Cell(**about, refused=error.found)
        write_json(folder / RECORD, cell.model_dump(mode="json"))
        shutil.rmtree(folder / "work", ignore_errors=True)
        return cell

    def learning(self, data: str, bits: int, seed: int, name: str, factor: float) -> Learning:
        """What one cell learns."""
        return Learning(
            data=data_source(data),
            teacher=self.teacher,
            student=self.teacher,
            bits=bits,
            seed=seed,
            objective=name,
            teacher_size=self.size,
            student_size=self.size,
            teacher_fit=TeacherTrainConfig(
                mode="head_first",
                head_epochs=self.head_epochs,
                epochs=self.epochs,
                lr=factor * LR,
                head_lr=factor * HEAD_LR,
            ),
        )

    def chooses(self, learning: Learning) -> bool:
        """Whether a method's rate is chosen by what this cell's validation pictures say."""
        return (learning.seed, learning.bits) == (0, max(self.bits))

    def measured(self, learning: Learning, folder: Path) -> dict[str, Any]:
        """The figures of one cell."""
        from distill.pipeline import teach
        from gallery.codes import pack
        from gallery.metrics import bit_entropy, mean_average_precision, precision_recall, precision_within_radius

        with self.opened(learning, folder) as course:
            teacher, space, gallery, _ = teach(course)
            data, codes = course.data, gallery.codes()
            queries = pack(course.logits("teacher", teacher, data.query, "teacher queries", space.id))
            asked = queries, codes, data.labels[data.query], data.labels[data.gallery]
            score, ball = mean_average_precision(*asked), precision_within_radius(*asked)
            precision, recall = precision_recall(*asked)
            return {
                "protocol": course.protocol, "weights": course.plan.teacher.source,
                "map": score.map, "map_retrieved": score.map_retrieved,
                "precision_2": ball.precision, "empty_2": ball.empty, "entropy": bit_entropy(codes),
                "seconds": course.run.seconds["teacher"], "recall": tuple(recall.round(4).tolist()),
                "precision": tuple(None if np.isnan(p) else round(float(p), 4) for p in precision),
                "validation": _validated(course, teacher, space.id) if self.chooses(learning) else None,
            }  # fmt: skip

    @contextmanager
    def opened(self, learning: Learning, folder: Path) -> Iterator[RunContext]:
        """A cell's course; what the backbone says of the stored views is shared by all cells of a seed."""
        shared = self.folder("features", learning.data, learning.seed)
        (folder / "work").mkdir(parents=True, exist_ok=True)
        for view in range(VIEWS):
            (shared / str(view)).mkdir(parents=True, exist_ok=True)
            link = folder / "work" / f"teacher-features-{view}"
            if not link.is_symlink():
                link.symlink_to((shared / str(view)).resolve())
        with opened(learning, folder, self.runs / "cache") as course:
            yield course


def _validated(course: RunContext, teacher: HashNet, key: str) -> float:
    """mAP of the validation pictures in those of train, by the network's own codes of both."""
    from gallery.codes import pack
    from gallery.metrics import mean_average_precision

    parts = {"validation": course.data.validation, "train": course.data.train}
    held, known = (pack(course.logits("teacher", teacher, part, name, key)) for name, part in parts.items())
    labels = [course.data.labels[part] for part in parts.values()]
    return mean_average_precision(held, known, labels[0], labels[1]).map


def write(table: Objectives, cells: Sequence[Cell]) -> None:
    """`objectives.json`, `objectives.md` and `objectives.svg` in `benchmarks/results`."""
    from mobile_eval.system_info import describe

    options = table.model_dump(mode="json", exclude={"runs"})
    measured = [cell.model_dump(mode="json") for cell in cells]
    record = {"command": "python benchmarks/run.py objectives", "options": options,
              "machine": describe().model_dump(), "cells": measured}  # fmt: skip
    write_json(RESULTS / "objectives.json", record)
    write_whole(RESULTS / "objectives.md", "\n".join(markdown(table, cells)) + "\n")
    plot(cells, RESULTS / "objectives.svg")


def markdown(table: Objectives, cells: Sequence[Cell]) -> Iterator[str]:
    """A table for each data set and length of code, best first, sentences below it, and what others published."""
    start = next((cell.weights for cell in cells if cell.weights), "")
    yield (
        f"{table.teacher} at {table.size} px, {start}: the head alone for {table.head_epochs} epochs on stored views, "
        f"then all layers for {table.epochs} epochs on fresh crops; rates x {', '.join(map(str, FACTORS))}, of which "
        "each method's own is chosen on validation pictures. Means over seeds, and half of the distance between the "
        "largest and the smallest; seconds are the teacher's, by the wall's clock, whatever else the machine did.\n"
    )
    for data, bits in dict.fromkeys((cell.data, cell.bits) for cell in cells):
        own = by_objective([cell for cell in cells if (cell.data, cell.bits) == (data, bits)])
        told = sorted((cell[0].transductive, cell[0].protocol) for cell in own.values() if cell[0].protocol)
        yield f"### {data}, {bits} bits\n\n{told[0][1] if told else ''}\n"
        yield f"| objective | {' | '.join(COLUMNS.values())} | rates x | seeds |"
        yield "|---" * (len(COLUMNS) + 3) + "|"
        yield from (_line(name, several) for name, several in own.items() if not several[0].refused)
        yield ""
        yield from (f"- {name}: not trained: {c[0].refused}." for name, c in own.items() if c[0].refused)
        yield from standing(own)
        yield ""
    yield from _published([cell.objective for cell in cells])


def by_objective(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The cells of each objective, the best mean mAP first."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.objective, []).append(cell)
    return dict(sorted(found.items(), key=lambda item: -float(np.mean([cell.map for cell in item[1]]))))


def standing(own: dict[str, list[Cell]]) -> Iterator[str]:
    """Which inductive methods are better than ours, and by how much; or that none is."""
    if OURS not in own:
        return
    ours = [cell.map for cell in own[OURS]]
    better = {
        name: np.mean([c.map for c in several]) - np.mean(ours) for name, several in own.items()
        if not several[0].transductive and np.mean([c.map for c in several]) > np.mean(ours)
    }  # fmt: skip
    if not better:
        yield f"- {OURS}, ours, is first among the inductive methods."
    for name, gain in better.items():
        seeds = max(np.ptp([cell.map for cell in own[name]]), np.ptp(ours)) / 2
        verdict = "more than" if gain > seeds else "within"
        yield f"- {name} is {gain:.3f} better than {OURS}, ours: {verdict} the spread over seeds ({seeds:.3f})."


def _line(name: str, several: list[Cell]) -> str:
    figures = [spread([getattr(cell, key) for cell in several]) for key in COLUMNS]
    words = f"**{name}**" if name == OURS else name
    if several[0].transductive:
        words = f"{name} (transductive: learns codes from the gallery's labels)"
    return f"| {words} | {' | '.join(figures)} | {several[0].factor:g} | {len(several)} |"


def _published(names: Sequence[str]) -> Iterator[str]:
    yield "### What others report\n\nOther pictures, backbones and protocols: not to be compared with the above.\n"
    yield "| objective | mAP | bits | data | backbone | source |\n|---|---|---|---|---|---|"
    for name in dict.fromkeys(names):
        for one in PUBLISHED.get(name, ()):
            yield f"| {name} | {one.map:.3f} | {one.bits} | {one.data} | {one.backbone} | {one.source} |"


def plot(cells: Sequence[Cell], path: Path) -> None:
    """Precision over recall by radius, a panel for each data set and length of code, means over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": path.stem, "svg.fonttype": "none"}  # the same figures give the same file
    import matplotlib.pyplot as plt

    panels = [*dict.fromkeys((cell.data, cell.bits) for cell in cells)]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(1 + 4.2 * len(panels), 5.6), squeeze=False, sharey=True, layout="constrained"
    )
    names = [*dict.fromkeys(cell.objective for cell in cells)]
    for axis, (data, bits) in zip(axes[0], panels, strict=True):
        own = by_objective([c for c in cells if (c.data, c.bits) == (data, bits) and not c.refused])
        for name, several in own.items():
            precision = np.mean([np.array(c.precision, float) for c in several], 0)
            style: dict[str, Any] = {"color": plt.get_cmap("tab20")(names.index(name) % 20), "lw": 1}
            if name == OURS:
                style = {"color": "black", "lw": 2, "zorder": 3}
            axis.plot(np.mean([c.recall for c in several], 0), precision, label=name, **style,
                      ls="--" if several[0].transductive else "-")  # fmt: skip
        axis.set(title=f"{data}, {bits} bits", xlabel="recall within the radius", ylim=(LEAST, 1.01))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("precision within the radius")
    handles = {label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=7, fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
