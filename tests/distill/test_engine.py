"""The loop: it learns, repeats itself bit for bit, and a killed run ends where an unbroken one does."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill import engine
from distill.engine import Schedule, fit, forward, read_journal

SCHEDULE = Schedule(epochs=3, batch=8, lr=0.01, weight_decay=0.05, warmup=0.1, clip=1.0, seed=3)
ROWS = np.arange(40)


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the loop may catch it."""


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def train(model: nn.Module, folder: Path, die_at: int | None = None, key: str = "k") -> list[int]:
    data = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    seen: list[int] = []

    def objective(rows: np.ndarray, generator: torch.Generator, step: int) -> tuple[Tensor, Tensor]:
        if step == die_at:
            raise Killed
        seen.extend(rows.tolist())
        x = data[rows] + 0.1 * torch.randn(len(rows), 6, generator=generator)
        y = (data[rows, 0] > 0).long()
        out = model(x)
        return nn.functional.cross_entropy(out, y), (out.argmax(1) == y).float().mean()

    (folder / "work").mkdir(exist_ok=True)
    fit("teacher", model, objective, ROWS, SCHEDULE, lambda: 0.5, folder / "work", key)
    return seen


def test_it_learns_and_sees_every_picture_once_an_epoch(tmp_path: Path) -> None:
    seen = train(net(), tmp_path)
    assert sorted(seen[:40]) == list(range(40))
    assert seen[:40] != seen[40:80]
    points = read_journal(tmp_path / "train.jsonl")
    assert points[-1].loss < points[0].loss
    assert [p.step for p in points if p.validation is not None] == [5, 10, 15]


@pytest.mark.parametrize("die_at", [0, 3, 5, 7, 14])
@pytest.mark.parametrize("every_s", [0.0, 1e9])
def test_killed_anywhere_it_ends_bit_for_bit_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, die_at: int, every_s: float
) -> None:
    monkeypatch.setattr(engine, "CHECKPOINT_EVERY_S", every_s)
    whole, broken = tmp_path / "a", tmp_path / "b"
    whole.mkdir(), broken.mkdir()
    unbroken = net()
    train(unbroken, whole)
    with pytest.raises(Killed):
        train(net(), broken, die_at)
    resumed = net()
    train(resumed, broken)
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    steps = [p.step for p in read_journal(broken / "train.jsonl")]
    assert steps == sorted(set(steps)) == [p.step for p in read_journal(whole / "train.jsonl")]


def test_a_checkpoint_of_something_else_is_not_taken_up(tmp_path: Path) -> None:
    train(net(), tmp_path, key="one data set")
    assert len(train(net(), tmp_path, key="another")) == 120


def test_a_line_cut_by_a_kill_is_dropped(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(net(), tmp_path, die_at=7)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"stage": "teach')
    train(net(), tmp_path)
    assert [json.loads(line)["step"] for line in (tmp_path / "train.jsonl").read_text().splitlines()][-1] == 15


def test_the_global_random_state_is_left_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    train(net(), tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())


def test_rate_warms_up_then_falls_to_zero_along_a_cosine() -> None:
    rates = [SCHEDULE.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.001)
    assert rates[9] == pytest.approx(0.01)
    assert rates[55] == pytest.approx(0.01 * 0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert rates[-1] < 1e-5
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_forward_keeps_the_head_in_fp32() -> None:
    from distill.models import build

    model = build("vit_tiny_patch16_224", 32, 16, seed=0).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = forward(model, torch.device("cpu"))(images)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, model(images), atol=0.05 * model(images).abs().max().item())
