"""The base of distillers: their context and batch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.losses.base import cosines, sign
from distill.registry import Method


@dataclass(frozen=True)
class DistillContext:
    """What a distiller is built for.

    centers: float `[C, bits]` of +-1, the center of each class; gallery: the teacher's logits of the gallery's
    images, float `[G, bits]`, +-1 where only their codes are known
    """

    centers: Tensor
    gallery: Tensor


class DistillBatch(NamedTuple):
    """Both networks' logits `[B, bits]` on the same views, and the classes of the first L images.

    student: with gradient; teacher: without, but for CSCH's joint variant; positive: bool `[L, C]`, the other B - L
    images have no label
    """

    student: Tensor
    teacher: Tensor
    positive: Tensor


class Distiller(Method, nn.Module, ABC):
    """A loss over batches, beside the center term that every student has (`center_loss_weight`).

    A term that is invariant to a rotation of the student's space does not tie it to the gallery's codes: a method needs
    another one too.
    """

    def __init__(self, context: DistillContext, **options: Any) -> None:
        super().__init__()
        self.context = context
        self.set_options(options)

    @staticmethod
    def uses_teacher(options: Any) -> bool:
        """Whether any term uses the teacher's logits; otherwise the teacher is not run."""
        return True

    @staticmethod
    def fixes_rotation(options: Any) -> bool:
        """Whether a rotation of the student's space changes the loss: otherwise its codes need not fit the gallery."""
        return True

    @staticmethod
    def trains_teacher(options: Any) -> bool:
        """Whether its gradient reaches the teacher."""
        return False

    @abstractmethod
    def forward(self, batch: DistillBatch) -> Tensor:
        """The loss of a batch, a scalar."""


class NeighborDistiller(Distiller):
    """A distiller that compares student and teacher by the gallery's embeddings nearest to the teacher's.

    k: how many neighbors; signs: whether the teacher's side is codes, each counted once, or logits
    """

    k: int = Field(256, ge=1)
    signs: bool = True
    known: Tensor

    def __init__(self, context: DistillContext, **options: Any) -> None:
        super().__init__(context, **options)
        stored = teacher_targets(context.gallery, self.signs)
        self.register_buffer("known", stored.unique(dim=0) if self.signs else stored, persistent=False)

    def compare(self, batch: DistillBatch) -> tuple[Tensor, Tensor]:
        """Similarities to the nearest, nearest first: the teacher's, and the student's to the same, both `[B, k]`."""
        similarities = cosines(teacher_targets(batch.teacher, self.signs), self.known)
        near, which = similarities.topk(min(self.k, len(self.known)), dim=1)
        student = F.normalize(batch.student, dim=1)[:, None] * F.normalize(self.known[which], dim=2)
        return near, student.sum(2)


def teacher_targets(logits: Tensor, signs: bool) -> Tensor:
    """The teacher's logits without gradient, or their signs, as the gallery stores them.

    +-1 where `signs`, and not normalized: products of codes are whole numbers, and equal distances exactly equal.
    """
    return sign(logits.detach()) if signs else logits.detach()
