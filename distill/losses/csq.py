"""CSQ: each bit is a yes or no, answered by the hash center of the picture's class.

"Central Similarity Quantization for Efficient Image and Video Retrieval", Yuan, Wang, Zhang, Tay, Jie, Liu and Feng,
CVPR 2020.

    L = mean_{i,k} BCE( (u_ik + 1)/2, (t_ik + 1)/2 ) + lambda mean_{i,k} (|u_ik| - 1)^2,    u = tanh(h)

h: logits; t_i: the target of +-1, the center of the class, or with several classes the majority vote of their centers,
tie bits fixed for each set of classes (CSQ: one random word for all).  (tanh h + 1)/2 is the sigmoid of 2h, so that the
first term is softplus(-2 h t), without the logarithm of a saturated tanh.  lambda: .05 is ResNet50's, AlexNet's is .001
(.0001 at 64 bits of ImageNet).  The third, pairwise term has the weight 0 in the released recipe, and is left out.

CSQ's centers are Hadamard rows, then rows and complements, then Bernoulli words where there are more classes than
that or bits are no power of two.  `auto` has Hadamard's too unless a code is further apart, and codes in place of
Bernoulli's words; `--hash-centers hadamard_pm` and `--hash-centers bernoulli` are CSQ's own.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from distill.losses import register_loss
from distill.losses.base import HashLoss, LossBatch
from distill.registry import MethodArgs


class CSQLossArgs(MethodArgs):
    """quantization: weight lambda of the term that draws bits to +-1."""

    quantization: float = 0.05


@register_loss("csq")
class CSQLoss(HashLoss):
    """Binary cross-entropy of each bit against the target code."""

    args: CSQLossArgs

    centers = "auto"

    def forward(self, batch: LossBatch) -> Tensor:
        h = batch.logits
        central = F.softplus(-2 * h * self.context.target_codes[batch.index]).mean()
        return central + self.args.quantization * (h.tanh().abs() - 1).square().mean()
