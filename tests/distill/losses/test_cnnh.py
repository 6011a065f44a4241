"""CNNH: its first stage against loops over pictures, and whose code is whose."""

import math

import numpy as np
import pytest
import torch

from distill.losses import cnnh
from distill.losses.base import LossContext
from distill.losses.cnnh import CNNHLoss
from tests.distill.losses.factories import learns, seen, sharing, task


def slow_codes(of: LossContext, sweeps: int) -> np.ndarray:
    """Coordinate descent on the N x N matrix; pictures with the same labels move at once, from the same start."""
    hot, k = of.positive.numpy(), of.bits
    n, sets = len(hot), sorted({tuple(row.tolist()) for row in hot})
    s = np.array([[1.0 if sharing(a, b) else -1.0 for b in hot] for a in hot])
    generator = of.generator()
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


@pytest.mark.parametrize("several", [False, True])
def test_codes_by_loops_over_pictures(several: bool) -> None:
    of = task(several)
    for sweeps in (1, 4):
        assert np.array_equal(CNNHLoss(of, sweeps=sweeps).wanted.numpy(), slow_codes(of, sweeps))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("groups", [128, 3])
def test_codes_tell_what_pictures_share(several: bool, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cnnh, "GROUPS", groups)
    of = task(several, pictures=60, classes=6, bits=32)
    hot, h = of.positive.numpy(), CNNHLoss(of).wanted.numpy()
    s = np.array([[1.0 if sharing(a, b) else -1.0 for b in hot] for a in hot])
    assert loss(s, h) < 0.8 * loss(s, CNNHLoss(of, sweeps=0).wanted.numpy())
    inner = h @ h.T
    assert inner[s > 0].mean() > inner[s < 0].mean() + 12
    if not several:
        assert inner[s < 0].max() < 16  # no two classes are nearer than 8 of 32 bits


def test_rows_are_pictures_in_any_order() -> None:
    of = task(several=True, pictures=20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(3))
    shuffled = task(several=True, pictures=20, positive=of.positive[order])
    assert not torch.equal(order, torch.arange(20))
    assert torch.equal(CNNHLoss(shuffled).wanted, CNNHLoss(of).wanted[order])


def test_regression_by_loops() -> None:
    of, rows = task(), [7, 0, 3]
    objective, batch = CNNHLoss(of), seen(of, rows)
    terms = [
        (math.tanh(float(batch.logits[place, bit].detach())) - float(objective.wanted[row, bit])) ** 2
        for place, row in enumerate(rows)
        for bit in range(of.bits)
    ]
    assert objective(batch).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_learns(several: bool) -> None:
    before, after = learns(CNNHLoss(task(several)), task(several))
    assert after > before + 0.5


def test_codes_are_kept_and_nothing_else_is_random() -> None:
    of = task()
    state, other = CNNHLoss(of).state_dict(), CNNHLoss(task(seed=1))
    assert not torch.equal(other.wanted, state["wanted"])
    other.load_state_dict(state)
    torch.manual_seed(7)
    assert torch.equal(CNNHLoss(of).wanted, other.wanted)
    assert other(seen(of, [0, 5])).item() == CNNHLoss(of)(seen(of, [0, 5])).item()


def test_pictures_without_a_class_and_extreme_logits() -> None:
    of = task(several=True)
    of.positive[[2, 5]] = False
    objective, batch = CNNHLoss(of), seen(of, [0, 2, 5])
    logits = (1e4 * batch.logits).detach().requires_grad_()
    assert set(objective.wanted.unique().tolist()) == {-1.0, 1.0}
    assert torch.autograd.grad(objective(batch._replace(logits=logits)), logits)[0].isfinite().all()
