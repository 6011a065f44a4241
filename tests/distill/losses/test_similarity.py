"""Similarity preservation against loops over images, alone and beside the centers of CSCH."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.losses.base import UnlabeledBatch
from distill.losses.csch import CSCHLoss
from distill.losses.similarity import QUANTIZATION, SimilarityLoss, quantization_loss, similarity_preservation
from tests.distill.losses.factories import make_batch, make_context


def cosine(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True)) / (math.hypot(*left) * math.hypot(*right))


def slow_divergence(logits: list[list[float]], reference: list[list[float]], warm: float, cold: float) -> float:
    """The mean KL of the module text, image by image."""
    total = 0.0
    for i in range(len(logits)):
        others = [j for j in range(len(logits)) if j != i]
        wanted = [math.exp(cosine(reference[i], reference[j]) / warm) for j in others]
        found = [math.exp(cosine(logits[i], logits[j]) / cold) for j in others]
        for p, q in zip(wanted, found, strict=True):
            total += p / sum(wanted) * math.log((p / sum(wanted)) / (q / sum(found)))
    return total / len(logits)


@settings(deadline=None, max_examples=30)
@given(st.integers(3, 9), st.integers(0, 1000), st.sampled_from([0.07, 0.3]), st.sampled_from([0.15, 1.0]))
def test_it_is_the_divergence_of_neighbors(count: int, seed: int, warm: float, cold: float) -> None:
    rng = np.random.default_rng(seed)
    logits, reference = rng.normal(size=(count, 16)), rng.normal(size=(count, 10))
    fast = similarity_preservation(torch.from_numpy(logits), torch.from_numpy(reference), warm, cold)
    assert float(fast) == pytest.approx(slow_divergence(logits.tolist(), reference.tolist(), warm, cold), rel=1e-4)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_images_have_no_neighbors(count: int) -> None:
    logits = torch.ones(count, 16, requires_grad=True)
    loss = similarity_preservation(logits, torch.ones(count, 10))
    loss.backward()
    assert (loss.item(), logits.grad is not None) == (0.0, True)


def test_no_gradient_reaches_the_reference() -> None:
    reference = torch.randn(5, 10, requires_grad=True)
    similarity_preservation(torch.randn(5, 16, requires_grad=True), reference).backward()
    assert reference.grad is None


def test_free_logits_take_the_neighbors_of_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.randn(4, 10, generator=generator).repeat_interleave(6, 0)
    reference = groups + 0.1 * torch.randn(24, 10, generator=generator)
    logits = torch.randn(24, 16, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (similarity_preservation(logits, reference) + QUANTIZATION * quantization_loss(logits)).backward()
        optimizer.step()
    near = torch.cdist(logits.sign(), logits.sign()).fill_diagonal_(torch.inf).argmin(1)
    assert (near // 6 == torch.arange(24) // 6).float().mean() > 0.9


def test_the_loss_takes_labeled_and_unlabeled_images_alike() -> None:
    context = make_context()
    rows, generator = [3, 0, 7], torch.Generator().manual_seed(0)
    batch = replace(make_batch(context, rows), reference=torch.randn(3, 10, generator=generator))
    others = UnlabeledBatch(torch.randn(4, 16, generator=generator), torch.randn(4, 10, generator=generator))
    assert batch.reference is not None
    logits, reference = torch.cat([batch.logits, others.logits]), torch.cat([batch.reference, others.reference])
    slow = slow_divergence(logits.tolist(), reference.tolist(), 0.07, 0.2)
    slow += 1.0 * float(np.mean([(abs(h) - 1) ** 2 for row in logits.tolist() for h in row]))
    assert SimilarityLoss(context)(replace(batch, unlabeled=others)).item() == pytest.approx(slow, rel=1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.3, 2.0])
def test_csch_adds_it_on_unlabeled_images_alone(weight: float) -> None:
    context, generator = make_context(), torch.Generator().manual_seed(0)
    batch = make_batch(context, [3, 0, 7])
    others = UnlabeledBatch(torch.randn(5, 16, generator=generator), torch.randn(5, 10, generator=generator))
    loss = CSCHLoss(context, similarity_weight=weight, temperature=0.3)
    kept = slow_divergence(others.logits.tolist(), others.reference.tolist(), 0.07, 0.3)
    kept += QUANTIZATION * float(np.mean([(abs(h) - 1) ** 2 for row in others.logits.tolist() for h in row]))
    expected = loss(batch).item() + weight * kept
    assert loss(replace(batch, unlabeled=others)).item() == pytest.approx(expected, rel=1e-4)
    assert CSCHLoss.uses_unlabeled(loss.options) == (weight > 0)
