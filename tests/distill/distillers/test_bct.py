"""The influence loss against loops over labeled images and classes."""

import math

import pytest
import torch

from distill.distillers.bct import BCTDistiller
from tests.distill.distillers import factories


def test_by_loops_of_images_with_one_and_several_labels() -> None:
    context = factories.make_context()
    batch = factories.make_batch(context)
    assert batch.positive.sum(1).tolist() == [2, 1, 2, 1]
    for scale, weight in ((8, 1), (3, 2)):
        total = 0.0
        for row, classes in zip(batch.student.detach().numpy()[:4], batch.positive.tolist(), strict=True):
            powers = [math.exp(scale * factories.cosine(row, word)) for word in context.centers.numpy()]
            chosen = [c for c, belongs in enumerate(classes) if belongs]
            total -= sum(math.log(powers[c] / sum(powers)) for c in chosen) / len(chosen)
        assert BCTDistiller(context, weight=weight, scale=scale)(batch).item() == pytest.approx(
            weight * total / 4, rel=1e-5
        )
    assert BCTDistiller(context)(batch).item() == BCTDistiller(context, scale=8)(batch).item()


def test_the_rules() -> None:
    factories.holds_to_the_rules("bct", uses_teacher=False)


def test_without_labels_it_is_nothing_but_has_a_gradient() -> None:
    context = factories.make_context()
    batch = factories.make_batch(context, labeled=0)
    loss = BCTDistiller(context)(batch)
    assert loss.item() == 0
    loss.backward()
    assert batch.student.grad is not None
    assert not batch.student.grad.any()


def test_the_teacher_and_rows_without_labels_are_not_looked_at() -> None:
    context = factories.make_context()
    batch = factories.make_batch(context)
    other = batch.student.detach().clone()
    other[4:] += 1
    assert (
        BCTDistiller(context)(batch._replace(student=other, teacher=-batch.teacher)).item()
        == BCTDistiller(context)(batch).item()
    )


def test_learns_the_bits_of_the_centers() -> None:
    """The teacher's signs are those of the centers for a teacher that has learned its own loss.

    Eight centers differ in every bit; where all centers agree the softmax does not tell.
    """
    context = factories.make_context(classes=8)
    labels = torch.arange(12) % 8
    batch = factories.make_batch(context, 12)._replace(
        teacher=context.centers[labels], positive=torch.eye(8, dtype=torch.bool)[labels]
    )
    assert (context.centers[0] != context.centers).any(0).all()
    before, after = factories.agreement(BCTDistiller(context), batch)
    assert before < 0.7 < 0.9 < after
