"""GreedyHash against loops, and the gradient that passes its sign."""

import math
from dataclasses import replace

import pytest
import torch

from distill.losses.greedyhash import GreedyHashLoss
from gallery.errors import InputError
from tests.distill.losses.factories import learns, make_batch, make_context


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_cross_entropy_of_the_code_and_a_cubic_penalty(alpha: float) -> None:
    context = make_context()
    batch, loss = make_batch(context, [3, 0, 11, 7]), GreedyHashLoss(context, alpha=alpha)
    weights = loss.classifier.tolist()
    slow, cubes = 0.0, []
    for row, h in zip(batch.index.tolist(), batch.logits.tolist(), strict=True):
        code = [1 if bit > 0 else -1 for bit in h]
        powers = [math.exp(sum(w * b for w, b in zip(line, code, strict=True))) for line in weights]
        slow -= math.log(powers[context.positive[row].tolist().index(True)] / sum(powers)) / 4
        cubes += [abs(abs(bit) - 1) ** 3 for bit in h]
    slow += alpha * sum(cubes) / len(cubes)
    assert loss(batch).item() == pytest.approx(slow, rel=1e-5)


def test_the_published_weight() -> None:
    context = make_context()
    assert (
        GreedyHashLoss(context)(make_batch(context, [0, 1])).item()
        == GreedyHashLoss(context, alpha=0.1)(make_batch(context, [0, 1])).item()
    )


def test_the_gradient_passes_the_sign() -> None:
    context = make_context()
    batch, loss = make_batch(context, [3, 0, 11, 7]), GreedyHashLoss(context, alpha=0.0)
    loss(batch).backward()
    code = torch.where(batch.logits.detach() > 0, 1.0, -1.0).requires_grad_()
    labels = context.positive[batch.index].int().argmax(1)
    torch.nn.functional.cross_entropy(code @ loss.classifier.detach().T, labels).backward()
    assert batch.logits.grad is not None
    assert code.grad is not None
    assert torch.allclose(batch.logits.grad, code.grad)


def test_only_the_sign_of_far_logits_is_classified() -> None:
    context = make_context()
    batch, loss = make_batch(context, [0, 1, 2]), GreedyHashLoss(context, alpha=0.0)
    assert loss(replace(batch, logits=batch.logits * 1e9)).item() == loss(batch).item()
    assert torch.isfinite(GreedyHashLoss(context)(replace(batch, logits=batch.logits * 1e9)))


def test_the_classifier_begins_as_the_seed_says() -> None:
    first, again, other = (GreedyHashLoss(make_context(seed=seed)).classifier for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0.2 < first.abs().max() <= 16**-0.5


def test_it_learns_its_classifier_too() -> None:
    loss = GreedyHashLoss(make_context())
    begun = loss.classifier.detach().clone()
    before, after = learns(loss, make_context())
    assert after > before + 0.3
    assert not torch.equal(begun, loss.classifier)


def test_images_of_several_classes_are_an_error() -> None:
    with pytest.raises(InputError, match="one class an image for --loss greedyhash"):
        GreedyHashLoss(make_context(multilabel=True))
