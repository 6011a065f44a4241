"""ADSH: the network hashes queries only; the gallery's codes are learned themselves, from the labels of its images.

"Asymmetric Deep Supervised Hashing", AAAI, 2018.

L = mean_ij (u_i.v_j / K - S_ij)^2 + gamma / (G K) mean_ik (sign(u_ik) - u_ik)^2

u = tanh(h) `[B, K]` of a batch; V `[G, K]` of +-1; S_ij = 1 where i and j share a class, else -r, with
r = |S1| / |S0|, the numbers of pairs of either kind, for which the two kinds weigh the same.
At the end of a round V is improved bit by bit in closed form, by discrete cyclic coordinate descent on
sum_ij (U_i.v_j - K S_ij)^2:  v_k = sign(K (S^T U)_k - V' U'^T U_k),  V' and U' without bit k.

Departures.  The paper's sums are divided by their number of pairs and K^2: its gamma = 200 weighs gamma / (G K) here.
Its gamma |v_i - u_i|^2 is for queries sampled from the gallery; here the training images are a separate set whose
places in the gallery are unknown, so u is pulled toward its own sign, and the closed form has no such term.  It samples
2,000 queries a round; here all training images take part, in the engine's batches.  Codes learned from the labels of
the gallery must not be compared with those of methods that hash unseen images.
"""

import torch
from torch import Tensor

from distill.losses import register_loss
from distill.losses.asymmetric import AsymmetricHashLoss
from distill.losses.base import sign


@register_loss("adsh")
class ADSHLoss(AsymmetricHashLoss):
    """Inner products with the gallery's codes regress on similarities."""

    def setup(self) -> None:
        super().setup()
        self.ratio = self.share / (1 - self.share) if self.share < 1 else 0.0

    def pair_loss(self, product: Tensor, near: Tensor) -> Tensor:
        return (product - torch.where(near > 0, 1.0, -self.ratio)).square()

    def update_codes(self) -> Tensor:
        v, u = self.learned.clone(), self.bank.values
        near, gram = self.sum_over_similar(u), u.T @ u
        wanted = self.context.bits * (near - self.ratio * (u.sum(0) - near))
        for k in range(self.context.bits):
            others = v @ gram[:, k] - v[:, k] * gram[k, k]
            v[:, k] = sign(wanted[:, k] - others)
        return v
