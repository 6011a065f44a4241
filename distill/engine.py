"""The training loop: plain torch, AdamW, cosine with warm-up, resumable bit for bit after a kill at any moment.

Nothing random is kept between steps: the order of an epoch and the crops of a step are drawn from (seed, epoch) and
(seed, step), so a run restarted from any checkpoint repeats what an uninterrupted one would have done.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.checkpoint import load_state, save_state
from distill.models import HashNet, made_of_products
from gallery.console import log, track

CHECKPOINT_EVERY_S = 120.0
BETAS = (0.9, 0.99)  # of AdamW: runs of a few hundred steps have no use for a memory of a thousand


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.  lr: peak learning rate; warmup: share of the steps; clip: of the gradient's norm."""

    epochs: int
    batch: int
    lr: float
    weight_decay: float
    warmup: float
    clip: float
    seed: int

    def steps_in_epoch(self, pictures: int) -> int:
        """Batches are full; what is left over waits for another epoch's order."""
        return max(1, pictures // self.batch)

    def rate(self, step: int, steps: int) -> float:
        """Learning rate at `step`: linear warm-up, then half a cosine to zero."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return self.lr * (step + 1) / warm
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@dataclass(frozen=True)
class Point:
    """One line of `train.jsonl`: means over the steps since the last one; validation only at the end of an epoch."""

    stage: str
    step: int
    epoch: float
    loss: float
    accuracy: float
    validation: float | None
    seconds: float


# (rows of this batch, generator of this step, step) -> (loss, share of rows nearest to their own center)
Objective = Callable[[NDArray[np.int64], torch.Generator, int], tuple[Tensor, Tensor]]


def fit(
    stage: str,
    net: nn.Module,
    objective: Objective,
    rows: NDArray[np.int64],
    schedule: Schedule,
    validate: Callable[[], float | None],
    folder: Path,
    key: str,
) -> None:
    """Trains `net` in place on `rows` (picture indices), resuming from `folder`'s checkpoint of this stage and key."""
    state = folder / f"{stage}.checkpoint.safetensors"
    optimizer = _optimizer(net, schedule)
    first = load_state(state, net, optimizer, key)
    epoch_steps = schedule.steps_in_epoch(len(rows))
    steps = epoch_steps * schedule.epochs
    journal = _Journal(folder.parent / "train.jsonl", stage, first, epoch_steps)
    if first:
        log.info("  resuming %s at step %d of %d", stage, first, steps)
    saved, order = time.monotonic(), rows
    for step in track(range(first, steps), stage, steps, first):
        epoch, place = divmod(step, epoch_steps)
        if step == first or place == 0:
            order = np.random.default_rng((schedule.seed, epoch)).permutation(rows)
        batch = order[place * schedule.batch : (place + 1) * schedule.batch]
        generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + step)
        net.train()
        loss, accuracy = objective(batch, generator, step)
        _update(net, optimizer, loss, schedule, schedule.rate(step, steps))
        last = place == epoch_steps - 1
        journal.note(step + 1, loss, accuracy, validate() if last else None, last)
        if last or time.monotonic() - saved > CHECKPOINT_EVERY_S:
            save_state(state, net, optimizer, step + 1, key)
            saved = time.monotonic()
    net.eval()


def read_journal(path: Path) -> list[Point]:
    """The points of `train.jsonl`, in order."""
    return [Point(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def forward(net: HashNet, device: torch.device) -> Callable[[Tensor], Tensor]:
    """`net` as a function of normalised pictures: the backbone in bf16 where that pays, the head always in fp32.

    bf16 pays on GPUs, and on CPUs with bf16 units for networks made of matrix products.  Measured on 2 cores at 64 px:
    ViT-B trains 2.4 times faster in bf16, MobileNetV3-Large 1.7 times slower.
    """
    capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    bf16 = device.type == "cuda" or (made_of_products(net) and capable)

    def logits(images: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            features = net.backbone(images)
        out: Tensor = net.head(features.float())
        return out

    return logits


def limit_threads() -> int:
    """Threads = the cores this process may use; two greedy jobs on two cores were seen to run 100 times slower."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(cores)
    return cores


def _optimizer(net: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    decayed = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim <= 1]  # norms and biases
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=schedule.lr, betas=BETAS, fused=True)


def _update(net: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, schedule: Schedule, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), schedule.clip)
    optimizer.step()


class _Journal:
    """Writes `train.jsonl`; lines that a killed run wrote past its last checkpoint are dropped on resume."""

    def __init__(self, path: Path, stage: str, first: int, epoch_steps: int) -> None:
        self.path, self.stage, self.epoch_steps = path, stage, epoch_steps
        self.every = max(1, epoch_steps // 10)
        self.pending: list[Tensor] = []
        self.start = time.monotonic()
        kept = [p for p in _complete_lines(path) if p.stage != stage or p.step <= first]
        path.write_text("".join(_line(p) for p in kept))

    def note(self, step: int, loss: Tensor, accuracy: Tensor, validation: float | None, epoch_ends: bool) -> None:
        """Adds a step; every tenth of an epoch the means go to the file."""
        self.pending.append(torch.stack([loss.detach(), accuracy.detach()]))  # read rarely: a read waits for a GPU
        if step % self.every and not epoch_ends:
            return
        means = torch.stack(self.pending).mean(0).tolist()
        point = Point(
            self.stage,
            step,
            step / self.epoch_steps,
            round(means[0], 5),
            round(means[1], 4),
            validation,
            round(time.monotonic() - self.start, 2),
        )
        self.pending.clear()
        with self.path.open("a") as file:
            file.write(_line(point))
        if epoch_ends:
            shown = "none" if validation is None else f"{validation:.3f}"
            log.info(
                "  %s epoch %g: loss %.3f, train accuracy %.3f, validation accuracy %s",
                self.stage,
                point.epoch,
                point.loss,
                point.accuracy,
                shown,
            )


def _line(point: Point) -> str:
    return json.dumps(point.__dict__) + "\n"


def _complete_lines(path: Path) -> Iterable[Point]:
    try:
        return read_journal(path)
    except (ValueError, TypeError):  # a kill in the middle of a line: what follows it was written before it was read
        lines = path.read_text().splitlines()
        path.write_text("".join(f"{line}\n" for line in lines[:-1]))
        return read_journal(path)
