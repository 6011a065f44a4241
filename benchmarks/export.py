"""Measure every exported model of a student (format x precision) on this host: size, bit flips, mAP, latency."""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.trial import Benchmark, Trial, data_source, table
from distill.config import StudentTrainConfig, TeacherTrainConfig, TrainConfig
from export.artifact import ExportedModel, ExportFailure
from export.metadata import read_metadata
from gallery.console import log
from gallery.results import ModelResult
from mobile_eval.devices.host import Host

if TYPE_CHECKING:
    from torch import nn

    from distill.context import RunContext
    from export.exporter import ExportRequest
    from mobile_eval.compare import FloatReference

VARIANTS = (
    *(f"onnx-{p}" for p in ("fp32", "fp16", "w8a32", "w8a8")),
    *(f"litert-{p}" for p in ("fp32", "fp16", "w8a32", "w8a8-dynamic", "w8a8", "w8a16")),
    *(f"coreml-{p}" for p in ("fp16", "w8a32", "palettize6", "w8a8")),
)
TIMED = ("onnx", "litert")  # Core ML models are only emulated on this host
CALIBRATED, FILES = "w8a8", "files"
COLUMNS = (
    ("MB", "bytes", ".2f"), ("bit flip rate", "bit_flip_rate", ".3%"), ("mAP", "map", ".4f"),
    ("mAP drop", "map_drop", "+z.4f"), ("p50 ms", "p50_ms", ".2f"), ("p90 ms", "p90_ms", ".2f"),
    ("peak MB", "peak_memory_mb", ".1f"),
)  # fmt: skip
PLAIN = "w8a8-plain"  # every layer 8-bit, none kept in float
TEACHERS = {"imagenet20": TeacherTrainConfig(finetune="linear_probe"), "ucmerced": TeacherTrainConfig(finetune="full")}
EPOCHS: dict[tuple[str, str], int] = {  # of the student; the larger one starts from random weights where none are found
    ("imagenet20", "mobilenetv3_small"): 20,
    ("imagenet20", "mobilenetv3_large"): 25,
    ("ucmerced", "mobilenetv3_large"): 60,
}


class ExportTrial(Trial):
    """A trained student and its exported models.

    map: of the float student's queries against the gallery; quantization: how its 8-bit layers were chosen
    """

    student: str
    weights: str
    size: int
    map: float
    queries: int
    quantization: dict[str, Any]
    models: tuple[ModelResult, ...]


class ExportBenchmark(Benchmark):
    """Every exported model of two students on two data sets: size, bit flips, mAP, latency, memory."""

    name: str = "export"
    data: tuple[str, ...] = ("imagenet20", "ucmerced")
    students: tuple[str, ...] = ("mobilenetv3_small", "mobilenetv3_large")
    teacher: str = "efficientnet_lite2"
    bits: int = 64
    seed: int = 0

    def trials(self) -> Iterator[ExportTrial]:
        """Measure what is not yet measured, then time all models, one after the other."""
        measured = [self.trial(*key) for key in itertools.product(self.data, self.students)]
        yield from itertools.starmap(timed, measured)

    def trial(self, data: str, student: str) -> tuple[ExportTrial, Path]:
        """Train a student and compare its exported models with it, or read that; the files stay in the folder."""
        log.info("[%s, %s]", data, student)
        folder, first = (self.runs / f"export-{data}-{name}" for name in (student, self.students[0]))
        learning = TrainConfig(
            data=data_source(data), teacher=self.teacher, student=student, bits=self.bits, seed=self.seed,
            reuse_gallery=None if folder == first else first, teacher_train=TEACHERS.get(data, TeacherTrainConfig()),
            student_train=StudentTrainConfig(epochs=EPOCHS.get((data, student), "auto")),
        )  # fmt: skip
        return self.measured(ExportTrial, learning, folder, score), folder / FILES

    def text(self, trials: Sequence[ExportTrial]) -> str:
        """Return a table for each student, with a row for each exported model."""
        return "\n\n".join(
            f"### {trial.student} on {trial.data}\n\n{trial.size} px, {trial.weights}; {trial.queries} queries; "
            f"the float student's mAP against the gallery is {trial.map:.4f}.\n\n"
            + table(["variant", *(name for name, _, _ in COLUMNS)], map(_row, trial.models))
            for trial in trials
        )


def timed(trial: ExportTrial, folder: Path) -> ExportTrial:
    """Return the trial with the latency of its models on this host, each in its own process."""
    log.info("[%s, %s] timing", trial.data, trial.student)
    models = []
    with Host() as host:
        host.push((), np.random.default_rng(0).integers(0, 256, (1, trial.size, trial.size, 3), np.uint8))
        for model in trial.models:
            if model.format in TIMED and model.status == "ran":
                path = folder / model.path
                figures = host.run(ExportedModel.of(path, model.format, read_metadata(path))).figures
                log.info("  %s: %.2f ms", model.variant, figures["p50_ms"])
                model = model.model_copy(update=figures)
            models.append(model)
    return trial.model_copy(update={"models": tuple(models)})


def score(context: RunContext) -> ExportTrial:
    """Train the student of a trial, and compare its exported models with it."""
    from distill.export_samples import export_request
    from distill.pipeline import train_all
    from distill.summary import pair_logits
    from export.exporter import ExportRequest
    from mobile_eval.compare import FloatReference

    data, config, resolved = context.data, context.config, context.resolved
    models, folder = train_all(context), context.run_dir.folder / FILES
    shutil.rmtree(folder, ignore_errors=True)
    queries, pixels = data.query, data.pixels[resolved.student_img_size]
    logits = pair_logits(context, models).student_queries
    labels = data.labels[queries]
    reference = FloatReference(pixels[queries], logits, models.space, labels, models.gallery, data.top_k,
                               classes=data.classes)  # fmt: skip
    request = ExportRequest(**export_request(context, models.student, models.space))
    exported, quantization = _export(request, folder)
    return ExportTrial(
        data=data.name, bits=config.bits, seed=config.seed, student=resolved.student.name,
        weights=resolved.student.source, size=resolved.student_img_size, map=reference.map, queries=len(queries),
        quantization=quantization, models=tuple(_evaluate(exported, reference, folder)),
    )  # fmt: skip


def _export(request: ExportRequest, folder: Path) -> tuple[list[ExportedModel | ExportFailure], dict[str, Any]]:
    """Export all variants, then those with every layer 8-bit."""
    from export.exporter import export_all, prepare_quantized

    quantized = prepare_quantized(request, VARIANTS)
    assert quantized is not None  # some of the variants are 8-bit
    exported = export_all(request, VARIANTS, folder, quantized)
    every_layer = replace(quantized, net=quantize_all_layers(quantized.net), sensitivities=())
    (folder / PLAIN).mkdir(parents=True)
    plain = [variant for variant in VARIANTS if variant.endswith(CALIBRATED)]
    exported += export_all(request, plain, folder / PLAIN, every_layer)
    return exported, quantized.record()


def quantize_all_layers(net: nn.Module) -> nn.Module:
    """Copy a fake-quantized network and make every layer 8-bit that supports it."""
    from export.fake_quant import layers

    made = copy.deepcopy(net)
    for layer in layers(made).values():
        layer.mode = "int8" if layer.pixels > 1 else "weights"
    return made


def _evaluate(
    models: list[ExportedModel | ExportFailure], reference: FloatReference, folder: Path
) -> Iterator[ModelResult]:
    """Yield a row for each model; latency is measured later."""
    from mobile_eval.evaluate import evaluate_on

    rows = evaluate_on(Host(samples=0), models, reference).rows
    for model, row in zip(models, rows, strict=True):
        if isinstance(model, ExportFailure):
            yield row
            continue
        variant = f"{model.format}-{PLAIN}" if model.path.parent.name == PLAIN else row.variant
        yield row.model_copy(update={"variant": variant, "path": model.path.relative_to(folder).as_posix()})


def _row(model: ModelResult) -> list[str]:
    if model.status != "ran":
        return [model.variant, f"{model.status}: {model.reason}"]
    values = model.model_dump() | {"bytes": model.bytes / 1e6}
    return [model.variant, *("" if values[key] is None else format(values[key], spec) for _, key, spec in COLUMNS)]
