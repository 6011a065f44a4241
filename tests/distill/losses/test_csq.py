"""CSQ against loops over images and bits."""

import math
from dataclasses import replace

import pytest
import torch

from distill.losses.csq import CSQLoss
from tests.distill.losses.factories import learns, make_batch, make_context


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("weight", [0.05, 2.0])
def test_binary_cross_entropy_to_the_center_and_quantization(multilabel: bool, weight: float) -> None:
    context = make_context(multilabel)
    batch, central, quantization = make_batch(context, [3, 0, 11, 7]), [], []
    for row, h in zip(batch.index.tolist(), batch.logits.tolist(), strict=True):
        for bit, t in zip(h, context.target_codes[row].tolist(), strict=True):
            u = math.tanh(bit)
            yes, wanted = (u + 1) / 2, (t + 1) / 2
            central.append(-wanted * math.log(yes) - (1 - wanted) * math.log(1 - yes))
            quantization.append((abs(u) - 1) ** 2)
    slow = sum(central) / len(central) + weight * sum(quantization) / len(quantization)
    assert CSQLoss(context, quantization=weight)(batch).item() == pytest.approx(slow, rel=1e-5)


def test_the_published_weight() -> None:
    context = make_context()
    assert (
        CSQLoss(context)(make_batch(context, [0, 1])).item()
        == CSQLoss(context, quantization=0.05)(make_batch(context, [0, 1])).item()
    )


@pytest.mark.parametrize("multilabel", [False, True])
def test_it_learns(multilabel: bool) -> None:
    before, after = learns(CSQLoss(make_context(multilabel)), make_context(multilabel))
    assert after > before + 0.3


def test_a_saturated_wrong_bit_still_learns() -> None:
    context = make_context()
    logits = (-1e4 * context.target_codes[:1]).requires_grad_()
    loss = CSQLoss(context)(replace(make_batch(context, [0]), logits=logits))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert logits.grad is not None
    assert torch.allclose(logits.grad, -2 * context.target_codes[:1] / context.bits)
