"""HashNet against loops over images and bits, and its continuation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.losses.base import LossContext
from distill.losses.hashnet import HashNetLoss
from tests.distill.losses.factories import learns, make_batch, make_context, sharing


def slow(context: LossContext, rows: list[int], logits: np.ndarray, beta: float) -> float:
    """By the paper's weights, |S|/|S1| and |S|/|S0|, over all ordered pairs."""
    positive, pairs = context.positive.numpy(), []
    for a, i in enumerate(rows):
        for b, j in enumerate(rows):
            if a != b:
                bits = zip(logits[a], logits[b], strict=True)
                theta = 0.1 * sum(math.tanh(beta * x) * math.tanh(beta * y) for x, y in bits)
                pairs.append((sharing(positive[i], positive[j]), theta))
    similar = sum(s for s, _ in pairs)
    total = 0.0
    for s, theta in pairs:
        weight = len(pairs) / (similar if s else len(pairs) - similar)
        total += weight * (math.log(1 + math.exp(theta)) - s * theta)
    return total / len(pairs)


@pytest.mark.parametrize("multilabel", [False, True])
def test_by_loops(multilabel: bool) -> None:
    context, rows = make_context(multilabel), [0, 1, 4, 9, 2]
    batch = make_batch(context, rows)
    logits = batch.logits.detach().numpy().astype(float)
    assert HashNetLoss(context)(batch).item() == pytest.approx(slow(context, rows, logits, 1.0), rel=1e-5)


def test_beta_grows_with_the_epochs() -> None:
    context = make_context(steps_per_epoch=3)
    hashnet, batch = HashNetLoss(context, every=0.5), make_batch(context, [0, 1, 4])
    logits = batch.logits.detach().numpy().astype(float)
    for step in range(14):
        beta = math.sqrt(step // 3 // 2 + 1)
        assert hashnet(batch).item() == pytest.approx(slow(context, [0, 1, 4], logits, beta), rel=1e-5), step
    assert HashNetLoss(context).every == pytest.approx(20 / 150)


def test_learns() -> None:
    before, after = learns(HashNetLoss(make_context()), make_context())
    assert after > before + 0.5


def test_extreme_logits_and_batches_of_one_kind() -> None:
    context = make_context(bits=64)
    for scale, rows in ((1e4, [0, 1, 4]), (0.0, [0, 1, 4]), (1.0, [0, 4, 8]), (1.0, [0, 1, 2]), (1.0, [2])):
        batch = make_batch(context, rows)
        logits = (scale * batch.logits).detach().requires_grad_()
        assert (
            torch.autograd.grad(HashNetLoss(context, alpha=10.0)(replace(batch, logits=logits)), logits)[0]
            .isfinite()
            .all()
        )
