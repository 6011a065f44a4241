"""FitNet: plain regression of the teacher's embedding of each image.

"FitNets: Hints for Thin Deep Nets", ICLR 2015; as a distiller for asymmetric retrieval "Asymmetric Metric Learning for
Knowledge Transfer", 2020, which found it hard to beat there.

    L = weight * mean_i |f_q_i - f_g_i|^2  =  weight * mean_i 2 (1 - cos(h_q_i, h_g_i))

h_q, h_g: logits of student and teacher `[B, bits]`; f_q = h_q / |h_q|; f_g = b_g / |b_g| with b_g = sign(h_g), what the
gallery stores, or, with signs = 0, h_g / |h_g|.  Unlike the instance term of csch, (h_q - b_g)^2, it is blind to |h_q|.
The mean is over images and not over bits too: the weight of 5 (D3still's release, on CUB) stands before an MSE of
features of about unit variance, whose mean over entries is of this size.
"""

import torch.nn.functional as F
from torch import Tensor

from distill.distillers import register_distiller
from distill.distillers.base import DistillBatch, Distiller, teacher_targets


@register_distiller("fitnet")
class FitNetDistiller(Distiller):
    """The squared distance of normalized embeddings; signs: whether the teacher's codes or logits are regressed on."""

    weight: float = 5.0
    signs: bool = True

    def forward(self, batch: DistillBatch) -> Tensor:
        wanted = F.normalize(teacher_targets(batch.teacher, self.signs), dim=1)
        return self.weight * (F.normalize(batch.student, dim=1) - wanted).square().sum(1).mean()
