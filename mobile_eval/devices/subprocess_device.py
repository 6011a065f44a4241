"""Devices reached by starting the worker here: one process for each model, with a time limit and typed errors."""

import shutil
import signal
import subprocess
import tempfile
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.artifact import ExportedModel
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError, MissingBackend, TwinhashError
from gallery.files import check_regular, read_json
from mobile_eval.devices.base import Device, DeviceOutput
from mobile_eval.devices.worker import WORKER_MODULES
from mobile_eval.runtimes.base import Images

REPOSITORY = Path(__file__).resolve().parents[2]
WORKER = ("-m", "mobile_eval.devices.worker")
IMAGES, OUTPUTS, REPORT = "images.npy", "outputs.npz", "report.json"
EXPECTED, MAX_LOG = "a worker that reports", 4096  # bytes that are read of what it prints
MAX_HEADERS = 1 << 16  # bytes of an archive beside its arrays


class WorkerFailed(TwinhashError):
    """The process that ran a model failed or was killed; the device itself is still there."""


class WorkerKilled(WorkerFailed):
    """The process was killed from outside, or took too long: nothing is known about the model."""


TYPED = {kind.__name__: kind for kind in (InputError, MissingBackend, CorruptFile, CodeSpaceMismatch, WorkerFailed)}
SIGNALS = {"SIGILL": "an instruction that this processor does not have", "SIGKILL": "out of memory, or killed by hand"}


class SubprocessDevice(Device):
    """Starts the worker once for each model, in a folder that is removed afterwards."""

    limit_s, image_s = 180.0, 1.0  # seconds a model may take, and more for each image
    _folder: tempfile.TemporaryDirectory[str] | None = None

    def prepare(self) -> None:
        """Make the folder."""
        self._folder = tempfile.TemporaryDirectory(prefix="twinhash-")

    def push(self, models: Sequence[ExportedModel], images: Images) -> None:
        """Write the images where every worker maps them into its memory."""
        super().push(models, images)
        np.save(self.folder / IMAGES, images)

    def run(self, model: ExportedModel) -> DeviceOutput:
        """Run the model in a process; raises `WorkerFailed` when it outlives its time or ends without a report."""
        for name in (OUTPUTS, REPORT):
            (self.folder / name).unlink(missing_ok=True)
        command = self._command([str(model.path.resolve()), model.metadata.to_json(), IMAGES, OUTPUTS, REPORT])
        limit_s, log = self.seconds_for(model), self.folder / "log.txt"
        try:
            with log.open("wb") as sink:
                done = subprocess.run(
                    command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, timeout=limit_s
                )
        except subprocess.TimeoutExpired as error:
            fix = "Run it again on an idle machine, or leave the file out."
            raise WorkerKilled(EXPECTED, f"still running after {limit_s:.0f} s", fix) from error
        if not (self.folder / REPORT).exists():
            with log.open("rb") as printed:
                printed.seek(max(0, log.stat().st_size - MAX_LOG))
                lines = printed.read(MAX_LOG).decode(errors="replace").split("\n")
            last_line = next((line.strip() for line in reversed(lines) if line.strip()), "")[:300]
            found = describe_exit(done.returncode, last_line)
            kind = WorkerKilled if done.returncode in (-signal.SIGKILL, -signal.SIGTERM) else WorkerFailed
            raise kind(EXPECTED, found, "Run it again, or leave the file out.")
        return read_output(self.folder, model, len(self.images))

    def seconds_for(self, model: ExportedModel) -> float:
        """Return how long a model may take for all images."""
        return self.limit_s + self.image_s * len(self.images)

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            self._folder.cleanup()
        self._folder = None

    @property
    def folder(self) -> Path:
        """Where images, outputs and report lie."""
        if self._folder is None:
            raise InputError(f"{self.name} prepared", "not prepared, or closed", "Use it in a with statement.")
        return Path(self._folder.name)

    @abstractmethod
    def _command(self, arguments: list[str]) -> list[str]:
        """Return the command that runs the worker with these arguments."""


def copy_worker(folder: Path) -> Path:
    """Copy the worker's modules to `folder`, for a device that does not see this repository."""
    for name in WORKER_MODULES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, folder / name)
    return folder


def describe_exit(code: int, message: str) -> str:
    """Describe an exit code, a negative one being a signal, with the last line of the process's output."""
    name = f"exit code {code}"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        message = SIGNALS.get(name, message)
    return f"{name} ({message})" if message else name


def read_output(folder: Path, model: ExportedModel, count: int) -> DeviceOutput:
    """Read what the worker wrote to `folder`; raises the worker's own error, `CorruptFile` for anything unexpected."""
    report = read_report(folder / REPORT)
    shapes = ((count, model.metadata.bits // 8), (count, model.metadata.bits))
    try:
        engine = str(report.pop("engine"))
        check_regular(folder / OUTPUTS, MAX_HEADERS + 5 * count * model.metadata.bits)  # bytes: codes and float32
        with np.load(folder / OUTPUTS, allow_pickle=False) as outputs:
            codes, logits = outputs["codes"], outputs["logits"]
    except Exception as error:  # OSError, and what zip and numpy raise for bytes that are none of theirs
        raise CorruptFile("the worker's outputs", f"{type(error).__name__}: {error}", "Run it again.") from error
    if (codes.shape, logits.shape) != shapes or (codes.dtype, logits.dtype) != (np.uint8, np.float32):
        raise CorruptFile(f"codes and logits of {shapes}", f"{codes.shape} and {logits.shape}", "Export it again.")
    return DeviceOutput(codes, logits, engine, report)


def read_report(path: Path) -> dict[str, Any]:
    """Read the worker's figures; raises its error if it had one."""
    try:
        report = read_json(path, dict)
        kind, expected, found, fix = map(str, report.get("error", ("",) * 4))
    except (OSError, ValueError, TypeError) as error:
        raise CorruptFile("the worker's report", str(error), "Run it again.") from error
    if kind:
        raise TYPED.get(kind, WorkerFailed)(expected, found, fix)
    return report
