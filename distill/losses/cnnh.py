"""CNNH: Supervised Hashing for Image Retrieval via Image Representation Learning (AAAI 2014), in two stages.

1. Codes H of the training images, from their labels alone: min ||K S - H H^T||_F^2 over H in [-1, 1]^{N x K}, then
   their signs.  S_ij = 1 where images i and j share a class, else -1.  Newton steps, coordinate by coordinate:
   H_ik <- clip(H_ik - g'/g'', -1, 1),  g' = -4 (R H)_ik,  g'' = 4 (sum_j H_jk^2 + H_ik^2),  R = K S - H H^T.
2. L = mean (tanh(h_ik) - H_ik)^2, h: logits.

Images with the same labels have the same row of S, and here one code (h_i . h_j = K needs h_i = h_j), so that no
N x N matrix is needed but one of the M sets of labels; the images of a set move at once, each by its own step.  Sets
follow one another in a random order; where there are more than `GROUPS`, that many groups of them do, and those of a
group move at once.  g'' lacks the published -R_ii, one term among N, which makes it negative where N < 2K.  The best
of the sweeps is kept.  (Images without a label share nothing, even with each other, but a code all the same.)

Row i of H is training image i.  S is -1 where nothing is shared, as in the paper and in the reference implementation,
which however reads labels and codes in different orders.  CNNH+, with a class softmax beside the codes, is left out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses import register_loss
from distill.losses.base import HashLoss, LossBatch, share_class, sign

GROUPS = 128  # of label sets: 64 bits take about 3 s on one core; steps at once by more than a few classes overshoot


@register_loss("cnnh")
class CNNHLoss(HashLoss):
    """Regression on codes found from the labels alone, by `sweeps` over all coordinates."""

    sweeps: int = 10
    target_codes: Tensor

    def setup(self) -> None:
        sets, which, count = self.context.positive.cpu().int().unique(dim=0, return_inverse=True, return_counts=True)
        similar, generator = 2 * share_class(sets, sets) - 1, self.context.generator()
        codes = relaxed_codes(similar, count.float(), self.context.bits, self.sweeps, generator)
        self.register_buffer("target_codes", sign(codes)[which])

    def forward(self, batch: LossBatch) -> Tensor:
        return F.mse_loss(torch.tanh(batch.logits), self.target_codes[batch.index])


def relaxed_codes(similar: Tensor, count: Tensor, bits: int, sweeps: int, generator: torch.Generator) -> Tensor:
    """The codes of M sets of labels in [-1, 1], float `[M, bits]`.

    similar: S of the sets, float `[M, M]` of +-1; count: images of each set, float `[M]`
    """
    codes = 2 * torch.rand(len(similar), bits, generator=generator) - 1
    best, least = codes.clone(), misfit(similar, count, codes)
    for _ in range(sweeps):
        groups = torch.randperm(len(codes), generator=generator).tensor_split(min(GROUPS, len(codes)))
        for bit in range(bits):
            for group in groups:
                _step(similar, count, codes, bit, group)
        if (now := misfit(similar, count, codes)) < least:
            best, least = codes.clone(), now
    return best


def misfit(similar: Tensor, count: Tensor, codes: Tensor) -> float:
    """||K S - H H^T||_F^2 / N^2 of the images, by their sets."""
    share = count / count.sum()
    return float(share @ (codes.shape[1] * similar - codes @ codes.T).square() @ share)


def _step(similar: Tensor, count: Tensor, codes: Tensor, bit: int, group: Tensor) -> None:
    """A Newton step of one bit of a group of sets, in place."""
    own, weighed = codes[group, bit], count * codes[:, bit]
    pull = codes.shape[1] * (similar[group] @ weighed) - codes[group] @ (codes.T @ weighed)  # R H
    codes[group, bit] = (own + pull / (weighed @ codes[:, bit] + own.square())).clamp(-1, 1)
