"""Something to learn for an objective under test, and slow words for what pictures have in common."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distill.hash_centers.constructions import hash_centers
from distill.hash_centers.multilabel import center_targets
from distill.losses.base import HashLoss, LossBatch, LossContext


def task(several: bool = False, pictures: int = 12, bits: int = 16, classes: int = 4, **changes: object) -> LossContext:
    """Twelve pictures of four classes, the gallery is six more; with `several`, two or three classes each."""
    rng = np.random.default_rng(5)
    labels = np.arange(pictures + 6) % classes
    hot = np.eye(classes, dtype=bool)[labels]
    if several:
        hot |= rng.random(hot.shape) < 0.3
    centers = hash_centers(classes, bits)
    own = center_targets(hot if several else labels, centers)[:pictures]
    parts = {
        "positive": torch.from_numpy(hot[:pictures]), "gallery": torch.from_numpy(hot[pictures:]),
        "words": torch.from_numpy(centers).float(), "targets": torch.from_numpy(own).float(), "several": several,
        "features": 10, "steps": 3, "epochs": 4, "seed": 0,
    }  # fmt: skip
    return LossContext(**{**parts, **changes})  # type: ignore[arg-type]


def seen(of: LossContext, rows: list[int], seed: int = 0, again: bool = False) -> LossBatch:
    """What a network may say of the pictures `rows`; its logits carry a gradient."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), of.bits, generator=generator).requires_grad_()
    features = torch.randn(len(rows), of.features, generator=generator)
    other = torch.randn(len(rows), of.bits, generator=generator).requires_grad_() if again else None
    return LossBatch(logits, features, torch.tensor(rows), other)


def sharing(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two pictures, bool `[C]` each, share a class."""
    return any(a and b for a, b in zip(left, right, strict=True))


def learns(objective: HashLoss, of: LossContext, steps: int = 200, lr: float = 0.05) -> tuple[float, float]:
    """How much nearer pictures of a shared class are than others (mean cosine of logits), before and after training.

    The logits of the training pictures themselves are trained, with what the objective learns: a loss that cannot
    separate free logits cannot train a network.
    """
    generator = torch.Generator().manual_seed(1)
    free = torch.randn(len(of.positive), of.bits, generator=generator).requires_grad_()
    features, rows = torch.randn(len(free), of.features, generator=generator), torch.arange(len(free))
    before = apart(free.detach(), of)
    optimizer = torch.optim.Adam([free, *objective.parameters()], lr)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(LossBatch(free, features, rows, free + 0.1 if objective.looks > 1 else None)).backward()
        optimizer.step()
    return before, apart(free.detach(), of)


def apart(logits: Tensor, of: LossContext) -> float:
    """Mean cosine within shared classes less that of the others."""
    h = torch.nn.functional.normalize(logits, dim=1)
    alike = (of.positive.float() @ of.positive.float().T) > 0
    off = ~torch.eye(len(h), dtype=torch.bool)
    return float((h @ h.T)[alike & off].mean() - (h @ h.T)[~alike].mean())
