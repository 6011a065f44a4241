"""JLDSH's own terms against loops; what it shares with ADSH is tested there."""

import math

import numpy as np
import pytest
import torch

from distill.losses.adsh import ADSHLoss
from distill.losses.base import LossContext
from distill.losses.jldsh import JLDSHLoss
from tests.distill.losses.factories import apart, learns, seen, task

SMALL = 2.0  # gamma for a gallery of six: it is to be weighed against pairs with thousands


@pytest.mark.parametrize("several", [False, True])
def test_classification_and_balance_are_added_to_adsh(several: bool) -> None:
    of, rows = task(several), [0, 3, 5, 6]
    objective, batch = JLDSHLoss(of, class_weight=0.7, balance_weight=0.3).eval(), seen(task(several), [0, 3, 5, 6])
    u, w = np.tanh(batch.logits.detach().numpy().astype(float)), objective.classifier.detach().numpy().astype(float)
    worst = 0.0
    for row, i in zip(u, rows, strict=True):
        said, labels = [float(row @ w[c]) for c in range(4)], of.positive[i].tolist()
        if several:
            worst += sum(math.log(1 + math.exp(-s if y else s)) for s, y in zip(said, labels, strict=True)) / 4
        else:
            worst += math.log(sum(math.exp(s) for s in said)) - said[labels.index(True)]
    balance = sum((sum(u[i, k] for i in range(4)) / 4) ** 2 for k in range(16)) / 16
    expected = ADSHLoss(of).eval()(batch).item() + 0.7 * worst / 4 + 0.3 * balance
    assert objective(batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_it_learns_its_codes_and_its_classifier(several: bool) -> None:
    of = task(several)
    objective = JLDSHLoss(of, gamma=SMALL)
    weights = objective.classifier.detach().clone()
    before, after = learns(objective, of)
    assert after > before + (0.1 if several else 0.3)  # with several labels most pairs are alike
    assert not torch.equal(objective.classifier, weights)
    there = LossContext(**{**vars(of), "positive": of.gallery})
    assert apart(objective.codes(), there) > apart(JLDSHLoss(of).learned, there) + 0.3


def test_it_begins_alike_and_goes_on_alike_whatever_the_global_seed() -> None:
    of = task()
    torch.manual_seed(1)
    one = JLDSHLoss(of, update_every=1.0)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    other = JLDSHLoss(of, update_every=1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.classifier, other.classifier)
    for step in range(4):
        one(seen(of, [step, 11 - step], seed=step))
    other.load_state_dict(one.state_dict())
    for step in range(4, 8):
        assert torch.equal(one(seen(of, [step], seed=step)), other(seen(of, [step], seed=step)))
    assert torch.equal(one.codes(), other.codes())
