"""DSH against loops over images and bits, and its bank."""

import numpy as np
import pytest

from distill.losses.base import LossContext
from distill.losses.dsh import DSHLoss
from tests.distill.losses.factories import learns, make_batch, make_context, sharing


def slow(context: LossContext, rows: list[int], logits: np.ndarray, bank: dict[int, np.ndarray]) -> float:
    positive, terms = context.positive.numpy(), []
    for i, u in zip(rows, logits, strict=True):
        for j, other in bank.items():
            if j != i:
                d = sum((a - b) ** 2 for a, b in zip(u, other, strict=True))
                terms.append(0.5 * (d if sharing(positive[i], positive[j]) else max(0.0, 2 * context.bits - d)))
    off = [abs(abs(a) - 1) for u in logits for a in u]
    return sum(terms) / len(terms) + 0.1 * sum(off) / len(off)


@pytest.mark.parametrize("multilabel", [False, True])
def test_by_loops_over_the_batch_and_all_that_were_seen(multilabel: bool) -> None:
    context, bank = make_context(multilabel), {}
    dsh = DSHLoss(context)
    for step, rows in enumerate(([0, 1, 4, 9], [1, 2, 3, 5])):
        batch = make_batch(context, rows, step)
        logits = batch.logits.detach().numpy().astype(float)
        bank |= dict(zip(rows, logits, strict=True))  # 1 anew, and nothing yet of 6, 7, 8, 10, 11
        assert dsh(batch).item() == pytest.approx(slow(context, rows, logits, bank), rel=1e-5)


def test_learns() -> None:
    before, after = learns(DSHLoss(make_context()), make_context())
    assert after > before + 0.5
