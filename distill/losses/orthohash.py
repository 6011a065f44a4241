"""OrthoHash: one cosine loss to fixed, nearly orthogonal hash centers, and nothing else.

"One Loss for All: Deep Hashing with a Single Cosine Similarity based Learning Objective", Hoe, Ng, Zhang, Chan, Song
and Xiang, NeurIPS 2021.

    L = - mean_i sum_c (y_ic / |y_i|) log softmax_c( s (cos(h_i, t_c) - m y_ic) )

h: logits; t_c: center of class c; y_i: the classes of image i, |y_i| how many; s: scale; m: margin.
With one class this is CosFace, the center term of CSCH for one network.  With several, the margin is taken from every
class of the image and the labels are smoothed over them, as released.  s = 8 is the released default, the paper's is
sqrt(bits).  The sampler of its centers is CSCH's, line by line.
"""

import torch.nn.functional as F
from torch import Tensor

from distill.losses import register_loss
from distill.losses.base import HashLoss, LossBatch, soft_labels


@register_loss("orthohash")
class OrthoHashLoss(HashLoss):
    """CosFace over fixed centers."""

    centers = "csch"
    scale: float = 8.0
    margin: float = 0.2

    def forward(self, batch: LossBatch) -> Tensor:
        positive = self.context.positive[batch.index]
        cosines = F.normalize(batch.logits, dim=1) @ F.normalize(self.context.centers, dim=1).T
        guess = (self.scale * (cosines - self.margin * positive)).log_softmax(1)
        return -(soft_labels(positive) * guess).sum(1).mean()
