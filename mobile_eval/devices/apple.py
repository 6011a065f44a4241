"""Core ML: on a Mac by compute unit; elsewhere the saved program evaluated by the reference, which is not timed.

The prediction itself is `CoreMl` of the bundle's run_on_mac.py, which a Mac without Twinhash can run alone.  It was
written from coremltools' documentation and has not run on a Mac here; everything around it has.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence

import numpy as np

from export.apps.run_on_mac import UNITS, CoreMl
from export.artifact import ExportedModel
from export.capture_output import quiet
from export.metadata import backend
from gallery.errors import InputError, MissingBackend
from mobile_eval import latency
from mobile_eval.devices.base import Device, DeviceOutput, Pixels
from mobile_eval.runtimes import open_model
from mobile_eval.runtimes.base import check_images


class Apple(Device):
    """unit: a compute unit of `UNITS`, which takes a Mac; None: "ALL" on a Mac, the reference evaluator elsewhere."""

    formats, all_queries = ("coreml",), True

    def __init__(
        self, unit: str | None = None, samples: int = latency.SAMPLES, max_seconds: float = latency.MAX_SECONDS
    ) -> None:
        if unit not in (None, *UNITS):
            raise InputError(f"a compute unit, one of {', '.join(UNITS)}", str(unit), "Name one of them.")
        self.unit = "ALL" if unit is None and _mac() else unit
        self.name = f"apple-{self.unit.lower().replace('_', '-')}" if self.unit else "coreml-reference"
        self.samples, self.max_seconds = samples, max_seconds
        self._pictures: Pixels = np.empty((0, 0, 0, 3), np.uint8)

    def prepare(self) -> None:
        """`MissingBackend` without coremltools, or when a compute unit is wanted and this is no Mac."""
        if self.unit and not _mac():
            fix = (
                "Run apps/run_on_mac.py of the bundle on a Mac, then: python mobile_eval/run.py import-results mac.json"
            )
            raise MissingBackend(f"macOS, for {self.name}", platform.system(), fix)
        with quiet():
            backend("coremltools")

    def push(self, files: Sequence[ExportedModel], pictures: Pixels) -> None:
        """Keeps the pictures; the files are here already."""
        if not len(pictures):
            raise InputError("a picture at least", "none", "Give queries.")
        self._pictures = pictures

    def run(self, file: ExportedModel) -> DeviceOutput:
        """Times one picture on a Mac; the reference only answers."""
        check_images(self._pictures, file.card)
        return self._on_mac(file, self.unit) if self.unit else self._by_reference(file)

    def close(self) -> None:
        """Nothing is held."""

    def _by_reference(self, file: ExportedModel) -> DeviceOutput:
        runtime = open_model(file.path)
        conditions = {"arithmetic": "each operation exact, then rounded to the type that the saved program declares"}
        return DeviceOutput(
            *runtime.run(self._pictures), runtime.engine, {"device": self.name, "conditions": conditions}
        )

    def _on_mac(self, file: ExportedModel, unit: str) -> DeviceOutput:
        model, load_ms = latency.timed(lambda: CoreMl(file.path, unit))
        taken = latency.measure(lambda one: model(one[0]), self._pictures[:1], self.samples, self.max_seconds)
        codes, logits = (np.stack(part) for part in zip(*map(model, self._pictures), strict=True))
        figures = {"device": self.name, "load_ms": load_ms, **vars(taken), "conditions": {"compute units": unit}}
        return DeviceOutput(codes, logits, f"Core ML, macOS {platform.mac_ver()[0]}", figures)


def _mac() -> bool:
    return platform.system() == "Darwin"
