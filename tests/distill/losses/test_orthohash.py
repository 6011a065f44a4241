"""OrthoHash against loops over images and classes."""

import math
from dataclasses import replace

import pytest
import torch

from distill.losses.csch import CSCHLoss
from distill.losses.orthohash import OrthoHashLoss
from tests.distill.losses.factories import learns, make_batch, make_context


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize(("scale", "margin"), [(8.0, 0.2), (4.0, 0.3)])
def test_smoothed_labels_and_a_margin_on_each(multilabel: bool, scale: float, margin: float) -> None:
    context = make_context(multilabel)
    batch, slow = make_batch(context, [3, 0, 11, 7]), 0.0
    for row, h in zip(batch.index.tolist(), batch.logits.tolist(), strict=True):
        own = context.positive[row].tolist()
        powers = [
            math.exp(scale * (cosine(h, word) - margin * mine))
            for word, mine in zip(context.centers.tolist(), own, strict=True)
        ]
        for power, mine in zip(powers, own, strict=True):
            slow -= mine / sum(own) * math.log(power / sum(powers)) / 4
    assert OrthoHashLoss(context, scale=scale, margin=margin)(batch).item() == pytest.approx(slow, rel=1e-5)


def test_with_one_class_it_is_the_center_term_of_csch() -> None:
    context = make_context()
    batch = make_batch(context, [0, 5, 6])
    assert OrthoHashLoss(context)(batch).item() == pytest.approx(CSCHLoss(context, scale=8.0)(batch).item(), rel=1e-5)


def test_an_image_of_no_class_says_nothing() -> None:
    positive = torch.zeros(12, 4, dtype=torch.bool)
    positive[1, 2] = True
    context = make_context(multilabel=True, positive=positive)
    both, alone = make_batch(context, [0, 1]), make_batch(context, [0, 1])
    own = replace(alone, logits=alone.logits[1:], index=alone.index[1:])
    assert OrthoHashLoss(context)(both).item() == pytest.approx(OrthoHashLoss(context)(own).item() / 2)


@pytest.mark.parametrize("multilabel", [False, True])
def test_it_learns(multilabel: bool) -> None:
    before, after = learns(OrthoHashLoss(make_context(multilabel)), make_context(multilabel))
    assert after > before + 0.3
