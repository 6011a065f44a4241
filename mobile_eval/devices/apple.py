"""Core ML: on a Mac by compute unit; elsewhere the reference evaluator of the saved program, which is not timed.

The prediction itself, `CoreMl` of the bundle's run_on_mac.py, was written from coremltools' documentation and has not
run on a Mac here; everything around it has.
"""

import dataclasses
import platform

from export.apps.run_on_mac import UNITS
from export.artifact import ExportedModel
from export.capture_output import quiet
from export.metadata import import_backend
from gallery.errors import InputError, MissingBackend
from mobile_eval import latency
from mobile_eval.devices.base import DeviceOutput
from mobile_eval.devices.host import Host


class Apple(Host):
    """unit: a compute unit of `UNITS`, which takes a Mac; None: "ALL" on a Mac, the reference evaluator elsewhere."""

    formats, all_queries = ("coreml",), True

    def __init__(self, unit: str | None = None, samples: int = latency.SAMPLES) -> None:
        if unit not in (None, *UNITS):
            raise InputError(f"a compute unit, one of {', '.join(UNITS)}", str(unit), "Name one of them.")
        self.unit = "ALL" if unit is None and platform.system() == "Darwin" else unit
        super().__init__(samples if self.unit else 0)
        self._options += ["--unit", self.unit] if self.unit else []
        self.name = f"apple-{self.unit.lower().replace('_', '-')}" if self.unit else "coreml-reference"

    def prepare(self) -> None:
        """Raises `MissingBackend` without coremltools, or for a compute unit where this is no Mac."""
        if self.unit and platform.system() != "Darwin":
            fix = "Run apps/run_on_mac.py of the bundle on a Mac; python mobile_eval/run.py import-results mac.json"
            raise MissingBackend(f"macOS, for {self.name}", platform.system(), fix)
        with quiet():
            import_backend("coremltools")
        super().prepare()

    def run(self, model: ExportedModel) -> DeviceOutput:
        """Run the model in a process of its own; on a Mac it also times single images."""
        output = super().run(model)
        arithmetic = "each operation exact, then rounded to the type that the saved program declares"
        conditions = {"compute units": self.unit} if self.unit else {"arithmetic": arithmetic}
        return dataclasses.replace(output, figures=output.figures | {"conditions": conditions})
