"""A loss in the style of ADMH: ADSH with a margin in place of its regression.

"Asymmetric deep supervised hashing with discriminative metric" (ADMH), Neurocomputing 380, 2020.  The paper's text was
not available: this is a loss in its style, after its published description: a discriminative metric loss between the
network's codes and learned ones of the gallery, pairs weighted, and a discrete update.

L = mean_ij w_ij l(u_i.v_j / K, s_ij) + gamma / (G K) mean_ik (sign(u_ik) - u_ik)^2
l(p, 1) = max(0, a - p)^2,  l(p, 0) = max(0, p + a)^2

u = tanh(h) `[B, K]`; V `[G, K]` of +-1; s_ij = 1 where i and j share a class; a: the margin.
w = 1/2 over the share of pairs of that kind, so that both kinds weigh the same: unweighted, with many classes, all
codes equal is the cheapest answer.  gamma is scaled as in `adsh.py`, and stands for the same.  a = 0.8 is ours: of 21
classes of free 32-bit logits the nearest codes were 4 bits apart at a = 0.2, 8 at 0.5, 10 at 0.8 and 11 at 1, where a
margin is none.
At the end of a round each bit of V in turn is flipped wherever that lowers the loss of its image against the bank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses import register_loss
from distill.losses.asymmetric import ENTRIES, AsymmetricHashLoss
from distill.losses.base import share_class


@register_loss("admh")
class ADMHLoss(AsymmetricHashLoss):
    """A margin a for each pair of a training and a gallery image."""

    margin: float = 0.8

    def setup(self) -> None:
        super().setup()
        self.weights = [0.5 / share if share else 0.0 for share in (self.share, 1 - self.share)]

    def pair_loss(self, product: Tensor, near: Tensor) -> Tensor:
        own, other = self.weights
        inside, outside = F.relu(self.margin - product).square(), F.relu(self.margin + product).square()
        return torch.where(near > 0, own * inside, other * outside)

    def update_codes(self) -> Tensor:
        rows = max(1, ENTRIES // len(self.context.positive))
        blocks = zip(self.learned.split(rows), self.context.gallery.split(rows), strict=True)
        return torch.cat([self._flipped(v.clone(), share_class(of, self.context.positive)) for v, of in blocks])

    def _flipped(self, v: Tensor, near: Tensor) -> Tensor:
        """One sweep over the bits of some gallery codes, in place; near: `[len(v), N]`."""
        product = v @ self.bank.values.T / self.context.bits
        loss = self.pair_loss(product, near).sum(1)
        for k in range(self.context.bits):
            flipped = product - 2 / self.context.bits * v[:, k, None] * self.bank.values[:, k]
            found = self.pair_loss(flipped, near).sum(1)
            better = found < loss
            v[:, k] = torch.where(better, -v[:, k], v[:, k])
            product = torch.where(better[:, None], flipped, product)
            loss = torch.where(better, found, loss)
        return v
