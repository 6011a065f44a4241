"""OrthoHash against loops over pictures and classes."""

import math

import pytest
import torch

from distill.losses.csch import CSCHLoss
from distill.losses.orthohash import OrthoHashLoss
from tests.distill.losses.factories import learns, seen, task


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("scale", "margin"), [(8.0, 0.2), (4.0, 0.3)])
def test_smoothed_labels_and_a_margin_on_each(several: bool, scale: float, margin: float) -> None:
    of = task(several)
    batch, slow = seen(of, [3, 0, 11, 7]), 0.0
    for row, h in zip(batch.rows.tolist(), batch.logits.tolist(), strict=True):
        own = of.positive[row].tolist()
        powers = [
            math.exp(scale * (cosine(h, word) - margin * mine))
            for word, mine in zip(of.words.tolist(), own, strict=True)
        ]
        for power, mine in zip(powers, own, strict=True):
            slow -= mine / sum(own) * math.log(power / sum(powers)) / 4
    assert OrthoHashLoss(of, scale=scale, margin=margin)(batch).item() == pytest.approx(slow, rel=1e-5)


def test_with_one_class_it_is_the_center_term_of_csch() -> None:
    of = task()
    batch = seen(of, [0, 5, 6])
    assert OrthoHashLoss(of)(batch).item() == pytest.approx(CSCHLoss(of)(batch).item(), rel=1e-5)


def test_a_picture_of_no_class_says_nothing() -> None:
    positive = torch.zeros(12, 4, dtype=torch.bool)
    positive[1, 2] = True
    of = task(several=True, positive=positive)
    both, alone = seen(of, [0, 1]), seen(of, [0, 1])
    own = alone._replace(logits=alone.logits[1:], rows=alone.rows[1:])
    assert OrthoHashLoss(of)(both).item() == pytest.approx(OrthoHashLoss(of)(own).item() / 2)


@pytest.mark.parametrize("several", [False, True])
def test_it_learns(several: bool) -> None:
    before, after = learns(OrthoHashLoss(task(several)), task(several))
    assert after > before + 0.3
