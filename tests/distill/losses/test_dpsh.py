"""DPSH against loops over images and bits, and its bank."""

import math

import numpy as np
import pytest

from distill.losses.base import LossContext
from distill.losses.dpsh import DPSHLoss
from tests.distill.losses.factories import learns, make_batch, make_context, sharing


def slow(context: LossContext, rows: list[int], logits: np.ndarray, bank: dict[int, np.ndarray]) -> float:
    positive, terms = context.positive.numpy(), []
    for i, u in zip(rows, logits, strict=True):
        for j, other in bank.items():
            if j != i:
                theta = sum(a * b for a, b in zip(u, other, strict=True)) / 2
                terms.append(math.log(1 + math.exp(theta)) - (theta if sharing(positive[i], positive[j]) else 0))
    off = [(a - (1 if a > 0 else -1)) ** 2 for u in logits for a in u]
    return sum(terms) / len(terms) + 0.1 * sum(off) / len(off)


@pytest.mark.parametrize("multilabel", [False, True])
def test_by_loops_over_the_batch_and_all_that_were_seen(multilabel: bool) -> None:
    context, bank = make_context(multilabel), {}
    dpsh = DPSHLoss(context)
    for step, rows in enumerate(([0, 1, 4, 9], [1, 2, 3, 5])):
        batch = make_batch(context, rows, step)
        logits = batch.logits.detach().numpy().astype(float)
        bank |= dict(zip(rows, logits, strict=True))
        assert dpsh(batch).item() == pytest.approx(slow(context, rows, logits, bank), rel=1e-5)


def test_learns() -> None:
    before, after = learns(DPSHLoss(make_context()), make_context())
    assert after > before + 0.5


def test_the_bank_has_no_gradient() -> None:
    context = make_context()
    dpsh = DPSHLoss(context, quantization=0.0)
    first, second = make_batch(context, [0, 1]), make_batch(context, [4, 5], 1)
    dpsh(first)
    dpsh(second).backward()
    assert first.logits.grad is None
    assert second.logits.grad is not None
    assert second.logits.grad.abs().sum() > 0
