"""DCH against loops over pictures and bits."""

import math

import numpy as np
import pytest
import torch

from distill.losses.base import LossContext
from distill.losses.dch import DCHLoss
from tests.distill.losses.factories import learns, seen, sharing, task


def distance(left: list[float], right: list[float]) -> float:
    dot = sum(a * b for a, b in zip(left, right, strict=True))
    norms = math.sqrt(sum(a * a for a in left)) * math.sqrt(sum(b * b for b in right))
    return len(left) / 2 * (1 - dot / norms)


def slow(of: LossContext, rows: list[int], logits: np.ndarray) -> float:
    """By the paper's form of the loss and its weights, over all ordered pairs."""
    positive, pairs = of.positive.numpy(), []
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
    off = [math.log(1 + distance([abs(x) for x in u], [1.0] * of.bits) / 20) for u in codes]
    return total / len(pairs) + 0.1 * sum(off) / len(off)


@pytest.mark.parametrize("several", [False, True])
def test_by_loops(several: bool) -> None:
    of, rows = task(several), [0, 1, 4, 9, 2]
    batch = seen(of, rows)
    expected = slow(of, rows, batch.logits.detach().numpy().astype(float))
    assert DCHLoss(of)(batch).item() == pytest.approx(expected, rel=1e-5)


def test_learns() -> None:
    before, after = learns(DCHLoss(task()), task())
    assert after > before + 0.5


def test_dissimilar_pictures_that_nearly_meet_are_pushed_apart() -> None:
    """Where the released code's cap, cos <= 0.99, leaves no gradient."""
    of = task()
    batch = seen(of, [0, 1])
    logits = (batch.logits[:1] + torch.tensor([[0.0], [0.05]]) * batch.logits[1:]).detach().requires_grad_()
    assert torch.cosine_similarity(*logits.tanh(), dim=0) > 0.99
    DCHLoss(of, quantization=0.0)(batch._replace(logits=logits)).backward()
    assert logits.grad is not None
    moved = (logits - 1e-3 * logits.grad / logits.grad.norm()).tanh()
    assert torch.cosine_similarity(*moved, dim=0) < torch.cosine_similarity(*logits.tanh(), dim=0)


def test_extreme_logits_and_batches_of_one_kind() -> None:
    of = task(bits=64)
    same = torch.ones(3, 64)
    for logits, rows in (
        (1e4 * seen(of, [0, 1, 4]).logits, [0, 1, 4]), (0 * same, [0, 1, 4]), (same, [0, 1, 4]),
        (seen(of, [0, 4, 8]).logits, [0, 4, 8]), (seen(of, [0, 1, 2]).logits, [0, 1, 2]), (same[:1], [2]),
    ):  # fmt: skip
        batch = seen(of, rows)._replace(logits=logits.detach().requires_grad_())
        loss = DCHLoss(of)(batch)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, batch.logits)[0].isfinite().all()
