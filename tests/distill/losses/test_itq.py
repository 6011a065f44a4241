"""ITQ as a loss: the head that it fits puts out ITQ's own codes where all features are equally long."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.itq import fit_itq
from distill.losses import LOSSES
from distill.losses.itq import ITQLoss
from distill.models.hash_net import HashNet
from distill.train_teacher import set_head
from tests.distill.losses.factories import make_batch, make_context


def features(count: int = 300, width: int = 24, length: float | None = None) -> torch.Tensor:
    rng = np.random.default_rng(0)
    groups = rng.standard_normal((6, width)) + 2
    x = groups[rng.integers(6, size=count)] + 0.4 * rng.standard_normal((count, width))
    if length:
        x *= length / np.linalg.norm(x, axis=1, keepdims=True)
    return torch.from_numpy(x.astype(np.float32))


def net_of(loss: ITQLoss, x: torch.Tensor) -> HashNet:
    net = HashNet(torch.nn.Identity(), x.shape[1], loss.context.bits).train()
    set_head(net, loss.fit_head(x))
    return net


def test_codes_are_those_of_itq_where_features_have_one_length() -> None:
    context, x = make_context(bits=16), features(length=7.0)
    net = net_of(ITQLoss(context), x)
    assert not net.training
    expected = fit_itq(x.numpy(), 16, context.seed).logits(x.numpy())
    sure = np.abs(expected) > 1e-4
    with torch.no_grad():
        logits = net.head(x).numpy()
    assert np.array_equal((logits > 0)[sure], (expected > 0)[sure])
    assert np.square(logits).mean(0) == pytest.approx(np.ones(16), abs=1e-2)


def test_codes_of_other_features_differ_in_few_bits() -> None:
    context, x = make_context(bits=16), features()
    with torch.no_grad():
        found = net_of(ITQLoss(context, iterations=20), x).head(x).numpy() > 0
    expected = fit_itq(x.numpy(), 16, context.seed, 20).logits(x.numpy()) > 0
    assert (found != expected).mean() < 0.1
    assert found.mean(0) == pytest.approx(np.full(16, 0.5), abs=0.45)


def test_the_loss_is_the_quantization_error() -> None:
    loss, batch = LOSSES.build("itq", make_context(), {}), make_batch(make_context(), [0, 1, 2])
    slow = [(h - (1.0 if h > 0 else -1.0)) ** 2 for row in batch.logits.tolist() for h in row]
    assert loss(batch).item() == pytest.approx(sum(slow) / len(slow), rel=1e-5)
    assert not list(loss.parameters())
