"""Core ML: on a Mac by compute unit; elsewhere the reference evaluator of the saved program, which is not timed.

The prediction itself, `CoreMl` of the bundle's run_on_mac.py, was written from coremltools' documentation and has not
run on a Mac here; everything around it has.
"""

import platform
from typing import Any

from export.apps.run_on_mac import UNITS
from export.artifact import ExportedModel
from export.capture_output import quiet
from export.metadata import import_backend
from gallery.errors import InputError, MissingBackend
from mobile_eval import latency
from mobile_eval.devices.base import Device, DeviceOutput
from mobile_eval.runtimes.base import check_images
from mobile_eval.runtimes.coreml import AppleCoreMl, ReferenceCoreMl


class Apple(Device):
    """unit: a compute unit of `UNITS`, which takes a Mac; None: "ALL" on a Mac, the reference evaluator elsewhere."""

    formats, all_queries = ("coreml",), True

    def __init__(self, unit: str | None = None, samples: int = latency.SAMPLES) -> None:
        if unit not in (None, *UNITS):
            raise InputError(f"a compute unit, one of {', '.join(UNITS)}", str(unit), "Name one of them.")
        self.unit = "ALL" if unit is None and platform.system() == "Darwin" else unit
        self.name = f"apple-{self.unit.lower().replace('_', '-')}" if self.unit else "coreml-reference"
        self.samples = samples

    def prepare(self) -> None:
        """Raises `MissingBackend` without coremltools, or for a compute unit where this is no Mac."""
        if self.unit and platform.system() != "Darwin":
            fix = "Run apps/run_on_mac.py of the bundle on a Mac; python mobile_eval/run.py import-results mac.json"
            raise MissingBackend(f"macOS, for {self.name}", platform.system(), fix)
        with quiet():
            import_backend("coremltools")

    def run(self, model: ExportedModel) -> DeviceOutput:
        """Run the model; on a Mac also time single images."""
        check_images(self.images, model.metadata)
        if self.unit is None:
            reference = ReferenceCoreMl(model.path, metadata=model.metadata)
            arithmetic = "each operation exact, then rounded to the type that the saved program declares"
            figures: dict[str, Any] = {"conditions": {"arithmetic": arithmetic}}
            return DeviceOutput(*reference.run(self.images), reference.engine, figures)
        unit = self.unit
        runtime, load_ms = latency.timed(lambda: AppleCoreMl(model.path, unit, model.metadata))
        measured = latency.measure(runtime.run, self.images[:1], self.samples)
        figures = {"load_ms": load_ms, **vars(measured), "conditions": {"compute units": unit}}
        return DeviceOutput(*runtime.run(self.images), runtime.engine, figures)

    def close(self) -> None:
        """Nothing is held."""
