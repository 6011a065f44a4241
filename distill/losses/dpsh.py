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

import torch.nn.functional as F
from torch import Tensor

from distill.losses.base import CodeMemory, HashLoss, LossBatch, LossContext, alike, mean_over, others_known
from distill.losses.csch import signs


class DPSHLoss(HashLoss):
    """quantization: weight of the squared distance of logits to their signs."""

    def __init__(self, task: LossContext, quantization: float = 0.1) -> None:
        super().__init__(task)
        self.quantization, self.bank = quantization, CodeMemory(task)

    def forward(self, seen: LossBatch) -> Tensor:
        u, positive = seen.logits, self.task.positive
        self.bank.remember(seen.rows, u)
        theta = 0.5 * u @ self.bank.values.T
        losses = F.softplus(theta) - alike(positive[seen.rows], positive) * theta
        rounding = F.mse_loss(u, signs(u.detach()))
        return mean_over(losses, others_known(self.bank, seen.rows)) + self.quantization * rounding


METHOD = DPSHLoss
