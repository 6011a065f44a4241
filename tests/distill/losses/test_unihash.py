"""UniHash's two branches against loops over images, classes, pairs and bits, and what they teach each other."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.losses.base import LossBatch, LossContext
from distill.losses.unihash import UniHashLoss
from tests.distill.losses.factories import apart, learns, make_batch, make_context, sharing

ROWS = [3, 0, 11, 7, 4]


def slow_central(context: LossContext, rows: list[int], u: np.ndarray) -> float:
    loss = 0.0
    for row, code in zip(rows, u, strict=True):
        powers = []
        for center in context.centers.numpy().astype(float):
            lengths = math.sqrt(sum(x * x for x in code) * sum(t * t for t in center))
            cosine = sum(x * t for x, t in zip(code, center, strict=True)) / lengths
            powers.append(math.exp(math.sqrt(context.bits) * cosine))
        for power, mine in zip(powers, context.positive[row].tolist(), strict=True):
            loss -= math.log(power / sum(powers)) if mine else math.log(1 - power / sum(powers))
    return loss / len(rows)


def slow_pairs(context: LossContext, rows: list[int], u: np.ndarray, alpha: float) -> float:
    losses: dict[bool, list[float]] = {True: [], False: []}
    for a, i in enumerate(rows):
        for b, j in enumerate(rows):
            if a != b:
                theta = alpha * sum(x * y for x, y in zip(u[a], u[b], strict=True))
                same = sharing(context.positive[i].numpy(), context.positive[j].numpy())
                losses[same].append(math.log(1 + math.exp(theta)) - same * theta)
    return sum(sum(some) / len(some) for some in losses.values() if some)


def slow_branches(loss: UniHashLoss, batch: LossBatch) -> tuple[np.ndarray, np.ndarray]:
    """The codes u of both, `[B, bits]`; the pairwise one standardized bit by bit."""
    center = np.tanh(batch.logits.detach().double().numpy())
    pair = batch.features.double().numpy() @ loss.head.detach().double().numpy().T
    for k in range(pair.shape[1]):
        mean = sum(pair[:, k]) / len(pair)
        variance = sum((x - mean) ** 2 for x in pair[:, k]) / len(pair)
        pair[:, k] = [(x - mean) / math.sqrt(variance + 1e-5) for x in pair[:, k]]
    return center, np.tanh(pair)


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("weights", [(1, 1), (0, 0), (2, 0), (0, 3)])
def test_by_loops(multilabel: bool, weights: tuple[float, float]) -> None:
    context = make_context(multilabel)
    loss, batch = UniHashLoss(context, pairwise=weights[0], mutual=weights[1], alpha=0.2), make_batch(context, ROWS)
    center, pair = slow_branches(loss, batch)
    agreement = sum((x - y) ** 2 for x, y in zip(center.ravel(), pair.ravel(), strict=True)) / center.size
    slow = slow_central(context, ROWS, center) + weights[0] * slow_pairs(context, ROWS, pair, 0.2)
    assert loss(batch).item() == pytest.approx(slow + weights[1] * agreement, rel=1e-4)


def gradients(pairwise: float, mutual: float) -> list[bool]:
    """Whether the head's logits, the pairwise branch's weights and the features get a gradient."""
    context = make_context()
    loss, batch = UniHashLoss(context, pairwise=pairwise, mutual=mutual), make_batch(context, ROWS)
    shown = replace(batch, features=batch.features.requires_grad_())
    loss(shown).backward()
    return [
        one.grad is not None and bool(one.grad.abs().sum() > 0) for one in (shown.logits, loss.head, shown.features)
    ]


def test_each_branch_and_the_backbone_get_a_gradient_and_only_through_their_terms() -> None:
    assert gradients(1.0, 1.0) == [True, True, True]
    assert gradients(1.0, 0.0) == [True, True, True]
    assert gradients(0.0, 1.0) == [True, True, True]
    assert gradients(0.0, 0.0) == [True, False, False]


def test_what_pairs_teach_reaches_the_exported_logits_by_the_mutual_term_alone() -> None:
    context = make_context()
    batch, grads = make_batch(context, ROWS), {}
    for pairwise, mutual in ((0.0, 0.0), (5.0, 0.0), (0.0, 1.0)):
        logits = batch.logits.detach().requires_grad_()
        UniHashLoss(context, pairwise=pairwise, mutual=mutual)(replace(batch, logits=logits)).backward()
        grads[pairwise, mutual] = logits.grad
    assert torch.equal(grads[0.0, 0.0], grads[5.0, 0.0])
    assert not torch.allclose(grads[0.0, 0.0], grads[0.0, 1.0])


@pytest.mark.parametrize("multilabel", [False, True])
def test_it_learns_and_its_branches_come_to_agree(multilabel: bool) -> None:
    context = make_context(multilabel)
    loss = UniHashLoss(context)
    begun = loss.head.detach().clone()
    before, after = learns(loss, context, steps=80)
    assert after > before + 0.3
    assert not torch.equal(begun, loss.head)


def test_the_pairwise_branch_learns_classes_from_features_that_have_them() -> None:
    context = make_context()
    noise = torch.randn(12, 10, generator=torch.Generator().manual_seed(3))
    features = context.positive.float() @ torch.eye(4, 10) * 5 + 3 + noise
    loss, rows = UniHashLoss(context, mutual=0.0), torch.arange(12)
    optimizer = torch.optim.Adam(loss.parameters(), 0.05)
    begun = apart(loss.pairwise_logits(features).detach(), context)
    for _ in range(60):
        optimizer.zero_grad()
        loss(LossBatch(torch.ones(12, 16), features, rows)).backward()
        optimizer.step()
    assert apart(loss.pairwise_logits(features).detach(), context) > begun + 0.3


def test_the_pairwise_branch_begins_as_the_seed_says() -> None:
    first, again, other = (UniHashLoss(make_context(seed=seed)).head for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
