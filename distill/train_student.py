"""The student: distilled into the teacher's Hamming space, from stored views or beside the teacher itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.data.augment import draw
from distill.distillers.base import DistillBatch, Distiller
from distill.distributed import all_gather, shard
from distill.engine import OptimizedModule, TrainSpec, fit, forward
from distill.models.hash_net import HashNet
from distill.training_set import Indices, TrainingSet


@dataclass(frozen=True)
class Views:
    """Pictures, some looks at each, and what the teacher said of them.

    index: int `[M]`, the pictures: those of train first, then those that teach without a label
    crops: `[V, M, 4]`; logits: the teacher's, `[V, M, bits]`
    """

    index: Indices
    crops: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Batch:
    """One step: this process's share of the images, and the pictures of the whole step, labelled ones first."""

    images: Tensor
    index: Indices
    labelled: int
    taught: Callable[[], Tensor]
    """The teacher's logits on the same looks, `[B, bits]`."""


Prepare = Callable[[NDArray[np.int64], torch.Generator], Batch]


def from_views(lesson: TrainingSet, views: Views, unlabelled: int) -> Prepare:
    """Batches of stored views: rows of train, and `unlabelled` more pictures drawn from the others."""
    first, device = len(lesson.train), lesson.lens.device
    logits = views.logits.to(device)

    def prepare(rows: NDArray[np.int64], generator: torch.Generator) -> Batch:
        view = torch.randint(len(views.crops), (len(rows) + unlabelled,), generator=generator)
        row = torch.from_numpy(rows)
        if unlabelled:
            row = torch.cat([row, torch.randint(first, len(views.index), (unlabelled,), generator=generator)])
        index, taught = views.index[row.numpy()], logits[view.to(device), row.to(device)]
        return Batch(lesson.lens.look(shard(index), shard(views.crops[view, row])), index, len(rows), lambda: taught)

    return prepare


def from_teacher(
    lesson: TrainingSet, teacher: HashNet, its: TrainingSet, smallest_crop: float, others: Indices, unlabelled: int
) -> Prepare:
    """Batches of fresh crops, of which the frozen teacher looks at every one; `others` teach without a label."""
    run = forward(teacher)

    def prepare(rows: NDArray[np.int64], generator: torch.Generator) -> Batch:
        crops = draw(len(rows) + unlabelled, smallest_crop, generator)
        drawn = torch.randint(max(1, len(others)), (unlabelled,), generator=generator).numpy()
        index = np.concatenate([lesson.train[rows], others[drawn]])
        images = its.lens.look(shard(index), shard(crops))

        def taught() -> Tensor:
            teacher.eval()
            with torch.no_grad():
                return all_gather(run(images))

        return Batch(lesson.lens.look(shard(index), shard(crops)), index, len(rows), taught)

    return prepare


def train_student(
    net: HashNet,
    lesson: TrainingSet,
    prepare: Prepare,
    center_loss_weight: float,
    distiller: Distiller,
    schedule: TrainSpec,
    rates: tuple[float, float],
    folder: Path,
    key: str,
    uses_teacher: bool = True,
) -> None:
    """Trains all layers of `net`, and what `distiller` learns, in place by `student_loss`, resuming from `folder`.

    rates: learning rate and weight decay; uses_teacher: whether the distiller uses the teacher's logits
    """
    run = forward(net)

    def objective(batch: Batch) -> tuple[Tensor, Tensor]:
        logits, index = run(batch.images), batch.index[: batch.labelled]
        taught = batch.taught() if uses_teacher else logits.detach()
        loss = student_loss(center_loss_weight, distiller, lesson, logits, taught, index)
        return loss, lesson.accuracy(logits[: len(index)].detach(), index)

    learners = [
        OptimizedModule("student", net, *rates),
        OptimizedModule("distiller", distiller, *rates, averaged=False),
    ]
    rows = np.arange(len(lesson.train))
    fit("student", learners, prepare, objective, rows, schedule, lesson.validator(net), folder, key)


def train_pair(
    teacher: HashNet,
    student: HashNet,
    its: TrainingSet,
    lesson: TrainingSet,
    center_loss_weight: float,
    distiller: Distiller,
    schedule: TrainSpec,
    rates: dict[str, tuple[float, float]],
    smallest_crop: float,
    folder: Path,
    key: str,
) -> None:
    """Trains teacher and student at once on the same crops, as CSCH's paper does.

    Unless the instance term is the joint one, nothing of the student reaches the teacher: it ends bit for bit as
    `train_teacher` would have left it.
    """
    run, ask = forward(teacher), forward(student)

    def prepare(index: Indices, generator: torch.Generator) -> tuple[Tensor, Tensor, Indices]:
        crops = shard(draw(len(index), smallest_crop, generator))
        return its.lens.look(shard(index), crops), lesson.lens.look(shard(index), crops), index

    def objective(batch: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        larger, smaller, index = batch
        gallery, query = run(larger), ask(smaller)
        loss = its.center_loss(gallery, index) + student_loss(
            center_loss_weight, distiller, lesson, query, gallery, index
        )
        return loss, lesson.accuracy(query.detach(), index)

    learners = [
        OptimizedModule("teacher", teacher, *rates["teacher"]),
        OptimizedModule("student", student, *rates["student"]),
    ]
    fit("pair", learners, prepare, objective, lesson.train, schedule, lesson.validator(student), folder, key)


def student_loss(
    weight: float, distiller: Distiller, lesson: TrainingSet, student: Tensor, teacher: Tensor, index: Indices
) -> Tensor:
    """The center term, by its weight, and what the distiller says.

    student, teacher: logits `[B, bits]` on the same looks; index: the pictures of the first rows, which have labels.
    The other rows have the terms that need none.
    """
    loss = distiller(DistillBatch(student, teacher, lesson.positive[index]))
    if weight and len(index):
        loss = weight * lesson.center_loss(student[: len(index)], index) + loss
    return loss
