"""The base of ADSH, ADMH and JLDSH: gallery codes learned from labels, in turns with the network.

The network is trained against the gallery's codes V; at the end of every few epochs, a round, V is improved against
the bank U, the network's latest output for each training image.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from distill.losses.base import CodeMemory, HashLoss, LossBatch, share_class, sign

ENTRIES = 1 << 22  # of training x gallery pairs in one block: 16 MiB


class AsymmetricHashLoss(HashLoss):
    """A loss of u = tanh(h) against V, and a step that improves V.

    gamma: weight of the quantization term, as published; update_every: epochs between updates of V; learned: V,
    `[G, bits]` of +-1, initially random; bank: its values are U, `[N, bits]`, zeros (no effect) for images not seen
    yet; share: of pairs, a training image and one of the gallery, that share a class
    """

    learns_gallery_codes = True
    gamma: float = 200.0
    update_every: float = 3.0
    learned: Tensor
    step: Tensor

    def setup(self) -> None:
        context = self.context
        self.round = max(1, round(self.update_every * context.steps_per_epoch))
        initial = torch.randint(2, (len(context.gallery), context.bits), generator=context.generator())
        self.bank = CodeMemory(context)
        self.register_buffer("learned", 2.0 * initial - 1)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        ones = torch.ones(len(context.positive), 1, device=context.positive.device)
        self.share = self.sum_over_similar(ones).double().mean().item() / len(context.positive)

    def forward(self, batch: LossBatch) -> Tensor:
        u = torch.tanh(batch.logits)
        if self.training:
            self.bank.update(batch.index, u)
            self.step += 1
            if int(self.step) % self.round == 0:
                self.learned.copy_(self.codes())
        return self.query_loss(u, batch.index)

    def query_loss(self, u: Tensor, rows: Tensor) -> Tensor:
        """The loss of outputs u `[B, bits]` of the training images `rows`.

        The quantization term has the scale that a mean over pairs of (u.v / K)^2 gives to gamma.
        """
        near = share_class(self.context.positive[rows], self.context.gallery)
        pairs = self.pair_loss(u @ self.learned.T / self.context.bits, near).mean()
        return pairs + self.gamma / self.learned.numel() * (sign(u.detach()) - u).square().mean()

    @abstractmethod
    def pair_loss(self, product: Tensor, near: Tensor) -> Tensor:
        """The loss of each pair; product: u.v / K, near: 1 where the two share a class, both `[B, G]` or `[G, N]`."""

    @abstractmethod
    def update_codes(self) -> Tensor:
        """V after a step that lowers the loss of its pairs with the bank, `[G, bits]`."""

    @torch.no_grad()
    def codes(self) -> Tensor:
        """V, updated once more: it never lags behind U, however short the training."""
        return self.update_codes()

    def sum_over_similar(self, values: Tensor) -> Tensor:
        """For each gallery image the sum of `values` `[N, M]` over training images that share a class, `[G, M]`."""
        positive, gallery = self.context.positive, self.context.gallery
        if not self.context.multilabel:
            return gallery.float() @ (positive.float().T @ values)
        blocks = gallery.split(max(1, ENTRIES // len(positive)))
        return torch.cat([share_class(block, positive) @ values for block in blocks])
