"""Core AI: Apple's engine on macOS 27; elsewhere the interpreter that comes with its compiler."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from export.capture_output import quiet
from export.metadata import backend, coreai_card, damaged
from mobile_eval.runtimes.base import Images, ModelOutput, Runtime, check_tensors


class CoreAi(Runtime):
    """One loaded function.  Off macOS it proves the file and not the device, and its time says nothing.

    The engine dies of a program cut short (a segmentation fault, no error), so the program's hash is compared first.
    """

    timed = platform.system() == "Darwin"

    def __init__(self, path: Path) -> None:
        self.card = coreai_card(path)
        authoring, self._array = backend("coreai.authoring", "coreai-core"), backend("coreai.runtime").NDArray
        self._thread = ThreadPoolExecutor(1)  # its own: the caller's may have an event loop that runs
        try:
            with quiet():
                self._function = self._wait(_loaded(authoring.AIModelAsset, path))
        except (RuntimeError, KeyError) as error:
            raise damaged(path, error) from error
        about = self._function.desc
        codes, logits = (about.output_descriptor(name).shape for name in ("codes", "logits"))
        check_tensors(self.card, path, about.input_descriptor("image").shape, codes, logits)
        self.engine = f"Core AI {_version()}, {platform.system()}"

    def _run(self, images: Images) -> ModelOutput:
        found = self._wait(self._function({"image": self._array(images)}))
        return ModelOutput(found["codes"].numpy(), found["logits"].numpy())

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._thread.submit(asyncio.run, work).result()


async def _loaded(asset: Any, path: Path) -> Any:
    async with asset.load(path).executable() as model:
        return model.load_function("main")


def _version() -> str:
    from importlib.metadata import version

    return version("coreai-core")
