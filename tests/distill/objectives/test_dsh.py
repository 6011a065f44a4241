"""DSH against loops over pictures and bits, and its bank."""

import copy

import numpy as np
import pytest
import torch
from tasks import learns, seen, sharing, task

from distill.objectives.base import Task
from distill.objectives.dsh import METHOD


def slow(of: Task, rows: list[int], logits: np.ndarray, bank: dict[int, np.ndarray]) -> float:
    positive, terms = of.positive.numpy(), []
    for i, u in zip(rows, logits, strict=True):
        for j, other in bank.items():
            if j != i:
                d = sum((a - b) ** 2 for a, b in zip(u, other, strict=True))
                terms.append(0.5 * (d if sharing(positive[i], positive[j]) else max(0.0, 2 * of.bits - d)))
    off = [abs(abs(a) - 1) for u in logits for a in u]
    return sum(terms) / len(terms) + 0.1 * sum(off) / len(off)


@pytest.mark.parametrize("several", [False, True])
def test_by_loops_over_the_batch_and_all_that_were_seen(several: bool) -> None:
    of, bank = task(several), {}
    dsh = METHOD(of)
    for step, rows in enumerate(([0, 1, 4, 9], [1, 2, 3, 5])):
        batch = seen(of, rows, step)
        logits = batch.logits.detach().numpy().astype(float)
        bank |= dict(zip(rows, logits, strict=True))  # 1 anew, and nothing yet of 6, 7, 8, 10, 11
        assert dsh(batch).item() == pytest.approx(slow(of, rows, logits, bank), rel=1e-5)


def test_learns() -> None:
    before, after = learns(METHOD(task()), task())
    assert after > before + 0.5


def test_goes_on_from_its_state_and_only_training_changes_it() -> None:
    of = task()
    dsh, other = METHOD(of), METHOD(of)
    dsh(seen(of, [0, 1, 2, 3]))
    other.load_state_dict(dsh.state_dict())
    batch = seen(of, [3, 4, 5], 1)
    assert other(batch).item() == dsh(batch).item() != METHOD(of)(batch).item()
    kept = copy.deepcopy(dsh.state_dict())
    assert dsh.eval()(seen(of, [6, 7], 2)).isfinite()
    assert all(torch.equal(kept[name], tensor) for name, tensor in dsh.state_dict().items())


def test_extreme_logits_and_a_lone_picture() -> None:
    of = task()
    for scale, rows in ((1e4, [0, 1, 4]), (0.0, [0, 1, 4]), (1.0, [2])):
        batch = seen(of, rows)
        logits = (scale * batch.logits).detach().requires_grad_()
        assert torch.autograd.grad(METHOD(of)(batch._replace(logits=logits)), logits)[0].isfinite().all()
