"""DPSH: Feature Learning based Deep Supervised Hashing with Pairwise Labels (IJCAI 2016).

L = mean over pairs (i, j) of  log(1 + e^theta_ij) - s_ij theta_ij  +  q mean (u_ik - sign u_ik)^2,
theta_ij = u_i . U_j / 2
u_i: logits of image i; U_j: the latest logits of training image j, a constant; s_ij = 1 where i and j share a
class, else 0; q: quantization.

As published, u is not squashed and all training images take part, through a bank.  Means stand for the paper's sums,
as in the released reimplementation, whose q is ours.  A batch enters the bank before it is compared; an image is not
compared with itself (that rewards its length alone), nor with those that were never seen.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from distill.losses import register_loss
from distill.losses.base import CodeMemory, HashLoss, LossBatch, LossContext, share_class, valid_pairs, weighted_mean
from distill.losses.csch import sign
from distill.registry import MethodArgs


class DPSHLossArgs(MethodArgs):
    """quantization: weight of the squared distance of logits to their signs."""

    quantization: float = 0.1


@register_loss("dpsh")
class DPSHLoss(HashLoss):
    """Likelihood of the pairs of a batch and all known training codes."""

    args: DPSHLossArgs

    def __init__(self, context: LossContext, **args: Any) -> None:
        super().__init__(context, **args)
        self.bank = CodeMemory(context)

    def forward(self, batch: LossBatch) -> Tensor:
        u, positive = batch.logits, self.context.positive
        self.bank.update(batch.index, u)
        theta = 0.5 * u @ self.bank.values.T
        losses = F.softplus(theta) - share_class(positive[batch.index], positive) * theta
        rounding = F.mse_loss(u, sign(u.detach()))
        return weighted_mean(losses, valid_pairs(self.bank, batch.index)) + self.args.quantization * rounding
