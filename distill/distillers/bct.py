"""BCT: the student is classified by the gallery side's frozen classifier.

"Towards Backward-Compatible Representation Learning", CVPR 2020: beside its own classification loss, the new network
has one through the frozen classifier of the old one, the influence loss.

    L = weight * mean_i -sum_c y_ic / |y_i| * log softmax_c( scale * cos(h_q_i, t_c) )

h_q: the student's logits `[B, bits]`; t_c: center of class c, +-1; y_i: the classes of image i, |y_i| of them.  In
the mean are the images with labels, the first L rows of a batch; where there are none, the loss is 0.  What all
centers agree in cancels in the softmax.

The frozen classifier of the gallery's side is here the fixed centers, on which the teacher was trained: the
teacher's logits are not used, nor their signs, so that there is no such option.  Our center term, which every
student has, is CosFace on the same centers, and the teacher was trained by it too.  That term asks for a margin and
this one does not; of several classes that one pulls toward a single code, their majority, with only the others as
negatives, and this one toward each class's center, which are each other's negatives.  With a center loss both are on,
as the paper's two are, though there the new network's own classifier is learned and here the two share one;
without it this loss is alone.  weight: lambda, 1 as released.  Its classifier is a plain linear layer; cosines,
which did better in its table, need a scale, and 8 is the center term's (and HVS's square root of 64 bits).
"""

from __future__ import annotations

from torch import Tensor

from distill.distillers import register_distiller
from distill.distillers.base import DistillBatch, Distiller, DistillerArgs
from distill.losses.base import cosines, soft_labels
from distill.losses.csch import SCALE


class BCTDistillerArgs(DistillerArgs):
    """weight: of the whole; scale: of the cosines, before the softmax."""

    weight: float = 1.0
    scale: float = SCALE

    @property
    def uses_teacher(self) -> bool:
        return False


@register_distiller("bct")
class BCTDistiller(Distiller):
    """The influence loss, on the fixed centers."""

    args: BCTDistillerArgs

    def forward(self, batch: DistillBatch) -> Tensor:
        labeled = len(batch.positive)
        log_probs = (self.args.scale * cosines(batch.student[:labeled], self.context.centers)).log_softmax(1)
        return self.args.weight * -(soft_labels(batch.positive) * log_probs).sum() / max(1, labeled)
