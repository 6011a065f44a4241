"""ADSH against loops over pairs, bits and gallery images."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.losses import asymmetric
from distill.losses.adsh import ADSHLoss
from distill.losses.base import LossContext
from tests.distill.losses.factories import learns_gallery_codes, make_batch, make_context, sharing

SMALL = 2.0  # gamma for a gallery of six: it is to be weighed against pairs with thousands


def similarities(context: LossContext) -> np.ndarray:
    """S in full, `[N, G]`: 1, or -r."""
    pairs = np.array([[sharing(a, b) for b in context.gallery.numpy()] for a in context.positive.numpy()])
    return np.where(pairs, 1.0, -pairs.sum() / (~pairs).sum())


def energy(context: LossContext, u: np.ndarray, v: np.ndarray) -> float:
    """What the V-step is to lower, pair by pair."""
    wanted = similarities(context)
    pairs = [(i, j) for i in range(len(u)) for j in range(len(v))]
    return float(sum((u[i] @ v[j] - context.bits * wanted[i, j]) ** 2 for i, j in pairs))


def slow_step(context: LossContext, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Each bit of each code set to the better of its two values, one at a time."""
    v, wanted = v.copy(), context.bits * similarities(context)
    for k in range(context.bits):
        for j, code in enumerate(v):
            losses = []
            for bit in (-1.0, 1.0):
                code[k] = bit
                losses.append(sum((u[i] @ code - wanted[i, j]) ** 2 for i in range(len(u))))
            code[k] = -1.0 if losses[0] <= losses[1] else 1.0
    return v


def remembered(loss_fn: ADSHLoss, seed: int = 3) -> ADSHLoss:
    """With something in the bank of all images but the last, which was never seen."""
    bank = torch.randn(loss_fn.bank.values.shape, generator=torch.Generator().manual_seed(seed)).tanh()
    loss_fn.bank.values.copy_(bank)
    loss_fn.bank.values[-1] = 0
    return loss_fn


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_loss_is_the_papers_over_its_pairs(multilabel: bool) -> None:
    context = make_context(multilabel)
    loss_fn, batch = ADSHLoss(context, gamma=20.0).eval(), make_batch(context, [0, 1, 2, 7])
    u, v, wanted = np.tanh(batch.logits.detach().numpy().astype(float)), loss_fn.learned.numpy(), similarities(context)
    slow = 0.0
    for row, i in zip(u, [0, 1, 2, 7], strict=True):
        slow += sum((row @ v[j] - 16 * wanted[i, j]) ** 2 for j in range(6))
        slow += 20 * sum((x - (1 if x > 0 else -1)) ** 2 for x in row)
    assert loss_fn(batch).item() == pytest.approx(slow / (4 * 6 * 16**2), rel=1e-5)


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_step_of_the_codes_sets_each_bit_to_its_better_value(multilabel: bool) -> None:
    context = make_context(multilabel)
    loss_fn = remembered(ADSHLoss(context))
    u, v = loss_fn.bank.values.numpy().astype(float), loss_fn.learned.numpy().astype(float)
    found = loss_fn.update_codes().numpy()
    assert np.array_equal(found, slow_step(context, u, v))
    assert energy(context, u, found) < energy(context, u, v)
    for _ in range(5):
        before = energy(context, u, loss_fn.learned.numpy())
        loss_fn.learned.copy_(loss_fn.update_codes())
        assert energy(context, u, loss_fn.learned.numpy()) <= before * (1 + 1e-6)


def test_sums_over_similar_images_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context(multilabel=True)
    loss_fn, values = ADSHLoss(context), torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    pairs = [[sharing(a, b) for a in context.positive.numpy()] for b in context.gallery.numpy()]
    slow = [[sum(values[i, m].item() for i in range(12) if row[i]) for m in range(3)] for row in pairs]
    for entries in (1, 24, 1 << 20):
        monkeypatch.setattr(asymmetric, "ENTRIES", entries)
        assert loss_fn.sum_over_similar(values).numpy() == pytest.approx(np.array(slow), rel=1e-5)


def test_images_of_no_known_class_are_like_none() -> None:
    gallery = make_context().gallery.clone()
    gallery[2] = False
    loss_fn = ADSHLoss(make_context(gallery=gallery))
    assert loss_fn.sum_over_similar(torch.ones(12, 1))[:, 0].tolist() == [3, 3, 0, 3, 3, 3]
    assert loss_fn.ratio == pytest.approx(15 / (72 - 15))


@pytest.mark.parametrize("multilabel", [False, True])
def test_it_learns_and_the_gallerys_codes_follow_the_labels(multilabel: bool) -> None:
    context = make_context(multilabel)
    loss_fn = ADSHLoss(context, gamma=SMALL)
    learns_gallery_codes(loss_fn, context)
    codes = loss_fn.codes()
    queries, wanted = loss_fn.bank.values, torch.from_numpy(similarities(context)) > 0
    found = queries @ codes.T
    assert found[wanted].mean() > found[~wanted].mean() + 4  # of 16 bits


def test_codes_change_at_the_end_of_a_round_alone_and_in_training_alone() -> None:
    context = make_context()
    loss_fn = ADSHLoss(context, update_every=2.0)  # six steps
    begun = loss_fn.learned.clone()
    for step in range(5):
        loss_fn(make_batch(context, [step, step + 6], seed=step))
    assert torch.equal(loss_fn.learned, begun)
    state = copy.deepcopy(loss_fn.state_dict())
    loss_fn.eval()(make_batch(context, [5, 11], seed=9))
    assert all(torch.equal(a, b) for a, b in zip(state.values(), loss_fn.state_dict().values(), strict=True))
    loss_fn.train()(make_batch(context, [5, 11], seed=9)).backward()
    assert not torch.equal(loss_fn.learned, begun)
    assert torch.equal(loss_fn.bank.values[5], make_batch(context, [5, 11], seed=9).logits[0].detach().tanh())


def test_a_training_shorter_than_a_round_has_learned_codes() -> None:
    context = make_context()
    loss_fn = ADSHLoss(context, update_every=100.0)
    loss_fn(make_batch(context, list(range(12))))
    assert torch.equal(loss_fn.codes(), loss_fn.update_codes())
    assert not torch.equal(loss_fn.codes(), loss_fn.learned)


def test_it_goes_on_from_the_middle_of_a_round_as_if_nothing_had_been() -> None:
    context = make_context()
    whole, resumed = ADSHLoss(context, update_every=1.0), ADSHLoss(make_context(seed=8), update_every=1.0)
    for step in range(4):  # a round is three
        whole(make_batch(context, [step, step + 6], seed=step))
    assert not torch.equal(resumed.learned, whole.learned)
    resumed.load_state_dict(whole.state_dict())
    for step in range(4, 10):
        batch = make_batch(context, [step % 6, step % 6 + 6], seed=step)
        assert torch.equal(whole(batch), resumed(batch))
    assert torch.equal(whole.learned, resumed.learned)
    assert torch.equal(whole.codes(), resumed.codes())


def test_extremes_stay_finite() -> None:
    context = make_context()
    for like in (torch.ones(6, 4, dtype=torch.bool), torch.zeros(6, 4, dtype=torch.bool)):  # no pair differs; all do
        loss_fn = ADSHLoss(
            make_context(multilabel=True, gallery=like, positive=torch.ones(12, 4, dtype=torch.bool)), update_every=0.0
        )
        batch = make_batch(context, [0, 1])
        huge = replace(batch, logits=(1e30 * batch.logits.detach()).requires_grad_())
        loss = loss_fn(huge)
        loss.backward()
        assert loss.isfinite()
        assert huge.logits.grad is not None
        assert huge.logits.grad.isfinite().all()
        assert loss_fn.codes().abs().eq(1).all()
