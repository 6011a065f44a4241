"""Differential distillation against loops over images and pairs of neighbours."""

import math

import pytest
import torch

from distill.distillers import DISTILLERS
from distill.distillers.base import DistillBatch, DistillContext
from distill.distillers.d3still import D3stillDistiller
from gallery.errors import InputError
from tests.distill.distillers import factories


def slow(batch: DistillBatch, signs: int, k: int, alpha: float, beta: float, gamma: float) -> float:
    q, g = batch.student.detach().numpy(), factories.looked_at(batch.teacher, signs)
    count = len(q)
    own = [[round(factories.cosine(g[i], g[j]), 12) for j in range(count)] for i in range(count)]
    asked = [[factories.cosine(q[i], g[j]) for j in range(count)] for i in range(count)]
    loss = alpha * math.sqrt(sum((1 - asked[i][i]) ** 2 for i in range(count))) / count
    for i in range(count):
        near = sorted((j for j in range(count) if j != i), key=lambda j: -own[i][j])[: k - 1]
        wrong, right = 0.0, 0.0
        for j in near:
            for other in near:
                found, wanted = asked[i][j] - asked[i][other], own[i][j] - own[i][other]
                error = ((found - wanted) / (0.1 + abs(wanted))) ** 2
                if wanted * found > 0:
                    right += error
                elif wanted != 0:
                    wrong += error
        loss += (beta * math.sqrt(wrong) + gamma * math.sqrt(right)) / (len(near) * count)
    return loss


@pytest.mark.parametrize(("signs", "k", "count"), [(0, 10, 20), (1, 10, 20), (1, 10, 6), (0, 4, 6)])
def test_by_loops(signs: int, k: int, count: int) -> None:
    context = factories.make_context()
    batch = factories.make_batch(context, count)
    assert D3stillDistiller(context, k=k, signs=signs)(batch).item() == pytest.approx(
        slow(batch, signs, k, 200, 10, 2), rel=1e-5
    )
    for weights in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        parts = dict(zip(("alpha", "beta", "gamma"), weights, strict=True))
        found = D3stillDistiller(context, k=k, signs=signs, weight=3, **parts)(batch).item()
        assert found == pytest.approx(3 * slow(batch, signs, k, *weights), rel=1e-5)
        assert found > 0


def test_the_rules() -> None:
    factories.holds_to_the_rules("d3still")


def test_a_tie_of_the_teachers_has_no_order_to_lose() -> None:
    codes = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, -1], [1, 1, -1, 1]], dtype=torch.float64)
    context = DistillContext(codes, codes)
    student = torch.tensor([[1.0, 1, 0.2, 0.9]], dtype=torch.float64)  # nearer to the third than to the second
    alone = D3stillDistiller(context, alpha=0)
    others = alone(DistillBatch(codes, codes, torch.zeros(0, 3, dtype=torch.bool))).item()
    assert others == pytest.approx(0)
    first = torch.cat([student, codes[1:]])
    assert alone(DistillBatch(first, codes, torch.zeros(0, 3, dtype=torch.bool))).item() == pytest.approx(0)


def test_learns_the_teachers_bits() -> None:
    context = factories.make_context()
    before, after = factories.agreement(D3stillDistiller(context), factories.make_batch(context, 12))
    assert before < 0.7 < 0.9 < after


def test_an_image_without_neighbours_is_an_error() -> None:
    with pytest.raises(InputError, match="options of d3still in --distiller-args; found k"):
        DISTILLERS.build("d3still", factories.make_context(), {"k": 1})
