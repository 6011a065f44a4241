"""DPN: each bit is pushed past a margin on the side of its hash center.

"Deep Polarized Network for Supervised Learning of Accurate Binary Hashing Codes", Fan et al., IJCAI 2020.

    L = mean over i, k of max(0, m - h_ik t_ik)

h_ik: bit k of image i's logits; t_i: the target of +-1, the center of its class; m: the margin.  With several
classes t_i is the majority vote of their centers, as the zoo's re-implementation has it; here the tie bits are fixed
for each set of classes.  Each center has as many +1 as -1, as in the paper (p = 1/2), which takes the first sample,
`bernoulli` here the best of up to 10,000.  Neither DPN-A (targets that are voted anew) nor DPN-T (ternary).
"""

import torch.nn.functional as F
from torch import Tensor

from distill.losses import register_loss
from distill.losses.base import HashLoss, LossBatch


@register_loss("dpn")
class DPNLoss(HashLoss):
    """A hinge on each bit against the target code; margin: in units of its spread, for the head ends in batch norm."""

    centers = "bernoulli"
    margin: float = 1.0

    def forward(self, batch: LossBatch) -> Tensor:
        return F.relu(self.margin - batch.logits * self.context.target_codes[batch.index]).mean()
