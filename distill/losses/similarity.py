"""Similarity preservation: codes that keep the neighbors of the pretrained features.  No label is used.

For each image i of a batch, the distribution over the other images j by the cosines of their logits h is drawn to that
by the cosines of the features f of the frozen pretrained backbone (as RAML and ROP distil similarities, between the
features and the codes of one image set instead of two networks):

    L = mean_i KL( softmax_j(cos(f_i, f_j) / T_f) || softmax_j(cos(h_i, h_j) / T_h) ) + lambda mean (|h| - 1)^2

f is centered by its mean over all images: after a last ReLU all cosines are high.  T_h is the larger: cosines of h have
to spread to -1 and 1 to match, so that neighbors share a code.
"""

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.losses import register_loss
from distill.losses.base import HashLoss, LossBatch

REFERENCE_TEMPERATURE, TEMPERATURE, QUANTIZATION = 0.07, 0.5, 0.05
ALONE_TEMPERATURE, ALONE_QUANTIZATION = 0.2, 1.0  # where there are no centers


def similarity_preservation(
    logits: Tensor, reference: Tensor, reference_temperature: float = REFERENCE_TEMPERATURE,
    temperature: float = TEMPERATURE,
) -> Tensor:  # fmt: skip
    """The mean divergence of the module text, without its last term; 0 for fewer than three images.

    logits h `[B, bits]`; reference f `[B, D]`, without gradient
    """
    if len(logits) < 3:
        return logits.sum() * 0.0
    off = ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    f, h = F.normalize(reference.detach().float(), dim=1), F.normalize(logits, dim=1)
    wanted, found = ((one @ one.T / t)[off].view(len(logits), -1).log_softmax(1)
                     for one, t in ((f, reference_temperature), (h, temperature)))  # fmt: skip
    return F.kl_div(found, wanted, reduction="batchmean", log_target=True)


def quantization_loss(logits: Tensor) -> Tensor:
    """mean (|h| - 1)^2: logits near to +-1."""
    return (logits.abs() - 1).square().mean()


@register_loss("similarity")
class SimilarityLoss(HashLoss):
    """The loss of the module text over labeled and unlabeled images alike.

    reference_temperature: T_f; temperature: T_h; quantization: lambda.  By T_h and lambda, the mAP and the recall@10 of
    float neighbors on UC Merced, then on imagenet20: a head on the features of mobilenetv2, trained on four fifths of
    a set's images, the other fifth as queries (64 bits, 2 draws; of imagenet20 no query is among them):

        .15, .05    .516 and .480    .588 and .325        .3, 1     .625 and .376    .685 and .185
        .15, 1      .561 and .486    .623 and .328        .5, 1     .610 and .287    .665 and .132
        .2, 1       .599 and .445    .661 and .278        ITQ       .506 and .529    .574 and .377

    A larger T_h makes groups, a smaller one keeps the order within them: .2 gains as much of the one as it costs of the
    other.
    """

    uses_labels = False
    reference_temperature: float = Field(REFERENCE_TEMPERATURE, gt=0)
    temperature: float = Field(ALONE_TEMPERATURE, gt=0)
    quantization: float = Field(ALONE_QUANTIZATION, ge=0)

    @staticmethod
    def uses_reference(options: Any) -> bool:
        return True

    @staticmethod
    def uses_unlabeled(options: Any) -> bool:
        return True

    def forward(self, batch: LossBatch) -> Tensor:
        assert batch.reference is not None
        logits, reference = batch.logits, batch.reference
        if batch.unlabeled:
            logits = torch.cat([logits, batch.unlabeled.logits])
            reference = torch.cat([reference, batch.unlabeled.reference])
        own = similarity_preservation(logits, reference, self.reference_temperature, self.temperature)
        return own + self.quantization * quantization_loss(logits)
