"""DNNH: Simultaneous Feature Learning and Hash Coding with Deep Neural Networks (CVPR 2015).

L = mean over triplets (i, p, n) of a batch of  max(0, ||u_i - u_p||^2 - ||u_i - u_n||^2 + margin),  u = sigmoid(h)
h: logits; i and p, two images, share a class, and i and n none.

The margin is the published 1, the worth of one bit whatever their number: squared distances grow with the bits, so for
a margin that grows too give a quarter of them.  Left out is "divide and encode", one slice of the features for each
bit: all bits are one 1x1 convolution of all features, as for every method here.  So is the piecewise threshold behind
the sigmoid, which with eps = 0.5 is the identity.  The code is h > 0, which is u > 1/2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses import register_loss
from distill.losses.base import HashLoss, LossBatch, squared_distances, triplets, weighted_mean


@register_loss("dnnh")
class DNNHLoss(HashLoss):
    """A hinge on the triplets of a batch; margin: by how much a dissimilar image must be farther, in bits."""

    margin: float = 1.0

    def forward(self, batch: LossBatch) -> Tensor:
        u = torch.sigmoid(batch.logits)
        distance = squared_distances(u, u)
        losses = F.relu(distance[:, :, None] - distance[:, None, :] + self.margin)
        return weighted_mean(losses, triplets(self.context.positive[batch.index]))
