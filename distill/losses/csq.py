"""CSQ: binary cross-entropy of each bit against the hash center of the image's class.

"Central Similarity Quantization for Efficient Image and Video Retrieval", Yuan, Wang, Zhang, Tay, Jie, Liu and Feng,
CVPR 2020.

    L = mean_{i,k} BCE( (u_ik + 1)/2, (t_ik + 1)/2 ) + lambda mean_{i,k} (|u_ik| - 1)^2,    u = tanh(h)

h: logits; t_i: the target of +-1, the center of the class, or with several classes the majority vote of their centers,
tie bits fixed for each set of classes (CSQ: one random code for all).  (tanh h + 1)/2 is the sigmoid of 2h, so that the
first term is softplus(-2 h t), without the logarithm of a saturated tanh.  lambda: .05 is ResNet50's, AlexNet's is .001
(.0001 at 64 bits of ImageNet).  The third, pairwise term has the weight 0 in the released recipe, and is left out.

CSQ's centers are the rows of Sylvester's Hadamard matrix in order, then rows and complements, then Bernoulli samples
where there are more classes than that or bits are no power of two.  `--hash-centers hadamard_pm` and `bernoulli` are
these families, not CSQ's very matrix: rows are permuted and signed, and orders such as 48 come from Paley's matrix.
`auto` prefers a code that is further apart, and codes to Bernoulli samples.
"""

import torch.nn.functional as F
from torch import Tensor

from distill.losses import register_loss
from distill.losses.base import HashLoss, LossBatch


@register_loss("csq")
class CSQLoss(HashLoss):
    """Binary cross-entropy of each bit against the target code; quantization: lambda."""

    centers = "auto"
    quantization: float = 0.05

    def forward(self, batch: LossBatch) -> Tensor:
        h = batch.logits
        central = F.softplus(-2 * h * self.context.target_codes[batch.index]).mean()
        return central + self.quantization * (h.tanh().abs() - 1).square().mean()
