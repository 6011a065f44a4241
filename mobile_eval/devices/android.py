"""A phone or board on Android's debug bridge.

Where it has a Python with the engines (boards; no phone has one in its shell) the worker runs there: codes, latency
and memory.  Elsewhere LiteRT's native `benchmark_model` does: latency alone, and `DeviceOutput.codes` is None.
"""

import re
import secrets
import shlex
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from export.artifact import ExportedModel
from gallery.console import log
from gallery.errors import CorruptFile, InputError, MissingBackend, TwinhashError
from mobile_eval.devices import subprocess_device as worker
from mobile_eval.devices.adb import AdbClient
from mobile_eval.devices.base import Device, DeviceOutput
from mobile_eval.devices.worker import GOVERNORS
from mobile_eval.latency import MAX_SECONDS, SAMPLES, THREADS, WARM_UPS
from mobile_eval.runtimes.base import Images

TEMP = "/data/local/tmp"
PYTHON = {"onnx": "numpy, onnxruntime", "litert": "numpy, ai_edge_litert.interpreter"}
TOOLS = [f"{TEMP}/{name}" for name in ("benchmark_model", "android_aarch64_benchmark_model")]
THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")  # PowerManager.THERMAL_STATUS_*
PROPERTIES = {"model": "ro.product.model", "chip": "ro.soc.model", "android": "ro.build.version.release"}
GET_TOOL = "Name a benchmark_model built for it: github.com/google-ai-edge/LiteRT, or TensorFlow's nightly builds."


class Android(Device):
    """One device by its serial number (None: the only one connected); samples, max_seconds: of the timing.

    benchmark: a `benchmark_model` for its processor on this machine; by default one in /data/local/tmp is used
    """

    formats = ("onnx", "litert")
    limit_s, image_s = 180.0, 1.0  # seconds a model may take, and more for each image

    def __init__(
        self, serial: str | None = None, benchmark: Path | None = None,
        samples: int = SAMPLES, max_seconds: float = MAX_SECONDS,
    ) -> None:  # fmt: skip
        if benchmark is not None and not benchmark.is_file():
            raise InputError("a benchmark_model binary", f"no file {benchmark}", GET_TOOL)
        self.name = f"android:{serial}" if serial else "android"
        self.serial, self.benchmark = serial, benchmark
        self.samples, self.max_seconds = samples, max_seconds
        self._adb: AdbClient | None = None
        self._folder, self._tool = "", ""
        self._python: set[str] = set()  # formats that a Python there can run

    def prepare(self) -> None:
        """Find the device and what it can run with, and make a folder on it."""
        self._adb = adb = AdbClient(self.serial)
        folder = f"{TEMP}/twinhash-{secrets.token_hex(6)}"
        adb.shell(f"mkdir {folder}")
        self._folder = folder
        new = "import sys; sys.version_info >= (3, 11) or sys.exit(1)"
        ask = {name: f"python3 -c \"{new}; import {modules}; print('ready')\"" for name, modules in PYTHON.items()}
        self._python = {name for name, command in ask.items() if self._output(command) == "ready"}
        tools = "; ".join(f"[ -x {tool} ] && echo {tool}" for tool in TOOLS)
        self._tool = self._output(f"{tools}; true").partition("\n")[0]
        if self.benchmark is not None:
            adb.push([self.benchmark], folder)
            self._tool = f"{folder}/{self.benchmark.name}"
            adb.shell(shlex.join(["chmod", "755", self._tool]))

    def push(self, models: Sequence[ExportedModel], images: Images) -> None:
        """Send the models, and images and worker where they can be used."""
        super().push(models, images)
        if paths := [model.path for model in models if model.format in self.formats]:
            self._connected.push(paths, self._folder)
        if self._python:
            with TemporaryDirectory() as folder:
                np.save(Path(folder, worker.IMAGES), images)
                self._connected.push(sorted(worker.copy_worker(Path(folder)).iterdir()), self._folder)

    def run(self, model: ExportedModel) -> DeviceOutput:
        """Run the worker where there is Python for the model, else the benchmark tool."""
        before = self._thermal_status()
        if model.format in self._python:
            output = self._run_worker(model)
        elif self._tool and model.format == "litert":
            output = self._run_benchmark(model)
        else:
            missing = f"something that runs {model.path.name} on {self._connected.serial}"
            raise MissingBackend(missing, "nothing", GET_TOOL)
        after = self._thermal_status()
        conditions = {name: self._output(f"getprop {key}") for name, key in PROPERTIES.items()}
        conditions["governor"] = " ".join(sorted(set(self._output(f"cat /sys/{GOVERNORS} 2>/dev/null; true").split())))
        conditions["thermal status"] = before if before == after else f"{before}, then {after}"
        known = {name: value for name, value in conditions.items() if value}
        output.figures["conditions"] = output.figures.get("conditions", {}) | known
        return output

    def close(self) -> None:
        """End what still runs and remove the folder, if the device is still there."""
        if self._folder:
            ours = f"[{self._folder[1]}]{self._folder[2:]}"  # a pattern that does not match the shell it is given to
            try:
                self._output(f"pkill -9 -f '{ours}'")
                self._connected.shell(f"rm -rf {self._folder}")
            except TwinhashError as error:  # a lost device was reported when it was lost
                log.warning("%s on the device was not removed: %s", self._folder, error)
        self._adb, self._folder, self._python = None, "", set()

    @property
    def _connected(self) -> AdbClient:
        if self._adb is None:
            raise InputError("android prepared", "not prepared, or closed", "Use it in a with statement.")
        return self._adb

    def _output(self, command: str) -> str:
        """Return what a command prints, nothing when it fails; raises `DeviceLost` all the same."""
        try:
            return self._connected.shell(command).strip()
        except worker.WorkerFailed:
            return ""

    def _run_worker(self, model: ExportedModel) -> DeviceOutput:
        names = (model.path.name, worker.IMAGES, worker.OUTPUTS, worker.REPORT)
        file, images, outputs, report = (f"{self._folder}/{name}" for name in names)
        options = ["--samples", str(self.samples), "--seconds", str(self.max_seconds)]
        arguments = [*worker.WORKER, file, model.metadata.to_json(), images, outputs, report, *options]
        command = f"PYTHONPATH={self._folder} python3 {shlex.join(arguments)}"
        limit_s = self.limit_s + self.image_s * len(self.images)
        # exit code 2: the report has the error
        self._connected.shell(f"rm -f {outputs} {report}; {command} || [ $? = 2 ]", limit_s)
        with TemporaryDirectory() as folder:
            self._connected.pull(report, Path(folder, worker.REPORT))
            worker.read_report(Path(folder, worker.REPORT))
            self._connected.pull(outputs, Path(folder, worker.OUTPUTS))
            return worker.read_output(Path(folder), model, len(self.images))

    def _run_benchmark(self, model: ExportedModel) -> DeviceOutput:
        flags = {"graph": f"{self._folder}/{model.path.name}", "num_threads": THREADS, "num_runs": self.samples}
        flags |= {"min_secs": 0, "max_secs": self.max_seconds, "warmup_runs": WARM_UPS, "use_xnnpack": "true"}
        command = shlex.join([self._tool, *(f"--{name}={value}" for name, value in flags.items())])
        printed = self._connected.shell(f"{command} 2>&1", self.limit_s)
        return DeviceOutput(None, None, "LiteRT benchmark_model", read_log(printed) | {"threads": THREADS})

    def _thermal_status(self) -> str:
        found = re.search(r"Thermal Status: (\d)", self._output("dumpsys thermalservice"))
        return THERMAL[int(found[1])] if found and int(found[1]) < len(THERMAL) else ""


def read_log(text: str) -> dict[str, Any]:
    """Read the figures that `benchmark_model` prints (tensorflow/lite/tools/benchmark/benchmark_model.cc).

    Its last line of statistics is that of the timed runs; newer ones have the median.  It has no p90 and no p99.
    """
    timings = re.search(r"Inference timings in us: Init: ([\d.e+]+), First inference: ([\d.e+]+)", text)
    runs = re.findall(r"count=(\d+)(?: first=\S+)?.*? avg=\S+(?:.*? median=([\d.e+]+))?", text)
    if not timings or not runs:
        raise CorruptFile("the timings of benchmark_model", text.strip()[-200:] or "nothing", "Run it by hand.")
    count, median = runs[-1]
    figures: dict[str, Any] = {"load_ms": float(timings[1]) / 1e3, "first_ms": float(timings[2]) / 1e3}
    figures |= {"samples": int(count)} | ({"p50_ms": float(median) / 1e3} if median else {})
    memory = re.search(r"Memory footprint delta .*overall=([\d.]+)", text)
    return figures | ({"peak_memory_mb": float(memory[1]) * 2**20 / 1e6} if memory else {})
