"""Core AI: Apple's engine on macOS 27; elsewhere the interpreter that comes with its compiler."""

import asyncio
import platform
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from export.capture_output import quiet
from export.metadata import corrupt_file, import_backend, read_metadata
from mobile_eval.runtimes.base import Images, ModelOutput, Runtime, check_tensors


class CoreAi(Runtime):
    """One loaded function.  Off macOS it checks the file and not the device, and its latency means nothing.

    The engine dies of a program cut short (a segmentation fault, no error), so the program's hash is compared first.
    """

    timed = platform.system() == "Darwin"

    def __init__(self, path: Path) -> None:
        self.metadata = read_metadata(path)
        authoring = import_backend("coreai.authoring", "coreai-core")
        self._array = import_backend("coreai.runtime").NDArray
        self._thread = ThreadPoolExecutor(1)  # its own: the caller's may have an event loop that runs
        try:
            with quiet():
                self._function = self._wait(_load(authoring.AIModelAsset, path))
        except (RuntimeError, KeyError) as error:
            raise corrupt_file(path, error) from error
        descriptors = self._function.desc
        codes, logits = (descriptors.output_descriptor(name).shape for name in ("codes", "logits"))
        check_tensors(self.metadata, path, descriptors.input_descriptor("image").shape, codes, logits)
        self.engine = f"Core AI {version('coreai-core')}, {platform.system()}"

    def _run(self, images: Images) -> ModelOutput:
        outputs = self._wait(self._function({"image": self._array(images)}))
        return ModelOutput(outputs["codes"].numpy(), outputs["logits"].numpy())

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._thread.submit(asyncio.run, coroutine).result()


async def _load(asset: Any, path: Path) -> Any:
    async with asset.load(path).executable() as model:
        return model.load_function("main")
