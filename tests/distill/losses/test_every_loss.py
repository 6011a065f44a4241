"""What holds for every loss there is, and so for the next one too."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from distill.losses import LOSSES
from distill.losses.base import HashLoss, LossBatch, LossContext
from tests.distill.losses.factories import make_batch, make_context

SMALLER = {"sadh": {"width": 16.0}}  # which trains a network of its own first
ROUNDS = {
    "adsh": {"update_every": 1.0},
    "admh": {"update_every": 1.0},
    "jldsh": {"update_every": 1.0},
    "mdshc": {"warmup": 1.0},
}
DEFINED = [(name, multilabel) for name in LOSSES.names() for multilabel in (False, True)
           if LOSSES.find(name).multilabel or not multilabel]  # fmt: skip


def made(name: str, context: LossContext) -> HashLoss:
    """The method, with what it does every few epochs within the few steps of a test."""
    loss_fn: HashLoss = LOSSES.build(name, context, SMALLER.get(name, {}) | ROUNDS.get(name, {}))
    return loss_fn


def shown(loss_fn: HashLoss, rows: list[int], seed: int = 0, scale: float = 1.0) -> LossBatch:
    """A batch of as many views as it wants, with logits of a size."""
    batch = make_batch(loss_fn.context, rows, seed, second_view=loss_fn.n_views > 1)
    again = None if batch.second_view_logits is None else (scale * batch.second_view_logits).detach()
    return replace(batch, logits=(scale * batch.logits).detach().requires_grad_(), second_view_logits=again)


@pytest.mark.parametrize(("name", "multilabel"), DEFINED)
def test_a_copy_goes_on_exactly_alike_whatever_the_global_seed(name: str, multilabel: bool) -> None:
    context = make_context(multilabel)
    torch.manual_seed(1)
    one = made(name, context)
    batches = [shown(one, [first, first + 1, first + 2, first + 3], first) for first in (0, 4, 8, 0, 4, 8)]
    for batch in batches[:4]:  # into the second epoch of three steps
        one(batch)
    torch.manual_seed(2)
    other = made(name, context)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for batch in batches:
        assert one(batch).item() == other(batch).item()
    if one.learns_gallery_codes:
        assert torch.equal(one.codes(), other.codes())


@pytest.mark.parametrize(("name", "multilabel"), DEFINED)
def test_a_forward_pass_outside_training_leaves_no_trace(name: str, multilabel: bool) -> None:
    loss_fn = made(name, make_context(multilabel))
    loss_fn(shown(loss_fn, [0, 1, 2, 3]))
    before = copy.deepcopy(loss_fn.state_dict())
    for seed in range(7):
        assert loss_fn.eval()(shown(loss_fn, [4, 5, 6, 7], seed)).isfinite()
    assert all(torch.equal(before[key], value) for key, value in loss_fn.state_dict().items())


@pytest.mark.parametrize(("name", "multilabel"), DEFINED)
@pytest.mark.parametrize("rows", [[0, 1, 4], [0, 4, 8], [0, 1, 2], [2]], ids=["both", "one class", "no class", "lone"])
def test_logits_of_any_size_and_batches_of_any_kind_have_a_finite_gradient(
    name: str, multilabel: bool, rows: list[int]
) -> None:
    loss_fn = made(name, make_context(multilabel))
    for scale in (0.0, 1.0, 1e4, 1e10):
        batch = shown(loss_fn, rows, scale=scale)
        loss = loss_fn(batch)
        assert loss.isfinite(), scale
        assert torch.autograd.grad(loss, batch.logits)[0].isfinite().all(), scale


@pytest.mark.parametrize(("name", "multilabel"), DEFINED)
def test_what_it_learns_gets_a_gradient(name: str, multilabel: bool) -> None:
    loss_fn = made(name, make_context(multilabel))
    loss_fn(shown(loss_fn, [0, 1, 4, 5])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss_fn.parameters())
