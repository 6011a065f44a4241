"""A place where files run: prepared once, given the files and the pictures, then asked for each file's answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from export.artifact import ExportedModel
from gallery.codes import Codes

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class DeviceOutput:
    """What a file returned somewhere.

    codes, logits: uint8 `[n, bits/8]` and float32 `[n, bits]`, in the order of the pictures;
                   None where a file can only be timed
    engine:        its name for tables, "ONNX Runtime 1.31.1 CPU"
    figures:       fields of `gallery.results.FileRow` that were measured there: latency, memory, instructions
    """

    codes: Codes | None
    logits: NDArray[np.float32] | None
    engine: str
    figures: dict[str, Any] = field(default_factory=dict)


class Device(ABC):
    """A place, used as a context: prepared on the way in, released on the way out whatever happened.

    name: as in tables and on the command line, "arm64-cortex-a53"; formats: those it has an engine for
    all_queries: whether it is fast enough for every query, and not only for some
    """

    name: str
    formats: tuple[str, ...]
    all_queries: bool = False

    @abstractmethod
    def prepare(self) -> None:
        """Starts whatever is needed; raises `MissingBackend`, which names the command that sets it up."""

    @abstractmethod
    def push(self, files: Sequence[ExportedModel], pictures: Pixels) -> None:
        """Makes files and pictures uint8 `[n, S, S, 3]` known there."""

    @abstractmethod
    def run(self, file: ExportedModel) -> DeviceOutput:
        """Runs one file over all pictures and collects what it returned.

        Raises `DeviceLost` when the place is gone, and for the other files too; anything else is about this file.
        """

    @abstractmethod
    def close(self) -> None:
        """Releases what `prepare` started; must bear being called twice, or after a failed `prepare`."""

    def __enter__(self) -> Self:
        try:
            self.prepare()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
