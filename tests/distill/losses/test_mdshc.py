"""MDSHC against loops, its warm-up, and its bank of slow codes."""

import copy
import math

import numpy as np
import pytest
import torch

from distill.losses.base import LossBatch, LossContext
from distill.losses.mdshc import MDSHCLoss, log_others
from tests.distill.losses.factories import learns, make_batch, make_context, sharing

BATCHES = [[3, 0, 11, 7], [1, 2, 3, 4], [0, 3, 7, 9]]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def slow_central(context: LossContext, batch: LossBatch) -> float:
    words, loss = context.centers.double().numpy(), 0.0
    for row, h in zip(batch.index.tolist(), batch.logits.detach().double().numpy(), strict=True):
        powers = [math.exp(math.sqrt(context.bits) * cosine(np.tanh(h), word)) for word in words]
        for power, mine in zip(powers, context.positive[row].tolist(), strict=True):
            p = power / sum(powers)
            loss -= math.log(p) if mine else math.log(1 - p)
    return loss / len(batch.index)


def slow_quantization(batch: LossBatch) -> float:
    return float(((np.abs(np.tanh(batch.logits.detach().double().numpy())) - 1) ** 2).mean())


def slow_pairs(context: LossContext, batch: LossBatch, bank: dict[int, np.ndarray]) -> float:
    terms, positive = [], context.positive.numpy()
    for row, h in zip(batch.index.tolist(), batch.logits.detach().double().numpy(), strict=True):
        for other, code in bank.items():
            if other != row and sharing(positive[row], positive[other]):
                terms.append(math.log(1 + math.exp((1 - cosine(np.tanh(h), code)) / 2)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("multilabel", [False, True])
def test_three_steps_by_loops_over_images_classes_and_bank(multilabel: bool) -> None:
    context = make_context(multilabel, steps_per_epoch=2)
    loss, bank = MDSHCLoss(context, beta=3.0, quantization=0.5, warmup=0.5, momentum=0.8), {}
    for number, rows in enumerate(BATCHES):
        batch = make_batch(context, rows, seed=number)
        for row, h in zip(rows, batch.logits.detach().double().numpy(), strict=True):
            bank[row] = 0.8 * bank[row] + 0.2 * np.tanh(h) if row in bank else np.tanh(h)
        slow = slow_central(context, batch) + 0.5 * slow_quantization(batch)
        if number >= 1:  # half an epoch of two steps
            slow += 3 * slow_pairs(context, batch, bank)
        assert loss(batch).item() == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_published_defaults(multilabel: bool) -> None:
    context = make_context(multilabel)
    batch = make_batch(context, BATCHES[0])
    assert MDSHCLoss(context)(batch).item() == pytest.approx(
        slow_central(context, batch) + 1e-4 * slow_quantization(batch), rel=1e-5
    )
    loss = MDSHCLoss(context)
    loss.steps.fill_(9 * context.steps_per_epoch)
    bank = {row: np.tanh(h) for row, h in zip(BATCHES[0], batch.logits.detach().double().numpy(), strict=True)}
    slow = slow_central(context, batch) + slow_pairs(context, batch, bank) + 1e-4 * slow_quantization(batch)
    assert loss(batch).item() == pytest.approx(slow, rel=1e-5)


def test_pairs_enter_after_the_warm_up() -> None:
    context = make_context(steps_per_epoch=3)
    loss, without = MDSHCLoss(context, warmup=2.0), MDSHCLoss(context, beta=0.0, warmup=2.0)
    batch = make_batch(context, [0, 4, 8])
    entered = [loss(batch).item() > without(batch).item() + 0.1 for _ in range(8)]
    assert entered == [False] * 6 + [True] * 2


def test_a_forward_pass_outside_training_leaves_no_trace() -> None:
    context = make_context()
    loss = MDSHCLoss(context, warmup=0.0)
    empty = loss.eval()(make_batch(context, [0, 1]))
    assert torch.isfinite(empty)  # nothing in the bank
    loss.train()(make_batch(context, [0, 1]))
    before = copy.deepcopy(loss.state_dict())
    loss.eval()(make_batch(context, [1, 2], seed=1))
    assert all(torch.equal(before[key], value) for key, value in loss.state_dict().items())
    assert before["steps"] == 1
    assert before["bank.filled"].tolist() == [True] * 2 + [False] * 10


@pytest.mark.parametrize("multilabel", [False, True])
def test_it_learns_before_and_after_the_warm_up(multilabel: bool) -> None:
    for warmup in (0.0, 1e9):
        before, after = learns(MDSHCLoss(make_context(multilabel), warmup=warmup), make_context(multilabel), steps=80)
        assert after > before + 0.3


def test_the_share_of_all_others_however_small() -> None:
    logits = torch.tensor([[11.0, -11.0, -11.3], [0.1, 0.2, 0.3], [500.0, 0.0, 0.0]], requires_grad=True)
    slow = []
    for row in logits.tolist():
        powers = [math.exp(value - max(row)) for value in row]
        slow.append([math.log(sum(p for j, p in enumerate(powers) if j != i) / sum(powers)) for i in range(3)])
    found = log_others(logits)
    found.sum().backward()
    assert np.allclose(found.tolist(), slow, rtol=1e-5)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
