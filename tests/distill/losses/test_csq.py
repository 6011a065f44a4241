"""CSQ against loops over pictures and bits."""

import math

import pytest
import torch

from distill.losses.csq import CSQLoss
from tests.distill.losses.factories import learns, seen, task


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("weight", [0.05, 2.0])
def test_binary_cross_entropy_to_the_center_and_quantization(several: bool, weight: float) -> None:
    of = task(several)
    batch, central, quantization = seen(of, [3, 0, 11, 7]), [], []
    for row, h in zip(batch.rows.tolist(), batch.logits.tolist(), strict=True):
        for bit, t in zip(h, of.targets[row].tolist(), strict=True):
            u = math.tanh(bit)
            yes, wanted = (u + 1) / 2, (t + 1) / 2
            central.append(-wanted * math.log(yes) - (1 - wanted) * math.log(1 - yes))
            quantization.append((abs(u) - 1) ** 2)
    slow = sum(central) / len(central) + weight * sum(quantization) / len(quantization)
    assert CSQLoss(of, quantization=weight)(batch).item() == pytest.approx(slow, rel=1e-5)


def test_the_published_weight() -> None:
    of = task()
    assert CSQLoss(of)(seen(of, [0, 1])).item() == CSQLoss(of, quantization=0.05)(seen(of, [0, 1])).item()


@pytest.mark.parametrize("several", [False, True])
def test_it_learns(several: bool) -> None:
    before, after = learns(CSQLoss(task(several)), task(several))
    assert after > before + 0.3


def test_a_saturated_wrong_bit_still_learns() -> None:
    of = task()
    logits = (-1e4 * of.targets[:1]).requires_grad_()
    loss = CSQLoss(of)(seen(of, [0])._replace(logits=logits))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert logits.grad is not None
    assert torch.allclose(logits.grad, -2 * of.targets[:1] / of.bits)
