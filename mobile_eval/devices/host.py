"""This machine: each model in a process of its own, so that load time and peak memory are of that model alone."""

import dataclasses
import os
import sys

from export.artifact import ExportedModel
from mobile_eval.devices.base import DeviceOutput
from mobile_eval.devices.subprocess_device import REPOSITORY, WORKER, SubprocessDevice
from mobile_eval.latency import SAMPLES
from mobile_eval.system_info import cpu_name


class Host(SubprocessDevice):
    """The engines installed here.

    samples: of the timing, 0 for codes alone
    """

    name, formats = "host", ("onnx", "litert", "coreml", "coreai")
    image_s = 30.0  # the reference evaluator of Core ML computes in float64, on one thread

    def __init__(self, samples: int = SAMPLES) -> None:
        self._options = ["--samples", str(samples)]

    def run(self, model: ExportedModel) -> DeviceOutput:
        """Run the model and add the processor's name to its conditions; a reference evaluator is not timed."""
        output = super().run(model)
        conditions = {"cpu": cpu_name()} | output.figures.get("conditions", {})
        return dataclasses.replace(output, figures=output.figures | {"conditions": conditions})

    def _command(self, arguments: list[str]) -> list[str]:
        path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
        python = ["sh", "-c", 'PYTHONPATH="$0" exec "$@"', path, sys.executable]
        return [*python, *WORKER, *arguments, *self._options]
