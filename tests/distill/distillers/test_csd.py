"""Contextual similarity against loops over images and their neighbours in the gallery."""

import math

import numpy as np
import pytest
import torch

from distill.distillers import DISTILLERS
from distill.distillers.csd import CSDDistiller
from gallery.errors import InputError
from tests.distill.distillers import factories


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(v - max(values)) for v in values]
    return [p / sum(powers) for p in powers]


@pytest.mark.parametrize(("signs", "k"), [(0, 7), (0, 256), (1, 1), (1, 256)])
def test_by_loops(signs: int, k: int) -> None:
    context, batch, gallery, teacher = factories.neighbor_case(signs)
    total = 0.0
    for q, g in zip(batch.student.detach().numpy(), teacher, strict=True):
        near = factories.nearest(g, gallery, min(k, len(gallery)))
        wanted = softmax([factories.cosine(g, gallery[j]) / 0.01 for j in near])
        found = softmax([factories.cosine(q, gallery[j]) / 1.0 for j in near])
        total += sum(p * math.log(p / r) for p, r in zip(wanted, found, strict=True) if p > 0)
    assert CSDDistiller(context, k=k, signs=signs)(batch).item() == pytest.approx(20 * total / 6, rel=1e-5, abs=1e-12)


def test_the_rules() -> None:
    factories.holds_to_the_rules("csd")


def test_neighbours_are_codes_each_once_of_the_whole_gallery() -> None:
    context = factories.make_context(of_codes=True)
    batch = factories.make_batch(context)
    copies = type(context)(context.centers, torch.cat([context.gallery, context.gallery[:1].expand(300, -1)]))
    assert len(CSDDistiller(context).known) == len(factories.distinct(context.gallery.numpy())) < 40
    assert CSDDistiller(copies)(batch).item() == pytest.approx(CSDDistiller(context)(batch).item())
    fewer = type(context)(context.centers, context.gallery[:20])
    assert CSDDistiller(fewer)(batch).item() != pytest.approx(CSDDistiller(context)(batch).item(), rel=1e-3)
    near, asked = CSDDistiller(context, k=5).compare(batch)
    assert near.shape == asked.shape == (6, 5)
    assert torch.equal(near, near.sort(dim=1, descending=True).values)
    assert near[:, 0].detach().numpy() == pytest.approx(np.ones(6))  # an image of the gallery is its own nearest


def test_learns_the_teachers_bits_in_a_varied_gallery() -> None:
    """In a gallery whose codes agree in no bit: bits in which all neighbours agree it leaves to the center term."""
    context = factories.make_context(images=200)
    before, after = factories.agreement(CSDDistiller(context), factories.make_batch(context, 12))
    assert before < 0.7 < 0.9 < after


@pytest.mark.parametrize("k", [0, -3, 2.5])
def test_no_neighbours_are_an_error(k: float) -> None:
    with pytest.raises(InputError, match="options of csd in --distiller-args; found k"):
        DISTILLERS.build("csd", factories.make_context(), {"k": k})


def test_nothing_of_the_gallery_is_written_into_a_checkpoint() -> None:
    assert not CSDDistiller(factories.make_context()).state_dict()
