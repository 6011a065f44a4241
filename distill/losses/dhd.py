"""DHD: learned class proxies, and self-distillation from a weakly to a strongly augmented view of each image.

"Deep Hash Distillation for Image Retrieval", Jang et al., ECCV 2022.

    L = mean_i CE(softmax_c( cos(u_i, P_c) / tau ), y_i / |y_i|) + lambda1 mean_i (1 - cos(v_i, u_i*)) + lambda2 L_Q
    L_Q = mean_{i,k} [ BCE(g(u - 1), b) + BCE(g(u + 1), 1 - b) ],    g(x) = exp(-x^2 / (2 sigma^2)),  b = [u > 0]

u = tanh(h), v: of the logits of the weak and of the strong view; u*: without gradient; P `[C, bits]`: learned,
initialized as Xavier's uniform with the gain of tanh; y: classes of the image.  The weak view is the released code's
teacher, and only it has the first and the last term.
Of the two bumps of L_Q one is near a bit, at |u| - 1, and one far, at |u| + 1, so that it is
(|u| - 1)^2 / (2 sigma^2) - log(1 - g(|u| + 1)), without the logarithm of a number that may be zero.
The paper's head ends in layer norm, ours in batch norm; the tanh is here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses import register_loss
from distill.losses.base import HashLoss, LossBatch, soft_labels


@register_loss("dhd")
class DHDLoss(HashLoss):
    """Proxy loss, self-distillation between two views, and quantization.

    temperature: tau; distillation and quantization: weights lambda1, lambda2; spread: sigma of the bumps
    """

    n_views = 2
    temperature: float = 0.2
    distillation: float = 0.1
    quantization: float = 0.1
    spread: float = 0.5

    def setup(self) -> None:
        start, gain = torch.empty(self.context.classes, self.context.bits), nn.init.calculate_gain("tanh")
        self.proxies = nn.Parameter(nn.init.xavier_uniform_(start, gain, self.context.generator()))

    def forward(self, batch: LossBatch) -> Tensor:
        if batch.second_view_logits is None:
            raise ValueError("DHD compares two views of each image, and was given one")
        u, harder = batch.logits.tanh(), batch.second_view_logits.tanh()
        apart = (1 - F.cosine_similarity(harder, u.detach(), dim=1)).mean()
        cosines, labels = F.normalize(u, dim=1) @ F.normalize(self.proxies, dim=1).T, self.context.positive[batch.index]
        proxy = -(soft_labels(labels) * (cosines / self.temperature).log_softmax(1)).sum(1).mean()
        size = u.abs()
        near, far = ((size + at).square() / (2 * self.spread**2) for at in (-1, 1))
        bumps = (near - torch.log1p(-torch.exp(-far))).mean()
        return proxy + self.distillation * apart + self.quantization * bumps
