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

from benchmarks.trial import Trial, data_source, trained, write_results
from distill.config import StrictModel, StudentTrainConfig, TeacherTrainConfig, TrainConfig
from export.artifact import ExportedModel, ExportFailure
from export.metadata import read_metadata
from gallery.console import log
from gallery.files import write_json
from gallery.results import ModelResult
from mobile_eval.devices.host import Host

if TYPE_CHECKING:
    from torch import nn

    from distill.context import RunContext
    from distill.trained_models import TrainedModels
    from export.exporter import ExportRequest
    from mobile_eval.compare import FloatReference

RECORD, FILES = "export.json", "files"
VARIANTS = (
    *(f"onnx-{p}" for p in ("fp32", "fp16", "w8a32", "w8a8")),
    *(f"litert-{p}" for p in ("fp32", "fp16", "w8a32", "w8a8-dynamic", "w8a8", "w8a16")),
    *(f"coreml-{p}" for p in ("fp16", "w8a32", "palettize6", "w8a8")),
)
TIMED = ("onnx", "litert")  # Core ML models are only emulated on this host
CALIBRATED = "w8a8"
COLUMNS = (
    ("MB", "bytes", ".2f"),
    ("bit flip rate", "flip_rate", ".3%"),
    ("mAP", "map", ".4f"),
    ("mAP drop", "map_drop", "+z.4f"),
    ("p50 ms", "p50_ms", ".2f"),
    ("p90 ms", "p90_ms", ".2f"),
    ("peak MB", "peak_memory_mb", ".1f"),
)
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


class ExportBenchmark(StrictModel):
    """Every exported model of two students on two data sets: size, bit flips, mAP, latency, memory."""

    data: tuple[str, ...] = ("imagenet20", "ucmerced")
    students: tuple[str, ...] = ("mobilenetv3_small", "mobilenetv3_large")
    teacher: str = "efficientnet_lite2"
    bits: int = 64
    seed: int = 0
    runs: Path = Path("runs/bench")
    """Run folders of the students; finished trials are read."""

    def run(self) -> None:
        """Measure what is not yet measured, time all models, one after the other, and write the table."""
        pairs = itertools.product(self.data, self.students)
        folders = {self.runs / f"export-{data}-{student}": (data, student) for data, student in pairs}
        trials = [self.trial(folder, *names) for folder, names in folders.items()]
        self.write([timed(trial, folder) for trial, folder in zip(trials, folders, strict=True)])

    def write(self, trials: Sequence[ExportTrial]) -> None:
        """Write `export.json` and `export.md` to `benchmarks/results`."""
        options = self.model_dump(mode="json", exclude={"runs"})
        write_results("export", options, trials, "\n\n".join("\n".join(markdown(trial)) for trial in trials))

    def trial(self, folder: Path, data: str, student: str) -> ExportTrial:
        """Train a student and compare its exported models with it, or read that; the files stay in `folder`."""
        log.info("[%s, %s]", data, student)
        first = self.runs / f"export-{data}-{self.students[0]}"
        learning = TrainConfig(
            data=data_source(data), teacher=self.teacher, student=student, bits=self.bits, seed=self.seed,
            reuse_gallery=None if folder == first else first, teacher_train=TEACHERS.get(data, TeacherTrainConfig()),
            student_train=StudentTrainConfig(epochs=EPOCHS.get((data, student), "auto")),
        )  # fmt: skip
        if (folder / RECORD).exists():
            return ExportTrial.model_validate_json((folder / RECORD).read_text())
        with trained(learning, folder, self.runs / "cache") as (context, models):
            shutil.rmtree(folder / FILES, ignore_errors=True)
            trial = _measure(context, models, folder / FILES)
            write_json(folder / RECORD, trial.model_dump(mode="json"))
        return trial


def timed(trial: ExportTrial, folder: Path) -> ExportTrial:
    """Return the trial with the latency of its models on this host, each in its own process."""
    log.info("[%s, %s] timing", trial.data, trial.student)
    with Host() as host:
        host.push((), np.random.default_rng(0).integers(0, 256, (1, trial.size, trial.size, 3), np.uint8))
        models = tuple(_timed(model, host, folder / FILES) for model in trial.models)
    return trial.model_copy(update={"models": models})


def _timed(model: ModelResult, host: Host, folder: Path) -> ModelResult:
    if model.format not in TIMED or model.status != "ran":
        return model
    path = folder / model.path
    figures = host.run(ExportedModel.of(path, model.format, read_metadata(path))).figures
    log.info("  %s: %.2f ms", model.variant, figures["p50_ms"])
    return model.model_copy(update=figures)


def _measure(context: RunContext, models: TrainedModels, folder: Path) -> ExportTrial:
    from distill.export_samples import export_request
    from distill.summary import pair_logits
    from export.exporter import ExportRequest
    from mobile_eval.compare import make_reference

    data, logits = context.data, pair_logits(context, models)
    pixels, labels = context.data.pixels[context.resolved.student_img_size][data.query], data.labels[data.query]
    reference = make_reference(pixels, logits.student_queries, labels, models.gallery, data.top_k)
    request, start = ExportRequest(**export_request(context, models.student, models.space)), context.resolved.student
    exported, quantization = _export(request, folder)
    return ExportTrial(
        data=data.name, bits=context.config.bits, seed=context.config.seed, student=start.name, weights=start.source,
        size=context.resolved.student_img_size, map=reference.map, queries=len(data.query), quantization=quantization,
        models=tuple(_evaluate(exported, reference, folder)),
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


def markdown(trial: ExportTrial) -> Iterator[str]:
    """Yield a row for each exported model."""
    yield (
        f"### {trial.student} on {trial.data}\n\n{trial.size} px, {trial.weights}; {trial.queries} queries; "
        f"the float student's mAP against the gallery is {trial.map:.4f}.\n"
    )
    yield f"| variant | {' | '.join(name for name, _, _ in COLUMNS)} |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for model in trial.models:
        if model.status != "ran":
            yield f"| {model.variant} | {model.status}: {model.reason} |"
            continue
        values = model.model_dump() | {"bytes": model.bytes / 1e6}
        figures = ("" if values[key] is None else format(values[key], spec) for _, key, spec in COLUMNS)
        yield f"| {model.variant} | {' | '.join(figures)} |"
