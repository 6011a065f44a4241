"""D3still: the differences between similarities to an image's neighbors, those of a wrong sign first.

"D3still: Decoupled Differential Distillation for Asymmetric Image Retrieval", CVPR 2024.

    L = weight * ( alpha / B * |(1 - q_i,i)_i|
                   + mean_i ( beta |e_i on wrong pairs| + gamma |e_i on right pairs| ) / (k - 1) )
    e_i,jl = (d^q_jl - d^g_jl) / (.1 + |d^g_jl|),   d^q_jl = q_i,j - q_i,l,   d^g_jl = g_i,j - g_i,l

q_i,j = f_q_i . f_g_j: cosine of the student's embedding of image i with the teacher's of j; g_i,j = f_g_i . f_g_j;
j, l: the k - 1 images of the batch nearest to i by the teacher, i itself left out; a pair is wrong where d^q
has not the sign of d^g, right where it has; | | of a vector is its length.  The first term is the length of a vector of
B divided by B, as released: it weighs less in a larger batch.  No labels: all rows of a batch take part.

f_g is signs, as the gallery stores them (signs = 0: logits), and so d^g is often 0.  Such a pair has no order and
counts as neither; the released code sets its d^g to 1 and drives its similarities apart.  A pair whose d^q is 0 is
wrong; the released code leaves it out.
"""

import torch
from pydantic import Field
from torch import Tensor

from distill.distillers import register_distiller
from distill.distillers.base import DistillBatch, Distiller, teacher_targets
from distill.losses.base import cosines

FLOOR = 0.1  # below which an error is absolute rather than relative


@register_distiller("d3still")
class D3stillDistiller(Distiller):
    """Differences of similarities within a batch, and the agreement with the teacher image by image.

    k: an image and its neighbors
    """

    weight: float = 1.0
    k: int = Field(10, ge=2)
    alpha: float = 200.0
    beta: float = 10.0
    gamma: float = 2.0
    signs: bool = True

    def forward(self, batch: DistillBatch) -> Tensor:
        stored = teacher_targets(batch.teacher, self.signs)
        student, own = cosines(batch.student, stored), cosines(stored, stored)
        itself = (1 - student.diagonal()).norm() / len(student)
        return self.weight * (self.alpha * itself + self._relations(student, own))

    def _relations(self, student: Tensor, own: Tensor) -> Tensor:
        near = own.clone().fill_diagonal_(-torch.inf).sort(dim=1, descending=True, stable=True).indices
        near = near[:, : min(self.k, len(own)) - 1]
        found, wanted = _differences(student.gather(1, near)), _differences(own.gather(1, near))
        error = (found - wanted) / (FLOOR + wanted.abs())
        agree = found * wanted > 0
        wrong, right = error * (~agree & (wanted != 0)), error * agree
        lengths = self.beta * wrong.norm(dim=1) + self.gamma * right.norm(dim=1)
        return lengths.mean() / max(1, near.shape[1])


def _differences(similarities: Tensor) -> Tensor:
    """All pairs of a row: `[B, n]` to `[B, n n]`."""
    return (similarities[:, :, None] - similarities[:, None, :]).flatten(1)
