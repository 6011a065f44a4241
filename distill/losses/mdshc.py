"""MDSHC: hash centers a guaranteed distance apart, and images of a class near each other's earlier codes.

"Deep Hashing with Minimal-Distance-Separated Hash Centers", Wang et al., CVPR 2023.  L = L_C + beta L_P +
lambda L_Q, u = tanh(h):

    L_C = - mean_i sum_c [ y_ic log p_ic + (1 - y_ic) log(1 - p_ic) ],    p_i = softmax_c( sqrt(bits) cos(u_i, t_c) )
    L_P = mean over i, j that share a class of log(1 + exp((1 - cos(u_i, U_j)) / 2))
    L_Q = mean_{i,k} (|u_ik| - 1)^2

h: logits; t_c: center of class c; y: classes, 0 or 1; U `[N, bits]`: a bank of slow codes of all training images.
L_C is a binary cross-entropy of a softmax, kept as released: with several classes y is multi-hot, and p = 1/|y| meets
it best.  Only, the released code averages it over classes too, which makes it C times smaller; here it is their sum.
L_P has no negatives, and its least value is log 2.  It enters after a warm-up: a training of no more epochs than that
never sees it.
The paper's U is the output of a second network, a moving average (.9) of the first.  A loss has no second network:
here U_j is a moving average, by the same momentum, of image j's own codes.  The released bank begins with random
codes of random labels; here an image counts from its first code on, and it is no pair with itself.
"""

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses import register_loss
from distill.losses.base import CodeMemory, HashLoss, LossBatch, share_class, weighted_mean


@register_loss("mdshc")
class MDSHCLoss(HashLoss):
    """Central loss on distant centers, and pairs after a warm-up.

    quantization: lambda; warmup: epochs without pairs; momentum: of U
    """

    centers = "mdshc"
    beta: float = 1.0
    quantization: float = 0.0001
    warmup: float = 9.0
    momentum: float = 0.9
    steps: Tensor

    def setup(self) -> None:
        self.bank = CodeMemory(self.context, self.momentum)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: LossBatch) -> Tensor:
        u, y = batch.logits.tanh(), self.context.positive[batch.index]
        warm = bool(self.steps >= self.warmup * self.context.steps_per_epoch)
        self.bank.update(batch.index, u)
        self.steps += int(self.training)
        loss = central_likelihood(u, self.context.centers, y) + self.quantization * (u.abs() - 1).square().mean()
        return loss + self.beta * self._pairs(u, batch.index) if warm else loss

    def _pairs(self, u: Tensor, rows: Tensor) -> Tensor:
        cosines = F.normalize(u, dim=1) @ F.normalize(self.bank.values, dim=1).T
        same = share_class(self.context.positive[rows], self.context.positive)
        return weighted_mean(F.softplus((1 - cosines) / 2), same * self.bank.pairs(rows))


def central_likelihood(u: Tensor, centers: Tensor, positive: Tensor) -> Tensor:
    """L_C of u `[B, bits]`; centers: `[C, bits]`; positive: bool `[B, C]`, the classes of each image."""
    y = positive.float()
    similarity = sqrt(u.shape[1]) * F.normalize(u, dim=1) @ F.normalize(centers, dim=1).T
    return -(y * similarity.log_softmax(1) + (1 - y) * log_others(similarity)).sum(1).mean()


def log_others(logits: Tensor) -> Tensor:
    """log(1 - softmax(logits)), `[B, C]`; the largest share by the sum of the others, for 1 - 0.99999999 is 0."""
    top = F.one_hot(logits.argmax(1), logits.shape[1]).bool()
    total = logits.logsumexp(1, keepdim=True)
    share = (logits - total).exp().masked_fill(top, 0)
    others = logits.masked_fill(top, -torch.inf).logsumexp(1, keepdim=True)
    return torch.where(top, others - total, torch.log1p(-share))
