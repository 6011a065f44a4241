"""In the style of UniHash: a center branch and a pairwise branch on one backbone, which teach each other.

"UniHash: Unifying Pointwise and Pairwise Hashing Paradigms for Seen and Unseen Category Retrieval", Ma, Li, Liu, Zhang
and Weng, arXiv 2601.09828, 2026.  L = L_C + pairwise L_P + mutual L_M, with u = tanh(h) of either branch:

    L_C = - mean_i sum_c [ y_ic log p_ic + (1 - y_ic) log(1 - p_ic) ],    p_i = softmax_c( sqrt(bits) cos(u^c_i, t_c) )
    L_P = mean over pairs with s_ij = 1, plus that over the others, of  log(1 + e^theta_ij) - s_ij theta_ij,
          theta_ij = alpha u^p_i . u^p_j
    L_M = mean_{i,k} (u^c_ik - u^p_ik)^2

t_c: center of class c; y_i: the classes of image i, 0 or 1, one or several; s_ij = 1 where i and j share a class.

The paper's, as far as it was known here (abstract and summaries; no code was released): two branches on one backbone;
the weighted sum of three losses; L_C, which is MDSHC's; s_ij and the inner products of L_P; that L_M aligns the two
codes of an image and teaches in both directions.
Our reading: the likelihood, alpha and the weights of L_P, HashNet's; the formula of L_M; both weights, 1 (mutual from
.3 to 10 and pairwise .3 differ by less than .01 mAP of validation images: UC Merced, linear probe); centers that stay
as they are (summaries say learnable, and predefined): the code space stores them, and the student is trained toward
them.  Left out: the mixture of hash experts, split by branch and merged, from which both branches get codes.  One
linear head can be exported, and a mixture is none.

The exported head is the center branch, for seen classes are what it is best at.  The pairwise branch is a head of the
loss: a linear layer on the backbone's features, each bit standardized over the batch, as the exported head's batch norm
does in training; it is never run outside training and needs no running statistics.  It reaches the exported codes by
L_M, and the backbone by the features, unless those are cached.  Pairs know no coordinates: the pairwise branch alone
could settle in any rotation of the centers' space, and L_M fixes which.  If both branches had the head's logits, L_M
would be 0 and the two losses would merely be added.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses import register_loss
from distill.losses.base import HashLoss, LossBatch, balanced_mean, share_class
from distill.losses.mdshc import central_likelihood

EPS = 1e-5  # of the variance, as in batch norm


@register_loss("unihash")
class UniHashLoss(HashLoss):
    """Both branches and their agreement; pairwise, mutual: weights of L_P and L_M; alpha: of the inner products."""

    centers = "auto"
    pairwise: float = 1.0
    mutual: float = 1.0
    alpha: float = 0.1

    def setup(self) -> None:
        start = torch.empty(self.context.bits, self.context.features)
        self.head = nn.Parameter(start.normal_(0, 0.01, generator=self.context.generator()))

    def forward(self, batch: LossBatch) -> Tensor:
        positive = self.context.positive[batch.index]
        center, pair = batch.logits.tanh(), self.pairwise_logits(batch.features).tanh()
        theta, similar = self.alpha * pair @ pair.T, share_class(positive, positive)
        loss = central_likelihood(center, self.context.centers, positive)
        loss = loss + self.pairwise * balanced_mean(F.softplus(theta) - similar * theta, similar)
        return loss + self.mutual * F.mse_loss(center, pair)

    def pairwise_logits(self, features: Tensor) -> Tensor:
        """The pairwise branch's logits `[B, bits]` of a batch's features `[B, D]`."""
        h = features @ self.head.T
        return (h - h.mean(0)) / (h.var(0, correction=0) + EPS).sqrt()
