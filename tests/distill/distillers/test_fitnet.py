"""Regression against loops over images and bits."""

import math

import pytest
import torch

from distill.distillers.fitnet import FitNetDistiller
from distill.losses.base import cosines
from tests.distill.distillers import factories


@pytest.mark.parametrize("signs", [0, 1])
def test_by_loops(signs: int) -> None:
    context = factories.make_context()
    batch = factories.make_batch(context)
    total = 0.0
    for q, g in zip(batch.student.detach().numpy(), factories.looked_at(batch.teacher, signs), strict=True):
        long, wide = math.sqrt(sum(x * x for x in q)), math.sqrt(sum(x * x for x in g))
        total += sum((q[bit] / long - g[bit] / wide) ** 2 for bit in range(16))
    assert FitNetDistiller(context, signs=signs)(batch).item() == pytest.approx(5 * total / 6, rel=1e-5)
    assert FitNetDistiller(context, weight=2, signs=signs)(batch).item() == pytest.approx(2 * total / 6, rel=1e-5)


def test_the_rules() -> None:
    factories.holds_to_the_rules("fitnet")


def test_codes_are_all_it_sees_unless_asked_for_logits() -> None:
    context = factories.make_context()
    batch = factories.make_batch(context)
    louder = batch._replace(teacher=batch.teacher * torch.linspace(0.5, 3, 16, dtype=torch.float64))
    assert FitNetDistiller(context)(louder).item() == FitNetDistiller(context)(batch).item()
    assert FitNetDistiller(context, signs=0)(louder).item() != pytest.approx(
        FitNetDistiller(context, signs=0)(batch).item(), rel=1e-3
    )


def test_learns_the_teachers_bits() -> None:
    context = factories.make_context()
    before, after = factories.agreement(FitNetDistiller(context), factories.make_batch(context))
    assert before < 0.7 < after == 1


def test_equal_distances_of_codes_are_exactly_equal() -> None:
    codes = torch.where(torch.randn(50, 24, generator=torch.Generator().manual_seed(0)) > 0, 1.0, -1.0)
    found = cosines(codes, codes)
    assert len(found.unique()) == len((codes @ codes.T).unique())
    assert found[3, 7].item() == pytest.approx(factories.cosine(codes[3].double().numpy(), codes[7].double().numpy()))
