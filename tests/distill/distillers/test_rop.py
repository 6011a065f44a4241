"""Rank order against loops over images and pairs of places."""

import math

import pytest

from distill.distillers import DISTILLERS
from distill.distillers.rop import ROPDistiller
from gallery.errors import InputError
from tests.distill.distillers import factories


def step(x: float, tau: float) -> float:
    return 1 / (1 + math.exp(-x / tau)) if x / tau > -700 else 0.0


@pytest.mark.parametrize(("signs", "k"), [(0, 7), (0, 256), (1, 1), (1, 256)])
def test_by_loops(signs: int, k: int) -> None:
    context, batch, gallery, teacher = factories.neighbor_case(signs)
    total = 0.0
    for q_row, g_row in zip(batch.student.detach().numpy(), teacher, strict=True):
        near = factories.nearest(g_row, gallery, min(k, len(gallery)))
        s = [round(factories.cosine(g_row, gallery[j]), 12) for j in near]
        q = [factories.cosine(q_row, gallery[j]) for j in near]
        norm = sum(math.exp(0.2 * x) for x in s)
        for j in range(len(near)):
            place = sum((step(s[i] - s[j], 1e-6) - step(q[i] - s[j], 0.1)) ** 2 for i in range(len(near)))
            total += math.exp(0.2 * s[j]) / norm * (j + 1) * place / len(near)
    assert ROPDistiller(context, k=k, signs=signs)(batch).item() == pytest.approx(2 * total / 6, rel=1e-5)


def test_the_rules() -> None:
    factories.holds_to_the_rules("rop")


def test_learns_the_teachers_bits() -> None:
    context = factories.make_context(images=100)
    before, after = factories.agreement(ROPDistiller(context), factories.make_batch(context, 12))
    assert before < 0.7 < 0.9 < after


def test_no_neighbours_are_an_error() -> None:
    with pytest.raises(InputError, match="options of rop in --distiller-args; found k"):
        DISTILLERS.build("rop", factories.make_context(), {"k": 0})
