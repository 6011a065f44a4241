"""ADSH against loops over pairs, bits and gallery pictures."""

import copy

import numpy as np
import pytest
import torch

from distill.losses import asymmetric
from distill.losses.adsh import ADSHLoss
from distill.losses.base import LossContext
from tests.distill.losses.factories import apart, learns, seen, sharing, task

SMALL = 2.0  # gamma for a gallery of six: it is to be weighed against pairs with thousands


def similarities(of: LossContext) -> np.ndarray:
    """S in full, `[N, G]`: 1, or -r."""
    pairs = np.array([[sharing(a, b) for b in of.gallery.numpy()] for a in of.positive.numpy()])
    return np.where(pairs, 1.0, -pairs.sum() / (~pairs).sum())


def energy(of: LossContext, u: np.ndarray, v: np.ndarray) -> float:
    """What the V-step is to lower, pair by pair."""
    wanted = similarities(of)
    pairs = [(i, j) for i in range(len(u)) for j in range(len(v))]
    return float(sum((u[i] @ v[j] - of.bits * wanted[i, j]) ** 2 for i, j in pairs))


def slow_step(of: LossContext, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Each bit of each code set to the better of its two values, one at a time."""
    v, wanted = v.copy(), of.bits * similarities(of)
    for k in range(of.bits):
        for j, code in enumerate(v):
            losses = []
            for bit in (-1.0, 1.0):
                code[k] = bit
                losses.append(sum((u[i] @ code - wanted[i, j]) ** 2 for i in range(len(u))))
            code[k] = -1.0 if losses[0] <= losses[1] else 1.0
    return v


def remembered(objective: ADSHLoss, seed: int = 3) -> ADSHLoss:
    """With something in the bank of all pictures but the last, which was never seen."""
    bank = torch.randn(objective.bank.values.shape, generator=torch.Generator().manual_seed(seed)).tanh()
    objective.bank.values.copy_(bank)
    objective.bank.values[-1] = 0
    return objective


@pytest.mark.parametrize("several", [False, True])
def test_the_loss_is_the_papers_over_its_pairs(several: bool) -> None:
    of = task(several)
    objective, batch = ADSHLoss(of, gamma=20.0).eval(), seen(of, [0, 1, 2, 7])
    u, v, wanted = np.tanh(batch.logits.detach().numpy().astype(float)), objective.learned.numpy(), similarities(of)
    slow = 0.0
    for row, i in zip(u, [0, 1, 2, 7], strict=True):
        slow += sum((row @ v[j] - 16 * wanted[i, j]) ** 2 for j in range(6))
        slow += 20 * sum((x - (1 if x > 0 else -1)) ** 2 for x in row)
    assert objective(batch).item() == pytest.approx(slow / (4 * 6 * 16**2), rel=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_the_step_of_the_codes_sets_each_bit_to_its_better_value(several: bool) -> None:
    of = task(several)
    objective = remembered(ADSHLoss(of))
    u, v = objective.bank.values.numpy().astype(float), objective.learned.numpy().astype(float)
    found = objective.improved().numpy()
    assert np.array_equal(found, slow_step(of, u, v))
    assert energy(of, u, found) < energy(of, u, v)
    for _ in range(5):
        before = energy(of, u, objective.learned.numpy())
        objective.learned.copy_(objective.improved())
        assert energy(of, u, objective.learned.numpy()) <= before * (1 + 1e-6)


def test_sums_over_similar_pictures_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    of = task(several=True)
    objective, values = ADSHLoss(of), torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    pairs = [[sharing(a, b) for a in of.positive.numpy()] for b in of.gallery.numpy()]
    slow = [[sum(values[i, m].item() for i in range(12) if row[i]) for m in range(3)] for row in pairs]
    for entries in (1, 24, 1 << 20):
        monkeypatch.setattr(asymmetric, "ENTRIES", entries)
        assert objective.of_alike(values).numpy() == pytest.approx(np.array(slow), rel=1e-5)


def test_pictures_of_no_known_class_are_like_none() -> None:
    gallery = task().gallery.clone()
    gallery[2] = False
    objective = ADSHLoss(task(gallery=gallery))
    assert objective.of_alike(torch.ones(12, 1))[:, 0].tolist() == [3, 3, 0, 3, 3, 3]
    assert objective.ratio == pytest.approx(15 / (72 - 15))


@pytest.mark.parametrize("several", [False, True])
def test_it_learns_and_the_gallerys_codes_follow_the_labels(several: bool) -> None:
    of = task(several)
    objective = ADSHLoss(of, gamma=SMALL)
    begun = objective.learned.clone()
    before, after = learns(objective, of)
    assert after > before + (0.1 if several else 0.3)  # with several labels most pairs are alike
    codes = objective.codes()
    there = LossContext(**{**vars(of), "positive": of.gallery})
    assert apart(codes, there) > apart(begun, there) + 0.3
    assert set(codes.unique().tolist()) == {-1.0, 1.0}
    queries, wanted = objective.bank.values, torch.from_numpy(similarities(of)) > 0
    found = queries @ codes.T
    assert found[wanted].mean() > found[~wanted].mean() + 4  # of 16 bits


def test_codes_change_at_the_end_of_a_round_alone_and_in_training_alone() -> None:
    of = task()
    objective = ADSHLoss(of, update_every=2.0)  # six steps
    begun = objective.learned.clone()
    for step in range(5):
        objective(seen(of, [step, step + 6], seed=step))
    assert torch.equal(objective.learned, begun)
    state = copy.deepcopy(objective.state_dict())
    objective.eval()(seen(of, [5, 11], seed=9))
    assert all(torch.equal(a, b) for a, b in zip(state.values(), objective.state_dict().values(), strict=True))
    objective.train()(seen(of, [5, 11], seed=9)).backward()
    assert not torch.equal(objective.learned, begun)
    assert torch.equal(objective.bank.values[5], seen(of, [5, 11], seed=9).logits[0].detach().tanh())


def test_a_training_shorter_than_a_round_has_learned_codes() -> None:
    of = task()
    objective = ADSHLoss(of, update_every=100.0)
    objective(seen(of, list(range(12))))
    assert torch.equal(objective.codes(), objective.improved())
    assert not torch.equal(objective.codes(), objective.learned)


def test_it_goes_on_from_the_middle_of_a_round_as_if_nothing_had_been() -> None:
    of = task()
    whole, resumed = ADSHLoss(of, update_every=1.0), ADSHLoss(task(seed=8), update_every=1.0)
    for step in range(4):  # a round is three
        whole(seen(of, [step, step + 6], seed=step))
    assert not torch.equal(resumed.learned, whole.learned)
    resumed.load_state_dict(whole.state_dict())
    for step in range(4, 10):
        batch = seen(of, [step % 6, step % 6 + 6], seed=step)
        assert torch.equal(whole(batch), resumed(batch))
    assert torch.equal(whole.learned, resumed.learned)
    assert torch.equal(whole.codes(), resumed.codes())


def test_extremes_stay_finite() -> None:
    of = task()
    for like in (torch.ones(6, 4, dtype=torch.bool), torch.zeros(6, 4, dtype=torch.bool)):  # no pair differs; all do
        objective = ADSHLoss(
            task(several=True, gallery=like, positive=torch.ones(12, 4, dtype=torch.bool)), update_every=0.0
        )
        batch = seen(of, [0, 1])
        huge = batch._replace(logits=(1e30 * batch.logits.detach()).requires_grad_())
        loss = objective(huge)
        loss.backward()
        assert loss.isfinite()
        assert huge.logits.grad is not None
        assert huge.logits.grad.isfinite().all()
        assert objective.codes().abs().eq(1).all()
