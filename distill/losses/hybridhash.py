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

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from distill.losses import register_loss
from distill.losses.base import CodeMemory, HashLoss, LossBatch, LossContext, share_class, valid_pairs, weighted_mean
from distill.registry import MethodArgs


class HybridHashLossArgs(MethodArgs):
    """alpha: scale of the inner products."""

    alpha: float = 0.5


@register_loss("hybridhash")
class HybridHashLoss(HashLoss):
    """HashNet's likelihood against a memory of all training codes."""

    args: HybridHashLossArgs

    def __init__(self, context: LossContext, **args: Any) -> None:
        super().__init__(context, **args)
        self.bank = CodeMemory(context)

    def forward(self, batch: LossBatch) -> Tensor:
        u, positive = batch.logits.tanh(), self.context.positive
        self.bank.update(batch.index, u)
        theta, pairs = self.args.alpha * u @ self.bank.values.T, valid_pairs(self.bank, batch.index)
        same = share_class(positive[batch.index], positive)
        losses = F.softplus(theta) - same * theta
        return weighted_mean(losses, same * pairs) + weighted_mean(losses, (1 - same) * pairs)
