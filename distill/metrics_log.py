"""The metrics log of training, `train.jsonl`: one line a tenth of an epoch."""

import json
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import ConfigDict, FiniteFloat, StrictInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from distill.distributed import is_main_process
from gallery.console import log
from gallery.files import atomic_write, read_bytes
from gallery.layers import missing_module

MAX_BYTES = 256 << 20  # of train.jsonl: a million lines


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MetricsRecord:
    """One line: means over the steps since the last one; validation only at the end of an epoch.

    seconds: since the process started this stage; data_wait_s: seconds since the last line spent waiting for batches
    """

    stage: str
    step: StrictInt
    epoch: FiniteFloat
    loss: FiniteFloat
    accuracy: FiniteFloat
    validation: FiniteFloat | None
    seconds: FiniteFloat
    data_wait_s: FiniteFloat = 0.0


def read_metrics(path: Path) -> list[MetricsRecord]:
    """Return the records of `train.jsonl`, in order; a line that a kill has cut short is left out.

    So are damaged ones, with a warning: the training curves lack them.
    """
    if not path.exists():
        return []
    try:
        lines = read_bytes(path, MAX_BYTES).rpartition(b"\n")[0].splitlines()
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s): there are no training curves", path, error)
        return []
    found, kind = [], TypeAdapter(MetricsRecord)
    for line in lines:
        with suppress(ValidationError):
            found.append(kind.validate_json(line))
    if len(found) < len(lines):
        log.warning("%d of %d lines of %s are damaged and left out", len(lines) - len(found), len(lines), path)
    return found


def to_tensorboard(path: Path, folder: Path) -> None:
    """Write the log at `path` as TensorBoard events, a tag `<stage>/<metric>`; needs the `tensorboard` extra."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise missing_module("tensorboard") from error
    with SummaryWriter(str(folder)) as writer:
        for point in read_metrics(path):
            for name in ("loss", "accuracy", "validation", "data_wait_s"):
                if (value := getattr(point, name)) is not None:
                    writer.add_scalar(f"{point.stage}/{name}", value, point.step, point.seconds)


class MetricsLogger:
    """Writes `train.jsonl`; lines that a killed run wrote past its last checkpoint are dropped on resume.

    first: the step that training (re)starts at; history: the validations of this stage so far
    """

    def __init__(self, path: Path, stage: str, first: int, epoch_steps: int) -> None:
        self.path, self.stage, self.epoch_steps = path, stage, epoch_steps
        self.every = max(1, epoch_steps // 10)
        self.pending: list[Tensor] = []
        self.start, self.data_wait_s = time.monotonic(), 0.0
        kept = [p for p in read_metrics(path) if p.stage != stage or p.step <= first]
        self.history = [p.validation for p in kept if p.stage == stage and p.validation is not None]
        if is_main_process():
            atomic_write(path, "".join(map(_line, kept)))

    @property
    def epochs_since_best(self) -> int:
        """Epochs since the best validation, the earliest on ties; 0 if it is the last one, or there is none."""
        return len(self.history) - 1 - self.history.index(max(self.history)) if self.history else 0

    def log_step(self, step: int, loss: Tensor, accuracy: Tensor) -> None:
        """Add a step; every tenth of an epoch, but for its end, the means are written."""
        self.pending.append(torch.stack([loss.detach(), accuracy.detach()]))  # read rarely: a read waits for a GPU
        if step % self.every == 0 and step % self.epoch_steps:
            self._write(step, None)

    def end_epoch(self, step: int, validation: float | None) -> None:
        """Write the last line of an epoch."""
        point, shown = self._write(step, validation), ""
        if validation is not None:
            self.history.append(validation)
            shown = f", validation accuracy {validation:.3f}"
        message = "  %s epoch %g: loss %.3f, train accuracy %.3f%s"
        log.info(message, self.stage, point.epoch, point.loss, point.accuracy, shown)

    def _write(self, step: int, validation: float | None) -> MetricsRecord:
        loss, accuracy = torch.stack(self.pending).mean(0).tolist()
        seconds, data_wait_s = round(time.monotonic() - self.start, 2), round(self.data_wait_s, 4)
        self.data_wait_s = 0.0
        self.pending.clear()
        means = step / self.epoch_steps, round(loss, 5), round(accuracy, 4)
        point = MetricsRecord(self.stage, step, *means, validation, seconds, data_wait_s)
        if is_main_process():
            with self.path.open("a") as file:
                file.write(_line(point))
        return point


def _line(point: MetricsRecord) -> str:
    return json.dumps(asdict(point)) + "\n"
