"""HashNet: Deep Learning to Hash by Continuation (ICCV 2017).

L = 1/|S| sum over pairs (i, j) of a batch of  w_ij (log(1 + e^theta_ij) - s_ij theta_ij),
theta_ij = alpha u_i . u_j,  u = tanh(beta h),  beta = sqrt(floor(epoch / (every * epochs)) + 1)
h: logits; s_ij = 1 where i and j share a class, else 0; w_ij = |S|/|S1| for the |S1| pairs with s_ij = 1 and |S|/|S0|
for the |S0| others: the mean over the one and that over the other, added.

The growing beta turns tanh into sign.  The released code has it grow every 20 of 150 epochs, here it does so after
that share of however many there are.  That code's self-pairs are left out, its logarithm does not overflow here, and
the paper's factor c_ij (the share of common labels, 0 for dissimilar pairs) is left out as in that code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses import register_loss
from distill.losses.base import HashLoss, LossBatch, balanced_mean, share_class


@register_loss("hashnet")
class HashNetLoss(HashLoss):
    """Weighted likelihood of the pairs of a batch, with a tanh that steepens.

    every: share of the training after which beta grows
    """

    alpha: float = 0.1
    every: float = 20 / 150
    step: Tensor

    def setup(self) -> None:
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def beta(self) -> Tensor:
        """The present steepness of tanh, a scalar."""
        stage = self.context.steps_per_epoch * self.context.epochs * self.every
        return (self.step / stage).floor().add(1).sqrt()

    def forward(self, batch: LossBatch) -> Tensor:
        u, own = torch.tanh(self.beta() * batch.logits), self.context.positive[batch.index]
        if self.training:
            self.step += 1
        theta, s = self.alpha * u @ u.T, share_class(own, own)
        return balanced_mean(F.softplus(theta) - s * theta, s)
