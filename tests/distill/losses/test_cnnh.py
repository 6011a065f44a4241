"""CNNH: its first stage against loops over images, and whose code is whose."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.losses import cnnh
from distill.losses.base import LossContext
from distill.losses.cnnh import CNNHLoss
from tests.distill.losses.factories import learns, make_batch, make_context, sharing


def slow_codes(context: LossContext, sweeps: int) -> np.ndarray:
    """Coordinate descent on the N x N matrix; images with the same labels move at once, from the same start."""
    hot, k = context.positive.numpy(), context.bits
    n, sets = len(hot), sorted({tuple(row.tolist()) for row in hot})
    s = np.array([[1.0 if sharing(a, b) else -1.0 for b in hot] for a in hot])
    generator = context.generator()
    start = 2 * torch.rand(len(sets), k, generator=generator).double().numpy() - 1
    h = np.stack([start[sets.index(tuple(row.tolist()))] for row in hot])
    best = h.copy()
    for _ in range(sweeps):
        order = torch.randperm(len(sets), generator=generator).tolist()
        for bit in range(k):
            for a in order:
                r = k * s - h @ h.T
                members = [i for i in range(n) if tuple(hot[i].tolist()) == sets[a]]
                slope = {i: -4 * sum(r[i, j] * h[j, bit] for j in range(n)) for i in members}
                bend = 4 * (sum(h[j, bit] ** 2 for j in range(n)) + h[members[0], bit] ** 2)
                for i in members:
                    h[i, bit] = min(1.0, max(-1.0, h[i, bit] - slope[i] / bend))
        if loss(s, h) < loss(s, best):
            best = h.copy()
    return np.where(best > 0, 1.0, -1.0)


def loss(s: np.ndarray, h: np.ndarray) -> float:
    return float(((h.shape[1] * s - h @ h.T) ** 2).mean())


@pytest.mark.parametrize("multilabel", [False, True])
def test_codes_by_loops_over_images(multilabel: bool) -> None:
    context = make_context(multilabel)
    for sweeps in (1, 4):
        assert np.array_equal(CNNHLoss(context, sweeps=sweeps).target_codes.numpy(), slow_codes(context, sweeps))


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("groups", [128, 3])
def test_codes_tell_what_images_share(multilabel: bool, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cnnh, "GROUPS", groups)
    context = make_context(multilabel, images=60, classes=6, bits=32)
    hot, h = context.positive.numpy(), CNNHLoss(context).target_codes.numpy()
    s = np.array([[1.0 if sharing(a, b) else -1.0 for b in hot] for a in hot])
    assert loss(s, h) < 0.8 * loss(s, CNNHLoss(context, sweeps=0).target_codes.numpy())
    inner = h @ h.T
    assert inner[s > 0].mean() > inner[s < 0].mean() + 12
    if not multilabel:
        assert inner[s < 0].max() < 16  # no two classes are nearer than 8 of 32 bits


def test_rows_are_images_in_any_order() -> None:
    context = make_context(multilabel=True, images=20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    shuffled = make_context(multilabel=True, images=20, positive=context.positive[order])
    assert not torch.equal(order, torch.arange(20))
    assert torch.equal(CNNHLoss(shuffled).target_codes, CNNHLoss(context).target_codes[order])


def test_regression_by_loops() -> None:
    context, rows = make_context(), [7, 0, 3]
    loss_fn, batch = CNNHLoss(context), make_batch(context, rows)
    terms = [
        (math.tanh(float(batch.logits[place, bit].detach())) - float(loss_fn.target_codes[row, bit])) ** 2
        for place, row in enumerate(rows)
        for bit in range(context.bits)
    ]
    assert loss_fn(batch).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


@pytest.mark.parametrize("multilabel", [False, True])
def test_learns(multilabel: bool) -> None:
    before, after = learns(CNNHLoss(make_context(multilabel)), make_context(multilabel))
    assert after > before + 0.5


def test_codes_are_kept_and_nothing_else_is_random() -> None:
    context = make_context()
    state, other = CNNHLoss(context).state_dict(), CNNHLoss(make_context(seed=1))
    assert not torch.equal(other.target_codes, state["target_codes"])
    other.load_state_dict(state)
    torch.manual_seed(7)
    assert torch.equal(CNNHLoss(context).target_codes, other.target_codes)
    assert other(make_batch(context, [0, 5])).item() == CNNHLoss(context)(make_batch(context, [0, 5])).item()


def test_images_without_a_class_and_extreme_logits() -> None:
    context = make_context(multilabel=True)
    context.positive[[2, 5]] = False
    loss_fn, batch = CNNHLoss(context), make_batch(context, [0, 2, 5])
    logits = (1e4 * batch.logits).detach().requires_grad_()
    assert set(loss_fn.target_codes.unique().tolist()) == {-1.0, 1.0}
    assert torch.autograd.grad(loss_fn(replace(batch, logits=logits)), logits)[0].isfinite().all()
