"""A made-up run, complete enough for every rendering."""

from __future__ import annotations

from typing import Any

from gallery.results import (
    MARGIN_BINS,
    STUDENT_GALLERY,
    STUDENT_STUDENT,
    TEACHER_TEACHER,
    EvaluationProtocol,
    LayerSensitivity,
    ModelResult,
    ModelSummary,
    Quantization,
    RetrievalExample,
    RetrievalPair,
    RunResults,
    Skipped,
    SystemInfo,
    Thresholds,
    Thumbnail,
    TrainingCurve,
    WorstQuery,
)
from mobile_eval.gate import check

IMAGE = "data:image/png;base64,iVBORw0KGgo="


def ran(form: str = "onnx-fp32", **changes: Any) -> ModelResult:
    """A file that holds every default limit, unless changed."""
    format, _, precision = form.partition("-")
    good = {
        "path": f"bundle/{form}.{format}",
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
    return ModelResult(**{"variant": form, "format": format, "precision": precision, **good, **changes})


def not_run(form: str = "coreml-w8a32", status: str = "skipped", reason: str = "MissingBackend: none") -> ModelResult:
    """A file without figures."""
    format, _, precision = form.partition("-")
    return ModelResult(variant=form, format=format, precision=precision, path=form, status=status, reason=reason)


def cells(teacher: float = 0.72, student: float = 0.70) -> tuple[RetrievalPair, ...]:
    """The four cells."""
    values = {TEACHER_TEACHER: teacher, STUDENT_GALLERY: student, STUDENT_STUDENT: 0.6933}
    return tuple(RetrievalPair(name=name, map=value, map_retrieved=0.7321) for name, value in values.items())


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
        "code_space": "5e1c0a4f0b8d91c2",
        "bits": 64,
        "student": f"net {label}",
        "query_set": f"{label}: 1,000 queries",
        "num_queries": 1000,
        "gallery_size": 6000,
        "map": 0.7,
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
        "pairs": cells(),
        "models": files,
        "thresholds": Thresholds(),
        "gate": check(files, Thresholds(), cells()),
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
        "system": SystemInfo(
            cpu=f"CPU {label}",
            cores=2,
            memory_gb=23.4,
            gpu=None,
            os="Linux",
            python="3.11.2",
            packages={"torch": "2.13.0"},
        ),
    }
    return RunResults(**{**made, **changes})
