"""Read measurements that other tools took on devices; each becomes a `ModelResult` beside our own.

    LiteRT      `benchmark_litert_model.py --result_json` of the ai-edge-litert package, and the message that Google's
                `benchmark_model --result_file_path` writes, as JSON (BenchmarkResult in LiteRT's repository,
                tflite/tools/benchmark/proto/benchmark_result.proto; either spelling of its keys)
    AI Hub      `qai_hub.ProfileJob.download_profile()` as JSON (client.py of qai-hub 0.56): microseconds and bytes
    Twinhash    the output of the bundle's `apps/run_on_mac.py`

The tool is recognised by a key of its report.  Fields that are used must be there with the right type; others may come
and go with the tools' versions.  Only the last of these says whether the codes were right.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from gallery.errors import CorruptFile, InputError
from gallery.results import ModelResult
from mobile_eval.formatting import plain
from mobile_eval.latency import Latency

MAX_BYTES, MAX_SAMPLES, MAX_TEXT = 16 << 20, 1_000_000, 200
Time = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1 << 60)]
Times = Annotated[list[Time], Field(max_length=MAX_SAMPLES)]
Text = Annotated[str, Field(max_length=4096)]


@dataclass(frozen=True)
class Measurement:
    """The result of one model on one device."""

    model: str  # the file name as the tool gives it, maybe without its suffix; empty if the tool gives none
    formats: tuple[str, ...]  # that the model can have
    device: str
    engine: str
    figures: dict[str, Any] = field(default_factory=dict)  # fields of `ModelResult`
    sha256: str = ""  # empty if the tool gives none
    reason: str = ""  # why it did not run there; empty if it did


def read_results(path: Path, model: str = "", device: str = "") -> list[Measurement]:
    """Read the report of any of the tools.

    Args:
        path: the report, as JSON
        model: file name of the model; overrides the name in the report
        device: name of the device; overrides the name in the report

    Raises `CorruptFile` naming the field at fault, `InputError` for a file that is no report.
    """
    data = _load_json(path)
    report = next((report for key, report in REPORTS.items() if key in data), None)
    if report is None:
        known = "a report of LiteRT's benchmark, Qualcomm AI Hub or apps/run_on_mac.py"
        raise InputError(known, f"none of {', '.join(REPORTS)} in {path}", "Give the JSON as the tool wrote it.")
    try:
        measurements = report.model_validate_json(json.dumps(data)).measurements()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CorruptFile(f"{where} in {path}", first["msg"], "Give the JSON as the tool wrote it.") from error
    return [_with_names(measurement, model, device) for measurement in measurements]


def merge_results(rows: Iterable[ModelResult], measurements: Iterable[Measurement]) -> list[ModelResult]:
    """Add one row per measurement; it replaces a row of the same model on the same device.

    A measurement is matched to its model by checksum, else by file name.
    Raises `InputError` if no model or more than one matches, or if the model has another checksum.
    """
    merged = list(rows)
    models = {row.path: row for row in reversed(merged) if row.path}
    for measurement in measurements:
        model = _find_model(measurement, list(models.values()))
        known = model.model_dump(include={"variant", "format", "precision", "path", "bytes", "sha256"})
        known |= {key: getattr(measurement, key) for key in ("device", "engine", "reason")}
        added = ModelResult(**known, status="failed" if measurement.reason else "ran", **measurement.figures)
        merged = [row for row in merged if (row.path, row.device) != (added.path, added.device)] + [added]
    return merged


class _Part(BaseModel):
    """A part of a report: known fields are checked strictly, unknown fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", protected_namespaces=())


class _Report(_Part, ABC):
    @abstractmethod
    def measurements(self) -> list[Measurement]:
        """Convert to one measurement per model and device."""


class _LiteRtLatency(_Part):
    init_ms: Time
    warmup_first_ms: Time
    num_warmup_runs: Count
    avg_ms: Time
    median_ms: Time
    p95_ms: Time
    num_runs: Count


class _LiteRt(_Report):
    """`benchmark_litert_model.py --result_json`, without p90 and p99."""

    model: Text
    accelerators: list[Text]
    fully_accelerated: bool
    num_threads: Count
    latency: _LiteRtLatency

    def measurements(self) -> list[Measurement]:
        latency, units = self.latency, " + ".join(self.accelerators)
        figures = {
            "load_ms": latency.init_ms,
            "first_ms": latency.warmup_first_ms if latency.num_warmup_runs else None,
            "p50_ms": latency.median_ms,
            "samples": latency.num_runs,
            "threads": self.num_threads,
            "conditions": {"mean": _ms(latency.avg_ms), "p95": _ms(latency.p95_ms)}
            | {"fully accelerated": str(self.fully_accelerated).lower()},
        }
        return [Measurement(self.model, ("litert",), "LiteRT benchmark", f"LiteRT {units}", figures)]


class _Proto(_Part):
    """A protocol buffer message as JSON: keys in camel case or as in the .proto file; unset fields are missing."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class _ResultLatency(_Proto):
    avg_ms: Time
    median_ms: Time | None = None
    p95_ms: Time | None = None
    init_ms: Time | None = None
    first_inference_ms: Time | None = None


class _ResultMemory(_Proto):
    peak_mem_mb: Time | None = None


class _ResultMisc(_Proto):
    num_runs: Count | None = None


class _BenchmarkResult(_Proto, _Report):
    """`benchmark_model`; `name` is that of the run, which may be the file name.  Megabytes are of 2**20 bytes."""

    name: Text = ""
    latency_metrics: _ResultLatency
    memory_metrics: _ResultMemory = _ResultMemory()
    misc_metrics: _ResultMisc = _ResultMisc()

    def measurements(self) -> list[Measurement]:
        latency, memory = self.latency_metrics, self.memory_metrics.peak_mem_mb
        known = {"mean": latency.avg_ms, "p95": latency.p95_ms}
        conditions = {name: _ms(value) for name, value in known.items() if value is not None}
        figures = {
            "load_ms": latency.init_ms,
            "first_ms": latency.first_inference_ms,
            "p50_ms": latency.median_ms,
            "samples": self.misc_metrics.num_runs,
            "conditions": conditions | ({} if memory is None else {"peak memory of the process": f"{memory:.1f} MiB"}),
        }
        return [Measurement(self.name, ("litert",), "LiteRT benchmark", "LiteRT", figures)]


class _Layer(_Part):
    compute_unit: Text


class _Summary(_Part):
    estimated_inference_time: Time
    first_load_time: Time | None = None
    inference_memory_increase_range: tuple[Count, Count] | None = None
    all_inference_times: Times = []


class _AiHub(_Report):
    """A profile names neither model nor device.  Its estimate is no percentile: those come from the single times."""

    execution_summary: _Summary
    execution_detail: Annotated[list[_Layer], Field(max_length=100_000)] = []

    def measurements(self) -> list[Measurement]:
        summary, layers = self.execution_summary, Counter(layer.compute_unit for layer in self.execution_detail)
        times = [time / 1000 for time in summary.all_inference_times]
        added = summary.inference_memory_increase_range
        figures = _percentiles(times) if times else {}
        figures["load_ms"] = None if summary.first_load_time is None else summary.first_load_time / 1000
        figures["peak_memory_mb"] = None if added is None else added[1] / 1e6
        figures["conditions"] = {"AI Hub's estimate": _ms(summary.estimated_inference_time / 1000)}
        if layers:
            figures["conditions"]["layers"] = ", ".join(f"{unit} {count}" for unit, count in sorted(layers.items()))
        return [Measurement("", ("litert", "onnx", "coreml"), "Qualcomm AI Hub", "Qualcomm AI Hub", figures)]


class _MacMachine(_Part):
    name: Text
    chip: Text
    macos: Text
    coremltools: Text
    thermal: Text = ""


class _MacRow(_Part):
    file: Text
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    unit: Literal["CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE", "ALL"]
    error: Text = ""
    load_ms: Time | None = None
    first_ms: Time | None = None
    samples_ms: Times = []
    bits_compared: Count = 0
    bits_flipped: Count = 0
    flips_beyond_tolerance: Count = 0


class _Mac(_Report):
    """`apps/run_on_mac.py`: one row per model and compute unit; bit flips are over the golden inputs."""

    version: Literal[1] = Field(alias="run_on_mac")
    machine: _MacMachine
    rows: Annotated[list[_MacRow], Field(min_length=1, max_length=1000)]

    def measurements(self) -> list[Measurement]:
        machine, made = self.machine, []
        for row in self.rows:
            figures = _percentiles(row.samples_ms) if row.samples_ms else {}
            if row.bits_compared:
                figures |= {"bits_compared": row.bits_compared, "bits_flipped": row.bits_flipped}
                figures["bit_flip_rate"] = row.bits_flipped / row.bits_compared
                figures["flips_beyond_tolerance"] = row.flips_beyond_tolerance
            conditions = {"machine": machine.name, "chip": machine.chip, "compute units": row.unit}
            conditions |= {"coremltools": machine.coremltools, "images": "golden"}
            figures |= {"load_ms": row.load_ms, "first_ms": row.first_ms, "conditions": conditions}
            device, engine = f"apple-{row.unit.lower().replace('_', '-')}", f"Core ML, macOS {machine.macos}"
            made.append(Measurement(row.file, ("coreml",), device, engine, figures, row.sha256, row.error))
        return made


REPORTS: dict[str, type[_Report]] = {
    "run_on_mac": _Mac,
    "execution_summary": _AiHub,
    "latency_metrics": _BenchmarkResult,
    "latencyMetrics": _BenchmarkResult,
    "latency": _LiteRt,
}


def _load_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        data = json.loads(path.read_bytes())
        if not isinstance(data, dict):
            raise ValueError(f"a JSON {type(data).__name__}, not an object")
        return data
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFile(f"a report in JSON at {path}", str(error)[:MAX_TEXT], "Export it again.") from error


def _with_names(measurement: Measurement, model: str, device: str) -> Measurement:
    """Apply the caller's names, and strip what could break a terminal or a table from every text."""
    named = {**vars(measurement), "model": model or measurement.model, "device": device or measurement.device}
    texts = {key: plain(value)[:MAX_TEXT] for key, value in named.items() if isinstance(value, str)}
    conditions = {key: plain(value)[:MAX_TEXT] for key, value in measurement.figures["conditions"].items()}
    return Measurement(**named | texts | {"figures": measurement.figures | {"conditions": conditions}})


def _find_model(measurement: Measurement, models: Sequence[ModelResult]) -> ModelResult:
    name, sha256 = measurement.model, measurement.sha256
    known = ", ".join(row.path for row in models) or "none"
    file_name = PurePosixPath(name.replace("\\", "/")).name  # of any operating system's path
    if not (name or sha256):
        what = f"the name of the model that {measurement.device} measured"
        raise InputError(what, "none in its report", f"Name it: {known}.")
    by_name = [row for row in models if file_name in (PurePosixPath(row.path).name, PurePosixPath(row.path).stem)]
    by_name = [row for row in by_name if row.format in measurement.formats]
    found = [row for row in models if sha256 and row.sha256 == sha256] or by_name
    if len(found) != 1:
        what = f"one file called {name} among {known}"
        raise InputError(what, f"{len(found)} of them", "Name the file as the bundle does, with its suffix.")
    if sha256 not in ("", found[0].sha256):
        what = f"{name} with sha256 {found[0].sha256[:16]}, as in this bundle"
        raise InputError(what, sha256[:16], "Measure this bundle's file.")
    return found[0]


def _percentiles(times: Sequence[float]) -> dict[str, Any]:
    """Percentiles of single times in milliseconds; which of them came first is unknown."""
    return {key: value for key, value in vars(Latency.of(0, times)).items() if key != "first_ms"}


def _ms(value: float) -> str:
    return f"{value:.3f} ms"
