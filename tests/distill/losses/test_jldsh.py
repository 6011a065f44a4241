"""JLDSH's own terms against loops; what it shares with ADSH is tested there."""

import math

import numpy as np
import pytest
import torch

from distill.losses.adsh import ADSHLoss
from distill.losses.jldsh import JLDSHLoss
from tests.distill.losses.factories import learns_gallery_codes, make_batch, make_context

SMALL = 2.0  # gamma for a gallery of six: it is to be weighed against pairs with thousands


@pytest.mark.parametrize("multilabel", [False, True])
def test_classification_and_balance_are_added_to_adsh(multilabel: bool) -> None:
    context, rows = make_context(multilabel), [0, 3, 5, 6]
    loss_fn, batch = (
        JLDSHLoss(context, class_weight=0.7, balance_weight=0.3).eval(),
        make_batch(make_context(multilabel), [0, 3, 5, 6]),
    )
    u, w = np.tanh(batch.logits.detach().numpy().astype(float)), loss_fn.classifier.detach().numpy().astype(float)
    worst = 0.0
    for row, i in zip(u, rows, strict=True):
        said, labels = [float(row @ w[c]) for c in range(4)], context.positive[i].tolist()
        if multilabel:
            worst += sum(math.log(1 + math.exp(-s if y else s)) for s, y in zip(said, labels, strict=True)) / 4
        else:
            worst += math.log(sum(math.exp(s) for s in said)) - said[labels.index(True)]
    balance = sum((sum(u[i, k] for i in range(4)) / 4) ** 2 for k in range(16)) / 16
    expected = ADSHLoss(context).eval()(batch).item() + 0.7 * worst / 4 + 0.3 * balance
    assert loss_fn(batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("multilabel", [False, True])
def test_it_learns_its_codes_and_its_classifier(multilabel: bool) -> None:
    context = make_context(multilabel)
    loss_fn = JLDSHLoss(context, gamma=SMALL)
    weights = loss_fn.classifier.detach().clone()
    learns_gallery_codes(loss_fn, context)
    assert not torch.equal(loss_fn.classifier, weights)


def test_it_begins_alike_and_goes_on_alike_whatever_the_global_seed() -> None:
    context = make_context()
    torch.manual_seed(1)
    one = JLDSHLoss(context, update_every=1.0)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    other = JLDSHLoss(context, update_every=1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.classifier, other.classifier)
    for step in range(4):
        one(make_batch(context, [step, 11 - step], seed=step))
    other.load_state_dict(one.state_dict())
    for step in range(4, 8):
        assert torch.equal(one(make_batch(context, [step], seed=step)), other(make_batch(context, [step], seed=step)))
    assert torch.equal(one.codes(), other.codes())
