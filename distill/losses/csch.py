"""CSCH: both networks are drawn to fixed hash centers, and the student to the teacher's own code.

"Central Similarity Consistency Hashing for Asymmetric Image Retrieval", Computational Visual Media, 2024.
The released code leaves out the paper's sign and stop-gradient in the instance term and redraws tie bits on every
call; here the default of both is as the paper's figure has them, and the released form can be asked for.

h_q: logits of the student (query side), h_g: of the teacher (gallery side), both `[B, bits]`; t: centers `[C, bits]`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.config import Instance
from distill.losses.base import HashLoss, LossBatch, LossContext

SCALE, MARGIN = 8.0, 0.2
ROOM = 0.5  # from zero, in units of a bit's spread


def center_consistency(
    logits: Tensor, target: Tensor, centers: Tensor, positive: Tensor, scale: float = SCALE, margin: float = MARGIN
) -> Tensor:
    """The mean of CosFace over fixed centers.

    L = -log  e^{s(cos(h,p) - m)} / (e^{s(cos(h,p) - m)} + sum_{c not in y} e^{s cos(h,t_c)})

    logits h `[B, bits]`; target p `[B, bits]`; positive `[B, C]` bool, the classes y of each picture.  With one label
    a picture, p = t_y.
    """
    h = F.normalize(logits, dim=1)
    own = scale * ((h * F.normalize(target, dim=1)).sum(1, keepdim=True) - margin)
    others = (scale * h @ F.normalize(centers, dim=1).T).masked_fill(positive, -torch.inf)
    return (torch.logsumexp(torch.cat([own, others], 1), 1) - own[:, 0]).mean()


def instance_consistency(student: Tensor, teacher: Tensor, form: Instance = "sign") -> Tensor:
    """The student's agreement with the teacher, picture by picture; the mean over batch and bits.

    sign    (h_q - sign(h_g))^2, the paper's figure        raw    (h_q - h_g)^2, the teacher a target
    cosine  1 - cos(h_q, h_g), a mean over the batch       joint  (h_q - h_g)^2 with gradient into both: as released
    """
    if form == "joint":
        return F.mse_loss(student, teacher)
    target = teacher.detach()
    if form == "cosine":
        return (1 - F.cosine_similarity(student, target, dim=1)).mean()
    return F.mse_loss(student, signs(target) if form == "sign" else target)


def similarity_consistency(student: Tensor, teacher: Tensor, centers: Tensor, scale: float = SCALE) -> Tensor:
    """KL( softmax(s cos(h_g, t)) || softmax(s cos(h_q, t)) ), mean over the batch: to whom else a picture is alike.

    The class similarities that CSCH computes for its center term and never compares (as CSD, CVPR 2022, on centers).
    """
    words = F.normalize(centers, dim=1).T
    taught = (scale * F.normalize(teacher.detach(), dim=1) @ words).log_softmax(1)
    learned = (scale * F.normalize(student, dim=1) @ words).log_softmax(1)
    return F.kl_div(learned, taught, reduction="batchmean", log_target=True)


def rank_consistency(student: Tensor, teacher: Tensor) -> Tensor:
    """The order of the batch in each picture's eyes: mean over i and all j, k with g_ij > g_ik of
    max(0, (g_ij - g_ik) - (q_ij - q_ik)),  g_ij = cos(b_i, b_j),  q_ij = cos(h_q_i, b_j),  b = sign(h_g).

    The student's queries must keep the gallery codes of a batch at least as far apart as the teacher's own do (after
    D3still, CVPR 2024, whose pairwise differences are of real-valued embeddings).
    """
    codes = F.normalize(signs(teacher.detach()), dim=1)
    own, asked = codes @ codes.T, F.normalize(student, dim=1) @ codes.T
    wanted = own[:, :, None] - own[:, None, :]
    behind = F.relu(wanted - (asked[:, :, None] - asked[:, None, :]))
    ordered = wanted > 0
    return (behind * ordered).sum() / ordered.sum().clamp(min=1)


def relation_consistency(student: Tensor, teacher: Tensor) -> Tensor:
    """mean over i != j of (cos(h_q_i, h_q_j) - cos(h_g_i, h_g_j))^2 (RAML, WACV 2023, its symmetric term).

    Invariant to a rotation of the student's space: alone it says nothing of where the gallery's codes are.
    """
    q, g = F.normalize(student, dim=1), F.normalize(teacher.detach(), dim=1)
    off = ~torch.eye(len(q), dtype=torch.bool, device=q.device)
    return ((q @ q.T - g @ g.T)[off] ** 2).mean()


def margin_room(student: Tensor, room: float = ROOM) -> Tensor:
    """mean max(0, room - |h_q|): bits pushed away from zero, where quantization turns them."""
    return F.relu(room - student.abs()).mean()


def signs(logits: Tensor) -> Tensor:
    """The code as +-1 floats; a logit of zero is a bit that is not set."""
    return torch.where(logits > 0, 1.0, -1.0).to(logits.dtype)


class CSCHLoss(HashLoss):
    """The center term alone: the teacher's side of CSCH, and ours."""

    centers = "auto"

    def __init__(self, task: LossContext, scale: float = SCALE, margin: float = MARGIN) -> None:
        super().__init__(task)
        self.scale, self.margin = scale, margin

    def forward(self, seen: LossBatch) -> Tensor:
        own, positive = self.task.targets[seen.rows], self.task.positive[seen.rows]
        return center_consistency(seen.logits, own, self.task.words, positive, self.scale, self.margin)


METHOD = CSCHLoss
