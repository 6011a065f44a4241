"""Similarities within a batch against loops over pairs of images."""

import pytest

from distill.distillers.raml import RAMLDistiller
from tests.distill.distillers import factories


@pytest.mark.parametrize("signs", [0, 1])
def test_by_loops(signs: int) -> None:
    context = factories.make_context()
    batch = factories.make_batch(context)
    q, g = batch.student.detach().numpy(), factories.looked_at(batch.teacher, signs)
    itself = sum((1 - factories.cosine(q[i], g[i])) ** 2 for i in range(6)) / 6
    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    cross = sum((factories.cosine(q[i], g[j]) - factories.cosine(g[i], g[j])) ** 2 for i, j in pairs) / 30
    own = sum((factories.cosine(q[i], q[j]) - factories.cosine(g[i], g[j])) ** 2 for i, j in pairs) / 30
    slow = 20 * (itself + 0.7482 * cross + 0.6778 * own)
    assert RAMLDistiller(context, signs=signs)(batch).item() == pytest.approx(slow, rel=1e-5)
    slow = itself + 0.5 * cross  # one weight for both was the bug of the released code
    assert RAMLDistiller(context, weight=1, cross=0.5, own=0, signs=signs)(batch).item() == pytest.approx(
        slow, rel=1e-5
    )


def test_the_rules() -> None:
    factories.holds_to_the_rules("raml")


def test_only_the_term_of_students_alone_is_blind_to_a_rotation() -> None:
    context = factories.make_context()
    batch = factories.make_batch(context)
    turned = batch._replace(student=batch.student @ factories.rotation(16))
    both = [
        RAMLDistiller(context, cross=0, own=own)(batch).item() - RAMLDistiller(context, cross=0, own=own)(turned).item()
        for own in (0, 1)
    ]
    assert both[0] == pytest.approx(both[1])
    assert abs(both[0]) > 1e-3


def test_learns_the_teachers_bits() -> None:
    context = factories.make_context()
    before, after = factories.agreement(RAMLDistiller(context), factories.make_batch(context))
    assert before < 0.7 < after == 1
