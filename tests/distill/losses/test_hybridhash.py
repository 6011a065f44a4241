"""HybridHash's loss against loops over pairs, and its bank."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.losses.base import LossBatch, LossContext
from distill.losses.hybridhash import HybridHashLoss
from tests.distill.losses.factories import learns, make_batch, make_context, sharing

BATCHES = [[3, 0, 11, 7], [1, 2, 3, 4], [0, 3, 7, 9]]


def slow(context: LossContext, batch: LossBatch, bank: dict[int, np.ndarray], alpha: float) -> float:
    """The weighted sum over all pairs, over their number, as published."""
    likelihood, alike, positive = [], [], context.positive.numpy()
    for row, h in zip(batch.index.tolist(), batch.logits.detach().double().numpy(), strict=True):
        for other, code in bank.items():
            if other == row:
                continue
            theta, same = alpha * float(np.tanh(h) @ code), sharing(positive[row], positive[other])
            likelihood.append(math.log(1 + math.exp(theta)) - same * theta)
            alike.append(same)
    pairs, same = len(alike), sum(alike)
    weights = [pairs / same if one else pairs / (pairs - same) for one in alike]
    return sum(w * value for w, value in zip(weights, likelihood, strict=True)) / pairs


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("alpha", [0.5, 0.2])
def test_three_steps_by_loops_over_all_pairs_of_batch_and_bank(multilabel: bool, alpha: float) -> None:
    context, bank = make_context(multilabel), {}
    loss = HybridHashLoss(context, alpha=alpha)
    for number, rows in enumerate(BATCHES):
        batch = make_batch(context, rows, seed=number)
        bank |= dict(zip(rows, np.tanh(batch.logits.detach().double().numpy()), strict=True))
        assert loss(batch).item() == pytest.approx(slow(context, batch, bank, alpha), rel=1e-5)


def test_images_not_yet_seen_do_not_count() -> None:
    few, many = make_context(images=4), make_context(images=40)
    batch = make_batch(few, [0, 1, 2, 3])
    assert HybridHashLoss(few)(batch).item() == pytest.approx(HybridHashLoss(many)(batch).item(), rel=1e-6)


def test_the_bank_takes_no_gradient() -> None:
    context = make_context()
    loss, batch = HybridHashLoss(context), make_batch(context, [0, 1, 4])  # the first and the last are of one class
    loss(batch).backward()
    u = np.tanh(batch.logits.detach().double().numpy())
    gradient = np.zeros_like(u)
    for i, j in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]:
        same = {i, j} == {0, 2}
        chance = 1 / (1 + math.exp(-0.5 * float(u[i] @ u[j])))
        gradient[i] += 0.5 * (chance - same) * u[j] * (1 - u[i] ** 2) / (2 if same else 4)
    assert batch.logits.grad is not None
    assert np.allclose(batch.logits.grad.numpy(), gradient, rtol=1e-4, atol=1e-6)
    assert not loss.bank.values.requires_grad


def test_a_forward_pass_outside_training_leaves_no_trace() -> None:
    context = make_context()
    loss = HybridHashLoss(context)
    assert loss.eval()(make_batch(context, [0, 1])).item() == 0  # nothing in the bank to compare with
    loss.train()(make_batch(context, [0, 1]))
    before = copy.deepcopy(loss.state_dict())
    loss.eval()(make_batch(context, [1, 2], seed=1))
    assert all(torch.equal(before[key], value) for key, value in loss.state_dict().items())
    assert before["bank.filled"].tolist() == [True] * 2 + [False] * 10


@pytest.mark.parametrize("multilabel", [False, True])
def test_it_learns(multilabel: bool) -> None:
    before, after = learns(HybridHashLoss(make_context(multilabel)), make_context(multilabel))
    assert after > before + 0.3


@pytest.mark.parametrize("rows", [[0, 4, 8], [0, 1, 2, 3]])
def test_far_logits_and_batches_of_one_kind_of_pair_stay_finite(rows: list[int]) -> None:
    context = make_context()
    batch = make_batch(context, rows)
    logits = (batch.logits.detach() * 1e30).requires_grad_()
    loss = HybridHashLoss(context)(replace(batch, logits=logits))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
