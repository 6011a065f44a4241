"""Device: prepared once, given the models and the images, then asked to run each model."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from export.artifact import ExportedModel
from gallery.codes import Codes
from gallery.errors import InputError
from mobile_eval.runtimes.base import Images


@dataclass(frozen=True, eq=False)
class DeviceOutput:
    """Result of one model on one device.

    codes, logits: uint8 `[n, bits/8]` and float32 `[n, bits]`, in the order of the images;
                   None where a model can only be timed
    engine:        its name for tables, "ONNX Runtime 1.31.1 CPU"
    figures:       measured fields of `gallery.results.ModelResult`: latency, memory, instructions
    """

    codes: Codes | None
    logits: NDArray[np.float32] | None
    engine: str
    figures: dict[str, Any] = field(default_factory=dict)


class Device(ABC):
    """A device as a context manager: prepared on entry, released on exit whatever happened."""

    name: str  # as in tables and on the command line, "arm64-cortex-a53"
    formats: tuple[str, ...]  # those it has an engine for
    all_queries: bool = False  # whether it is fast enough for every query, and not only for some
    images: Images = np.empty((0, 0, 0, 3), np.uint8)

    @abstractmethod
    def prepare(self) -> None:
        """Start whatever is needed; raises `MissingBackend`, which names the command that sets it up."""

    def push(self, models: Sequence[ExportedModel], images: Images) -> None:
        """Send models and images uint8 `[n, S, S, 3]` to the device; raises `InputError` without an image."""
        if not len(images):
            raise InputError("at least one image", "none", "Give queries.")
        self.images = images

    @abstractmethod
    def run(self, model: ExportedModel) -> DeviceOutput:
        """Run one model on all images and collect its output.

        Raises `DeviceLost` when the device is gone for the other models too; any other error is about this model.
        """

    @abstractmethod
    def close(self) -> None:
        """Release what `prepare` started; safe to call twice, or after a failed `prepare`."""

    def __enter__(self) -> Self:
        try:
            self.prepare()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
