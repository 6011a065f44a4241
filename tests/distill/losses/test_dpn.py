"""DPN against loops over images and bits."""

from dataclasses import replace

import pytest
import torch

from distill.losses.dpn import DPNLoss
from tests.distill.losses.factories import learns, make_batch, make_context


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("margin", [1.0, 0.3])
def test_every_bit_below_the_margin_costs_what_it_lacks(multilabel: bool, margin: float) -> None:
    context = make_context(multilabel)
    batch = make_batch(context, [3, 0, 11, 7])
    terms = []
    for row, h in zip(batch.index.tolist(), batch.logits.tolist(), strict=True):
        terms += [max(0.0, margin - bit * t) for bit, t in zip(h, context.target_codes[row].tolist(), strict=True)]
    assert DPNLoss(context, margin=margin)(batch).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_bits_past_the_margin_are_left_alone() -> None:
    context = make_context()
    logits = context.target_codes[:2].clone() * torch.tensor([[1.5], [0.5]])
    logits.requires_grad_()
    DPNLoss(context)(replace(make_batch(context, [0, 1]), logits=logits)).backward()
    assert logits.grad is not None
    assert not logits.grad[0].any()
    assert torch.equal(logits.grad[1].sign(), -context.target_codes[1])


def test_the_published_margin() -> None:
    context = make_context()
    assert (
        DPNLoss(context)(make_batch(context, [0, 1])).item()
        == DPNLoss(context, margin=1.0)(make_batch(context, [0, 1])).item()
    )


@pytest.mark.parametrize("multilabel", [False, True])
def test_it_learns(multilabel: bool) -> None:
    before, after = learns(DPNLoss(make_context(multilabel)), make_context(multilabel))
    assert after > before + 0.3
