"""A loss in the style of JLDSH: ADSH with classification and bit balance.

"Joint learning based deep supervised hashing for large-scale image retrieval", Neurocomputing 385, 2020.  The paper's
text was not available: this is a loss in its style, after its published description: a joint loss of similarity,
classification and balance over learned codes of the gallery, and its weights are ours.

L = L_ADSH + lambda CE(W u, y) + mu mean_k (mean_i u_ik)^2

u = tanh(h) `[B, K]`, W `[C, K]` learned; with several labels an image, the binary cross-entropy of each class, a mean
over them, takes the place of CE.  V is improved as ADSH does it: neither added term knows V.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses import register_loss
from distill.losses.adsh import ADSHLoss
from distill.losses.base import class_index


@register_loss("jldsh")
class JLDSHLoss(ADSHLoss):
    """ADSH's loss with classification and bit balance; class_weight: lambda; balance_weight: mu."""

    class_weight: float = 0.1
    balance_weight: float = 0.1

    def setup(self) -> None:
        super().setup()
        initial = torch.randn(self.context.classes, self.context.bits, generator=self.context.generator())
        self.classifier = nn.Parameter(initial / self.context.bits**0.5)

    def query_loss(self, u: Tensor, rows: Tensor) -> Tensor:
        balance, similarity = u.mean(0).square().mean(), super().query_loss(u, rows)
        logits, positive = u @ self.classifier.T, self.context.positive[rows]
        if self.context.multilabel:
            classification = F.binary_cross_entropy_with_logits(logits, positive.to(logits.dtype))
        else:
            classification = F.cross_entropy(logits, class_index(positive))
        return similarity + self.class_weight * classification + self.balance_weight * balance
