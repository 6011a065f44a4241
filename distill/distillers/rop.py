"""ROP: the student must rank the teacher's nearest neighbors as the teacher does.

"A General Rank Preserving Framework for Asymmetric Image Retrieval", ICLR 2023, as D3still's code re-implements it.

    L = weight * mean_b 1/k sum_j w_bj sum_i ( sigmoid((s_bi - s_bj) / 1e-6) - sigmoid((q_bi - s_bj) / tau) )^2
    w_bj = j * softmax_j(.2 s_b)

s_bj = f_g_b . g_j: similarities of the teacher's embedding of image b to the k nearest of the gallery, nearest first
(j = 1..k); q_bj = f_q_b . g_j: the student's to the same.  The sigmoids say which are nearer than the j-th: the
teacher's is all but a step, one half in a tie.  The student's similarities are compared with the teacher's, not with
each other: the term fixes their values as well as their order, and a rotation of the student's space changes it.
k 256, tau .1, weight 2 as in D3still's settings.  No labels: all rows of a batch take part.

Neighbors are of the whole gallery, as in the paper; signs, equal codes and memory are as in `csd`.  Beside that,
`[B, k, k]`: 4 M floats a tensor at batch 64 and k 256, 17 MB, of which a step holds a few.
"""

import torch
from torch import Tensor

from distill.distillers import register_distiller
from distill.distillers.base import DistillBatch, NeighborDistiller

SHARP, SOFT = 1e-6, 0.2  # temperature of the teacher's sigmoid; factor of the similarities in the weights


@register_distiller("rop")
class ROPDistiller(NeighborDistiller):
    """The order of the teacher's nearest gallery embeddings."""

    weight: float = 2.0
    tau: float = 0.1

    def forward(self, batch: DistillBatch) -> Tensor:
        near, student = self.compare(batch)
        place = near[:, :, None]  # j down, i across
        wanted = ((near[:, None] - place) / SHARP).sigmoid()
        wrong = (wanted - ((student[:, None] - place) / self.tau).sigmoid()).square().sum(2)
        weights = (SOFT * near).softmax(1) * torch.arange(1, near.shape[1] + 1, device=near.device)
        return self.weight * (weights * wrong).sum(1).mean() / near.shape[1]
