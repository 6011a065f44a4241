"""BCT: the student is classified by the gallery side's frozen classifier.

"Towards Backward-Compatible Representation Learning", CVPR 2020: beside its own classification loss, the new network
has one through the frozen classifier of the old one, the influence loss.

    L = weight * mean_i -sum_c y_ic / |y_i| * log softmax_c( scale * cos(h_q_i, t_c) )

h_q: the student's logits `[B, bits]`; t_c: center of class c, +-1; y_i: the classes of image i, |y_i| of them.  In
the mean are the images with labels, the first L rows of a batch; where there are none, the loss is 0.

The frozen classifier is here the fixed centers, on which the teacher was trained: the teacher's logits are not used.
The center term, which every student has, is CosFace on the same centers, with a margin that this one lacks; of several
classes that one pulls toward a single code, their majority, and this one toward each class's center.  In the paper the
new network's own classifier is learned, here the two share one.  weight: lambda, 1 as released.  The released
classifier is a linear layer; cosines, which did better in the paper's table, need a scale: 8 is the center term's.
"""

from typing import Any

from torch import Tensor

from distill.distillers import register_distiller
from distill.distillers.base import DistillBatch, Distiller
from distill.losses.base import cosines, soft_labels
from distill.losses.csch import SCALE


@register_distiller("bct")
class BCTDistiller(Distiller):
    """The influence loss, on the fixed centers; scale: of the cosines, before the softmax."""

    weight: float = 1.0
    scale: float = SCALE

    @staticmethod
    def uses_teacher(options: Any) -> bool:
        return False

    def forward(self, batch: DistillBatch) -> Tensor:
        labeled = len(batch.positive)
        log_probs = (self.scale * cosines(batch.student[:labeled], self.context.centers)).log_softmax(1)
        return self.weight * -(soft_labels(batch.positive) * log_probs).sum() / max(1, labeled)
