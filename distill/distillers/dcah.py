"""In the style of DCAH: correlations between student and teacher, instead of outputs forced onto discrete codes.

"Discretization Is Not Always Better: Rethinking Deep Quantization for Asymmetric Image Retrieval", AAAI 2026 (Deep
Correlation Alignment Hashing).

    L = weight * ( quantization * mean_{k,l} (Q_k . G_l - G_k . G_l)^2
                   + similarity * mean_{i,j} (q_i . g_j - g_i . g_j)^2 )

q_i, g_i: row i of the student's and the teacher's outputs for a batch, `[B, bits]`, the rows scaled to unit length: the
products are cosines of images.  Q_k, G_k: column k of the same, the columns scaled to unit length over the batch: the
products are correlations of bits.  g is signs, as the gallery stores them (signs = 0: logits).

The paper's, as far as it was known here (its abstract; no code was released): a small student is not to be made to
output +-1, which costs it too much; quantization comes about by aligning correlations between student and teacher, and
so does the distillation of similarities; no labels.
Our reading: both formulas.  The first term asks of the student's bits that they be correlated with all of the teacher's
as the teacher's own are.  With l = k it is 0 only where the student's column is a positive multiple of the teacher's:
its signs are the teacher's, whatever its scale.  The correlations are not centered: a bit is logit > 0, and a centered
one would be blind to where zero is (and undefined where a batch has a bit only once).  The second term is the first
with images for bits, RAML's asymmetric one with an image's own code among the others; so is the weight RAML's.
Each term changes with a rotation of the student's space: the teacher's side of every product is the gallery's code.  No
labels: all rows of a batch take part.
"""

from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.distillers import register_distiller
from distill.distillers.base import DistillBatch, Distiller, teacher_targets
from distill.losses.base import cosines


@register_distiller("dcah")
class DCAHDistiller(Distiller):
    """Correlations of the bits and of the images of a batch; quantization, similarity: their weights."""

    weight: float = Field(20.0, ge=0)
    quantization: float = Field(1.0, ge=0)
    similarity: float = Field(1.0, ge=0)
    signs: bool = True

    @staticmethod
    def uses_teacher(options: Any) -> bool:
        return DCAHDistiller.fixes_rotation(options)

    @staticmethod
    def fixes_rotation(options: Any) -> bool:
        return bool(options.weight * (options.quantization + options.similarity) > 0)

    def forward(self, batch: DistillBatch) -> Tensor:
        q, g = batch.student, teacher_targets(batch.teacher, self.signs)
        by_bit, by_image = alignment(q.T, g.T), alignment(q, g)
        return self.weight * (self.quantization * by_bit + self.similarity * by_image)


def alignment(q: Tensor, g: Tensor) -> Tensor:
    """The mean over i, j of (cos(q_i, g_j) - cos(g_i, g_j))^2, of rows `[n, d]`."""
    return F.mse_loss(cosines(q, g), cosines(g, g))
