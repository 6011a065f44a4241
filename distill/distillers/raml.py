"""RAML: each image to the teacher's own embedding, and similarities within a batch to the teacher's.

"Large-to-Small Image Resolution Asymmetry in Deep Metric Learning", WACV 2023.

    L = weight * ( mean_i (1 - S_qg_ii)^2 + cross * mean_{i != j} (S_qg_ij - S_gg_ij)^2
                                          + own * mean_{i != j} (S_qq_ij - S_gg_ij)^2 )

S_qg_ij = f_q_i . f_g_j, and so on: cosines of the images of a batch, q the student's, g the teacher's.  cross .7482,
own .6778: D3still's code reads the first for both.  The paper has the absolute term with weight 1; 20 before the whole
is what D3still sets beside a classification loss.  No labels: all rows of a batch take part; one row has no pairs.
g is signs, as the gallery stores them (signs = 0: logits).  S_qq stays of real-valued students on both sides, so that
it has a gradient; its term alone would be blind to a rotation.
"""

import torch
from torch import Tensor

from distill.distillers import register_distiller
from distill.distillers.base import DistillBatch, Distiller, teacher_targets
from distill.losses.base import cosines, weighted_mean


@register_distiller("raml")
class RAMLDistiller(Distiller):
    """Asymmetric and symmetric similarities of a batch."""

    weight: float = 20.0
    cross: float = 0.7482
    own: float = 0.6778
    signs: bool = True

    def forward(self, batch: DistillBatch) -> Tensor:
        q, g = batch.student, teacher_targets(batch.teacher, self.signs)
        across, wanted = cosines(q, g), cosines(g, g)
        gaps = self.cross * (across - wanted).square() + self.own * (cosines(q, q) - wanted).square()
        off = ~torch.eye(len(q), dtype=torch.bool, device=q.device)
        return self.weight * ((1 - across.diagonal()).square().mean() + weighted_mean(gaps, off))
