"""GreedyHash: a classifier on the code itself, with a straight-through gradient.

"Greedy Hash: Towards Fast Optimization for Accurate Hash Coding in CNN", Su, Zhang, Han and Tian, NeurIPS 2018.

    L = mean_i CE(W b_i, y_i) + alpha mean_{i,k} | |h_ik| - 1 |^3,    b = sign(h),  db/dh := 1

h: logits; y: the class; W `[C, bits]`: learned, initialized as a linear layer, U(-1/sqrt(bits), 1/sqrt(bits)), without
a bias.  The penalty is on h, before the sign.  The paper's alpha is 0.1 on CIFAR-10 and 1 on ImageNet.
The released code takes the first class of an image that has several; here that is an error.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses import register_loss
from distill.losses.base import HashLoss, LossBatch, class_index, sign


@register_loss("greedyhash")
class GreedyHashLoss(HashLoss):
    """Classification of the codes themselves, whose gradient passes the sign."""

    multilabel = False
    alpha: float = 0.1

    def setup(self) -> None:
        classes, bits = self.context.classes, self.context.bits
        bound = bits ** (-0.5)
        start = torch.empty(classes, bits).uniform_(-bound, bound, generator=self.context.generator())
        self.classifier = nn.Parameter(start)

    def forward(self, batch: LossBatch) -> Tensor:
        h = batch.logits
        code = sign(h) + (h - h.detach())  # the bracket is exactly zero, so that the code is exactly +-1
        guess = F.cross_entropy(code @ self.classifier.T, class_index(self.context.positive[batch.index]))
        return guess + self.alpha * (h.abs() - 1).abs().pow(3).mean()
