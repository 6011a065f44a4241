"""SADH: a network of the labels alone provides target features and codes for the images.

"Self-Supervised Asymmetric Deep Hashing with Margin-scalable Constraint", Neurocomputing, 2022 (arXiv 2012.03820).

The label network: y -> Linear 2w, ReLU -> Linear w = f;  f -> Linear C = y';  f -> Linear K, tanh = u.  Its loss:
S(f) + S(u) + 2/C sum_ic (y_ic - y'_ic)^2 + 0.1 mean (u - sign u)^2,
S(x) = mean_ij s_ij max(0, 0.2 - cos(x_i, x_j)) + (1 - s_ij) max(0, cos(x_i, x_j)),
s_ij = 1 where i and j share a class.  Of each set of labels that occurs it leaves f and u: dictionaries F and U.

The image network: f = Linear w of the backbone's features, u = tanh(h), z = Linear C of f.
L = lambda (A(u, U) + A(u, u)) + alpha (A(f, F) + A(f, f)) + beta mean (u - sign u)^2 + eta BCE(z, y)
A(x, d) = mean_ij s_ij max(0, m_ij - cos(x_i, d_j)) + (1 - s_ij) max(0, cos(x_i, d_j) - m_ij)
m_ij: cosine of the dictionary's entries for i and j where positive, else 0: a margin that the labels scale.

Departures, all in the label network, for the codes it leaves (measured at 32 bits, labels of 1,000 images of
UC Merced).  The released rate, 5e-3, falls to a tenth at each of epochs 2 to 6: at w = 512, only 45 of 161 sets of 17
labels had a code of their own, and some that share no class had the same.  Here it falls late, and there are at least
300 steps however few the images.  Released, pairs that share no class pay for cosines above -0.2, which more than six
classes cannot all stay below, and a linear price does not see how it is divided: two of 21 classes came 1 bit from each
other at w = 2048.  Here they pay above 0.  At that width 5e-3 still left two classes 2 bits apart, so the rate is at
most 2 / w: then the nearest of 21 classes are 11 bits apart, and the nearest sets that share no class 6.
The released class layer knows 21 classes; ours, those there are.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses import register_loss
from distill.losses.base import HashLoss, LossBatch, cosines, share_class, sign

RATE, DECAY, BATCH, EPOCHS, STEPS = 5e-3, 5e-4, 64, 15, 300  # of the label network; at least so many steps
SLOWER = (0.65, 0.85)  # shares of its training after which its rate falls to a tenth
MARGIN, SPREAD = 0.2, 0.01  # its margin, and the standard deviation of its initial weights


@register_loss("sadh")
class SADHLoss(HashLoss):
    """Agreement with the features and codes of a trained label network.

    code_weight: lambda; feature_weight: alpha; quantization_weight: beta; class_weight: eta; width: w
    """

    code_weight: float = 1.0
    feature_weight: float = 1.0
    quantization_weight: float = 0.01
    class_weight: float = 0.1
    width: int = 2048
    sets: Tensor
    semantic_features: Tensor
    semantic_codes: Tensor

    def setup(self) -> None:
        context, generator = self.context, self.context.generator()
        sets, self.own = torch.unique(context.positive, dim=0, return_inverse=True)
        label_net = label_network(context.positive.float(), context.bits, self.width, generator)
        with torch.no_grad():
            features, codes, _ = label_net(sets.float())
        self.register_buffer("sets", sets)
        self.register_buffer("semantic_features", features)
        self.register_buffer("semantic_codes", codes)
        self.embedding = _linear(context.features, self.width, context.features**-0.5, generator)
        self.classifier = _linear(self.width, context.classes, self.width**-0.5, generator)

    def forward(self, batch: LossBatch) -> Tensor:
        own, positive = self.own[batch.index], self.context.positive[batch.index]
        f, u = self.embedding(batch.features), torch.tanh(batch.logits)
        return (
            self.code_weight * self.constraint(u, self.semantic_codes, own)
            + self.feature_weight * self.constraint(f, self.semantic_features, own)
            + self.quantization_weight * quantization(u)
            + self.class_weight * F.binary_cross_entropy_with_logits(self.classifier(f), positive.to(f.dtype))
        )

    def constraint(self, x: Tensor, dictionary: Tensor, own: Tensor) -> Tensor:
        """A(x, dictionary) + A(x, x); x `[B, D]`, dictionary `[S, D]`, own: the entry of each image, int `[B]`."""
        margins = cosines(dictionary[own], dictionary).clamp(min=0)
        similar = share_class(self.sets[own], self.sets)
        return hinge(cosines(x, dictionary), margins, similar) + hinge(cosines(x, x), margins[:, own], similar[:, own])


class LabelNetwork(nn.Module):
    """Labels y, float `[B, C]`, to semantic features `[B, width]`, codes in (-1, 1) `[B, bits]`, and y again."""

    def __init__(self, classes: int, bits: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        sizes = {"hidden": (classes, 2 * width), "feature": (2 * width, width)}
        sizes |= {"classifier": (width, classes), "hash": (width, bits)}
        self.layers = nn.ModuleDict({name: _linear(*size, SPREAD, generator) for name, size in sizes.items()})

    def forward(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        layers = self.layers
        f = layers["feature"](F.relu(layers["hidden"](labels)))
        return f, torch.tanh(layers["hash"](f)), layers["classifier"](f)

    def loss(self, labels: Tensor) -> Tensor:
        """The loss of a batch of labels."""
        (f, u, found), similar = self(labels), share_class(labels, labels)
        read = 2 / labels.shape[1] * (labels - found).square().sum()
        return similarity(f, similar) + similarity(u, similar) + read + 0.1 * quantization(u)


def label_network(labels: Tensor, bits: int, width: int, generator: torch.Generator) -> LabelNetwork:
    """The label network, trained; labels: float `[N, C]`."""
    net = LabelNetwork(labels.shape[1], bits, width, generator).to(labels.device)
    optimizer = torch.optim.Adam(net.parameters(), min(RATE, 2 / width), weight_decay=DECAY, fused=True)
    epochs = max(EPOCHS, math.ceil(STEPS / math.ceil(len(labels) / BATCH)))
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(share * epochs) for share in SLOWER])
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(BATCH):
            optimizer.zero_grad()
            net.loss(labels[rows.to(labels.device)]).backward()
            optimizer.step()
        schedule.step()
    return net


def similarity(x: Tensor, similar: Tensor) -> Tensor:
    """S(x)."""
    c = cosines(x, x)
    return torch.where(similar > 0, F.relu(MARGIN - c), F.relu(c)).mean()


def hinge(found: Tensor, margins: Tensor, similar: Tensor) -> Tensor:
    """mean s max(0, m - c) + (1 - s) max(0, c - m); found: the cosines c."""
    return torch.where(similar > 0, F.relu(margins - found), F.relu(found - margins)).mean()


def quantization(u: Tensor) -> Tensor:
    """mean (u - sign u)^2."""
    return (u - sign(u.detach())).square().mean()


def _linear(inputs: int, outputs: int, spread: float, generator: torch.Generator) -> nn.Linear:
    """Weights and biases from a normal distribution of the standard deviation `spread`; no global seed is touched."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 0, spread, generator=generator)
    return layer
