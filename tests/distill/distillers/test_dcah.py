"""Correlations of bits and of images against loops over pairs, and what ties the student to the gallery."""

import numpy as np
import pytest
import torch

from distill.distillers import DISTILLERS
from distill.distillers.dcah import DCAHDistiller
from tests.distill.distillers import factories


def slow(q: factories.Rows, g: factories.Rows) -> float:
    pairs = [(i, j) for i in range(len(q)) for j in range(len(q))]
    return sum((factories.cosine(q[i], g[j]) - factories.cosine(g[i], g[j])) ** 2 for i, j in pairs) / len(pairs)


@pytest.mark.parametrize("signs", [0, 1])
def test_by_loops(signs: int) -> None:
    context = factories.make_context()
    batch = factories.make_batch(context)
    q, g = batch.student.detach().numpy(), factories.looked_at(batch.teacher, signs)
    by_bit, by_image = slow(np.ascontiguousarray(q.T), np.ascontiguousarray(g.T)), slow(q, g)
    for weights in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0)):
        options = dict(zip(("quantization", "similarity"), weights, strict=True), weight=3.0, signs=signs)
        found = DCAHDistiller(context, **options)(batch).item()
        assert found == pytest.approx(3 * (weights[0] * by_bit + weights[1] * by_image), rel=1e-5)
    defaults = DCAHDistiller(context).options
    assert DCAHDistiller(context, signs=signs)(batch).item() == pytest.approx(
        defaults.weight * (defaults.quantization * by_bit + defaults.similarity * by_image), rel=1e-5
    )


def test_the_rules() -> None:
    factories.holds_to_the_rules("dcah")


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_each_term_alone_ties_the_student_to_the_gallery(weights: tuple[float, float]) -> None:
    context = factories.make_context()
    batch = factories.make_batch(context, 12)
    alone = DCAHDistiller(context, quantization=weights[0], similarity=weights[1])
    codes = torch.where(batch.teacher > 0, 1.0, -1.0).double()
    home = alone(batch._replace(student=codes)).item()
    assert home == pytest.approx(0, abs=1e-12)
    assert alone(batch._replace(student=codes @ factories.rotation(16))).item() > 0.1


def test_bits_need_no_size_only_signs() -> None:
    context = factories.make_context()
    batch = factories.make_batch(context, 12)
    codes = torch.where(batch.teacher > 0, 1.0, -1.0).double()
    scales = torch.linspace(0.01, 100, 16, dtype=torch.float64)
    alone = DCAHDistiller(context, similarity=0.0)
    assert alone(batch._replace(student=codes * scales)).item() == pytest.approx(0, abs=1e-12)
    flipped = codes * torch.where(torch.arange(16) == 3, -1.0, 1.0)
    assert alone(batch._replace(student=flipped)).item() > 0.1


def test_a_moved_threshold_is_seen() -> None:
    context = factories.make_context()
    batch = factories.make_batch(context, 12)
    codes = torch.where(batch.teacher > 0, 1.0, -1.0).double()
    assert DCAHDistiller(context, similarity=0.0)(batch._replace(student=codes + 0.5)).item() > 0.1


@pytest.mark.parametrize(
    ("args", "used"),
    [({}, True), ({"similarity": 0}, True), ({"quantization": 0}, True), ({"similarity": 0, "quantization": 0}, False),
     ({"weight": 0}, False)],
)  # fmt: skip
def test_without_a_weight_nothing_ties_it_and_the_teacher_is_not_run(args: dict[str, float], used: bool) -> None:
    options = DISTILLERS.parse("dcah", args)
    assert DCAHDistiller.fixes_rotation(options) is DCAHDistiller.uses_teacher(options) is used


def test_learns_the_teachers_bits() -> None:
    context = factories.make_context()
    before, after = factories.agreement(DCAHDistiller(context), factories.make_batch(context, 12))
    assert before < 0.7 < after == 1
