"""What every form of a student loses and costs: student x format x precision, the files executed on this host."""

from __future__ import annotations

import copy
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.bare import compare
from benchmarks.csch import RESULTS
from benchmarks.trial import data_source, learned
from distill.config import Learning, Model, RoundedFit, StudentTrainConfig, TeacherTrainConfig
from export.artifact import ExportedModel, ExportFailure
from export.metadata import read_card
from gallery.console import log
from gallery.files import write_json, write_whole
from gallery.results import ModelResult
from mobile_eval.devices.host import Host

if TYPE_CHECKING:
    from torch import nn

    from distill.context import RunContext
    from distill.pipeline import TrainedModels
    from export.ship import Student
    from mobile_eval.compare import FloatReference

RECORD, FILES = "export.json", "files"
FORMS = (
    *(f"onnx-{p}" for p in ("fp32", "fp16", "int8-weights", "int8", "int8-calibrated")),
    *(f"litert-{p}" for p in ("fp32", "fp16", "int8-weights", "int8-dynamic", "int8", "int8-calibrated", "int8x16")),
    *(f"coreml-{p}" for p in ("fp16", "int8-weights", "palette6", "palette4", "int8", "int8-calibrated")),
)
TIMED = ("onnx", "litert")  # Core ML files are evaluated here, which takes no time that means anything
CALIBRATED = "int8-calibrated"
PLAIN = "int8-plain"  # every layer 8-bit, none chosen: what calibration alone makes of the network
TEACHERS = {"imagenet20": TeacherTrainConfig(mode="quick"), "ucmerced": TeacherTrainConfig(mode="full")}
EPOCHS: dict[tuple[str, str], int] = {  # of the student; the larger one starts from random weights where none are found
    ("imagenet20", "mobilenetv3_small"): 20,
    ("imagenet20", "mobilenetv3_large"): 25,
    ("ucmerced", "mobilenetv3_large"): 60,
}


class Row(Model):
    """One file.  bare_latency, bare_bytes: of the file over the student alone in it (`benchmarks.bare`)."""

    file: ModelResult
    bare_latency: float | None = None
    bare_bytes: float | None = None


class Cell(Model):
    """A trained student.  map: of the float student in the gallery; quantization: how its 8-bit layers were chosen."""

    data: str
    student: str
    weights: str
    size: int
    map: float
    queries: int
    quantization: dict[str, Any]
    rows: tuple[Row, ...]


class Export(Model):
    """Every form of two students on two data sets: size, bits turned, mAP, latency, memory."""

    data: tuple[str, ...] = ("imagenet20", "ucmerced")
    students: tuple[str, ...] = ("mobilenetv3_small", "mobilenetv3_large")
    teacher: str = "efficientnet_lite2"
    bits: int = 64
    seed: int = 0
    pairs: int = 200
    """Calls of a file and of the student alone in it, in turns, in each of several openings of both."""
    runs: Path = Path("runs/bench")
    """Run folders of the students; those that were measured are read back."""

    def run(self) -> None:
        """Measures what is not yet measured, times all files, one after the other, and writes the table."""
        pairs = itertools.product(self.data, self.students)
        folders = {self.runs / f"export-{data}-{student}": (data, student) for data, student in pairs}
        cells = [self._cell(folder, *names) for folder, names in folders.items()]
        cells = [timed(cell, folder, self.pairs) for cell, folder in zip(cells, folders, strict=True)]
        options = self.model_dump(mode="json", exclude={"runs"})
        record = {"command": "python benchmarks/run.py export", "options": options}
        write_json(RESULTS / RECORD, record | {"cells": [cell.model_dump(mode="json") for cell in cells]})
        write_whole(RESULTS / "export.md", "\n\n".join("\n".join(_markdown(cell)) for cell in cells) + "\n")
        log.info("results in %s", RESULTS / "export.md")

    def _cell(self, folder: Path, data: str, student: str) -> Cell:
        log.info("[%s, %s]", data, student)
        first = self.runs / f"export-{data}-{self.students[0]}"
        learning = Learning(
            data=data_source(data), teacher=self.teacher, student=student, bits=self.bits, seed=self.seed,
            gallery=None if folder == first else first, teacher_fit=TEACHERS.get(data, TeacherTrainConfig()),
            student_fit=StudentTrainConfig(epochs=EPOCHS.get((data, student), "auto")),
        )  # fmt: skip
        return measure(learning, folder, self.runs / "cache")


def measure(learning: Learning, folder: Path, cache: Path) -> Cell:
    """Trains a student and holds all its forms against it, or reads that back; the files stay in `folder`."""
    if (folder / RECORD).exists():
        return Cell.model_validate_json((folder / RECORD).read_text())
    with learned(learning, folder, cache) as (course, networks):
        shutil.rmtree(folder / FILES, ignore_errors=True)
        cell = _measured(course, networks, folder / FILES)
        write_json(folder / RECORD, cell.model_dump(mode="json"))
    return cell


def timed(cell: Cell, folder: Path, pairs: int) -> Cell:
    """The cell with what its files take on this host, each in a process of its own, and against the bare student."""
    log.info("[%s, %s] timing", cell.data, cell.student)
    with Host() as host:
        host.push((), np.random.default_rng(0).integers(0, 256, (1, cell.size, cell.size, 3), np.uint8))
        rows = tuple(_timed(row, host, folder / FILES, pairs) for row in cell.rows)
    return cell.model_copy(update={"rows": rows})


def _timed(row: Row, host: Host, folder: Path, pairs: int) -> Row:
    if row.file.format not in TIMED or row.file.status != "ran":
        return row
    path = folder / row.file.path
    figures = host.run(ExportedModel.of(path, row.file.format, read_card(path))).figures
    with tempfile.TemporaryDirectory() as work:
        pair = compare(path, Path(work), pairs)
    log.info("  %s: %.2f ms, %.3f of the bare student's", row.file.form, figures["p50_ms"], pair.latency)
    found = {"file": row.file.model_copy(update=figures), "bare_latency": pair.latency, "bare_bytes": pair.bytes}
    return row.model_copy(update=found)


def _measured(course: RunContext, networks: TrainedModels, folder: Path) -> Cell:
    from mobile_eval.compare import reference

    data, logits = course.data, course.cells(networks)
    pixels, labels = course.data.pixels[course.plan.student_size][data.query], data.labels[data.query]
    against = reference(pixels, logits.student_queries, labels, networks.gallery, data.cut)
    student, start = _student(course, networks), course.plan.student
    files, chosen = _files(student, folder)
    rows = tuple(_row(file, against, folder) for file in files)
    return Cell(
        data=data.name, student=start.name, weights=start.source, size=course.plan.student_size, map=against.map,
        queries=len(data.query), quantization=chosen, rows=rows,
    )  # fmt: skip


def _student(course: RunContext, networks: TrainedModels) -> Student:
    """The network as `export.ship` takes it."""
    from distill.pipeline import adapt
    from export.ship import Student

    plan, net = course.plan, networks.student
    return Student(
        net, plan.student.name, course.preprocessing(plan.student, plan.student_size), networks.space, course.centers,
        course.calibration(), course.golden(net), partial(adapt, course, net, fit=RoundedFit()),
    )  # fmt: skip


def _files(student: Student, folder: Path) -> tuple[list[ExportedModel | ExportFailure], dict[str, Any]]:
    """All forms, and at the end those with every layer 8-bit."""
    from export.exporter import export_all
    from export.quantize import simulate

    quantized, nets = simulate(student.net, student.preprocessing, *student.calibration, FORMS, student.adapt)
    assert quantized is not None  # some of the forms are 8-bit
    words = student.net, student.preprocessing, student.space.id, student.name
    made = export_all(*words, FORMS, folder, quantized.float_layers, nets, quantized.calibration)
    nets, forms = {CALIBRATED: everywhere(quantized.net)}, [form for form in FORMS if form.endswith(CALIBRATED)]
    (folder / PLAIN).mkdir(parents=True)
    made += export_all(*words, forms, folder / PLAIN, (), nets, quantized.calibration)
    return made, quantized.record()


def everywhere(net: nn.Module) -> nn.Module:
    """A copy of a simulated network with every layer 8-bit that can be."""
    from export.fake_quant import layers

    made = copy.deepcopy(net)
    for layer in layers(made).values():
        layer.mode = "int8" if layer.pixels > 1 else "weights"
    return made


def _row(file: ExportedModel | ExportFailure, against: FloatReference, folder: Path) -> Row:
    from mobile_eval.compare import Shipped, check_file
    from mobile_eval.prove import refusal
    from mobile_eval.runtimes import open_model

    if isinstance(file, ExportFailure):
        return Row(file=refusal(file))
    form = f"{file.format}-{PLAIN}" if file.path.parent.name == PLAIN else file.form
    place = file.path.relative_to(folder).as_posix()
    found = check_file(
        Shipped(form, file.format, file.card.precision, place, folder, file.sha256), against, open_model, samples=1
    )
    log.info("  %s: %.3f%% of bits turned, mAP drop %.4f", form, 100 * (found.flip_rate or 0), found.map_drop or 0)
    return Row(file=found)


def _markdown(cell: Cell) -> Iterator[str]:
    yield (
        f"### {cell.student} on {cell.data}\n\n{cell.size} px, {cell.weights}; {cell.queries} queries; "
        f"the float student's mAP in the gallery is {cell.map:.4f}.\n"
    )
    yield "| form | MB | bits turned | mAP | drop | p50 ms | p90 ms | over bare, time | over bare, size | peak MB |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in cell.rows:
        yield _line(row, row.file)


def _line(row: Row, f: ModelResult) -> str:
    if f.status != "ran":
        return f"| {f.form} | {f.status}: {f.reason} |"
    figures = (
        f.form, _said(f.bytes / 1e6, ".2f"), _said(f.flip_rate, ".3%"), _said(f.map, ".4f"), _said(f.map_drop, "+z.4f"),
        _said(f.p50_ms, ".2f"), _said(f.p90_ms, ".2f"), _said(row.bare_latency, ".3f"), _said(row.bare_bytes, ".3f"),
        _said(f.peak_memory_mb, ".1f"),
    )  # fmt: skip
    return f"| {' | '.join(figures)} |"


def _said(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
