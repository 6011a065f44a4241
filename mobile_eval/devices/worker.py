"""Run one exported model in a process of its own, wherever there is Python: `python -m mobile_eval.devices.worker`.

It needs numpy, the model's engine and the few light modules in `WORKER_MODULES`; no torch, no pydantic.  It writes two
files: codes and logits as .npz, and the figures, or the error, as JSON.
"""

import argparse
import gc
import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.artifact import ModelMetadata
from export.capture_output import quiet
from gallery.errors import TwinhashError
from gallery.files import atomic_path, size_of, write_json
from gallery.memory import limit_memory, memory
from mobile_eval import latency
from mobile_eval.runtimes import Runtime, open_model

WORKER_MODULES = (
    "export/__init__.py", "export/artifact.py", "export/metadata.py", "export/capture_output.py",
    "gallery/__init__.py", "gallery/codes.py", "gallery/console.py", "gallery/errors.py", "gallery/files.py",
    "gallery/layers.py", "gallery/memory.py",
    "mobile_eval/__init__.py", "mobile_eval/latency.py", "mobile_eval/runtimes/__init__.py",
    "mobile_eval/runtimes/base.py", "mobile_eval/runtimes/litert.py", "mobile_eval/runtimes/onnxruntime_cpu.py",
    "mobile_eval/devices/__init__.py", "mobile_eval/devices/worker.py",
)  # fmt: skip
ENGINES = {
    ".onnx": ("onnxruntime",),
    ".ort": ("onnxruntime",),
    ".tflite": ("ai_edge_litert.interpreter", "tflite_runtime.interpreter"),
    ".mlpackage": ("coremltools", "torch"),
}  # what is loaded before the clock starts and the memory is read: both are of the model alone
BASE_BYTES, BYTES_A_PIXEL, COPIES = 4 << 30, 16 << 10, 8  # memory of an engine, an input's pixel, a file's byte
GOVERNORS = "devices/system/cpu/cpu*/cpufreq/scaling_governor"


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with the error in the report."""
    parser = argparse.ArgumentParser(prog="worker", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("metadata", help="the model's, as JSON")
    parser.add_argument("images", type=Path, help="uint8 [n, S, S, 3] in an .npy")
    parser.add_argument("outputs", type=Path, help="the .npz to write: codes, logits")
    parser.add_argument("report", type=Path, help="the JSON to write")
    parser.add_argument("--samples", type=int, default=latency.SAMPLES, help="timed inferences; 0: no clock is read")
    parser.add_argument("--seconds", type=float, default=latency.MAX_SECONDS, help="at most, for the timed inferences")
    parser.add_argument("--unit", default="ALL", help="Core ML's compute unit, on macOS")
    parser.add_argument("--partitions", action="store_true", help="ask what delegates take of it")
    parser.add_argument("--marks", type=int, default=0, help="inferences between system calls, for a counter outside")
    options = parser.parse_args(arguments)
    try:
        report = run_model(options)
    except TwinhashError as error:
        report = {"error": [type(error).__name__, error.expected, error.found, error.fix]}
    except Exception as error:  # noqa: BLE001 - engines raise whatever they like
        found = f"{type(error).__name__}: {error}"
        report = {"error": ["WorkerFailed", f"outputs of {options.file.name}", found, "Export it again."]}
        if isinstance(error, ImportError | NotImplementedError):
            report = {"error": ["MissingBackend", f"an engine for {options.file.name}", found, "Install it there."]}
    write_json(options.report, report)
    return 2 if "error" in report else 0


def run_model(options: argparse.Namespace) -> dict[str, Any]:
    """Load, time and run the model in as much memory as such a file needs; return the report."""
    images = np.load(options.images, mmap_mode="r", allow_pickle=False)
    metadata = ModelMetadata.from_json(options.metadata, options.file.name)
    for name in ENGINES.get(options.file.suffix, ()):
        with suppress(ImportError), quiet():  # `open_model` says that it is missing
            import_module(name)
    with suppress(OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an engine that dies leaves no file of that size
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    size = size_of(options.file) if options.file.exists() else 0  # `open_model` says what is missing
    with limit_memory(BASE_BYTES + BYTES_A_PIXEL * metadata.size**2 + COPIES * size):
        return _measure_model(options, metadata, images)


def _measure_model(options: argparse.Namespace, metadata: ModelMetadata, images: NDArray[np.uint8]) -> dict[str, Any]:
    """Write codes and logits, return the figures."""
    before = memory("VmRSS")
    runtime, load_ms = latency.timed(lambda: open_model(options.file, latency.THREADS, metadata, options.unit))
    report: dict[str, Any] = {"engine": runtime.engine}
    if options.samples and runtime.timed:
        measured = latency.measure(runtime.run, images[:1], options.samples, options.seconds)
        report |= {**vars(measured), "load_ms": load_ms, "threads": latency.THREADS, "conditions": system_state()}
        peak = memory("VmHWM")  # of batch size 1: later calls may take several images
        report["peak_memory_mb"] = None if before is None or peak is None else peak - before
    if options.marks:
        _mark_inference(runtime, np.array(images[:1]), options.marks)
    if options.partitions:
        from mobile_eval.partitions import partitions

        report["partitions"] = partitions(options.file)
    codes, logits = runtime.run(images)
    with atomic_path(options.outputs) as draft:
        np.savez(draft, codes=codes, logits=logits)
    return report


def system_state(system: Path = Path("/sys")) -> dict[str, str]:
    """Return the governors of the cores and the highest temperature of the sensors, as far as Linux tells them."""
    temperatures = [value for value in _read(system, "class/thermal/thermal_zone*/temp") if value.lstrip("-").isdigit()]
    state = {"governor": " ".join(sorted(set(_read(system, GOVERNORS))))}
    state["temperature"] = f"{max(map(int, temperatures)) / 1000:.0f} °C" if temperatures else ""
    return {name: value for name, value in state.items() if value}


def _mark_inference(runtime: Runtime, image: NDArray[np.uint8], count: int) -> None:
    """Run once, which may allocate, and then `count` times, each between two calls of getppid(2)."""
    runtime.run(image)
    gc.disable()
    for _ in range(count):
        os.getppid()
        runtime._run(image)
        os.getppid()


def _read(system: Path, pattern: str) -> list[str]:
    found = []
    for path in sorted(system.glob(pattern)):
        with suppress(OSError):  # sensors that are asleep
            found.append(path.read_text().strip())
    return found


if __name__ == "__main__":
    sys.exit(main())
