"""DPN against loops over pictures and bits."""

import pytest
import torch

from distill.losses.dpn import DPNLoss
from tests.distill.losses.factories import learns, seen, task


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("margin", [1.0, 0.3])
def test_every_bit_below_the_margin_costs_what_it_lacks(several: bool, margin: float) -> None:
    of = task(several)
    batch = seen(of, [3, 0, 11, 7])
    terms = []
    for row, h in zip(batch.rows.tolist(), batch.logits.tolist(), strict=True):
        terms += [max(0.0, margin - bit * t) for bit, t in zip(h, of.targets[row].tolist(), strict=True)]
    assert DPNLoss(of, margin=margin)(batch).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_bits_past_the_margin_are_left_alone() -> None:
    of = task()
    logits = of.targets[:2].clone() * torch.tensor([[1.5], [0.5]])
    logits.requires_grad_()
    DPNLoss(of)(seen(of, [0, 1])._replace(logits=logits)).backward()
    assert logits.grad is not None
    assert not logits.grad[0].any()
    assert torch.equal(logits.grad[1].sign(), -of.targets[1])


def test_the_published_margin() -> None:
    of = task()
    assert DPNLoss(of)(seen(of, [0, 1])).item() == DPNLoss(of, margin=1.0)(seen(of, [0, 1])).item()


@pytest.mark.parametrize("several", [False, True])
def test_it_learns(several: bool) -> None:
    before, after = learns(DPNLoss(task(several)), task(several))
    assert after > before + 0.3
