"""DCH against loops over images and bits."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.losses.base import LossContext
from distill.losses.dch import DCHLoss
from tests.distill.losses.factories import learns, make_batch, make_context, sharing


def distance(left: list[float], right: list[float]) -> float:
    dot = sum(a * b for a, b in zip(left, right, strict=True))
    norms = math.sqrt(sum(a * a for a in left)) * math.sqrt(sum(b * b for b in right))
    return len(left) / 2 * (1 - dot / norms)


def slow(context: LossContext, rows: list[int], logits: np.ndarray) -> float:
    """By the paper's form of the loss and its weights, over all ordered pairs."""
    positive, pairs = context.positive.numpy(), []
    codes = [[math.tanh(x) for x in row] for row in logits]
    for a, i in enumerate(rows):
        for b, j in enumerate(rows):
            if a != b:
                pairs.append((sharing(positive[i], positive[j]), distance(codes[a], codes[b])))
    similar = sum(s for s, _ in pairs)
    total = 0.0
    for s, d in pairs:
        weight = len(pairs) / (similar if s else len(pairs) - similar)
        total += weight * (s * math.log(d / 20) + math.log(1 + 20 / d))
    off = [math.log(1 + distance([abs(x) for x in u], [1.0] * context.bits) / 20) for u in codes]
    return total / len(pairs) + 0.1 * sum(off) / len(off)


@pytest.mark.parametrize("multilabel", [False, True])
def test_by_loops(multilabel: bool) -> None:
    context, rows = make_context(multilabel), [0, 1, 4, 9, 2]
    batch = make_batch(context, rows)
    expected = slow(context, rows, batch.logits.detach().numpy().astype(float))
    assert DCHLoss(context)(batch).item() == pytest.approx(expected, rel=1e-5)


def test_learns() -> None:
    before, after = learns(DCHLoss(make_context()), make_context())
    assert after > before + 0.5


def test_dissimilar_images_that_nearly_meet_are_pushed_apart() -> None:
    """Where the released code's cap, cos <= 0.99, leaves no gradient."""
    context = make_context()
    batch = make_batch(context, [0, 1])
    logits = (batch.logits[:1] + torch.tensor([[0.0], [0.05]]) * batch.logits[1:]).detach().requires_grad_()
    assert torch.cosine_similarity(*logits.tanh(), dim=0) > 0.99
    DCHLoss(context, quantization=0.0)(replace(batch, logits=logits)).backward()
    assert logits.grad is not None
    moved = (logits - 1e-3 * logits.grad / logits.grad.norm()).tanh()
    assert torch.cosine_similarity(*moved, dim=0) < torch.cosine_similarity(*logits.tanh(), dim=0)


def test_extreme_logits_and_batches_of_one_kind() -> None:
    context = make_context(bits=64)
    same = torch.ones(3, 64)
    for logits, rows in (
        (1e4 * make_batch(context, [0, 1, 4]).logits, [0, 1, 4]), (0 * same, [0, 1, 4]), (same, [0, 1, 4]),
        (make_batch(context, [0, 4, 8]).logits, [0, 4, 8]),
        (make_batch(context, [0, 1, 2]).logits, [0, 1, 2]), (same[:1], [2]),
    ):  # fmt: skip
        batch = replace(make_batch(context, rows), logits=logits.detach().requires_grad_())
        loss = DCHLoss(context)(batch)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, batch.logits)[0].isfinite().all()
