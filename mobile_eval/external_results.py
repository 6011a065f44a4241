"""What other tools measured on devices that we do not hold: their JSON becomes rows beside ours.

    LiteRT      `benchmark_litert_model.py --result_json` of the ai-edge-litert package, and the message that Google's
                `benchmark_model --result_file_path` writes, as JSON (BenchmarkResult in LiteRT's repository,
                tflite/tools/benchmark/proto/benchmark_result.proto; either spelling of its keys)
    Xcode       report.json in the .mlperf folder that Xcode 16 exports for a Core ML performance report; Apple does
                not document it, so this is what such reports were seen to hold: samples in seconds, MLComputeUnits
    AI Hub      `qai_hub.ProfileJob.download_profile()` as JSON (client.py of qai-hub 0.56): microseconds and bytes
    Twinhash    what the bundle's `apps/run_on_mac.py` writes

Which one a file is, is told from its keys.  Fields that are used must be there with the right type; others may come
and go with the tools' versions.  None of these but the last says whether the codes were right.
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
UNITS = ("CPU_ONLY", "CPU_AND_GPU", "ALL", "CPU_AND_NE")  # MLComputeUnits by its raw values
Time = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1 << 60)]
Samples = Annotated[list[Time], Field(min_length=1, max_length=MAX_SAMPLES)]
Text = Annotated[str, Field(max_length=4096)]


@dataclass(frozen=True)
class Measurement:
    """What a tool says of one file on one device.

    model:   the file's name as the tool gives it, maybe without its suffix, empty when it does not
    formats: what the file can be; sha256: its checksum, empty when the tool gives none
    figures: fields of `ModelResult`; reason: why it did not run there, empty when it did
    """

    model: str
    formats: tuple[str, ...]
    device: str
    engine: str
    figures: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    reason: str = ""


def read(path: Path, model: str = "", device: str = "") -> list[Measurement]:
    """Reads a report, of whichever tool.

    model, device: the file's and the device's name, for tools that do not give them; they go before what a tool says.
    Raises `CorruptFile` naming the field at fault, `InputError` for a file that is no report.
    """
    data = _data(path / "report.json" if path.is_dir() else path)
    kind = next((kind for key, kind in KINDS.items() if key in data), None)
    if kind is None:
        known = "a report of LiteRT's benchmark, Xcode, Qualcomm AI Hub or apps/run_on_mac.py"
        raise InputError(known, f"none of {', '.join(KINDS)} in {path}", "Give the JSON as the tool wrote it.")
    try:
        found = kind.model_validate_json(json.dumps(data)).measurements()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise CorruptFile(f"{place} in {path}", first["msg"], "Give the JSON as the tool wrote it.") from error
    return [_named(one, model, device) for one in found]


def merge(rows: Iterable[ModelResult], measurements: Iterable[Measurement]) -> list[ModelResult]:
    """The rows, and one more for each measurement; it replaces a row of the same file on the same device.

    A measurement belongs to the file with its checksum, or else with its name.
    Raises `InputError` when there is none, more than one, or when that file has another checksum.
    """
    merged = list(rows)
    files = {row.path: row for row in reversed(merged) if row.path}
    for one in measurements:
        made = _row(one, _file(one, list(files.values())))
        merged = [row for row in merged if (row.path, row.device) != (made.path, made.device)] + [made]
    return merged


class _Part(BaseModel):
    """A piece of a report: what we know of it must be as we know it, what we do not is left alone."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", protected_namespaces=())


class _Report(_Part, ABC):
    """A whole one."""

    @abstractmethod
    def measurements(self) -> list[Measurement]:
        """What the report holds, in our words."""


class _LiteRtLatency(_Part):
    init_ms: Time
    warmup_first_ms: Time
    num_warmup_runs: Count
    avg_ms: Time
    median_ms: Time
    p95_ms: Time
    num_runs: Count


class _LiteRt(_Report):
    """`benchmark_litert_model.py --result_json`: no p90 and no p99."""

    model: Text
    accelerators: list[Text]
    fully_accelerated: bool
    num_threads: Count
    latency: _LiteRtLatency

    def measurements(self) -> list[Measurement]:
        """One file."""
        taken, units = self.latency, " + ".join(self.accelerators)
        figures = {
            "load_ms": taken.init_ms,
            "first_ms": taken.warmup_first_ms if taken.num_warmup_runs else None,
            "p50_ms": taken.median_ms,
            "samples": taken.num_runs,
            "threads": self.num_threads,
            "conditions": {
                "mean": _ms(taken.avg_ms),
                "p95": _ms(taken.p95_ms),
                "fully accelerated": str(self.fully_accelerated).lower(),
            },
        }
        return [Measurement(self.model, ("litert",), "LiteRT benchmark", f"LiteRT {units}", figures)]


class _Proto(_Part):
    """A protocol buffer's message as JSON: keys in camel case, or as in the .proto file; what is unset is left out."""

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
    """`benchmark_model`: its name is that of the run, which may be the file's.  It counts megabytes of 2**20 bytes."""

    name: Text = ""
    latency_metrics: _ResultLatency
    memory_metrics: _ResultMemory = _ResultMemory()
    misc_metrics: _ResultMisc = _ResultMisc()

    def measurements(self) -> list[Measurement]:
        """One file."""
        taken, memory = self.latency_metrics, self.memory_metrics.peak_mem_mb
        known = {"mean": taken.avg_ms, "p95": taken.p95_ms}
        conditions = {name: _ms(value) for name, value in known.items() if value is not None}
        figures = {
            "load_ms": taken.init_ms,
            "first_ms": taken.first_inference_ms,
            "p50_ms": taken.median_ms,
            "samples": self.misc_metrics.num_runs,
            "conditions": conditions | ({} if memory is None else {"peak memory of the process": f"{memory:.1f} MiB"}),
        }
        return [Measurement(self.name, ("litert",), "LiteRT benchmark", "LiteRT", figures)]


class _XcodeModel(_Part):
    file_name: Text = Field(alias="fileName")


class _XcodeDevice(_Part):
    name: Text = Field(alias="modelName")
    system: Text = Field(alias="osNameAndVersionWithoutBuildNumber")


class _XcodePredict(_Part):
    samples: Samples


class _XcodeResults(_Part):
    predict: _XcodePredict


class _Xcode(_Report):
    """Xcode gives every prediction's time; which of them was the first ever is not said."""

    model: _XcodeModel = Field(alias="modelMetadata")
    device: _XcodeDevice = Field(alias="deviceInfo")
    unit: Annotated[int, Field(ge=0, lt=len(UNITS))] = Field(alias="computeUnit")
    results: _XcodeResults = Field(alias="deviceResults")

    def measurements(self) -> list[Measurement]:
        """One file."""
        figures = _spread([1000 * sample for sample in self.results.predict.samples])
        figures["conditions"] = {"compute units": UNITS[self.unit], "system": self.device.system}
        engine = f"Core ML, {self.device.system}"
        return [Measurement(self.model.file_name, ("coreml",), self.device.name, engine, figures)]


class _Layer(_Part):
    compute_unit: Text


class _Summary(_Part):
    estimated_inference_time: Time
    first_load_time: Time | None = None
    inference_memory_increase_range: tuple[Count, Count] | None = None
    all_inference_times: Annotated[list[Time], Field(max_length=MAX_SAMPLES)] = []


class _AiHub(_Report):
    """A profile names neither file nor device.  Its estimate is no percentile: those come from the single times."""

    execution_summary: _Summary
    execution_detail: Annotated[list[_Layer], Field(max_length=100_000)] = []

    def measurements(self) -> list[Measurement]:
        """One file."""
        summary, layers = self.execution_summary, Counter(layer.compute_unit for layer in self.execution_detail)
        times = [time / 1000 for time in summary.all_inference_times]
        added = summary.inference_memory_increase_range
        figures = _spread(times) if times else {}
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
    samples_ms: Annotated[list[Time], Field(max_length=MAX_SAMPLES)] = []
    bits_compared: Count = 0
    bits_flipped: Count = 0
    flips_beyond_tolerance: Count = 0


class _Mac(_Report):
    """`apps/run_on_mac.py`: a row a file and compute unit; the flips are those of the golden pictures."""

    version: Literal[1] = Field(alias="run_on_mac")
    machine: _MacMachine
    rows: Annotated[list[_MacRow], Field(min_length=1, max_length=1000)]

    def measurements(self) -> list[Measurement]:
        """Each row."""
        return [self._measurement(row) for row in self.rows]

    def _measurement(self, row: _MacRow) -> Measurement:
        machine, figures = self.machine, _spread(row.samples_ms) if row.samples_ms else {}
        if row.bits_compared:
            figures["bits_compared"], figures["bits_flipped"] = row.bits_compared, row.bits_flipped
            figures["flip_rate"] = row.bits_flipped / row.bits_compared
            figures["flips_beyond_tolerance"] = row.flips_beyond_tolerance
        conditions = {"machine": machine.name, "chip": machine.chip, "compute units": row.unit}
        conditions |= {"coremltools": machine.coremltools, "pictures": "golden"}
        figures |= {"load_ms": row.load_ms, "first_ms": row.first_ms, "conditions": conditions}
        device, engine = f"apple-{row.unit.lower().replace('_', '-')}", f"Core ML, macOS {machine.macos}"
        return Measurement(row.file, ("coreml",), device, engine, figures, row.sha256, row.error)


KINDS: dict[str, type[_Report]] = {
    "run_on_mac": _Mac,
    "execution_summary": _AiHub,
    "deviceResults": _Xcode,
    "latency_metrics": _BenchmarkResult,
    "latencyMetrics": _BenchmarkResult,
    "latency": _LiteRt,
}


def _data(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        data = json.loads(path.read_bytes())
        if not isinstance(data, dict):
            raise ValueError(f"a JSON {type(data).__name__}, not an object")
        return data
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFile(f"a report in JSON at {path}", str(error)[:MAX_TEXT], "Export it again.") from error


def _named(one: Measurement, model: str, device: str) -> Measurement:
    """With the caller's names in place of the tool's, and every text fit for a terminal and a table."""
    named = {**vars(one), "model": model or one.model, "device": device or one.device}
    texts = {key: plain(value)[:MAX_TEXT] for key, value in named.items() if isinstance(value, str)}
    conditions = {key: plain(value)[:MAX_TEXT] for key, value in one.figures["conditions"].items()}
    return Measurement(**named | texts | {"figures": one.figures | {"conditions": conditions}})


def _file(one: Measurement, files: Sequence[ModelResult]) -> ModelResult:
    known = ", ".join(row.path for row in files) or "none"
    if not (one.model or one.sha256):
        raise InputError(f"the name of the file that {one.device} measured", "none in its report", f"Name it: {known}.")
    found = [row for row in files if one.sha256 and row.sha256 == one.sha256] or [
        row for row in files if row.format in one.formats and _same(one.model, row.path)
    ]
    if len(found) != 1:
        what = f"one file called {one.model} among {known}"
        raise InputError(what, f"{len(found)} of them", "Name the file as the bundle does, with its suffix.")
    if one.sha256 not in ("", found[0].sha256):
        what = f"{one.model} with sha256 {found[0].sha256[:16]}, as in this bundle"
        raise InputError(what, one.sha256[:16], "Measure this bundle's file.")
    return found[0]


def _same(said: str, path: str) -> bool:
    """Whether a tool's name, of whichever system's folders, is the file's, maybe without the suffix."""
    name, file = PurePosixPath(said.replace("\\", "/")).name, PurePosixPath(path)
    return name == file.name or name == file.stem


def _row(one: Measurement, file: ModelResult) -> ModelResult:
    kept = {key: getattr(file, key) for key in ("form", "format", "precision", "path", "bytes", "sha256")}
    status = "failed" if one.reason else "ran"
    return ModelResult(**kept, status=status, reason=one.reason, device=one.device, engine=one.engine, **one.figures)


def _spread(times: Sequence[float]) -> dict[str, Any]:
    """Percentiles of single times in milliseconds; which of them came first is not in them."""
    return {key: value for key, value in vars(Latency.of(0, times)).items() if key != "first_ms"}


def _ms(value: float) -> str:
    return f"{value:.3f} ms"
