"""DHD against loops, and which of its two views learns from which."""

import math

import pytest
import torch

from distill.losses.dhd import DHDLoss
from tests.distill.losses.factories import learns, make_batch, make_context

NAMES = "temperature", "distillation", "quantization", "spread"


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def bce(guess: float, wanted: int) -> float:
    return -math.log(guess) if wanted else -math.log(1 - guess)


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("options", [(0.2, 0.1, 0.1, 0.5), (0.7, 2.0, 3.0, 0.8)])
def test_proxies_a_second_view_and_two_bumps(multilabel: bool, options: tuple[float, float, float, float]) -> None:
    temperature, distillation, quantization, spread = options
    context = make_context(multilabel)
    batch, loss, slow = (
        make_batch(context, [3, 0, 11, 7], second_view=True),
        DHDLoss(context, **dict(zip(NAMES, options, strict=False))),
        0.0,
    )
    assert batch.second_view_logits is not None
    for row, h, hard in zip(
        batch.index.tolist(), batch.logits.tolist(), batch.second_view_logits.tolist(), strict=True
    ):
        u, v, own = [math.tanh(x) for x in h], [math.tanh(x) for x in hard], context.positive[row].tolist()
        powers = [math.exp(cosine(u, proxy) / temperature) for proxy in loss.proxies.tolist()]
        for power, mine in zip(powers, own, strict=True):
            slow -= mine / sum(own) * math.log(power / sum(powers)) / 4
        slow += distillation * (1 - cosine(u, v)) / 4
        for x in u:
            up, down = (math.exp(-0.5 * ((x - mean) / spread) ** 2) for mean in (1, -1))
            slow += quantization * (bce(up, x > 0) + bce(down, x <= 0)) / len(u) / 4
    assert loss(batch).item() == pytest.approx(slow, rel=1e-5)


def test_the_defaults_are_the_published_ones() -> None:
    context = make_context()
    batch = make_batch(context, [3, 0], second_view=True)
    assert (
        DHDLoss(context)(batch).item()
        == DHDLoss(context, temperature=0.2, distillation=0.1, quantization=0.1, spread=0.5)(batch).item()
    )


def test_the_second_view_learns_from_the_first_and_not_the_first_from_it() -> None:
    context = make_context()
    alone, both = (
        make_batch(context, [3, 0, 5], second_view=True),
        make_batch(context, [3, 0, 5], second_view=True),
    )
    DHDLoss(context, distillation=0.0)(alone).backward()
    DHDLoss(context, distillation=1.0)(both).backward()
    assert alone.logits.grad is not None
    assert both.logits.grad is not None
    assert both.second_view_logits is not None
    assert torch.equal(alone.logits.grad, both.logits.grad)
    assert both.second_view_logits.grad is not None
    with torch.no_grad():
        nearer = both.second_view_logits - both.second_view_logits.grad
        u = both.logits.tanh()
        towards = torch.cosine_similarity(nearer.tanh(), u) - torch.cosine_similarity(both.second_view_logits.tanh(), u)
    assert (towards > 0).all()


def test_one_view_is_not_enough() -> None:
    with pytest.raises(ValueError, match="two views"):
        DHDLoss(make_context())(make_batch(make_context(), [0, 1]))
    assert DHDLoss.n_views == 2


def test_the_proxies_begin_as_the_seed_says_and_are_learned() -> None:
    first, again, other = (DHDLoss(make_context(seed=seed)).proxies for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    loss = DHDLoss(make_context())
    learns(loss, make_context(), steps=5)
    assert not torch.equal(first, loss.proxies)


@pytest.mark.parametrize("multilabel", [False, True])
def test_it_learns(multilabel: bool) -> None:
    before, after = learns(DHDLoss(make_context(multilabel)), make_context(multilabel))
    assert after > before + 0.3
