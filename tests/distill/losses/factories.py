"""Something to learn for a loss under test, and slow formulas for what images have in common."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distill.hash_centers.constructions import hash_centers
from distill.hash_centers.multilabel import target_codes
from distill.losses.base import HashLoss, LossBatch, LossContext


def make_context(
    multilabel: bool = False, images: int = 12, bits: int = 16, classes: int = 4, **changes: object
) -> LossContext:
    """Twelve images of four classes, the gallery is six more; with `multilabel`, two or three classes each."""
    rng = np.random.default_rng(5)
    labels = np.arange(images + 6) % classes
    hot = np.eye(classes, dtype=bool)[labels]
    if multilabel:
        hot |= rng.random(hot.shape) < 0.3
    centers = hash_centers(classes, bits)
    own = target_codes(hot if multilabel else labels, centers)[:images]
    parts = {
        "positive": torch.from_numpy(hot[:images]), "gallery": torch.from_numpy(hot[images:]),
        "centers": torch.from_numpy(centers).float(), "target_codes": torch.from_numpy(own).float(),
        "multilabel": multilabel, "features": 10, "steps_per_epoch": 3, "epochs": 4, "seed": 0,
    }  # fmt: skip
    return LossContext(**{**parts, **changes})  # type: ignore[arg-type]


def make_batch(context: LossContext, rows: list[int], seed: int = 0, second_view: bool = False) -> LossBatch:
    """What a network may say of the images `rows`; its logits carry a gradient."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), context.bits, generator=generator).requires_grad_()
    features = torch.randn(len(rows), context.features, generator=generator)
    other = torch.randn(len(rows), context.bits, generator=generator).requires_grad_() if second_view else None
    reference = torch.randn(len(rows), 10, generator=generator)
    return LossBatch(logits, features, torch.tensor(rows), other, reference)


def sharing(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two images, bool `[C]` each, share a class."""
    return any(a and b for a, b in zip(left, right, strict=True))


def learns(loss_fn: HashLoss, context: LossContext, steps: int = 200, lr: float = 0.05) -> tuple[float, float]:
    """How much nearer images of a shared class are than others (mean cosine of logits), before and after training.

    The logits of the training images themselves are trained, with what the loss_fn learns: a loss that cannot
    separate free logits cannot train a network.
    """
    generator = torch.Generator().manual_seed(1)
    free = torch.randn(len(context.positive), context.bits, generator=generator).requires_grad_()
    features, rows = torch.randn(len(free), context.features, generator=generator), torch.arange(len(free))
    before = apart(free.detach(), context)
    optimizer = torch.optim.Adam([free, *loss_fn.parameters()], lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_fn(LossBatch(free, features, rows, free + 0.1 if loss_fn.n_views > 1 else None, features)).backward()
        optimizer.step()
    return before, apart(free.detach(), context)


def apart(logits: Tensor, context: LossContext) -> float:
    """Mean cosine within shared classes less that of the others."""
    h = torch.nn.functional.normalize(logits, dim=1)
    alike = (context.positive.float() @ context.positive.float().T) > 0
    off = ~torch.eye(len(h), dtype=torch.bool)
    return float((h @ h.T)[alike & off].mean() - (h @ h.T)[~alike].mean())


def learns_gallery_codes(loss_fn: HashLoss, context: LossContext) -> None:
    """An asymmetric loss separates logits by class, and the codes that it learns for the gallery follow its labels."""
    begun = loss_fn.learned.clone()
    before, after = learns(loss_fn, context)
    assert after > before + (0.1 if context.multilabel else 0.3)  # with several labels most pairs share a class
    there = LossContext(**{**vars(context), "positive": context.gallery})
    codes = loss_fn.codes()
    assert apart(codes, there) > apart(begun, there) + 0.3
    assert set(codes.unique().tolist()) == {-1.0, 1.0}
