"""DPSH: Feature Learning based Deep Supervised Hashing with Pairwise Labels (IJCAI 2016).

L = mean over pairs (i, j) of  log(1 + e^theta_ij) - s_ij theta_ij  +  q mean (u_ik - sign u_ik)^2,
theta_ij = u_i . U_j / 2
u_i: logits of picture i; U_j: the latest logits of training picture j, a constant; s_ij = 1 where i and j share a
class, else 0; q: quantization.

As published, u is not squashed and all training pictures take part, through a bank.  Means stand for the paper's sums,
as in the released reimplementation, whose q is ours.  A batch enters the bank before it is compared; a picture is not
compared with itself (that rewards its length alone), nor with those that were never seen.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from distill.losses import register_loss
from distill.losses.base import CodeMemory, HashLoss, LossBatch, LossContext, alike, mean_over, others_known
from distill.losses.csch import signs
from distill.registry import MethodArgs


class DPSHLossArgs(MethodArgs):
    """quantization: weight of the squared distance of logits to their signs."""

    quantization: float = 0.1


@register_loss("dpsh")
class DPSHLoss(HashLoss):
    """Likelihood of the pairs of a batch and all known training codes."""

    args: DPSHLossArgs

    def __init__(self, task: LossContext, **args: Any) -> None:
        super().__init__(task, **args)
        self.bank = CodeMemory(task)

    def forward(self, seen: LossBatch) -> Tensor:
        u, positive = seen.logits, self.task.positive
        self.bank.remember(seen.rows, u)
        theta = 0.5 * u @ self.bank.values.T
        losses = F.softplus(theta) - alike(positive[seen.rows], positive) * theta
        rounding = F.mse_loss(u, signs(u.detach()))
        return mean_over(losses, others_known(self.bank, seen.rows)) + self.args.quantization * rounding
