"""DNNH against loops over all triplets."""

import math

import numpy as np
import pytest

from distill.losses.base import LossContext
from distill.losses.dnnh import DNNHLoss
from tests.distill.losses.factories import learns, make_batch, make_context, sharing


def slow(context: LossContext, rows: list[int], logits: np.ndarray, margin: float) -> float:
    positive, terms = context.positive.numpy(), []
    u = [[1 / (1 + math.exp(-x)) for x in row] for row in logits]
    places = range(len(rows))
    for i in places:
        for p in places:
            for n in places:
                ip, i_n = (sharing(positive[rows[i]], positive[rows[j]]) for j in (p, n))
                if i not in (p, n) and ip and not i_n:
                    near, far = (sum((a - b) ** 2 for a, b in zip(u[i], u[j], strict=True)) for j in (p, n))
                    terms.append(max(0.0, near - far + margin))
    return sum(terms) / max(1, len(terms))


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("rows", [[0, 1, 4, 9, 2, 6], [0, 4, 8], [0, 1, 2]])
def test_by_loops(multilabel: bool, rows: list[int]) -> None:
    context = make_context(multilabel)
    batch = make_batch(context, rows)
    logits = batch.logits.detach().numpy().astype(float)
    assert DNNHLoss(context)(batch).item() == pytest.approx(slow(context, rows, logits, 1.0), rel=1e-5)
    assert DNNHLoss(context, margin=4.0)(batch).item() == pytest.approx(slow(context, rows, logits, 4.0), rel=1e-5)


def test_learns() -> None:
    for margin, gain in ((1.0, 0.1), (4.0, 0.5)):  # one bit of sixteen is soon gained
        before, after = learns(DNNHLoss(make_context(), margin=margin), make_context())
        assert after > before + gain
