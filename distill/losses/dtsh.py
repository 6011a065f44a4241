"""DTSH: Deep Supervised Hashing with Triplet Labels (ACCV 2016).

L = mean over triplets (i, p, n) of a batch of  -log sigmoid(theta_ip - theta_in - alpha)  +  q mean (u_ik - sign
u_ik)^2,  theta_ij = u_i . u_j
u: logits; i and p, two images, share a class, and i and n none; q: quantization.

The paper's theta has a factor 1/2; without it, and with alpha = 5 for sums over 48 bits whatever the length, it is the
released reimplementation's, whose figures are the ones compared with.  That code takes an image for its own positive
and the mean of the rows' means; here a row counts by its triplets.  As published, u is not squashed.
"""

import torch.nn.functional as F
from torch import Tensor

from distill.losses import register_loss
from distill.losses.base import HashLoss, LossBatch, sign, triplets, weighted_mean


@register_loss("dtsh")
class DTSHLoss(HashLoss):
    """Likelihood of the triplets of a batch; alpha: margin between inner products."""

    alpha: float = 5.0
    quantization: float = 1.0

    def forward(self, batch: LossBatch) -> Tensor:
        u = batch.logits
        theta = u @ u.T
        losses = F.softplus(theta[:, None, :] - theta[:, :, None] + self.alpha)
        ranked = weighted_mean(losses, triplets(self.context.positive[batch.index]))
        return ranked + self.quantization * F.mse_loss(u, sign(u.detach()))
