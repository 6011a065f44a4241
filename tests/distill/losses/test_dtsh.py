"""DTSH against loops over all triplets."""

import math

import numpy as np
import pytest

from distill.losses.base import LossContext
from distill.losses.dtsh import DTSHLoss
from tests.distill.losses.factories import learns, make_batch, make_context, sharing


def slow(context: LossContext, rows: list[int], u: np.ndarray) -> float:
    positive, terms = context.positive.numpy(), []
    places = range(len(rows))
    for i in places:
        for p in places:
            for n in places:
                ip, i_n = (sharing(positive[rows[i]], positive[rows[j]]) for j in (p, n))
                if i not in (p, n) and ip and not i_n:
                    x = sum(a * (b - c) for a, b, c in zip(u[i], u[p], u[n], strict=True)) - 5
                    terms.append(-(x - math.log(1 + math.exp(x))))
    off = [(a - (1 if a > 0 else -1)) ** 2 for row in u for a in row]
    return sum(terms) / max(1, len(terms)) + sum(off) / len(off)


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("rows", [[0, 1, 4, 9, 2, 6], [0, 4, 8], [0, 1, 2]])
def test_by_loops(multilabel: bool, rows: list[int]) -> None:
    context = make_context(multilabel)
    batch = make_batch(context, rows)
    expected = slow(context, rows, batch.logits.detach().numpy().astype(float))
    assert DTSHLoss(context)(batch).item() == pytest.approx(expected, rel=1e-5)


def test_learns() -> None:
    before, after = learns(DTSHLoss(make_context()), make_context())
    assert after > before + 0.5


def test_an_image_without_classes_is_everybodys_negative() -> None:
    context = make_context()
    context.positive[2] = False
    batch = make_batch(context, [0, 4, 2])
    batch.logits.data[2] = batch.logits.data[0]
    near = DTSHLoss(context, quantization=0.0)(batch).item()
    batch.logits.data[2] = -batch.logits.data[0]
    assert DTSHLoss(context, quantization=0.0)(batch).item() < near
