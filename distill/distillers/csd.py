"""CSD: to the gallery's nearest images, the student must be as similar as the teacher is.

"Contextual Similarity Distillation for Asymmetric Image Retrieval", CVPR 2022.

    L = weight * mean_i KL( softmax_j(f_g_i . g_j / tau_g) || softmax_j(f_q_i . g_j / tau_q) ),  j in N_i

f_q_i, f_g_i: student's and teacher's embedding of image i, of unit length; g_j: the teacher's of image j of the
gallery; N_i: the k images of the whole gallery nearest to f_g_i, as in the paper (D3still's code has those of the
batch).  k 256, tau_q 1, tau_g .01, weight 20 as in D3still's settings.  No labels: all rows of a batch take part.

f_g and g are signs, of unit length, as the gallery stores them (signs = 0: logits).  Images of equal code are one
g_j: with a teacher whose classes have collapsed, the 256 nearest images would all be copies of one code, equally
similar to any student, without gradient.  Which of the equally distant codes are the last is left to `topk`.

What all of N_i agree in cancels in the softmax: where the neighborhood is, is left to the center term.  With tau_q over
tau_g the term never reaches 0, and goes on pulling to the nearest codes and away from the mean of the others.
Memory: B G floats without gradient (15 MB for 64 images and a gallery of 60,000), and B k bits with.
"""

import torch.nn.functional as F
from torch import Tensor

from distill.distillers import register_distiller
from distill.distillers.base import DistillBatch, NeighborDistiller


@register_distiller("csd")
class CSDDistiller(NeighborDistiller):
    """KL divergence of the similarities to the teacher's nearest gallery embeddings."""

    weight: float = 20.0
    tau_q: float = 1.0
    tau_g: float = 0.01

    def forward(self, batch: DistillBatch) -> Tensor:
        near, student = self.compare(batch)
        wanted, found = (near / self.tau_g).log_softmax(1), (student / self.tau_q).log_softmax(1)
        return self.weight * F.kl_div(found, wanted, reduction="batchmean", log_target=True)
