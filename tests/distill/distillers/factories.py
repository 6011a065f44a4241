"""A gallery and a batch for a distiller under test, slow cosines, and the rules every distiller must follow."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.distillers import DISTILLERS
from distill.distillers.base import DistillBatch, DistillContext, Distiller
from distill.hash_centers.constructions import hash_centers

Rows = NDArray[np.float64]


def make_context(images: int = 40, bits: int = 16, classes: int = 4, of_codes: bool = False) -> DistillContext:
    """A gallery of images round four centers, of which some have the same code."""
    words = torch.from_numpy(hash_centers(classes, bits)).double()
    noise = torch.randn(images, bits, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gallery = words[torch.arange(images) % classes] + 0.9 * noise
    return DistillContext(words, torch.where(gallery > 0, 1.0, -1.0).double() if of_codes else gallery)


def make_batch(context: DistillContext, count: int = 6, labeled: int = 4, seed: int = 0) -> DistillBatch:
    """What two networks may say of images of the gallery; the first ones have a class, every other one two."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(count, context.centers.shape[1], generator=generator, dtype=torch.float64).requires_grad_()
    rows = torch.arange(labeled)
    positive = torch.zeros(labeled, len(context.centers), dtype=torch.bool)
    positive[rows, rows % len(context.centers)] = True
    positive[rows[::2], (rows[::2] + 1) % len(context.centers)] = True
    return DistillBatch(student, context.gallery[:count].clone().requires_grad_(), positive)


def cosine(a: Rows, b: Rows) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def looked_at(logits: Tensor, signs: int) -> Rows:
    """The teacher's rows as a term sees them."""
    found: Rows = logits.detach().numpy()
    return np.where(found > 0, 1.0, -1.0) if signs else found


def neighbor_case(signs: int) -> tuple[DistillContext, DistillBatch, Rows, Rows]:
    """A context and a batch, and the teacher's rows of both as a term sees them, the gallery's codes once each."""
    context = make_context()
    batch, gallery = make_batch(context), looked_at(context.gallery, signs)
    return context, batch, distinct(gallery) if signs else gallery, looked_at(batch.teacher, signs)


def distinct(rows: Rows) -> Rows:
    """Each row once, where it first occurs."""
    return np.array(list({tuple(row): row for row in rows}.values()))


def nearest(row: Rows, others: Rows, k: int) -> list[int]:
    """The k of `others` that are nearest, nearest first; the k-th must be nearer than the next."""
    order = sorted(range(len(others)), key=lambda j: -cosine(row, others[j]))
    if k < len(order):
        assert cosine(row, others[order[k - 1]]) > cosine(row, others[order[k]]) + 1e-9, "a tie at the cut"
    return order[:k]


def rotation(bits: int) -> Tensor:
    square = torch.randn(bits, bits, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return torch.linalg.qr(square)[0]


def holds_to_the_rules(name: str, uses_teacher: bool = True) -> None:
    """What is asked of any distiller: gradients, labels, rotations, small batches, extreme logits."""
    context = make_context()
    for options in ({}, {"signs": 0}) if uses_teacher else ({},):
        distiller = DISTILLERS.build(name, context, options)
        batch = make_batch(context)
        distiller(batch).backward()
        assert batch.teacher.grad is None
        assert batch.student.grad is not None
        reached = batch.student.grad.abs().sum(1) > 0
        assert reached.tolist() == [True] * 4 + [uses_teacher] * 2  # the last two have no label
        home = distiller(batch._replace(student=batch.teacher.detach())).item()
        turned = distiller(batch._replace(student=batch.teacher.detach() @ rotation(16))).item()
        assert turned > home + 0.05 * distiller.weight
        small(distiller, context)
        extreme(distiller, context)


def small(distiller: Distiller, context: DistillContext) -> None:
    """Batches of one and two, with and without a label, have a finite loss and gradient."""
    for count in (1, 2):
        for labeled in (0, 1):
            batch = make_batch(context, count, labeled)
            loss = distiller(batch)
            loss.backward()
            assert loss.isfinite()
            assert batch.student.grad is not None
            assert batch.student.grad.isfinite().all()


def extreme(distiller: Distiller, context: DistillContext) -> None:
    """Neither huge logits nor a student that agrees in all makes a loss or a gradient that is no number."""
    for said in (1e6 * make_batch(context).student, make_batch(context).teacher, -make_batch(context).teacher):
        student = said.detach().clone().requires_grad_()
        loss = distiller(make_batch(context)._replace(student=student))
        loss.backward()
        assert loss.isfinite()
        assert student.grad is not None
        assert student.grad.isfinite().all()


def agreement(distiller: Distiller, batch: DistillBatch, steps: int = 300, lr: float = 0.05) -> tuple[float, float]:
    """The share of bits in which free logits agree with the teacher's signs, before and after training."""
    free = batch.student.detach().clone().requires_grad_()
    before = _agree(free, batch.teacher)
    optimizer = torch.optim.Adam([free], lr)
    for _ in range(steps):
        optimizer.zero_grad()
        distiller(batch._replace(student=free)).backward()
        optimizer.step()
    return before, _agree(free, batch.teacher)


def _agree(student: Tensor, teacher: Tensor) -> float:
    return ((student > 0) == (teacher > 0)).double().mean().item()
