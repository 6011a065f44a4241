"""CSCH's student, and ours: the teacher's own code of each image, and the terms that can be added to it."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.distillers import register_distiller
from distill.distillers.base import DistillBatch, Distiller
from distill.losses.base import sign, weighted_mean
from distill.losses.csch import SCALE

InstanceLoss = Literal["sign", "raw", "cosine", "joint"]
MARGIN_ROOM = 0.5  # from zero, in units of a bit's spread


@register_distiller("csch")
class CSCHDistiller(Distiller):
    """The sum of the terms that have a weight; `instance_loss` is the variant of the first.

    instance_weight: to the teacher's own code of the image; center_similarity_weight: to its similarities to all
    centers; ranking_weight: to the order in which it ranks a batch; rkd_weight: to its similarities within a batch,
    student to student; bit_margin_weight: bits away from zero
    """

    instance_loss: InstanceLoss = "sign"
    instance_weight: float = Field(10.0, ge=0)
    center_similarity_weight: float = Field(0.0, ge=0)
    ranking_weight: float = Field(0.0, ge=0)
    rkd_weight: float = Field(0.0, ge=0)
    bit_margin_weight: float = Field(0.0, ge=0)

    @staticmethod
    def uses_teacher(options: Any) -> bool:
        return CSCHDistiller.fixes_rotation(options) or options.rkd_weight > 0

    @staticmethod
    def fixes_rotation(options: Any) -> bool:
        return options.instance_weight + options.center_similarity_weight + options.ranking_weight > 0

    @staticmethod
    def trains_teacher(options: Any) -> bool:
        return options.instance_loss == "joint"

    def forward(self, batch: DistillBatch) -> Tensor:
        student, teacher = batch.student, batch.teacher
        loss = student.new_zeros(())
        if self.instance_weight:
            loss = loss + self.instance_weight * instance_consistency(student, teacher, self.instance_loss)
        if self.center_similarity_weight:
            loss = loss + self.center_similarity_weight * similarity_consistency(student, teacher, self.context.centers)
        if self.ranking_weight:
            loss = loss + self.ranking_weight * rank_consistency(student, teacher)
        if self.rkd_weight:
            loss = loss + self.rkd_weight * relation_consistency(student, teacher)
        if self.bit_margin_weight:
            loss = loss + self.bit_margin_weight * bit_margin_loss(student)
        return loss


def instance_consistency(student: Tensor, teacher: Tensor, variant: InstanceLoss = "sign") -> Tensor:
    """The student's agreement with the teacher, image by image; the mean over batch and bits.

    sign    (h_q - sign(h_g))^2, the paper's figure        raw    (h_q - h_g)^2, the teacher a target
    cosine  1 - cos(h_q, h_g), a mean over the batch       joint  (h_q - h_g)^2 with gradient into both: as released
    """
    if variant == "joint":
        return F.mse_loss(student, teacher)
    target = teacher.detach()
    if variant == "cosine":
        return (1 - F.cosine_similarity(student, target, dim=1)).mean()
    return F.mse_loss(student, sign(target) if variant == "sign" else target)


def similarity_consistency(student: Tensor, teacher: Tensor, centers: Tensor, scale: float = SCALE) -> Tensor:
    """KL( softmax(s cos(h_g, t)) || softmax(s cos(h_q, t)) ), mean over the batch.

    The class similarities that CSCH computes for its center term and never compares (as CSD, CVPR 2022, on centers).
    """
    unit_centers = F.normalize(centers, dim=1).T
    wanted = (scale * F.normalize(teacher.detach(), dim=1) @ unit_centers).log_softmax(1)
    found = (scale * F.normalize(student, dim=1) @ unit_centers).log_softmax(1)
    return F.kl_div(found, wanted, reduction="batchmean", log_target=True)


def rank_consistency(student: Tensor, teacher: Tensor) -> Tensor:
    """The order of the batch by similarity to each image: mean over i and all j, k with g_ij > g_ik of
    max(0, (g_ij - g_ik) - (q_ij - q_ik)),  g_ij = cos(b_i, b_j),  q_ij = cos(h_q_i, b_j),  b = sign(h_g).

    The student's queries must keep the gallery codes of a batch at least as far apart as the teacher's own do (after
    D3still, CVPR 2024, whose pairwise differences are of real-valued embeddings).
    """
    codes = F.normalize(sign(teacher.detach()), dim=1)
    own, queries = codes @ codes.T, F.normalize(student, dim=1) @ codes.T
    wanted = own[:, :, None] - own[:, None, :]
    behind = F.relu(wanted - (queries[:, :, None] - queries[:, None, :]))
    return weighted_mean(behind, wanted > 0)


def relation_consistency(student: Tensor, teacher: Tensor) -> Tensor:
    """mean over i != j of (cos(h_q_i, h_q_j) - cos(h_g_i, h_g_j))^2 (RAML, WACV 2023, its symmetric term).

    Invariant to a rotation of the student's space: alone it does not tie the student to the gallery's codes.
    """
    q, g = F.normalize(student, dim=1), F.normalize(teacher.detach(), dim=1)
    off = ~torch.eye(len(q), dtype=torch.bool, device=q.device)
    return ((q @ q.T - g @ g.T)[off] ** 2).sum() / off.sum().clamp(min=1)


def bit_margin_loss(student: Tensor, room: float = MARGIN_ROOM) -> Tensor:
    """mean max(0, room - |h_q|): bits pushed away from zero, where quantization flips them."""
    return F.relu(room - student.abs()).mean()
