"""ADMH's margins and flips against loops; what it shares with ADSH is tested there."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.losses import admh
from distill.losses.admh import ADMHLoss
from distill.losses.base import LossContext
from tests.distill.losses.factories import learns, learns_gallery_codes, make_batch, make_context, sharing

SMALL = 2.0  # gamma for a gallery of six: it is to be weighed against pairs with thousands


def pairs(context: LossContext) -> np.ndarray:
    """Which training image shares a class with which of the gallery, `[N, G]`."""
    return np.array([[sharing(a, b) for b in context.gallery.numpy()] for a in context.positive.numpy()])


def slow_pair(product: float, near: bool, share: float, margin: float) -> float:
    if near:
        return max(0.0, margin - product) ** 2 / (2 * share)
    return max(0.0, margin + product) ** 2 / (2 * (1 - share))


def energy(context: LossContext, u: np.ndarray, code: np.ndarray, j: int) -> float:
    """The loss of one gallery image's code with all of the bank."""
    near = pairs(context)
    return sum(slow_pair(u[i] @ code / context.bits, near[i, j], near.mean(), 0.8) for i in range(len(u)))


def remembered(context: LossContext) -> ADMHLoss:
    loss_fn = ADMHLoss(context)
    bank = torch.randn(loss_fn.bank.values.shape, generator=torch.Generator().manual_seed(3)).tanh()
    loss_fn.bank.values.copy_(bank)
    return loss_fn


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_loss_by_loops_over_pairs(multilabel: bool) -> None:
    context, rows = make_context(multilabel), [0, 1, 4, 9]
    loss_fn, batch, near = (
        ADMHLoss(context, gamma=20.0, margin=0.3).eval(),
        make_batch(make_context(multilabel), rows),
        pairs(context),
    )
    u, v = np.tanh(batch.logits.detach().numpy().astype(float)), loss_fn.learned.numpy()
    slow = 0.0
    for row, i in zip(u, rows, strict=True):
        slow += sum(slow_pair(row @ v[j] / 16, near[i, j], near.mean(), 0.3) for j in range(6))
        slow += 20 * sum((x - (1 if x > 0 else -1)) ** 2 for x in row) / 16**2
    assert loss_fn(batch).item() == pytest.approx(slow / (4 * 6), rel=1e-5)


@pytest.mark.parametrize("multilabel", [False, True])
def test_bits_are_flipped_one_by_one_where_that_lowers_the_loss(
    multilabel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(multilabel)
    loss_fn = remembered(context)
    u, begun = loss_fn.bank.values.numpy().astype(float), loss_fn.learned.numpy().astype(float)
    slow = begun.copy()
    for j, code in enumerate(slow):
        for k in range(context.bits):
            flipped = code.copy()
            flipped[k] *= -1
            if energy(context, u, flipped, j) < energy(context, u, code, j):
                code[k] *= -1
    assert np.array_equal(loss_fn.update_codes().numpy(), slow)
    assert sum(energy(context, u, slow[j], j) for j in range(6)) < sum(
        energy(context, u, begun[j], j) for j in range(6)
    )
    monkeypatch.setattr(admh, "ENTRIES", 25)  # two gallery images at a time
    assert np.array_equal(loss_fn.update_codes().numpy(), slow)
    assert np.array_equal(loss_fn.learned.numpy(), begun)


def test_the_step_never_raises_its_own_loss() -> None:
    context = make_context(multilabel=True)
    loss_fn = remembered(context)
    u = loss_fn.bank.values.numpy().astype(float)
    for _ in range(5):
        before = [energy(context, u, code, j) for j, code in enumerate(loss_fn.learned.numpy())]
        loss_fn.learned.copy_(loss_fn.update_codes())
        after = [energy(context, u, code, j) for j, code in enumerate(loss_fn.learned.numpy())]
        assert all(a <= b * (1 + 1e-6) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("multilabel", [False, True])
def test_it_learns_and_the_gallerys_codes_follow_the_labels(multilabel: bool) -> None:
    context = make_context(multilabel)
    learns_gallery_codes(ADMHLoss(context, gamma=SMALL), context)


def test_twenty_classes_do_not_fall_into_one_code() -> None:
    context = make_context(images=60, bits=32, classes=20, gallery=torch.eye(20, dtype=torch.bool))
    loss_fn = ADMHLoss(context)
    learns(loss_fn, context)
    codes = loss_fn.codes()
    assert len(codes.unique(dim=0)) == 20
    own = (loss_fn.bank.values @ codes.T).argmax(1)
    assert (own == context.positive.int().argmax(1)).float().mean() > 0.9


def test_it_goes_on_from_the_middle_of_a_round() -> None:
    context = make_context()
    whole, resumed = ADMHLoss(context, update_every=1.0), ADMHLoss(make_context(seed=8), update_every=1.0)
    for step in range(4):  # a round is three
        whole(make_batch(context, [step, step + 6], seed=step))
    resumed.load_state_dict(whole.state_dict())
    for step in range(4, 10):
        batch = make_batch(context, [step % 6, step % 6 + 6], seed=step)
        assert torch.equal(whole(batch), resumed(batch))
    assert torch.equal(whole.codes(), resumed.codes())


def test_extremes_stay_finite() -> None:
    for like in (torch.ones(6, 4, dtype=torch.bool), torch.zeros(6, 4, dtype=torch.bool)):
        context = make_context(multilabel=True, gallery=like, positive=torch.ones(12, 4, dtype=torch.bool))
        batch = make_batch(context, [0, 1])
        huge = replace(batch, logits=(1e30 * batch.logits.detach()).requires_grad_())
        loss_fn = ADMHLoss(context, update_every=0.0)
        loss = loss_fn(huge)
        loss.backward()
        assert loss.isfinite()
        assert huge.logits.grad is not None
        assert huge.logits.grad.isfinite().all()
        assert loss_fn.codes().abs().eq(1).all()
