"""Runs one shipped file in a process of its own, wherever there is Python: `python -m mobile_eval.devices.worker`.

It needs numpy, the file's engine (flatbuffers for LiteRT's) and the few light modules in `SOURCES`; no torch, no
pydantic.  What it finds goes into two files, the answers into an .npz and the figures, or the error, into a JSON.
"""

from __future__ import annotations

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

from export.capture_output import quiet
from gallery.errors import TwinhashError
from gallery.files import atomic_path, write_json
from mobile_eval import latency
from mobile_eval.runtimes import Runtime, open_model

SOURCES = (
    "export/__init__.py", "export/card.py", "export/metadata.py", "export/capture_output.py",
    "gallery/__init__.py", "gallery/codes.py", "gallery/console.py", "gallery/errors.py", "gallery/files.py",
    "mobile_eval/__init__.py", "mobile_eval/latency.py", "mobile_eval/runtimes/__init__.py",
    "mobile_eval/runtimes/base.py", "mobile_eval/runtimes/litert.py", "mobile_eval/runtimes/onnxruntime_cpu.py",
    "mobile_eval/devices/__init__.py", "mobile_eval/devices/worker.py",
)  # fmt: skip
ENGINES = {
    ".onnx": ("onnxruntime",),
    ".tflite": ("ai_edge_litert.interpreter", "tflite_runtime.interpreter"),
    ".mlpackage": ("coremltools", "torch"),
}  # what is loaded before the clock starts and the memory is read: both are of the file alone
CHUNK = 64  # pictures a call, as bounded memory wants
SYSTEM = Path("/sys")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with the error in the report."""
    options = _options(arguments)
    try:
        report = _work(options)
    except TwinhashError as error:
        report = {"error": [type(error).__name__, error.expected, error.found, error.fix]}
    except (ImportError, NotImplementedError) as error:
        report = {"error": ["MissingBackend", f"an engine for {options.file.name}", _said(error), "Install it there."]}
    except Exception as error:  # noqa: BLE001 - engines raise whatever they like
        report = {"error": ["WorkerFailed", f"answers from {options.file.name}", _said(error), "Export it again."]}
    write_json(options.report, report)
    return 2 if "error" in report else 0


def memory(key: str) -> float | None:
    """`VmRSS` or `VmHWM` of this process in 10**6 bytes; None where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024 / 1e6
    return None


def conditions(system: Path = SYSTEM) -> dict[str, str]:
    """What Linux says of this place: the governors of its cores, and the hottest of its sensors in degrees Celsius."""
    governors, sensors = "devices/system/cpu/cpu*/cpufreq/scaling_governor", "class/thermal/thermal_zone*/temp"
    heat = [int(value) / 1000 for value in _read(system, sensors) if value.lstrip("-").isdigit()]
    found = {"governor": " ".join(sorted(set(_read(system, governors))))}
    found["temperature"] = f"{max(heat):.0f} °C" if heat else ""
    return {name: value for name, value in found.items() if value}


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="worker", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("pictures", type=Path, help="uint8 [n, S, S, 3] in an .npy")
    parser.add_argument("answers", type=Path, help="the .npz to write: codes, logits")
    parser.add_argument("report", type=Path, help="the JSON to write")
    parser.add_argument("--threads", type=int, default=latency.THREADS)
    parser.add_argument("--samples", type=int, default=latency.SAMPLES, help="timed inferences; 0: no clock is read")
    parser.add_argument("--seconds", type=float, default=latency.MAX_SECONDS, help="at most, for the timed inferences")
    parser.add_argument("--marks", type=int, default=0, help="inferences between system calls, for a counter outside")
    return parser.parse_args(arguments)


def _work(options: argparse.Namespace) -> dict[str, Any]:
    pictures = np.load(options.pictures, mmap_mode="r", allow_pickle=False)
    before = _engine_alone(options.file.suffix)
    runtime, load_ms = latency.timed(lambda: open_model(options.file, options.threads))
    report: dict[str, Any] = {"engine": runtime.engine}
    if options.samples and runtime.timed:
        taken = latency.measure(runtime.run, pictures[:1], options.samples, options.seconds)
        report |= {**vars(taken), "load_ms": load_ms, "threads": options.threads, "conditions": conditions()}
        peak = memory("VmHWM")  # of one picture at a time: later calls may take several
        report["peak_memory_mb"] = None if before is None or peak is None else peak - before
    if options.marks:
        _mark(runtime, np.array(pictures[:1]), options.marks)
    _answer(runtime, pictures, options.answers)
    return report


def _engine_alone(suffix: str) -> float | None:
    """Imports the engine and forgets the highest memory so far; returns the present one.  `open_model` says what is
    missing."""
    for name in ENGINES.get(suffix, ()):
        with suppress(ImportError), quiet():
            import_module(name)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    return memory("VmRSS")


def _mark(runtime: Runtime, picture: NDArray[np.uint8], count: int) -> None:
    """The first inference, which may allocate, and then `count` more, each between two calls of getppid(2)."""
    runtime.run(picture)
    gc.disable()
    for _ in range(count):
        os.getppid()
        runtime._run(picture)
        os.getppid()


def _answer(runtime: Runtime, pictures: NDArray[np.uint8], path: Path) -> None:
    parts = [runtime.run(pictures[start : start + CHUNK]) for start in range(0, max(1, len(pictures)), CHUNK)]
    with atomic_path(path) as draft:
        codes, logits = (np.concatenate(part) for part in zip(*parts, strict=True))
        np.savez(draft, codes=codes, logits=logits)


def _read(system: Path, pattern: str) -> list[str]:
    found = []
    for path in sorted(system.glob(pattern)):
        with suppress(OSError):  # sensors that are asleep
            found.append(path.read_text().strip())
    return found


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
