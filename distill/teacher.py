"""The teacher: trained alone, by central similarity, then frozen.  Its codes of the gallery are the product's index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.engine import Learner, Schedule, fit, forward
from distill.lesson import Lesson, Logits
from distill.models import HashNet
from distill.parallel import mine
from distill.views import draw


def train_teacher(
    net: HashNet,
    lesson: Lesson,
    schedule: Schedule,
    rates: tuple[float, float],
    smallest_crop: float,
    folder: Path,
    key: str,
    frozen_statistics: bool = False,
) -> None:
    """Trains all layers of `net` in place by center consistency on fresh crops, resuming from `folder`.

    rates: learning rate and weight decay; frozen_statistics: batch norms of the backbone keep what they have counted
    """
    run = forward(net)

    def prepare(index: NDArray[np.int64], generator: torch.Generator) -> tuple[Tensor, NDArray[np.int64]]:
        return lesson.lens.look(mine(index), mine(draw(len(index), smallest_crop, generator))), index

    def objective(batch: tuple[Tensor, NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
        images, index = batch
        net.backbone.train(not frozen_statistics)
        logits = run(images)
        return lesson.center_loss(logits, index), lesson.accuracy(logits.detach(), index)

    learner = Learner("teacher", net, *rates)
    fit("teacher", [learner], prepare, objective, lesson.train, schedule, lesson.validator(net), folder, key)


def train_head(
    stage: str,
    net: HashNet,
    lesson: Lesson,
    features: Logits,
    schedule: Schedule,
    rates: tuple[float, float],
    folder: Path,
    key: str,
) -> None:
    """Trains the hash head of `net` in place on stored features of its frozen backbone: seconds.

    features: `[views, len(train), D]`; each step sees one view of each of its pictures
    """
    stored = torch.from_numpy(features).to(lesson.lens.device)

    def prepare(rows: NDArray[np.int64], generator: torch.Generator) -> tuple[Tensor, NDArray[np.int64]]:
        view = torch.randint(len(stored), (len(rows),), generator=generator)
        return stored[view, torch.from_numpy(rows)], lesson.train[rows]

    def objective(batch: tuple[Tensor, NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
        logits, index = net.head(batch[0]), batch[1]
        return lesson.center_loss(logits, index), lesson.accuracy(logits.detach(), index)

    rows, learner = np.arange(len(lesson.train)), Learner("head", net.head, *rates)
    fit(stage, [learner], prepare, objective, rows, schedule, lambda: None, folder, key)
    net.eval()

