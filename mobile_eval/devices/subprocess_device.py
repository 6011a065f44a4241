"""Places reached by starting the worker here: a process a file, with a time limit, its end told in one sentence."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn
from zipfile import BadZipFile

import numpy as np

from export.artifact import ExportedModel
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError, MissingBackend, TwinhashError
from mobile_eval.devices.base import Device, DeviceOutput, Pixels
from mobile_eval.devices.worker import SOURCES

REPOSITORY = Path(__file__).resolve().parents[2]
WORKER = ("-m", "mobile_eval.devices.worker")
PICTURES, ANSWERS, REPORT = "pictures.npy", "answers.npz", "report.json"


class WorkerFailed(TwinhashError):
    """The process that ran a file broke down, or was killed; the place itself is still there."""


TYPED = {kind.__name__: kind for kind in (InputError, MissingBackend, CorruptFile, CodeSpaceMismatch, WorkerFailed)}
SIGNALS = {
    signal.SIGILL: "an instruction that this processor does not have",
    signal.SIGKILL: "out of memory, or killed by hand",
}


class SubprocessDevice(Device):
    """Starts the worker once a file, in a folder that is gone afterwards.

    limit_s: seconds a file may take, and picture_s more for each picture
    """

    limit_s, picture_s = 180.0, 1.0
    _folder: tempfile.TemporaryDirectory[str] | None = None
    _count = 0

    def prepare(self) -> None:
        """Makes the folder."""
        self._folder = tempfile.TemporaryDirectory(prefix="twinhash-")

    def push(self, files: Sequence[ExportedModel], pictures: Pixels) -> None:
        """Writes the pictures where every worker maps them into its memory."""
        if not len(pictures):
            raise InputError("a picture at least", "none", "Give queries.")
        self._count = len(pictures)
        np.save(self.folder / PICTURES, pictures)

    def run(self, file: ExportedModel) -> DeviceOutput:
        """Runs the file in a process of its own."""
        for stale in (ANSWERS, REPORT):
            (self.folder / stale).unlink(missing_ok=True)
        self._start([str(file.path.resolve()), PICTURES, ANSWERS, REPORT])
        return read_outcome(self.folder, file, self._count)

    def close(self) -> None:
        """Removes the folder."""
        if self._folder is not None:
            self._folder.cleanup()
        self._folder = None

    @property
    def folder(self) -> Path:
        """Where pictures, answers and report lie."""
        if self._folder is None:
            raise InputError(f"{self.name} prepared", "not prepared, or closed", "Use it in a with statement.")
        return Path(self._folder.name)

    @abstractmethod
    def _start(self, arguments: list[str]) -> None:
        """Runs the worker with these arguments in `folder`, to its end."""

    def _process(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        """Raises `WorkerFailed` when the process outlives its time or ends without a report."""
        limit, said = self.limit_s + self.picture_s * self._count, self.folder / "said.txt"
        try:
            with said.open("wb") as sink:
                done = subprocess.run(
                    command, env=env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, timeout=limit
                )
        except subprocess.TimeoutExpired as error:
            raise failed(f"still running after {limit:.0f} s", "Give fewer pictures.") from error
        if not (self.folder / REPORT).exists():
            raise failed(ending(done.returncode, last_line(said)), "Run it again, or leave the file out.")


def send_worker(folder: Path) -> Path:
    """Copies the modules that the worker is made of to `folder`, for a place that does not see this repository."""
    for name in SOURCES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, folder / name)
    return folder


def failed(found: str, fix: str) -> WorkerFailed:
    """The error for a worker without a result."""
    return WorkerFailed("a worker that answers", found, fix)


def ending(code: int, said: str) -> str:
    """What an exit code means, a negative one being a signal, with the last thing the process said."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        said = f"{SIGNALS[signal.Signals(-code)]}" if -code in SIGNALS else said
        return f"{name} ({said})" if said else name
    return f"exit code {code}" + (f" ({said})" if said else "")


def last_line(path: Path, limit: int = 300) -> str:
    """The last line of a log that may be long."""
    with path.open("rb") as stream:
        stream.seek(max(0, path.stat().st_size - 4096))
        lines = stream.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:limit] if lines else ""


def read_outcome(folder: Path, file: ExportedModel, count: int) -> DeviceOutput:
    """What the worker left in `folder`; raises the worker's own error, `CorruptFile` for anything unexpected."""
    report = read_report(folder / REPORT)
    shapes = ((count, file.card.bits // 8), (count, file.card.bits))
    try:
        with np.load(folder / ANSWERS, allow_pickle=False) as answers:
            codes, logits = answers["codes"], answers["logits"]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise CorruptFile("the worker's answers", f"{type(error).__name__}: {error}", "Run it again.") from error
    if (codes.shape, logits.shape) != shapes or (codes.dtype, logits.dtype) != (np.uint8, np.float32):
        raise CorruptFile(f"codes and logits of {shapes}", f"{codes.shape} and {logits.shape}", "Export it again.")
    return DeviceOutput(codes, logits, report.pop("engine"), report)


def read_report(path: Path) -> dict[str, Any]:
    """The worker's figures; raises its error if it had one."""
    try:
        report: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CorruptFile("the worker's report", str(error), "Run it again.") from error
    if "error" in report:
        _raise(*report["error"])
    return report


def _raise(kind: str, expected: str, found: str, fix: str) -> NoReturn:
    raise TYPED.get(kind, WorkerFailed)(expected, found, fix)
