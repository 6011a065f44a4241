"""Export students of many families in every format, and evaluate the files: which networks work, and at what cost."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.trial import RECORD, Benchmark, Trial, table
from gallery.codespace import CodeSpace, Preprocessing, hash_centers
from gallery.console import log
from gallery.files import write_json
from gallery.results import ModelResult, Thresholds
from mobile_eval.devices.host import Host
from mobile_eval.gate import row_failures

if TYPE_CHECKING:
    from torch import Tensor, nn

    from export.exporter import ExportRequest

FORMATS, PRECISIONS = ("onnx", "litert", "coreml"), ("fp32", "fp16", "w8a32", "w8a8")
VARIANTS = tuple(f"{format}-{precision}" for format in FORMATS for precision in PRECISIONS)
SIZE = 64  # pixels: a small input that all of them take
STUDENTS = (  # of many families
    "lcnet_050", "mobilenetv3_small_100", "mnasnet_small", "tinynet_e", "mobilenetv4_conv_small", "mobilenetv2_100",
    "mobilenetv1_100", "regnety_002", "semnasnet_075", "ghostnet_100", "edgenext_xx_small", "convnext_atto",
    "mobileone_s0", "fastvit_t8", "efficientvit_b0", "hardcorenas_a", "tf_efficientnet_lite0", "resnet10t",
    "vit_tiny_patch16_224", "fbnetc_100", "levit_128s", "repvgg_a0", "mobilevit_xxs", "nf_regnet_b0",
    "efficientnet_b0", "rexnet_100", "efficientformerv2_s0", "poolformer_s12", "resnetv2_50x1_bit",
)  # fmt: skip
NOISE = 0.5  # deviation, of normalised pixels
NOTE = (
    "Random weights; {images} images of the embedded Fashion-MNIST subset as queries, {images} others for the ranges "
    "of activations and {images} to choose layers; batch norms have the statistics of all these, with noise. "
    "Untrained logits lie close to zero: bit flips compare formats and precisions, and are no forecast for a trained "
    "student. Core ML files are run by the reference evaluator, which is not timed. One thread, on a machine that "
    "does other work."
)


class StudentTrial(Trial):
    """A student and its exported models.

    parameters: of the network with its hash head; reason: why nothing could be exported, "" otherwise
    """

    student: str
    size: int
    images: int
    parameters: int = 0
    seconds: float = 0.0
    reason: str = ""
    models: tuple[ModelResult, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether all files could be exported and ran, those of fp32 with the float student's codes."""
        return len(self.models) == len(VARIANTS) and not list(_failures(self))


class StudentBenchmark(Benchmark):
    """Export untrained students of many families in three formats, and evaluate every file."""

    name: str = "students"
    students: tuple[str, ...] = STUDENTS
    bits: int = 64
    seed: int = 0
    images: int = 16
    """Images of each kind: queries, calibration, held out."""
    samples: int = 30
    """Timed inferences of each file."""

    def trials(self) -> Iterator[StudentTrial]:
        """Measure the students that are not yet measured; read the others."""
        for student in self.students:
            planned = StudentTrial(
                data="fashion_mnist_7k", bits=self.bits, seed=self.seed, student=student, size=SIZE, images=self.images
            )  # fmt: skip
            folder = self.runs / f"students-{student}"
            if (found := _finished(folder, planned)) is None:
                found = self.measure(planned, folder)
                write_json(folder / RECORD, found.model_dump(mode="json"))
            yield found

    def measure(self, planned: StudentTrial, folder: Path) -> StudentTrial:
        """Export a student and evaluate its files; what a network cannot do is a reason, not a crash."""
        log.info("[%s]", planned.student)
        started, files = time.monotonic(), folder / "files"
        shutil.rmtree(folder, ignore_errors=True)
        files.mkdir(parents=True)
        try:
            request, queries, parameters = _request(planned)
            rows = _evaluated(request, queries, files, self.samples)
            update: dict[str, Any] = {"models": tuple(rows), "parameters": parameters}
        except Exception as error:  # noqa: BLE001  (timm, torch and the converters raise everything there is)
            log.warning("  %s: %s", planned.student, error)
            update = {"reason": f"{type(error).__name__}: {error}"}
        shutil.rmtree(files)
        return planned.model_copy(update=update | {"seconds": round(time.monotonic() - started, 1)})

    def text(self, trials: Sequence[StudentTrial]) -> str:
        """Return a table for sizes, bit flips and latency, and the reasons of what failed."""
        complete = sum(trial.complete for trial in trials)
        head = f"{complete} of {len(trials)} students are exported and evaluated in all {len(VARIANTS)} variants."
        parts = [f"{head} {NOTE.format(images=self.images)}"]
        for title, field, spec, scale in (
            ("Bit flip rate", "bit_flip_rate", ".2%", 1), ("Size, MB", "bytes", ".2f", 1e-6),
            ("Latency p50, ms", "p50_ms", ".2f", 1),
        ):  # fmt: skip
            columns = [name for name in VARIANTS if field != "p50_ms" or not name.startswith("coreml")]
            rows = [[*_name(trial), *(_cell(trial, name, field, spec, scale) for name in columns)] for trial in trials]
            parts.append(f"### {title}\n\n" + table(["student", "px", "M parameters", *columns], rows))
        if failures := [line for trial in trials for line in _failures(trial)]:
            parts.append("### Failures\n\n" + "\n".join(f"- {line}" for line in failures))
        return "\n\n".join(parts)


def _finished(folder: Path, planned: StudentTrial) -> StudentTrial | None:
    """Read a finished trial with the same settings."""
    if not (folder / RECORD).exists():
        return None
    found = StudentTrial.model_validate_json((folder / RECORD).read_text())
    measured = {"parameters", "seconds", "reason", "models"}
    return found if found.model_dump(exclude=measured) == planned.model_dump(exclude=measured) else None


def _request(planned: StudentTrial) -> tuple[ExportRequest, NDArray[np.uint8], int]:
    """Build a student whose batch norms have seen images, what to export it with, and the queries."""
    from distill.models.hash_net import build
    from export.exporter import ExportRequest
    from export.quantize import normalize

    count = planned.images
    pixels = embedded_images(planned.size, 3 * count, planned.seed)
    preprocessing = Preprocessing(planned.size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    net = build(planned.student, planned.size, planned.bits, planned.seed)
    estimate_batch_norms(net, normalize(pixels, preprocessing))
    centers = np.random.default_rng(planned.seed).choice(np.array([-1, 1], np.int8), (2, planned.bits))
    space = CodeSpace(planned.bits, ("0", "1"), "none", "0" * 64, hash_centers(centers), preprocessing)
    calibration = pixels[count : 2 * count], pixels[2 * count :]
    none = np.empty((0, planned.size, planned.size, 3), np.uint8)
    codes, logits = np.empty((0, planned.bits // 8), np.uint8), np.empty((0, planned.bits), np.float32)
    golden = none, codes, logits
    request = ExportRequest(net, planned.student, preprocessing, space, centers, calibration, golden)
    return request, pixels[:count], sum(parameter.numel() for parameter in net.parameters())


def embedded_images(size: int, count: int, seed: int) -> NDArray[np.uint8]:
    """Return random images of the embedded set, `[count, size, size, 3]`."""
    from PIL import Image

    from distill.data.fashion_mnist import SUBSET
    from gallery.decode import to_square

    with np.load(SUBSET, allow_pickle=False) as file:
        images = file["images"]
    chosen = np.random.default_rng(seed).permutation(len(images))[:count]
    return np.stack([to_square(Image.fromarray(image).convert("RGB"), size) for image in images[chosen]])


def estimate_batch_norms(net: nn.Module, images: Sequence[Tensor]) -> None:
    """Give every batch norm the statistics of the images with noise: without, channels of no variance explode."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = None  # the mean over all batches
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batch = torch.cat(list(images))
        net.train()(batch + NOISE * torch.randn(batch.shape))
    net.eval()


def _evaluated(request: ExportRequest, queries: NDArray[np.uint8], folder: Path, samples: int) -> Iterator[ModelResult]:
    """Export all variants and evaluate them; without the histograms, which no table shows."""
    from export.exporter import export_all, prepare_quantized
    from export.quantize import logits, normalize
    from mobile_eval.compare import FloatReference
    from mobile_eval.evaluate import evaluate_on

    exact = logits(request.net, normalize(queries, request.preprocessing)).numpy()
    exported = export_all(request, VARIANTS, folder, prepare_quantized(request, VARIANTS))
    reference = FloatReference(queries, exact, request.space)
    for row in evaluate_on(Host(samples), exported, reference).rows:
        yield row.model_copy(update={"bit_flips": (), "worst": (), "margins": (), "disagreements": ()})


def _name(trial: StudentTrial) -> list[str]:
    return [trial.student, str(trial.size), f"{trial.parameters / 1e6:.1f}"]


def _cell(trial: StudentTrial, variant: str, field: str, spec: str, scale: float) -> str:
    model = next((model for model in trial.models if model.variant == variant), None)
    if model is None or model.status != "ran":
        return "not exported" if model is None or not model.path else "not run"
    value = getattr(model, field)
    return "" if value is None else format(value * scale, spec)


def _failures(trial: StudentTrial) -> Iterator[str]:
    if trial.reason:
        yield f"{trial.student}: {trial.reason}"
    for model in trial.models:
        if model.status != "ran":
            yield f"{trial.student}, {model.variant}: {model.reason}"
        elif model.precision == "fp32":
            yield from (f"{trial.student}, {sentence}" for sentence in row_failures(model, Thresholds()))
