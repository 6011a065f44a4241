"""What holds for every objective there is, and so for the next one too."""

from __future__ import annotations

import copy

import pytest
import torch

from distill.losses import LOSSES
from distill.losses.base import HashLoss, LossBatch, LossContext
from tests.distill.losses.factories import seen, task

SMALLER = {"sadh": {"width": 16.0}}  # which trains a network of its own first
ROUNDS = {
    "adsh": {"update_every": 1.0},
    "admh": {"update_every": 1.0},
    "jldsh": {"update_every": 1.0},
    "mdshc": {"warmup": 1.0},
}
DEFINED = [(name, several) for name in LOSSES.names() for several in (False, True)
           if LOSSES.find(name).several or not several]  # fmt: skip


def made(name: str, of: LossContext) -> HashLoss:
    """The method, with what it does every few epochs within the few steps of a test."""
    objective: HashLoss = LOSSES.build(name, of, SMALLER.get(name, {}) | ROUNDS.get(name, {}))
    return objective


def shown(objective: HashLoss, rows: list[int], seed: int = 0, scale: float = 1.0) -> LossBatch:
    """A batch of as many looks as it wants, with logits of a size."""
    batch = seen(objective.task, rows, seed, again=objective.looks > 1)
    again = None if batch.again is None else (scale * batch.again).detach()
    return batch._replace(logits=(scale * batch.logits).detach().requires_grad_(), again=again)


@pytest.mark.parametrize(("name", "several"), DEFINED)
def test_a_copy_goes_on_exactly_alike_whatever_the_global_seed(name: str, several: bool) -> None:
    of = task(several)
    torch.manual_seed(1)
    one = made(name, of)
    batches = [shown(one, [first, first + 1, first + 2, first + 3], first) for first in (0, 4, 8, 0, 4, 8)]
    for batch in batches[:4]:  # into the second epoch of three steps
        one(batch)
    torch.manual_seed(2)
    other = made(name, of)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for batch in batches:
        assert one(batch).item() == other(batch).item()
    if one.learns_codes:
        assert torch.equal(one.codes(), other.codes())


@pytest.mark.parametrize(("name", "several"), DEFINED)
def test_a_look_outside_training_leaves_no_trace(name: str, several: bool) -> None:
    objective = made(name, task(several))
    objective(shown(objective, [0, 1, 2, 3]))
    before = copy.deepcopy(objective.state_dict())
    for seed in range(7):
        assert objective.eval()(shown(objective, [4, 5, 6, 7], seed)).isfinite()
    assert all(torch.equal(before[key], value) for key, value in objective.state_dict().items())


@pytest.mark.parametrize(("name", "several"), DEFINED)
@pytest.mark.parametrize("rows", [[0, 1, 4], [0, 4, 8], [0, 1, 2], [2]], ids=["both", "one class", "no class", "lone"])
def test_logits_of_any_size_and_batches_of_any_kind_have_a_finite_gradient(
    name: str, several: bool, rows: list[int]
) -> None:
    objective = made(name, task(several))
    for scale in (0.0, 1.0, 1e4, 1e10):
        batch = shown(objective, rows, scale=scale)
        loss = objective(batch)
        assert loss.isfinite(), scale
        assert torch.autograd.grad(loss, batch.logits)[0].isfinite().all(), scale


@pytest.mark.parametrize(("name", "several"), DEFINED)
def test_what_it_learns_gets_a_gradient(name: str, several: bool) -> None:
    objective = made(name, task(several))
    objective(shown(objective, [0, 1, 4, 5])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.parameters())
