"""A phone or board on Android's debug bridge.

Where it has a Python with the engines (boards; no phone has one in its shell) the worker runs there: codes, latency
and memory.  Elsewhere LiteRT's native `benchmark_model` does: latency alone, and `Outcome.codes` is None.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from export.artifact import ExportedModel
from gallery.console import log
from gallery.errors import CorruptFile, InputError, MissingBackend, TwinhashError
from mobile_eval.devices.adb import AdbClient, quote
from mobile_eval.devices.base import Device, DeviceOutput, Pixels
from mobile_eval.devices.subprocess_device import (
    ANSWERS,
    PICTURES,
    REPORT,
    WORKER,
    WorkerFailed,
    read_outcome,
    read_report,
    send_worker,
)
from mobile_eval.latency import MAX_SECONDS, SAMPLES, THREADS, WARM_UPS

TEMP = "/data/local/tmp"
PYTHON = {"onnx": "numpy, onnxruntime", "litert": "numpy, flatbuffers, ai_edge_litert.interpreter"}
TOOLS = [f"{TEMP}/{name}" for name in ("benchmark_model", "android_aarch64_benchmark_model")]
GOVERNORS = "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")  # PowerManager.THERMAL_STATUS_*
GET_TOOL = "Name a benchmark_model built for it: github.com/google-ai-edge/LiteRT, or TensorFlow's nightly builds."


class Android(Device):
    """One device by its serial number (None: the only one connected).

    benchmark:   a `benchmark_model` for its processor on this machine; without it one in /data/local/tmp is used
    threads, samples, max_seconds: as for the host; limit_s, picture_s: seconds a file may take, and more a picture
    """

    formats = ("onnx", "litert")
    limit_s, picture_s = 180.0, 1.0

    def __init__(
        self,
        serial: str | None = None,
        benchmark: Path | None = None,
        threads: int = THREADS,
        samples: int = SAMPLES,
        max_seconds: float = MAX_SECONDS,
    ) -> None:
        if benchmark is not None and not benchmark.is_file():
            raise InputError("a benchmark_model binary", f"no file {benchmark}", GET_TOOL)
        self.name = f"android:{serial}" if serial else "android"
        self.serial, self.benchmark = serial, benchmark
        self.threads, self.samples, self.max_seconds = threads, samples, max_seconds
        self._adb: AdbClient | None = None
        self._folder, self._tool, self._count = "", "", 0
        self._python: set[str] = set()  # formats that a Python there can run

    def prepare(self) -> None:
        """Finds the device, what it can run with, and makes a folder there."""
        self._adb = adb = AdbClient(self.serial)
        folder = f"{TEMP}/twinhash-{secrets.token_hex(6)}"
        adb.shell(quote("mkdir", folder))
        self._folder = folder
        for format, modules in PYTHON.items():
            if self._says(quote("python3", "-c", f"import {modules}; print('ready')")) == "ready":
                self._python.add(format)
        tools = "; ".join(f"[ -x {tool} ] && echo {tool}" for tool in TOOLS)
        self._tool = self._says(f"{tools}; true").partition("\n")[0]
        if self.benchmark is not None:
            adb.push([self.benchmark], folder)
            self._tool = f"{folder}/{self.benchmark.name}"
            adb.shell(quote("chmod", "755", self._tool))

    def push(self, files: Sequence[ExportedModel], pictures: Pixels) -> None:
        """Sends the files; the pictures and the worker too where they can be used."""
        if not len(pictures):
            raise InputError("a picture at least", "none", "Give queries.")
        self._count = len(pictures)
        if paths := [file.path for file in files if file.format in self.formats]:
            self._there.push(paths, self._folder)
        if self._python:
            with TemporaryDirectory() as place:
                np.save(Path(place, PICTURES), pictures)
                self._there.push(sorted(send_worker(Path(place)).iterdir()), self._folder)

    def run(self, file: ExportedModel) -> DeviceOutput:
        """Runs the worker where there is Python for the file, else the benchmark tool."""
        before = self._thermal()
        if file.format in self._python:
            outcome = self._worker(file)
        elif self._tool and file.format == "litert":
            outcome = self._benchmark(file)
        else:
            raise MissingBackend(f"something that runs {file.path.name} on {self._there.serial}", "nothing", GET_TOOL)
        after = self._thermal()
        heat = {"thermal status": before if before == after else f"{before}, then {after}"} if after else {}
        outcome.figures["conditions"] = outcome.figures.get("conditions", {}) | self._describe() | heat
        return outcome

    def close(self) -> None:
        """Ends what still runs and removes the folder, if the device is still there."""
        if self._folder:
            ours = f"[{self._folder[1]}]{self._folder[2:]}"  # a pattern that does not match the shell it is given to
            try:
                self._says(quote("pkill", "-9", "-f", ours))
                self._there.shell(quote("rm", "-rf", self._folder))
            except TwinhashError as error:  # what must be said of a lost device was said when it was lost
                log.warning("%s on the device was not removed: %s", self._folder, error)
        self._adb, self._folder, self._python = None, "", set()

    @property
    def _there(self) -> AdbClient:
        if self._adb is None:
            raise InputError("android prepared", "not prepared, or closed", "Use it in a with statement.")
        return self._adb

    def _says(self, command: str) -> str:
        """What a command prints, nothing when it fails; raises `DeviceLost` all the same."""
        try:
            return self._there.shell(command).strip()
        except WorkerFailed:
            return ""

    def _worker(self, file: ExportedModel) -> DeviceOutput:
        options = ["--threads", str(self.threads), "--samples", str(self.samples), "--seconds", str(self.max_seconds)]
        paths = [f"{self._folder}/{name}" for name in (file.path.name, PICTURES, ANSWERS, REPORT)]
        command = f"PYTHONPATH={self._folder} {quote('python3', *WORKER, *paths, *options)}"
        limit = self.limit_s + self.picture_s * self._count
        self._there.shell(f"rm -f {quote(*paths[2:])}; {command} || [ $? = 2 ]", limit)  # 2: the report has the error
        with TemporaryDirectory() as place:
            self._there.pull(paths[3], Path(place, REPORT))
            read_report(Path(place, REPORT))
            self._there.pull(paths[2], Path(place, ANSWERS))
            return read_outcome(Path(place), file, self._count)

    def _benchmark(self, file: ExportedModel) -> DeviceOutput:
        flags = {
            "graph": f"{self._folder}/{file.path.name}",
            "num_threads": self.threads,
            "num_runs": self.samples,
            "min_secs": 0,
        }
        flags |= {"max_secs": self.max_seconds, "warmup_runs": WARM_UPS, "use_xnnpack": "true"}
        command = quote(self._tool, *(f"--{name}={value}" for name, value in flags.items()))
        said = self._there.shell(f"{command} 2>&1", self.limit_s)
        return DeviceOutput(None, None, "LiteRT benchmark_model", read_log(said) | {"threads": self.threads})

    def _thermal(self) -> str:
        found = re.search(r"Thermal Status: (\d)", self._says("dumpsys thermalservice"))
        return THERMAL[int(found[1])] if found and int(found[1]) < len(THERMAL) else ""

    def _describe(self) -> dict[str, str]:
        names = {"model": "ro.product.model", "chip": "ro.soc.model", "android": "ro.build.version.release"}
        known = {name: self._says(quote("getprop", key)) for name, key in names.items()}
        known["governor"] = " ".join(sorted(set(self._says(f"cat {GOVERNORS} 2>/dev/null; true").split())))
        return {name: value for name, value in known.items() if value}


def read_log(text: str) -> dict[str, Any]:
    """The figures in what `benchmark_model` prints (tensorflow/lite/tools/benchmark/benchmark_model.cc).

    Its last line of statistics is that of the timed runs; newer ones have the median.  It tells no p90 and no p99.
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
