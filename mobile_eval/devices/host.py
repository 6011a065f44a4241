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
    partitions: whether to ask what execution providers and delegates take of a model (`mobile_eval.partitions`)
    """

    name = "host"
    formats: tuple[str, ...] = ("onnx", "ort", "litert", "mediapipe", "coreml", "coreai")
    image_s = 5.0  # seconds; engines take a hundredth or a tenth for most networks
    reference_s = 30.0  # the reference evaluator takes half a second for ResNet-50 at 224 pixels

    def __init__(self, samples: int = SAMPLES, partitions: bool = False) -> None:
        self._options = ["--samples", str(samples), *(["--partitions"] if partitions else [])]

    def run(self, model: ExportedModel) -> DeviceOutput:
        """Run the model and add the processor's name to its conditions; a reference evaluator is not timed."""
        output = super().run(model)
        conditions = {"cpu": cpu_name()} | output.figures.get("conditions", {})
        return dataclasses.replace(output, figures=output.figures | {"conditions": conditions})

    def seconds_for(self, model: ExportedModel) -> float:
        """Return how long a model may take: longer where the reference evaluator runs it."""
        image_s = self.reference_s if model.format == "coreml" else self.image_s
        return self.limit_s + image_s * len(self.images)

    def _command(self, arguments: list[str]) -> list[str]:
        path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
        python = ["sh", "-c", 'PYTHONPATH="$0" exec "$@"', path, sys.executable]
        return [*python, *WORKER, *arguments, *self._options]
