"""CSCH's student, and ours: the teacher's own code of each picture, and the terms that can be added to it."""

from __future__ import annotations

from torch import Tensor

from distill.config import Instance
from distill.distillers.base import DistillBatch, DistillContext, Distiller
from distill.losses import csch


class CSCHDistiller(Distiller):
    """The sum of the terms of `distill/losses/csch.py` that have a weight.

    instance_weight: to the teacher's own code of the picture, in the form `instance`; similarity_weight: to its
    similarities to all centers; rank_weight: to the order in which it ranks a batch; relation_weight: to its
    similarities within a batch, student to student; margin_weight: away from zero
    """

    def __init__(
        self,
        task: DistillContext,
        instance_weight: float = 10.0,
        instance: Instance = "sign",
        similarity_weight: float = 0.0,
        rank_weight: float = 0.0,
        relation_weight: float = 0.0,
        margin_weight: float = 0.0,
    ) -> None:
        super().__init__(task)
        self.instance, self.instance_weight, self.similarity_weight = instance, instance_weight, similarity_weight
        self.rank_weight, self.relation_weight, self.margin_weight = rank_weight, relation_weight, margin_weight

    def forward(self, taught: DistillBatch) -> Tensor:
        student, teacher = taught.student, taught.teacher
        loss = student.new_zeros(())
        if self.instance_weight:
            loss = loss + self.instance_weight * csch.instance_consistency(student, teacher, self.instance)
        if self.similarity_weight:
            loss = loss + self.similarity_weight * csch.similarity_consistency(student, teacher, self.task.words)
        if self.rank_weight:
            loss = loss + self.rank_weight * csch.rank_consistency(student, teacher)
        if self.relation_weight:
            loss = loss + self.relation_weight * csch.relation_consistency(student, teacher)
        if self.margin_weight:
            loss = loss + self.margin_weight * csch.margin_room(student)
        return loss


METHOD = CSCHDistiller
