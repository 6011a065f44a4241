"""Core ML: Apple's engine on macOS; elsewhere a reference evaluator of the saved program."""

import platform
from pathlib import Path

import numpy as np

from export.artifact import ModelMetadata
from export.metadata import coreml_spec, corrupt_file, import_backend, read_metadata
from mobile_eval.runtimes.base import Images, ModelOutput, Runtime, check_tensors

CACHED_PIXELS = 1 << 17  # a batch of this many stays near the processor: 32 images of 64 pixels, 8 of 128 and more


class ReferenceCoreMl(Runtime):
    """Compute the saved program's operations exactly and round to the types it declares: see `mil`.

    It checks graph, weights and number formats of the file.  The Neural Engine sums in an order of its own, and
    nothing here says how fast a phone is.
    """

    engine, timed = "Core ML reference evaluator (torch)", False

    def __init__(self, path: Path, threads: int = 1, metadata: ModelMetadata | None = None) -> None:
        self.metadata = metadata or read_metadata(path)
        from mobile_eval.runtimes.mil import MilProgram

        self._program, self._threads = MilProgram(path), threads
        _check(self, path)
        self.batch = self._program.safe_batch(limit=max(8, min(32, CACHED_PIXELS // self.metadata.size**2)))

    def _run(self, images: Images) -> ModelOutput:
        outputs = self._program.run(images, self._threads)
        return ModelOutput(outputs["codes"].astype(np.uint8), outputs["logits"].astype(np.float32))


class AppleCoreMl(Runtime):
    """Predictions by macOS on a compute unit, by the class that the bundle's run_on_mac.py uses alone."""

    def __init__(self, path: Path, unit: str = "ALL", metadata: ModelMetadata | None = None) -> None:
        self.metadata = metadata or read_metadata(path)
        import_backend("coremltools")
        from export.apps.run_on_mac import CoreMl

        try:
            self._predict = CoreMl(path, unit)
        except Exception as error:  # what Core ML's compiler says about a damaged package
            raise corrupt_file(path, error) from error
        _check(self, path)
        self.engine = f"Core ML, macOS {platform.mac_ver()[0]}"

    def _run(self, images: Images) -> ModelOutput:
        codes, logits = self._predict(images[0])
        return ModelOutput(codes[None], logits[None])


def _check(runtime: Runtime, path: Path) -> None:
    description = coreml_spec(path).description
    image = description.input[0].type.imageType
    shapes = {output.name: tuple(output.type.multiArrayType.shape) for output in description.output}
    pixels = (1, image.height, image.width, 3)
    check_tensors(runtime.metadata, path, pixels, shapes.get("codes", ()), shapes.get("logits", ()))
