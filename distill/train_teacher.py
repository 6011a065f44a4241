"""The teacher: trained alone, by its objective, then frozen.  Its codes of the gallery are the product's index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.data.augment import draw, tinted
from distill.distributed import shard
from distill.engine import OptimizedModule, TrainSpec, fit, in_full
from distill.losses.base import HashLoss, LossBatch
from distill.models.hash_net import HashNet
from distill.training_set import Judge, Logits, TrainingSet

HARD_CROP, TINT = 0.4, 0.2  # of a second look: its smallest area over the first one's, and the change of its colours
Rows = NDArray[np.int64]


def train_teacher(
    net: HashNet,
    objective: HashLoss,
    lesson: TrainingSet,
    schedule: TrainSpec,
    rates: tuple[float, float],
    smallest_crop: float,
    folder: Path,
    key: str,
    frozen_statistics: bool = False,
) -> None:
    """Trains all layers of `net`, and what `objective` learns, in place on fresh crops, resuming from `folder`.

    rates: learning rate and weight decay; frozen_statistics: batch norms of the backbone keep what they have counted
    """
    run, judge = in_full(net), _judge(lesson, objective)

    def prepare(rows: Rows, generator: torch.Generator) -> tuple[list[Tensor], Rows]:
        index = lesson.train[rows]
        looks = [lesson.lens.look(shard(index), shard(draw(len(index), smallest_crop, generator)))]
        if objective.n_views > 1:
            harder = lesson.lens.look(shard(index), shard(draw(len(index), HARD_CROP * smallest_crop, generator)))
            looks.append(tinted(harder, TINT, generator))
        return looks, rows

    def loss(batch: tuple[list[Tensor], Rows]) -> tuple[Tensor, Tensor]:
        looks, rows = batch
        net.backbone.train(not frozen_statistics)
        features, logits = run(looks[0])
        second_view_logits = run(looks[1])[1] if objective.n_views > 1 else None
        seen = LossBatch(logits, features, torch.from_numpy(rows).to(logits.device), second_view_logits)
        return objective(seen), judge(logits.detach(), lesson.train[rows])

    fit("teacher", _learners("teacher", net, objective, rates), prepare, loss, np.arange(len(lesson.train)), schedule,
        lesson.validator(net, judge), folder, key)  # fmt: skip


def train_head(
    stage: str,
    net: HashNet,
    objective: HashLoss,
    lesson: TrainingSet,
    features: Logits,
    schedule: TrainSpec,
    rates: tuple[float, float],
    folder: Path,
    key: str,
) -> None:
    """Trains the hash head of `net`, and what `objective` learns, in place on stored features: seconds.

    features: of the frozen backbone, `[views, len(train), D]`; a step takes a view of each of its pictures at random
    """
    stored, judge = torch.from_numpy(features).to(lesson.lens.device), _judge(lesson, objective)

    def prepare(rows: Rows, generator: torch.Generator) -> tuple[list[Tensor], Rows]:
        views = (torch.randint(len(stored), (len(rows),), generator=generator) for _ in range(objective.n_views))
        return [stored[view, torch.from_numpy(rows)] for view in views], rows

    def loss(batch: tuple[list[Tensor], Rows]) -> tuple[Tensor, Tensor]:
        looks, rows = batch
        logits = net.head(looks[0])
        second_view_logits = net.head(looks[1]) if objective.n_views > 1 else None
        seen = LossBatch(logits, looks[0], torch.from_numpy(rows).to(logits.device), second_view_logits)
        return objective(seen), judge(logits.detach(), lesson.train[rows])

    fit(stage, _learners("head", net.head, objective, rates), prepare, loss, np.arange(len(lesson.train)), schedule,
        lambda: None, folder, key)  # fmt: skip
    net.eval()


def _learners(
    name: str, net: torch.nn.Module, objective: HashLoss, rates: tuple[float, float]
) -> list[OptimizedModule]:
    """The network, and beside it the objective: what it learns, and what it must still know after a kill."""
    return [OptimizedModule(name, net, *rates), OptimizedModule("objective", objective, *rates, averaged=False)]


def _judge(lesson: TrainingSet, objective: HashLoss) -> Judge:
    """How well a batch does, for the training curves: by nearest centers, where the objective knows them."""
    return lesson.accuracy if objective.centers else lesson.neighbours
