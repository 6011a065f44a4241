"""Read measurements that other tools took on devices; each becomes a `ModelResult` beside our own.

    LiteRT      `benchmark_litert_model.py --result_json` of the ai-edge-litert package, and the message that Google's
                `benchmark_model --result_file_path` writes, as JSON (BenchmarkResult in LiteRT's repository,
                tflite/tools/benchmark/proto/benchmark_result.proto; either spelling of its keys)
    AI Hub      `qai_hub.ProfileJob.download_profile()` as JSON (client.py of qai-hub 0.56): microseconds and bytes
    Twinhash    the output of the bundle's `apps/run_on_mac.py`

The tool is recognised by a key of its report.  Fields that are used must be there with the right type; others may come
and go with the tools' versions.  Only the last of these says whether the codes were right.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from gallery.console import plain
from gallery.errors import CorruptFile, InputError
from gallery.files import read_json
from gallery.results import ModelResult
from mobile_eval.latency import Latency

MAX_BYTES, MAX_SAMPLES, MAX_TEXT = 16 << 20, 1_000_000, 200
Time = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1 << 60)]
Times = Annotated[list[Time], Field(max_length=MAX_SAMPLES)]
Text = Annotated[str, Field(max_length=4096)]


@dataclass(frozen=True)
class Measurement:
    """The result of one model on one device.

    model, sha256: the file name, maybe without its suffix, and the checksum; empty if the tool gives none
    formats: that the model can have; figures: fields of `ModelResult`; reason: why it did not run there
    """

    model: str
    formats: tuple[str, ...]
    device: str
    engine: str
    figures: dict[str, Any]
    sha256: str = ""
    reason: str = ""


def read_results(path: Path, model: str = "", device: str = "") -> list[Measurement]:
    """Read the report of any of the tools.

    model, device: file name of the model and name of the device; override those in the report
    Raises `CorruptFile` naming the field at fault, `InputError` for a file that is no report.
    """
    try:
        data = read_json(path, dict, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise CorruptFile(f"a report in JSON at {path}", str(error)[:MAX_TEXT], "Export it again.") from error
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


def _at(path: str, default: Any = ...) -> Any:
    """Declare a field by its path in the report; protocol buffers as JSON have keys in camel case, or these."""
    keys = path.split(".")
    return Field(default, validation_alias=AliasChoices(AliasPath(*keys), AliasPath(*map(to_camel, keys))))


class _Part(BaseModel):
    """A part of a report: known fields are checked strictly, unknown fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", protected_namespaces=())

    def figures(self) -> dict[str, Any]:
        """Fields called as in `ModelResult`, but for the checksum."""
        return self.model_dump(include=ModelResult.model_fields.keys() - {"sha256"})


class _LiteRt(_Part):
    """`benchmark_litert_model.py --result_json`, without p90 and p99."""

    model: Text
    accelerators: list[Text]
    fully_accelerated: bool
    threads: Count = _at("num_threads")
    load_ms: Time = _at("latency.init_ms")
    warmup_first_ms: Time = _at("latency.warmup_first_ms")
    num_warmup_runs: Count = _at("latency.num_warmup_runs")
    mean_ms: Time = _at("latency.avg_ms")
    p50_ms: Time = _at("latency.median_ms")
    p95_ms: Time = _at("latency.p95_ms")
    samples: Count = _at("latency.num_runs")

    def measurements(self) -> list[Measurement]:
        figures = self.figures() | {"first_ms": self.warmup_first_ms if self.num_warmup_runs else None}
        figures["conditions"] = {"mean": _ms(self.mean_ms), "p95": _ms(self.p95_ms)}
        figures["conditions"]["fully accelerated"] = str(self.fully_accelerated).lower()
        engine = f"LiteRT {' + '.join(self.accelerators)}"
        return [Measurement(self.model, ("litert", "mediapipe"), "LiteRT benchmark", engine, figures)]


class _BenchmarkResult(_Part):
    """`benchmark_model`; `name` is that of the run, which may be the file name.  Megabytes are of 2**20 bytes."""

    name: Text = ""
    load_ms: Time | None = _at("latency_metrics.init_ms", None)
    first_ms: Time | None = _at("latency_metrics.first_inference_ms", None)
    mean_ms: Time = _at("latency_metrics.avg_ms")
    p50_ms: Time | None = _at("latency_metrics.median_ms", None)
    p95_ms: Time | None = _at("latency_metrics.p95_ms", None)
    peak_mib: Time | None = _at("memory_metrics.peak_mem_mb", None)
    samples: Count | None = _at("misc_metrics.num_runs", None)

    def measurements(self) -> list[Measurement]:
        peak = "" if self.peak_mib is None else f"{self.peak_mib:.1f} MiB"
        conditions = {"mean": _ms(self.mean_ms), "p95": _ms(self.p95_ms), "peak memory of the process": peak}
        figures = self.figures() | {"conditions": conditions}
        return [Measurement(self.name, ("litert", "mediapipe"), "LiteRT benchmark", "LiteRT", figures)]


class _Layer(_Part):
    compute_unit: Text


class _AiHub(_Part):
    """A profile names neither model nor device.  Its estimate is no percentile: those come from the single times."""

    estimate_us: Time = _at("execution_summary.estimated_inference_time")
    load_us: Time | None = _at("execution_summary.first_load_time", None)
    added_bytes: tuple[Count, Count] | None = _at("execution_summary.inference_memory_increase_range", None)
    samples_us: Times = _at("execution_summary.all_inference_times", [])
    layers: Annotated[list[_Layer], Field(max_length=100_000)] = _at("execution_detail", [])

    def measurements(self) -> list[Measurement]:
        units = Counter(layer.compute_unit for layer in self.layers)
        layers = ", ".join(f"{unit} {count}" for unit, count in sorted(units.items()))
        figures = _percentiles([time / 1000 for time in self.samples_us])
        figures["load_ms"] = None if self.load_us is None else self.load_us / 1000
        figures["peak_memory_mb"] = None if self.added_bytes is None else self.added_bytes[1] / 1e6
        figures["conditions"] = {"AI Hub's estimate": _ms(self.estimate_us / 1000), "layers": layers}
        return [
            Measurement("", ("litert", "mediapipe", "onnx", "coreml"), "Qualcomm AI Hub", "Qualcomm AI Hub", figures)
        ]


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


class _Mac(_Part):
    """`apps/run_on_mac.py`: one row per model and compute unit; bit flips are over the golden inputs."""

    version: Literal[1] = Field(alias="run_on_mac")
    name: Text = _at("machine.name")
    chip: Text = _at("machine.chip")
    macos: Text = _at("machine.macos")
    coremltools: Text = _at("machine.coremltools")
    rows: Annotated[list[_MacRow], Field(min_length=1, max_length=1000)]

    def measurements(self) -> list[Measurement]:
        measurements = []
        for row in self.rows:
            figures = row.figures() | _percentiles(row.samples_ms)
            if row.bits_compared:
                figures["bit_flip_rate"] = row.bits_flipped / row.bits_compared
            else:
                figures |= dict.fromkeys(("bits_compared", "bits_flipped", "flips_beyond_tolerance"))
            figures["conditions"] = {"machine": self.name, "chip": self.chip, "compute units": row.unit}
            figures["conditions"] |= {"coremltools": self.coremltools, "images": "golden"}
            device, engine = f"apple-{row.unit.lower().replace('_', '-')}", f"Core ML, macOS {self.macos}"
            measurements.append(Measurement(row.file, ("coreml",), device, engine, figures, row.sha256, row.error))
        return measurements


REPORTS: dict[str, type[_LiteRt | _BenchmarkResult | _AiHub | _Mac]] = {
    "run_on_mac": _Mac, "execution_summary": _AiHub, "latency": _LiteRt,
    "latency_metrics": _BenchmarkResult, "latencyMetrics": _BenchmarkResult,
}  # fmt: skip


def _with_names(measurement: Measurement, model: str, device: str) -> Measurement:
    """Apply the caller's names, and strip what could break a terminal or a table from every text."""
    named = {**vars(measurement), "model": model or measurement.model, "device": device or measurement.device}
    texts = {key: plain(value)[:MAX_TEXT] for key, value in named.items() if isinstance(value, str)}
    conditions = {key: plain(value)[:MAX_TEXT] for key, value in measurement.figures["conditions"].items() if value}
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
    """Percentiles of single times in milliseconds, if there are any; which of them came first is unknown."""
    return {key: value for key, value in vars(Latency.of(0, times)).items() if key != "first_ms"} if times else {}


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3f} ms"
