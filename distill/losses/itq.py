"""ITQ as a teacher: the hash head is fitted to the pretrained features at once, nothing is trained, and no label used.

Gong and Lazebnik, "Iterative Quantization: A Procrustean Approach to Learning Binary Codes", CVPR 2011; the fit is that
of `distill.itq`.  There logits are (f / |f| - m) P, which no linear head can put out of features f of any length; here

    h = (f - c m) P / s       c: the mean of |f|, s: the spread of each bit, over the training images

which costs .01 of mAP and nothing of recall@10 (UC Merced, 64 bits: mobilenetv2 .501 -> .487, .511 -> .505;
efficientnet_lite2 .564 -> .557, .530 -> .531).
"""

from typing import Any

from pydantic import Field
from torch import Tensor

from distill.itq import fit_itq
from distill.losses import register_loss
from distill.losses.base import HashLoss, HeadFit, LossBatch, sign


@register_loss("itq")
class ITQLoss(HashLoss):
    """iterations: of the rotation.  The value of the loss is the error that these make less: mean (h - sign h)^2."""

    uses_labels = False
    is_fitted = True
    iterations: int = Field(50, ge=1)

    @staticmethod
    def uses_reference(options: Any) -> bool:
        return True

    def fit_head(self, features: Tensor) -> HeadFit:
        known = features.float().cpu()
        found = fit_itq(known.numpy(), self.context.bits, self.context.seed, self.iterations)
        projection, mean = known.new_tensor(found.projection), known.new_tensor(found.mean)
        values = known @ projection
        shift = known.norm(dim=1).mean() * (mean @ projection)
        return HeadFit(projection.T, shift, (values - shift).square().mean(0))

    def forward(self, batch: LossBatch) -> Tensor:
        return (batch.logits - sign(batch.logits.detach())).square().mean()
