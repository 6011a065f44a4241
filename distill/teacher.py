"""The teacher: trained alone, by central similarity, then frozen.  Its codes of the gallery are the product's index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from distill.centers import Centers
from distill.engine import Schedule, fit, forward
from distill.models import HashNet
from distill.objectives.csch import center_consistency, center_targets
from distill.views import Lens, draw
from gallery.encode import encode

ENCODE_BATCH = 128


@dataclass(frozen=True)
class Lesson:
    """What a network learns from: pictures through its own lens, and the words their labels are drawn to.

    labels: int `[N]` or multi-hot bool `[N, C]` of all pictures; train, validation: indices into them
    """

    lens: Lens
    labels: NDArray[np.int64] | NDArray[np.bool_]
    centers: Centers
    train: NDArray[np.int64]
    validation: NDArray[np.int64]

    @cached_property
    def words(self) -> Tensor:
        """Centers `[C, bits]` float32 on the device."""
        return torch.from_numpy(self.centers.astype(np.float32)).to(self.lens.device)

    @cached_property
    def targets(self) -> Tensor:
        """The word each picture is drawn to, float32 `[N, bits]`."""
        return torch.from_numpy(center_targets(self.labels, self.centers).astype(np.float32)).to(self.lens.device)

    @cached_property
    def positive(self) -> Tensor:
        """The classes of each picture, bool `[N, C]`."""
        hot = self.labels if self.labels.ndim == 2 else np.eye(len(self.centers), dtype=bool)[self.labels]
        return torch.from_numpy(hot).to(self.lens.device)

    def center_loss(self, logits: Tensor, index: NDArray[np.int64]) -> Tensor:
        """CSCH's center consistency of `logits` `[B, bits]` for the pictures at `index`."""
        return center_consistency(logits, self.targets[index], self.words, self.positive[index])

    def accuracy(self, logits: Tensor, index: NDArray[np.int64]) -> Tensor:
        """The share of `logits` whose nearest center belongs to a class of theirs."""
        nearest = (F.normalize(logits, dim=1) @ self.words.T).argmax(1)
        return self.positive[index, nearest].float().mean()

    def validator(self, net: HashNet) -> Callable[[], float | None]:
        """A function that measures `accuracy` on the validation pictures, uncropped; None where there are none."""
        run = forward(net, self.lens.device)

        def validate() -> float | None:
            if not len(self.validation):
                return None
            net.eval()
            with torch.inference_mode():
                parts = np.array_split(self.validation, -(-len(self.validation) // ENCODE_BATCH))
                right = [self.accuracy(run(self.lens.look(part)), part) * len(part) for part in parts]
                return round(float(sum(right)) / len(self.validation), 4)

        return validate


def train_teacher(
    net: HashNet, lesson: Lesson, schedule: Schedule, smallest_crop: float, folder: Path, key: str
) -> None:
    """Trains all layers of `net` in place by center consistency on fresh crops, resuming from `folder`."""
    run = forward(net, lesson.lens.device)

    def objective(index: NDArray[np.int64], generator: torch.Generator, step: int) -> tuple[Tensor, Tensor]:
        logits = run(lesson.lens.look(index, draw(len(index), smallest_crop, generator)))
        return lesson.center_loss(logits, index), lesson.accuracy(logits.detach(), index)

    fit("teacher", net, objective, lesson.train, schedule, lesson.validator(net), folder, key)


def look_at(
    net: HashNet, lens: Lens, index: NDArray[np.int64], folder: Path, label: str, key: str, crops: Tensor | None = None
) -> NDArray[np.float32]:
    """Logits float32 `[len(index), bits]` of pictures, or of one crop of each (`[len(index), 4]`); resumable."""
    run, net = forward(net, lens.device), net.eval()

    def encoder(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits = run(lens.look(index[rows], None if crops is None else crops[rows]))
        return logits.float().cpu().numpy()

    return encode(encoder, np.arange(len(index)), folder, ENCODE_BATCH, label, key=key)
