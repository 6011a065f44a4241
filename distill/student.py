"""The student: distilled into the frozen teacher's Hamming space from stored views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.engine import Schedule, fit, forward
from distill.models import HashNet
from distill.objectives.csch import instance_consistency
from distill.teacher import Lesson


def train_student(
    net: HashNet,
    lesson: Lesson,
    crops: Tensor,
    taught: Tensor,
    center_weight: float,
    instance_weight: float,
    schedule: Schedule,
    folder: Path,
    key: str,
) -> None:
    """Trains all layers of `net` in place, resuming from `folder`.

    L = center_weight * center consistency + instance_weight * instance consistency; each step sees one stored view of
    each of its pictures.

    crops: `[views, len(train), 4]`; taught: the teacher's logits on those views, `[views, len(train), bits]`
    """
    run, device = forward(net, lesson.lens.device), lesson.lens.device
    taught = taught.to(device)

    def objective(rows: NDArray[np.int64], generator: torch.Generator, step: int) -> tuple[Tensor, Tensor]:
        view, row = torch.randint(len(crops), (len(rows),), generator=generator), torch.from_numpy(rows)
        index = lesson.train[rows]
        logits = run(lesson.lens.look(index, crops[view, row]))
        loss = center_weight * lesson.center_loss(logits, index)
        loss = loss + instance_weight * instance_consistency(logits, taught[view.to(device), row.to(device)])
        return loss, lesson.accuracy(logits.detach(), index)

    fit("student", net, objective, np.arange(len(lesson.train)), schedule, lesson.validator(net), folder, key)
