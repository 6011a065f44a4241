"""CSCH's terms against loops over images and classes."""

import math

import numpy as np
import pytest
import torch

from distill.distillers import csch
from distill.distillers.csch import instance_consistency
from distill.hash_centers.constructions import hash_centers
from distill.hash_centers.multilabel import target_codes
from distill.losses.csch import center_consistency


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def pair(count: int = 5, bits: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, count, bits, generator=generator, dtype=torch.float64)
    return both[0].clone().requires_grad_(), both[1].clone().requires_grad_()


def slow_center_consistency(h: np.ndarray, target: np.ndarray, centers: np.ndarray, classes: list[set[int]]) -> float:
    losses = []
    for row, word, own in zip(h, target, classes, strict=True):
        right = math.exp(8 * (cosine(row, word) - 0.2))
        wrong = sum(math.exp(8 * cosine(row, t)) for c, t in enumerate(centers) if c not in own)
        losses.append(-math.log(right / (right + wrong)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_center_consistency_single_label(dtype: torch.dtype) -> None:
    centers = hash_centers(10, 32)
    labels = np.array([0, 3, 9, 9])
    h = torch.randn(4, 32, generator=torch.Generator().manual_seed(0), dtype=dtype)
    words = torch.from_numpy(centers).to(dtype)
    positive = torch.from_numpy(np.eye(10, dtype=bool)[labels])
    loss = center_consistency(h, words[labels], words, positive)
    slow = slow_center_consistency(h.numpy().astype(float), centers[labels], centers, [{c} for c in labels])
    assert loss.item() == pytest.approx(slow, rel=1e-5)


def test_center_consistency_multi_label() -> None:
    centers = hash_centers(6, 16)
    hot = np.zeros((3, 6), bool)
    hot[0, [1, 2]] = hot[1, [0, 3, 5]] = hot[2, 4] = True
    target = target_codes(hot, centers)
    h = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    loss = center_consistency(
        h, torch.from_numpy(target).float(), torch.from_numpy(centers).float(), torch.from_numpy(hot)
    )
    slow = slow_center_consistency(h.numpy().astype(float), target, centers, [set(np.flatnonzero(r)) for r in hot])
    assert loss.item() == pytest.approx(slow, rel=1e-5)


def test_instance_consistency_is_the_squared_distance_to_the_teachers_sign() -> None:
    student = torch.tensor([[0.5, -2.0], [1.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[3.0, 0.0], [-0.1, 7.0]], requires_grad=True)
    loss = instance_consistency(student, teacher)
    slow = ((0.5 - 1) ** 2 + (-2 + 1) ** 2 + (1 + 1) ** 2 + (0 - 1) ** 2) / 4
    assert loss.item() == pytest.approx(slow)
    loss.backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_the_losses_pull_where_they_should() -> None:
    centers = torch.from_numpy(hash_centers(4, 16)).float()
    positive = torch.eye(4, dtype=torch.bool)[[2]]
    at_home = center_consistency(centers[[2]], centers[[2]], centers, positive)
    astray = center_consistency(centers[[1]], centers[[2]], centers, positive)
    assert at_home < 0.1 < astray


def test_instance_consistency_in_every_form() -> None:
    student, teacher = pair()
    h, g = student.detach().numpy(), teacher.detach().numpy()
    entries = [(i, k) for i in range(5) for k in range(16)]
    slow = {
        "raw": sum((h[e] - g[e]) ** 2 for e in entries) / len(entries),
        "joint": sum((h[e] - g[e]) ** 2 for e in entries) / len(entries),
        "sign": sum((h[e] - (1 if g[e] > 0 else -1)) ** 2 for e in entries) / len(entries),
        "cosine": sum(1 - cosine(a, b) for a, b in zip(h, g, strict=True)) / 5,
    }
    for form, value in slow.items():
        student.grad = teacher.grad = None
        loss = instance_consistency(student, teacher, form)
        assert loss.item() == pytest.approx(value), form
        loss.backward()
        assert student.grad is not None
        assert (teacher.grad is not None) == (form == "joint")


def test_similarity_consistency_is_the_divergence_of_the_class_distributions() -> None:
    student, teacher = pair()
    centers = hash_centers(7, 16)

    def distribution(row: np.ndarray) -> np.ndarray:
        powers = np.array([math.exp(8 * cosine(row, t)) for t in centers])
        return powers / powers.sum()

    slow = 0.0
    for h, g in zip(student.detach().numpy(), teacher.detach().numpy(), strict=True):
        p, q = distribution(g), distribution(h)
        slow += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 5
    loss = csch.similarity_consistency(student, teacher, torch.from_numpy(centers).double())
    assert loss.item() == pytest.approx(slow)
    loss.backward()
    assert teacher.grad is None


def test_rank_consistency_by_loops_over_all_triples() -> None:
    student, teacher = pair(6)
    h, b = student.detach().numpy(), np.where(teacher.detach().numpy() > 0, 1.0, -1.0)
    terms = []
    for i in range(6):
        for j in range(6):
            for k in range(6):
                wanted = cosine(b[i], b[j]) - cosine(b[i], b[k])
                if wanted > 0:
                    terms.append(max(0.0, wanted - (cosine(h[i], b[j]) - cosine(h[i], b[k]))))
    assert csch.rank_consistency(student, teacher).item() == pytest.approx(sum(terms) / len(terms))
    assert csch.rank_consistency(torch.from_numpy(b), teacher).item() == pytest.approx(0)
    assert csch.rank_consistency(student[:1], teacher[:1]).item() == 0  # nothing to rank


def test_relation_consistency_by_loops_and_its_blindness_to_a_rotation() -> None:
    student, teacher = pair()
    h, g = student.detach().numpy(), teacher.detach().numpy()
    terms = [(cosine(h[i], h[j]) - cosine(g[i], g[j])) ** 2 for i in range(5) for j in range(5) if i != j]
    loss = csch.relation_consistency(student, teacher)
    assert loss.item() == pytest.approx(sum(terms) / len(terms))
    assert csch.relation_consistency(student[:1], teacher[:1]).item() == 0  # no pair to compare
    rotation = torch.linalg.qr(pair(16, seed=4)[0].detach())[0]
    assert csch.relation_consistency(student @ rotation, teacher).item() == pytest.approx(loss.item())
    assert csch.relation_consistency(teacher @ rotation, teacher).item() == pytest.approx(0, abs=1e-12)
    for anchored in (csch.instance_consistency, csch.rank_consistency):
        assert anchored(teacher @ rotation, teacher).item() > 2 * anchored(teacher, teacher).item() + 0.01


def test_bit_margin_loss() -> None:
    student = torch.tensor([[0.0, -0.3, 2.0, 0.5]])
    assert csch.bit_margin_loss(student).item() == pytest.approx((0.5 + 0.2 + 0 + 0) / 4)
