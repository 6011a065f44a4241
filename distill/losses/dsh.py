"""DSH: Deep Supervised Hashing for Fast Image Retrieval (CVPR 2016), contrastive on squared distances.

L = mean over pairs (i, j) of  1/2 s_ij d_ij + 1/2 (1 - s_ij) max(0, m - d_ij)  +  q mean | |u_ik| - 1 |
u_i: logits of image i, K bits; d_ij = ||u_i - U_j||^2; U_j: the latest logits of training image j, a constant;
s_ij = 1 where i and j share a class, else 0; m = margin * K = 2K; q: quantization.

The paper compares the images of a batch and has q = 0.01 on the sum over bits; the bank U and q = 0.1 on the mean are
the released reimplementation's, whose figures are the ones compared with.  As there, u is not squashed: the second term
pulls it toward +-1.  A batch enters the bank before it is compared; an image is not compared with itself, nor with
those never seen, whose all-zero codes the released bank lets count.
"""

import torch.nn.functional as F
from torch import Tensor

from distill.losses import register_loss
from distill.losses.base import LossBatch, MemoryLoss, squared_distances, weighted_mean


@register_loss("dsh")
class DSHLoss(MemoryLoss):
    """Contrastive loss over the pairs of a batch and all known training codes; margin: m / K."""

    margin: float = 2.0
    quantization: float = 0.1

    def forward(self, batch: LossBatch) -> Tensor:
        u = batch.logits
        s, pairs = self.update_bank(batch.index, u)
        distance = squared_distances(u, self.bank.values)
        losses = 0.5 * (s * distance + (1 - s) * F.relu(self.margin * self.context.bits - distance))
        return weighted_mean(losses, pairs) + self.quantization * (u.abs() - 1).abs().mean()
