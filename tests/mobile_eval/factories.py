"""A made-up run, complete enough for every rendering."""

from __future__ import annotations

from typing import Any

from gallery.open_world import OpenWorldMaps
from gallery.open_world_results import FLOAT_COSINE, ITQ_GALLERY, ITQ_TRAIN, OpenWorldResults, OpenWorldRow
from gallery.partition_results import DelegatePartitions
from gallery.results import (
    MARGIN_BINS,
    STUDENT_GALLERY,
    STUDENT_STUDENT,
    TEACHER_TEACHER,
    BitDisagreement,
    EvaluationProtocol,
    EvaluationResults,
    ModelResult,
    ModelSummary,
    RetrievalExample,
    RetrievalPair,
    RunResults,
    Skipped,
    SystemInfo,
    Thresholds,
    Thumbnail,
    WorstQuery,
)
from gallery.training_results import LayerSensitivity, Quantization, TrainingCurve
from mobile_eval.gate import check

BITS = 16
FLIPS = (0,) * 5 + (3,) + (0,) * 9 + (7,)
IMAGE = "data:image/png;base64,iVBORw0KGgo="


def ran(variant: str = "onnx-fp32", **changes: Any) -> ModelResult:
    """A file that holds every default threshold, unless changed."""
    format, _, precision = variant.partition("-")
    good = {
        "path": f"bundle/{variant}.{format}",
        "status": "ran",
        "engine": f"Engine of {format}",
        "bytes": 8_512_345,
        "sha256": "ab" * 32,
        "bits_compared": 64_000,
        "bits_flipped": 12,
        "bit_flip_rate": 12 / 64_000,
        "flips_beyond_tolerance": 0,
        "predicted_bit_flip_rate": 0.0002,
        "worst": (WorstQuery(query=731, flipped=3),),
        "margins": (1,) * MARGIN_BINS,
        "map": 0.7011,
        "map_drop": 0.0004,
        "load_ms": 41.0,
        "first_ms": 9.0,
        "p50_ms": 2.61,
        "p90_ms": 3.07,
        "p99_ms": 4.0,
        "samples": 200,
        "threads": 1,
    }
    return ModelResult(**{"variant": variant, "format": format, "precision": precision, **good, **changes})


def not_run(
    variant: str = "coreml-w8a32", status: str = "skipped", reason: str = "MissingBackend: none"
) -> ModelResult:
    """A file without figures."""
    format, _, precision = variant.partition("-")
    return ModelResult(variant=variant, format=format, precision=precision, path=variant, status=status, reason=reason)


def pairs(teacher: float = 0.72, student: float = 0.70) -> tuple[RetrievalPair, ...]:
    """The three query->gallery pairs."""
    values = {TEACHER_TEACHER: teacher, STUDENT_GALLERY: student, STUDENT_STUDENT: 0.6933}
    return tuple(RetrievalPair(name=name, map=value, map_retrieved=0.7321) for name, value in values.items())


def open_world(label: str = "", **changes: Any) -> OpenWorldResults:
    """A run with six classes that it was not trained on; label: why there are no baselines."""
    maps = {
        TEACHER_TEACHER: (0.9671, 0.9208, 0.5202, 0.2065),
        STUDENT_GALLERY: (0.9132, 0.8642, 0.5338, 0.1941),
        FLOAT_COSINE: (0.5957, 0.5098, 0.6909, 0.4342),
        ITQ_TRAIN: (0.6073, 0.5133, 0.6202, 0.3239),
        ITQ_GALLERY: (0.5942, 0.5196, None, 0.4154),
    }
    names = tuple(OpenWorldMaps.model_fields)
    made: dict[str, Any] = {
        "classes": (15, 6),
        "queries": (300, 120),
        "gallery": (1200, 480),
        "unlabeled": {"teacher": 0, "student": 480},
        "rows": tuple(
            OpenWorldRow(name=name, maps=OpenWorldMaps(**dict(zip(names, values, strict=True))))
            for name, values in maps.items()
        ),
        "no_baselines": label,
    }
    return OpenWorldResults(**{**made, **changes})


def system_info(label: str) -> SystemInfo:
    """A machine whose processor's name holds `label`."""
    packages = {"torch": "2.13.0"}
    return SystemInfo(
        cpu=f"CPU {label}", cores=2, memory_gb=23.4, gpu=None, os="Linux", python="3.11.2", packages=packages
    )


def results(label: str = "Ankle boot", random: bool = True, **changes: Any) -> RunResults:
    """A run whose every free text is, or holds, `label`."""
    files = (
        ran(),
        ran("litert-w8a32", bytes=2_310_000, bit_flip_rate=0.0123, map=0.6987, p90_ms=5.19),
        not_run(reason=f"MissingBackend: {label}"),
    )
    tile = Thumbnail(image=IMAGE, label=label)
    hits = tuple(tile.model_copy(update={"distance": d, "right": d % 3 > 0}) for d in range(10))
    network = {
        "name": f"net {label}",
        "size": 64,
        "weights": f"from {label}",
        "random": random,
        "seconds": 61.5,
        "steps": 940,
    }
    made: dict[str, Any] = {
        "created": "2026-01-02T03:04:05+00:00",
        "command": f"run.py --data {label}",
        "name": f"run {label}",
        "seed": 7,
        "student": f"net {label}",
        "query_set": f"{label}: 1,000 queries",
        "num_queries": 1000,
        "gallery_size": 6000,
        "map": 0.7,
        "code_space": "5e1c0a4f0b8d91c2",
        "bits": 64,
        "center_distance": 32,
        "protocol": EvaluationProtocol(
            dataset=label,
            classes=10,
            train=5400,
            validation=600,
            gallery=6000,
            query=1000,
            seed=3,
        ),
        "model_summaries": (
            ModelSummary(role="teacher", parameters=85_848_640, **network),
            ModelSummary(role="student", parameters=4_266_017, **network),
        ),
        "pairs": pairs(),
        "open_world": None,
        "models": files,
        "thresholds": Thresholds(),
        "gate": check(files, Thresholds(), pairs()),
        "curves": (
            TrainingCurve(
                stage=f"teacher {label}",
                steps=(1, 2, 3),
                loss=(3.0, 2.0, 1.5),
                accuracy=(0.1, 0.5, 0.6),
                validation=((3, 0.55),),
            ),
        ),
        "quantization": Quantization(
            calibration=f"ranges of 256 {label}",
            flips={"weights": 0.0021, "int8": 0.0107},
            layers=(
                LayerSensitivity(layer=f"first {label}", mode="weights", flips=0.0031, error=0.051, kept=True),
                LayerSensitivity(layer=f"other {label}", mode="int8", flips=0.0007, error=0.004, kept=False),
            ),
        ),
        "examples": (RetrievalExample(query=tile, hits=hits),),
        "skipped": (Skipped(path=f"a/{label}.jpg", reason=f"bad {label}"),),
        "seconds": {"data": 2.0, f"stage {label}": 356.0},
        "system": system_info(label),
    }
    return RunResults(**{**made, **changes})


def there(variant: str, device: str, **changes: Any) -> ModelResult:
    """A model compared with the host's."""
    listed = tuple(BitDisagreement(query=40 + i, bit=i, logit=0.0123 * (i + 1), host=-0.0456) for i in range(3))
    found = {"host_flips": 6, "host_flips_beyond": 5, "disagreements": listed, "conditions": {"kind": device}}
    return ran(variant, device=device, **{**found, **changes})


def evaluation(label: str = "Ankle boot", **changes: Any) -> EvaluationResults:
    """An evaluation on five devices; every free text is or contains `label`."""
    untimed = dict.fromkeys(("load_ms", "first_ms", "p50_ms", "p90_ms", "p99_ms", "samples"))
    bits = ("bits_compared", "bits_flipped", "bit_flip_rate", "flips_beyond_tolerance", "predicted_bit_flip_rate")
    bare = dict.fromkeys((*bits, "map", "map_drop"))
    taken = DelegatePartitions(delegate="Core ML NeuralNetwork", operations=150, supported=110, partitions=41)
    delegates = (taken, DelegatePartitions(delegate="NNAPI", reason=f"ValueError: {label}"))
    files = (
        ran(
            bit_flips=FLIPS, conditions={"cpu": label}, peak_memory_mb=35.04, recall_at_10=0.9712, partitions=delegates
        ),
        ran("litert-w8a8", bit_flips=(0,) * BITS, bytes=2_310_000, p50_ms=0.5, margins=(2,) * MARGIN_BINS),
        there(
            "onnx-fp32",
            "arm64-cortex-a53",
            **untimed,
            precision="fp16",
            instructions=36_763_297,
            conditions={"profile": label, "loads": "7,645,773"},
        ),
        there(
            "litert-w8a8",
            "arm64-cortex-a53",
            **untimed,
            instructions=13_026_917,
            host_flips=0,
            host_flips_beyond=0,
            disagreements=(),
            worst=(WorstQuery(query=9, flipped=2),),
            conditions={"profile": label, "loads": "4,784,391"},
        ),
        not_run("coreml-fp16", reason=f"MissingBackend: {label} a").model_copy(update={"device": "arm64-cortex-a53"}),
        *(
            not_run(variant, reason=f"MissingBackend: no {label} b").model_copy(update={"device": "browser-webgpu"})
            for variant in ("onnx-fp32", "litert-w8a8")
        ),
        not_run("onnx-fp32", "failed", f"WorkerFailed: {label} c").model_copy(update={"device": "android"}),
        ran(
            "coreml-fp16",
            device=f"phone {label}",
            **untimed | bare | {"p50_ms": 0.61},
            margins=(),
            worst=(),
            conditions={"units": label},
        ),
    )
    tile = Thumbnail(image=IMAGE, label=label)
    made: dict[str, Any] = {
        "created": "2026-01-02T03:04:05+00:00",
        "command": f"check {label}",
        "name": f"bundle {label}",
        "code_space": "5e1c0a4f0b8d91c2",
        "bits": BITS,
        "student": f"net {label}",
        "query_set": f"1,000 images of {label}",
        "num_queries": 1000,
        "gallery_size": 6001,
        "map": 0.7015,
        "models": files,
        "thresholds": Thresholds(max_p90_latency_ms={"host": 50.5}, max_size_mb=77.5),
        "gate": check(files, Thresholds()),
        "examples": (
            RetrievalExample(query=tile, hits=tuple(tile.model_copy(update={"distance": d}) for d in range(41, 51))),
        ),
        "system": system_info(label),
    }
    return EvaluationResults(**{**made, **changes})
