"""MDSHC against loops, its warm-up, and its bank of slow codes."""

import copy
import math

import numpy as np
import pytest
import torch

from distill.losses.base import LossBatch, LossContext
from distill.losses.mdshc import MDSHCLoss, log_others
from tests.distill.losses.factories import learns, seen, sharing, task

BATCHES = [[3, 0, 11, 7], [1, 2, 3, 4], [0, 3, 7, 9]]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def slow_central(of: LossContext, batch: LossBatch) -> float:
    words, loss = of.words.double().numpy(), 0.0
    for row, h in zip(batch.rows.tolist(), batch.logits.detach().double().numpy(), strict=True):
        powers = [math.exp(math.sqrt(of.bits) * cosine(np.tanh(h), word)) for word in words]
        for power, mine in zip(powers, of.positive[row].tolist(), strict=True):
            p = power / sum(powers)
            loss -= math.log(p) if mine else math.log(1 - p)
    return loss / len(batch.rows)


def slow_quantization(batch: LossBatch) -> float:
    return float(((np.abs(np.tanh(batch.logits.detach().double().numpy())) - 1) ** 2).mean())


def slow_pairs(of: LossContext, batch: LossBatch, bank: dict[int, np.ndarray]) -> float:
    terms, positive = [], of.positive.numpy()
    for row, h in zip(batch.rows.tolist(), batch.logits.detach().double().numpy(), strict=True):
        for other, code in bank.items():
            if other != row and sharing(positive[row], positive[other]):
                terms.append(math.log(1 + math.exp((1 - cosine(np.tanh(h), code)) / 2)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("several", [False, True])
def test_three_steps_by_loops_over_pictures_classes_and_bank(several: bool) -> None:
    of = task(several, steps=2)
    loss, bank = MDSHCLoss(of, beta=3.0, quantization=0.5, warmup=0.5, momentum=0.8), {}
    for number, rows in enumerate(BATCHES):
        batch = seen(of, rows, seed=number)
        for row, h in zip(rows, batch.logits.detach().double().numpy(), strict=True):
            bank[row] = 0.8 * bank[row] + 0.2 * np.tanh(h) if row in bank else np.tanh(h)
        slow = slow_central(of, batch) + 0.5 * slow_quantization(batch)
        if number >= 1:  # half an epoch of two steps
            slow += 3 * slow_pairs(of, batch, bank)
        assert loss(batch).item() == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_the_published_defaults(several: bool) -> None:
    of = task(several)
    batch = seen(of, BATCHES[0])
    assert MDSHCLoss(of)(batch).item() == pytest.approx(
        slow_central(of, batch) + 1e-4 * slow_quantization(batch), rel=1e-5
    )
    loss = MDSHCLoss(of)
    loss.steps.fill_(9 * of.steps)
    bank = {row: np.tanh(h) for row, h in zip(BATCHES[0], batch.logits.detach().double().numpy(), strict=True)}
    slow = slow_central(of, batch) + slow_pairs(of, batch, bank) + 1e-4 * slow_quantization(batch)
    assert loss(batch).item() == pytest.approx(slow, rel=1e-5)


def test_pairs_enter_after_the_warm_up() -> None:
    of = task(steps=3)
    loss, without = MDSHCLoss(of, warmup=2.0), MDSHCLoss(of, beta=0.0, warmup=2.0)
    batch = seen(of, [0, 4, 8])
    entered = [loss(batch).item() > without(batch).item() + 0.1 for _ in range(8)]
    assert entered == [False] * 6 + [True] * 2


def test_a_look_outside_training_leaves_no_trace() -> None:
    of = task()
    loss = MDSHCLoss(of, warmup=0.0)
    empty = loss.eval()(seen(of, [0, 1]))
    assert torch.isfinite(empty)  # nothing in the bank
    loss.train()(seen(of, [0, 1]))
    before = copy.deepcopy(loss.state_dict())
    loss.eval()(seen(of, [1, 2], seed=1))
    assert all(torch.equal(before[key], value) for key, value in loss.state_dict().items())
    assert before["steps"] == 1
    assert before["bank.known"].tolist() == [True] * 2 + [False] * 10


@pytest.mark.parametrize("several", [False, True])
def test_it_learns_before_and_after_the_warm_up(several: bool) -> None:
    for warmup in (0.0, 1e9):
        before, after = learns(MDSHCLoss(task(several), warmup=warmup), task(several), steps=80)
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
