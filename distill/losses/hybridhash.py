"""HybridHash's loss: the likelihood of all pairs of a batch and the latest codes of all training images.

"HybridHash: Hybrid Convolutional and Self-Attention Deep Hashing for Image Retrieval", He and Wei, ICMR 2024; the loss
is HashNet's (ICCV 2017), against a bank.

    L = (1/|S|) sum_{i,j} w_ij ( log(1 + e^theta_ij) - s_ij theta_ij ),    theta_ij = alpha u_i . U_j,  u = tanh(h)

h: logits of the batch; U `[N, bits]`: the latest u of each training image, without gradient; s_ij: 1 for a shared
class, else 0; w_ij: |S|/|S1| where s_ij = 1 and |S|/|S0| where it is 0, S1 and S0 the pairs of either kind and S both;
so L is the mean over S1 plus the mean over S0.  The batch enters the bank first.
The released bank begins with zeros, of more rows than CIFAR-10 has images, all of which count as negatives; here a
image counts from its first code on, and it is no pair with itself.  The released bank is in half precision, this one
in single.
"""

import torch.nn.functional as F
from torch import Tensor

from distill.losses import register_loss
from distill.losses.base import LossBatch, MemoryLoss, balanced_mean


@register_loss("hybridhash")
class HybridHashLoss(MemoryLoss):
    """HashNet's likelihood against a memory of all training codes."""

    alpha: float = 0.5

    def forward(self, batch: LossBatch) -> Tensor:
        u = batch.logits.tanh()
        similar, pairs = self.update_bank(batch.index, u)
        theta = self.alpha * u @ self.bank.values.T
        return balanced_mean(F.softplus(theta) - similar * theta, similar, pairs)
