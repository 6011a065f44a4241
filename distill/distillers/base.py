"""The base of distillers: their context and batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.losses.base import cosines
from distill.losses.csch import sign
from distill.registry import MethodArgs, args_type


@dataclass(frozen=True)
class DistillContext:
    """What a distiller is built for.

    centers: float `[C, bits]` of +-1, the center of each class; gallery: the teacher's logits of the gallery's
    images, float `[G, bits]`, +-1 where only their codes are known
    """

    centers: Tensor
    gallery: Tensor
    seed: int


class DistillBatch(NamedTuple):
    """Both networks' logits `[B, bits]` on the same views, and the classes of the first L images.

    student: with gradient; teacher: without, but for CSCH's joint variant; positive: bool `[L, C]`, the other B - L
    images have no label
    """

    student: Tensor
    teacher: Tensor
    positive: Tensor


class DistillerArgs(MethodArgs):
    """Options of a distiller, and what they need from a run."""

    @property
    def uses_teacher(self) -> bool:
        """Whether any term uses the teacher's logits; otherwise the teacher is not run."""
        return True

    @property
    def fixes_rotation(self) -> bool:
        """Whether a rotation of the student's space changes the loss: otherwise its codes need not fit the gallery."""
        return True

    @property
    def trains_teacher(self) -> bool:
        """Whether its gradient reaches the teacher."""
        return False


class NeighborArgs(DistillerArgs):
    """k: how many neighbors; signs: whether the teacher's side is codes, each counted once, or logits."""

    k: int = Field(256, ge=1)
    signs: bool = True


class Distiller(nn.Module, ABC):
    """A loss over batches, beside the center term that every student has (`center_loss_weight`).

    The fields of `args` are the constructor's keywords.  A term that is invariant to a rotation of the student's space
    does not tie it to the gallery's codes: a method needs another one too.
    """

    args: DistillerArgs

    def __init__(self, context: DistillContext, **args: Any) -> None:
        super().__init__()
        self.context = context
        self.args = args_type(type(self)).model_validate(args)

    @abstractmethod
    def forward(self, batch: DistillBatch) -> Tensor:
        """The loss of a batch, a scalar."""


class NeighborDistiller(Distiller):
    """A distiller that compares student and teacher by the gallery's embeddings nearest to the teacher's."""

    args: NeighborArgs
    known: Tensor

    def __init__(self, context: DistillContext, **args: Any) -> None:
        super().__init__(context, **args)
        stored = teacher_targets(context.gallery, self.args.signs)
        self.register_buffer("known", stored.unique(dim=0) if self.args.signs else stored, persistent=False)

    def compare(self, batch: DistillBatch) -> tuple[Tensor, Tensor]:
        """Similarities to the nearest, nearest first: the teacher's, and the student's to the same, both `[B, k]`."""
        similarities = cosines(teacher_targets(batch.teacher, self.args.signs), self.known)
        near, which = similarities.topk(min(self.args.k, len(self.known)), dim=1)
        student = F.normalize(batch.student, dim=1)[:, None] * F.normalize(self.known[which], dim=2)
        return near, student.sum(2)


def teacher_targets(logits: Tensor, signs: bool) -> Tensor:
    """The teacher's logits without gradient, or their signs, as the gallery stores them.

    +-1 where `signs`, and not normalized: products of codes are whole numbers, and equal distances exactly equal.
    """
    return sign(logits.detach()) if signs else logits.detach()
