"""CSCH: both networks are drawn to fixed hash centers, and the student to the teacher's own code.

"Central Similarity Consistency Hashing for Asymmetric Image Retrieval", Computational Visual Media, 2024.
The released code leaves out the paper's sign and stop-gradient in the instance term and redraws tie bits on every
call; here both are as the paper's figure has them.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from distill.centers import Centers

SCALE, MARGIN = 8.0, 0.2


def center_targets(labels: NDArray[np.int64] | NDArray[np.bool_], centers: Centers) -> NDArray[np.int8]:
    """The word each picture is drawn to, `[N, bits]` of +-1.

    labels: int `[N]`, whose target is the class's center, or multi-hot bool `[N, classes]`, whose target is the
    majority vote of the centers of its classes.  A tied bit is drawn once per set of labels, from a hash of that
    set, so that both networks, every epoch and every process see the same target.
    """
    if labels.ndim == 1:
        return centers[labels]
    sets, which = np.unique(labels, axis=0, return_inverse=True)
    votes = sets.astype(np.int32) @ centers.astype(np.int32)
    words = np.where(votes == 0, np.stack([_tie_bits(row, centers.shape[1]) for row in sets]), np.sign(votes))
    return words[which.reshape(-1)].astype(np.int8)


def center_consistency(
    logits: Tensor, target: Tensor, centers: Tensor, positive: Tensor, scale: float = SCALE, margin: float = MARGIN
) -> Tensor:
    """The mean of CosFace over fixed centers.

    L = -log  e^{s(cos(h,p) - m)} / (e^{s(cos(h,p) - m)} + sum_{c not in y} e^{s cos(h,t_c)})

    logits h `[B, bits]`; target p `[B, bits]`; centers t `[C, bits]`; positive `[B, C]` bool, the classes y of each
    picture.  With one label a picture, p = t_y.
    """
    h = F.normalize(logits, dim=1)
    own = scale * ((h * F.normalize(target, dim=1)).sum(1, keepdim=True) - margin)
    others = (scale * h @ F.normalize(centers, dim=1).T).masked_fill(positive, -torch.inf)
    return (torch.logsumexp(torch.cat([own, others], 1), 1) - own[:, 0]).mean()


def instance_consistency(student: Tensor, teacher: Tensor) -> Tensor:
    """mean (h_q - sign(h_g))^2 over batch and bits; the teacher `[B, bits]` is a target, without gradient."""
    return F.mse_loss(student, torch.where(teacher > 0, 1.0, -1.0).to(student.dtype).detach())


def _tie_bits(label_set: NDArray[np.bool_], bits: int) -> NDArray[np.int8]:
    seed = int.from_bytes(hashlib.sha256(np.packbits(label_set).tobytes()).digest()[:8], "little")
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), bits)
