"""This machine: each file in a process of its own, so that load time and peak memory are of that file alone."""

from __future__ import annotations

import dataclasses
import os
import sys

from export.artifact import ExportedModel
from mobile_eval.devices.base import DeviceOutput
from mobile_eval.devices.subprocess_device import REPOSITORY, WORKER, SubprocessDevice
from mobile_eval.latency import MAX_SECONDS, SAMPLES, THREADS
from mobile_eval.system_info import cpu_name


class Host(SubprocessDevice):
    """The engines installed here.

    threads: for the engine; samples, max_seconds: of the timing, 0 samples for codes alone
    """

    name, formats = "host", ("onnx", "litert", "coreml", "coreai")

    def __init__(self, threads: int = THREADS, samples: int = SAMPLES, max_seconds: float = MAX_SECONDS) -> None:
        self._options = ["--threads", str(threads), "--samples", str(samples), "--seconds", str(max_seconds)]

    def run(self, file: ExportedModel) -> DeviceOutput:
        """Adds the processor to what the worker found; a reference evaluator is not timed."""
        outcome = super().run(file)
        known = {"cpu": cpu_name()} | outcome.figures.get("conditions", {})
        return dataclasses.replace(outcome, figures=outcome.figures | {"conditions": known})

    def _start(self, arguments: list[str]) -> None:
        path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
        self._process([sys.executable, *WORKER, *arguments, *self._options], os.environ | {"PYTHONPATH": path})
