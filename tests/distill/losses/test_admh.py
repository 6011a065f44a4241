"""ADMH's margins and flips against loops; what it shares with ADSH is tested there."""

import numpy as np
import pytest
import torch

from distill.losses import admh
from distill.losses.admh import ADMHLoss
from distill.losses.base import LossContext
from tests.distill.losses.factories import apart, learns, seen, sharing, task

SMALL = 2.0  # gamma for a gallery of six: it is to be weighed against pairs with thousands


def pairs(of: LossContext) -> np.ndarray:
    """Which training picture shares a class with which of the gallery, `[N, G]`."""
    return np.array([[sharing(a, b) for b in of.gallery.numpy()] for a in of.positive.numpy()])


def slow_pair(product: float, near: bool, share: float, margin: float) -> float:
    if near:
        return max(0.0, margin - product) ** 2 / (2 * share)
    return max(0.0, margin + product) ** 2 / (2 * (1 - share))


def energy(of: LossContext, u: np.ndarray, code: np.ndarray, j: int) -> float:
    """The loss of one gallery picture's code with all of the bank."""
    near = pairs(of)
    return sum(slow_pair(u[i] @ code / of.bits, near[i, j], near.mean(), 0.8) for i in range(len(u)))


def remembered(of: LossContext) -> ADMHLoss:
    objective = ADMHLoss(of)
    bank = torch.randn(objective.bank.values.shape, generator=torch.Generator().manual_seed(3)).tanh()
    objective.bank.values.copy_(bank)
    return objective


@pytest.mark.parametrize("several", [False, True])
def test_the_loss_by_loops_over_pairs(several: bool) -> None:
    of, rows = task(several), [0, 1, 4, 9]
    objective, batch, near = ADMHLoss(of, gamma=20.0, margin=0.3).eval(), seen(task(several), rows), pairs(of)
    u, v = np.tanh(batch.logits.detach().numpy().astype(float)), objective.learned.numpy()
    slow = 0.0
    for row, i in zip(u, rows, strict=True):
        slow += sum(slow_pair(row @ v[j] / 16, near[i, j], near.mean(), 0.3) for j in range(6))
        slow += 20 * sum((x - (1 if x > 0 else -1)) ** 2 for x in row) / 16**2
    assert objective(batch).item() == pytest.approx(slow / (4 * 6), rel=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_bits_are_flipped_one_by_one_where_that_lowers_the_loss(several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    of = task(several)
    objective = remembered(of)
    u, begun = objective.bank.values.numpy().astype(float), objective.learned.numpy().astype(float)
    slow = begun.copy()
    for j, code in enumerate(slow):
        for k in range(of.bits):
            flipped = code.copy()
            flipped[k] *= -1
            if energy(of, u, flipped, j) < energy(of, u, code, j):
                code[k] *= -1
    assert np.array_equal(objective.improved().numpy(), slow)
    assert sum(energy(of, u, slow[j], j) for j in range(6)) < sum(energy(of, u, begun[j], j) for j in range(6))
    monkeypatch.setattr(admh, "ENTRIES", 25)  # two gallery pictures at a time
    assert np.array_equal(objective.improved().numpy(), slow)
    assert np.array_equal(objective.learned.numpy(), begun)


def test_the_step_never_raises_its_own_loss() -> None:
    of = task(several=True)
    objective = remembered(of)
    u = objective.bank.values.numpy().astype(float)
    for _ in range(5):
        before = [energy(of, u, code, j) for j, code in enumerate(objective.learned.numpy())]
        objective.learned.copy_(objective.improved())
        after = [energy(of, u, code, j) for j, code in enumerate(objective.learned.numpy())]
        assert all(a <= b * (1 + 1e-6) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("several", [False, True])
def test_it_learns_and_the_gallerys_codes_follow_the_labels(several: bool) -> None:
    of = task(several)
    objective = ADMHLoss(of, gamma=SMALL)
    begun = objective.learned.clone()
    before, after = learns(objective, of)
    assert after > before + (0.1 if several else 0.3)  # with several labels most pairs are alike
    there = LossContext(**{**vars(of), "positive": of.gallery})
    assert apart(objective.codes(), there) > apart(begun, there) + 0.3
    assert set(objective.codes().unique().tolist()) == {-1.0, 1.0}


def test_twenty_classes_do_not_fall_into_one_code() -> None:
    of = task(pictures=60, bits=32, classes=20, gallery=torch.eye(20, dtype=torch.bool))
    objective = ADMHLoss(of)
    learns(objective, of)
    codes = objective.codes()
    assert len(codes.unique(dim=0)) == 20
    own = (objective.bank.values @ codes.T).argmax(1)
    assert (own == of.positive.int().argmax(1)).float().mean() > 0.9


def test_it_goes_on_from_the_middle_of_a_round() -> None:
    of = task()
    whole, resumed = ADMHLoss(of, update_every=1.0), ADMHLoss(task(seed=8), update_every=1.0)
    for step in range(4):  # a round is three
        whole(seen(of, [step, step + 6], seed=step))
    resumed.load_state_dict(whole.state_dict())
    for step in range(4, 10):
        batch = seen(of, [step % 6, step % 6 + 6], seed=step)
        assert torch.equal(whole(batch), resumed(batch))
    assert torch.equal(whole.codes(), resumed.codes())


def test_extremes_stay_finite() -> None:
    for like in (torch.ones(6, 4, dtype=torch.bool), torch.zeros(6, 4, dtype=torch.bool)):
        of = task(several=True, gallery=like, positive=torch.ones(12, 4, dtype=torch.bool))
        batch = seen(of, [0, 1])
        huge = batch._replace(logits=(1e30 * batch.logits.detach()).requires_grad_())
        objective = ADMHLoss(of, update_every=0.0)
        loss = objective(huge)
        loss.backward()
        assert loss.isfinite()
        assert huge.logits.grad is not None
        assert huge.logits.grad.isfinite().all()
        assert objective.codes().abs().eq(1).all()
