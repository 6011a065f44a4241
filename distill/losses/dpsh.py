"""DPSH: Feature Learning based Deep Supervised Hashing with Pairwise Labels (IJCAI 2016).

L = mean over pairs (i, j) of  log(1 + e^theta_ij) - s_ij theta_ij  +  q mean (u_ik - sign u_ik)^2,
theta_ij = u_i . U_j / 2
u_i: logits of image i; U_j: the latest logits of training image j, a constant; s_ij = 1 where i and j share a
class, else 0; q: quantization.

As published, u is not squashed and all training images take part, through a bank.  Means stand for the paper's sums,
as in the released reimplementation, whose q is ours.  A batch enters the bank before it is compared; an image is not
compared with itself (that rewards its length alone), nor with those that were never seen.
"""

import torch.nn.functional as F
from torch import Tensor

from distill.losses import register_loss
from distill.losses.base import LossBatch, MemoryLoss, sign, weighted_mean


@register_loss("dpsh")
class DPSHLoss(MemoryLoss):
    """Likelihood of the pairs of a batch and all known training codes."""

    quantization: float = 0.1

    def forward(self, batch: LossBatch) -> Tensor:
        u = batch.logits
        similar, pairs = self.update_bank(batch.index, u)
        theta = 0.5 * u @ self.bank.values.T
        likelihood = weighted_mean(F.softplus(theta) - similar * theta, pairs)
        return likelihood + self.quantization * F.mse_loss(u, sign(u.detach()))
