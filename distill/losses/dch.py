"""DCH: Deep Cauchy Hashing for Hamming Space Retrieval (CVPR 2018).

L = 1/|S| sum over pairs (i, j) of a batch of  w_ij (s_ij log(d_ij / gamma) + log(1 + gamma / d_ij))
    + q mean over i of log(1 + d(|u_i|, 1) / gamma),
d_ij = d(u_i, u_j) = K/2 (1 - cos(u_i, u_j)),  u = tanh(h)
h: logits, K bits; s_ij = 1 where i and j share a class, else 0; w_ij = |S|/|S1| or |S|/|S0|, as in HashNet; q:
quantization.  A pair costs log(1 + d/gamma) if similar and log(1 + gamma/d) if not.

tanh is the end of the authors' network; gamma and q are the released reimplementation's.  That code caps cos at 0.99,
which leaves no gradient to dissimilar pairs that meet, the worst ones; here similar pairs need no cap, and d of others
is at least 0.001 bits.  Self-pairs are left out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses import register_loss
from distill.losses.base import HashLoss, LossBatch, balanced_mean, share_class

LEAST = 1e-3  # bits


@register_loss("dch")
class DCHLoss(HashLoss):
    """Cauchy cross-entropy of the pairs of a batch; gamma: scale of the distribution, bits."""

    gamma: float = 20.0
    quantization: float = 0.1

    def forward(self, batch: LossBatch) -> Tensor:
        u, own = F.normalize(torch.tanh(batch.logits), dim=1), self.context.positive[batch.index]
        d, s = self._distance(u, u), share_class(own, own)
        losses = s * torch.log1p(d / self.gamma) + (1 - s) * torch.log1p(self.gamma / d.clamp(min=LEAST))
        corner = F.normalize(torch.ones_like(u[:1]), dim=1)
        rounding = torch.log1p(self._distance(u.abs(), corner) / self.gamma).mean()
        return balanced_mean(losses, s) + self.quantization * rounding

    def _distance(self, left: Tensor, right: Tensor) -> Tensor:
        """The relaxed Hamming distance of rows of unit length, `[L, R]`, in bits."""
        return 0.5 * self.context.bits * (1 - left @ right.T).clamp(min=0)
