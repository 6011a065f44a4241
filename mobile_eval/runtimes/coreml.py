"""Core ML: Apple's engine on macOS; elsewhere a reference evaluator of the saved program."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np

from export.metadata import backend, coreml_card, coreml_spec, damaged
from mobile_eval.runtimes.base import Images, ModelOutput, Runtime, check_tensors

CACHED_PIXELS = 1 << 17  # a batch of this many stays near the processor: 32 pictures of 64 pixels, 8 of 128 and more


def open_package(path: Path, threads: int) -> Runtime:
    """Apple's engine where there is one, the reference evaluator everywhere else."""
    return AppleCoreMl(path) if platform.system() == "Darwin" else ReferenceCoreMl(path, threads)


class ReferenceCoreMl(Runtime):
    """The saved program's operations computed exactly and rounded to the types it declares: see `mil`.

    It proves the file: its graph, weights and number formats.  The Neural Engine adds up in an order of its own,
    and nothing here says how fast a phone is.
    """

    engine, timed = "Core ML reference evaluator (torch)", False

    def __init__(self, path: Path, threads: int) -> None:
        self.card = coreml_card(path)
        from mobile_eval.runtimes.mil import Program

        self._program = Program(path)
        self._threads = threads
        _check(self, path)
        self.batch = self._program.safe_batch(limit=max(8, min(32, CACHED_PIXELS // self.card.size**2)))

    def _run(self, images: Images) -> ModelOutput:
        found = self._program.run(images, self._threads)
        return ModelOutput(found["codes"].astype(np.uint8), found["logits"].astype(np.float32))


class AppleCoreMl(Runtime):
    """Predictions by macOS, on whichever of CPU, GPU and Neural Engine it picks."""

    def __init__(self, path: Path) -> None:
        self.card = coreml_card(path)
        ct: Any = backend("coremltools")
        try:
            self._model = ct.models.MLModel(str(path))
        except Exception as error:  # what Core ML's compiler says about a damaged package
            raise damaged(path, error) from error
        _check(self, path)
        self.engine = f"Core ML, macOS {platform.mac_ver()[0]}"

    def _run(self, images: Images) -> ModelOutput:
        from PIL import Image

        found = self._model.predict({"image": Image.fromarray(images[0])})
        return ModelOutput(found["codes"].astype(np.uint8), found["logits"].astype(np.float32))


def _check(runtime: Runtime, path: Path) -> None:
    description = coreml_spec(path).description
    image = description.input[0].type.imageType
    shapes = {output.name: tuple(output.type.multiArrayType.shape) for output in description.output}
    pixels = (1, image.height, image.width, 3)
    check_tensors(runtime.card, path, pixels, shapes.get("codes", ()), shapes.get("logits", ()))
