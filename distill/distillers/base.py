"""What every distiller of a student is made for, is shown, and answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.base import cosines
from distill.losses.csch import signs as signs_of
from gallery.errors import InputError


@dataclass(frozen=True)
class DistillContext:
    """What a student learns from.

    words: float `[C, bits]` of +-1, the center of each class; gallery: the teacher's logits of the gallery's pictures,
    float `[G, bits]`, +-1 where only their codes are known
    """

    words: Tensor
    gallery: Tensor
    seed: int


class DistillBatch(NamedTuple):
    """A batch: both networks' logits `[B, bits]` on the same looks, and the classes of its first L pictures.

    student: with gradient; teacher: without, but for CSCH's joint form; positive: bool `[L, C]`, the other B - L
    pictures have no label
    """

    student: Tensor
    teacher: Tensor
    positive: Tensor


class Distiller(nn.Module, ABC):
    """A loss over batches, beside the center term that every student has (`center_loss_weight`).

    A method is a subclass; its options are its constructor's keywords, with their defaults.  A term that a rotation of
    the student's space does not change says nothing of where the gallery's codes are: a method needs another one too.
    """

    asks_teacher: ClassVar[bool] = True
    """Whether it looks at what the teacher said; otherwise nobody asks."""

    def __init__(self, task: DistillContext) -> None:
        super().__init__()
        self.task = task

    @abstractmethod
    def forward(self, taught: DistillBatch) -> Tensor:
        """The loss of a batch, a scalar."""


class NeighborDistiller(Distiller):
    """A distiller that compares student and teacher by the gallery's embeddings nearest to the teacher's.

    k: how many; signs: whether the teacher's side is codes (1), each counted once, or logits (0)
    """

    known: Tensor

    def __init__(self, task: DistillContext, k: float, signs: float) -> None:
        super().__init__(task)
        self.k, self.signs = whole(k), signs
        stored = gallery_side(task.gallery, signs)
        self.register_buffer("known", stored.unique(dim=0) if signs else stored, persistent=False)

    def compare(self, taught: DistillBatch) -> tuple[Tensor, Tensor]:
        """Similarities to the nearest, nearest first: the teacher's, and the student's to the same, both `[B, k]`."""
        all_of_them = cosines(gallery_side(taught.teacher, self.signs), self.known)
        near, which = all_of_them.topk(min(self.k, len(self.known)), dim=1)
        asked = F.normalize(taught.student, dim=1)[:, None] * F.normalize(self.known[which], dim=2)
        return near, asked.sum(2)


def gallery_side(logits: Tensor, signs: float) -> Tensor:
    """What a term looks at of the teacher's logits, without gradient: their signs, as the gallery stores them, or all.

    +-1 where `signs`, and not normalised: products of codes are whole numbers, and equal distances exactly equal.
    """
    return signs_of(logits.detach()) if signs else logits.detach()


def whole(k: float, least: int = 1) -> int:
    """The option `k`, a number of neighbours; raises `InputError` below `least`."""
    if k < least or k != int(k):
        raise InputError(f"a whole k of at least {least} in --distiller-args", f"{k:g}", "Choose a larger one.")
    return int(k)
