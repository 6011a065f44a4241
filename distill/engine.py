"""The training loop: plain torch, AdamW, cosine with warm-up, resumable bit for bit after a kill at any moment.

Nothing random is kept between steps: the order of an epoch and the crops of a step are drawn from (seed, epoch) and
(seed, step), so a run restarted from any checkpoint repeats what an uninterrupted one would have done.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from distill import distributed
from distill.checkpoint import Part, load_state, save_state
from distill.metrics_log import MetricsLogger, read_journal
from distill.models.hash_net import HashNet
from gallery.console import log, track
from gallery.errors import InputError

__all__ = [
    "OptimizedModule", "TrainSpec", "features", "fit", "forward", "in_full", "keep_freed_memory", "limit_threads",
    "read_journal",
]  # fmt: skip
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
CHECKPOINT_EVERY_S = 120.0
BETAS = (0.9, 0.99)  # of AdamW: runs of a few hundred steps have no use for a memory of a thousand


@dataclass(frozen=True)
class TrainSpec:
    """How long.  warmup: share of the steps; clip: of the norm of each learner's gradient.

    ema: decay a step of the moving average of the weights, which is then what is validated and kept; 0: none
    patience: epochs without a gain in validation after which training stops; the best epoch's weights are kept; 0: none
    """

    epochs: int
    batch: int
    warmup: float
    clip: float
    seed: int
    ema: float = 0.0
    patience: int = 0

    def steps_in_epoch(self, pictures: int) -> int:
        """Batches are full; what is left over waits for another epoch's order."""
        return max(1, pictures // self.batch)

    def rate(self, step: int, steps: int) -> float:
        """Share of the peak learning rate at `step`: linear warm-up, then half a cosine to zero."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@dataclass(frozen=True)
class OptimizedModule:
    """A network in training, or what else a loss learns or remembers.

    lr: peak learning rate; head_lr: that of `net.head` where it has one of its own; averaged: whether a moving average
    of its weights takes their place where the schedule asks for one
    """

    name: str
    net: nn.Module
    lr: float
    weight_decay: float
    head_lr: float | None = None
    averaged: bool = True

    def groups(self) -> list[dict[str, Any]]:
        """Parameters by peak rate and weight decay, which norms and biases are spared."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, p in self.net.named_parameters():
            peak = self.head_lr if self.head_lr is not None and name.startswith("head.") else self.lr
            groups.setdefault((peak, self.weight_decay if p.ndim > 1 else 0.0), []).append(p)
        return [{"params": own, "peak": peak, "weight_decay": decay} for (peak, decay), own in groups.items()]


Batch = Any
Prepare = Callable[[NDArray[np.int64], torch.Generator], Batch]  # rows and this step's generator -> what a step needs
HashLoss = Callable[[Any], tuple[Tensor, Tensor]]  # -> (loss, what is right: of rows, or of bits)


def fit(
    stage: str,
    learners: Sequence[OptimizedModule],
    prepare: Prepare,
    objective: HashLoss,
    rows: NDArray[np.int64],
    schedule: TrainSpec,
    validate: Callable[[], float | None],
    folder: Path,
    key: str,
) -> None:
    """Trains the learners' networks in place by one loss, resuming from `folder`'s checkpoint of this stage and key.

    prepare: runs a step ahead, in a thread; among several processes it gets the rows of the whole batch in each, and
    loads `distributed.shard` of them.  validate: sees the weights that would be kept; never called beside training.
    Raises `InputError` where `schedule.patience` has no validation to go by.
    """
    training = _FitState(stage, learners, schedule, validate, folder, key, schedule.steps_in_epoch(len(rows)))
    draws = _draws(rows, schedule, training.first, training.steps)
    gpu = torch.cuda.current_device() if torch.cuda.is_available() else -1  # threads forget it
    with ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(gpu,)) as pool:
        batches = _ahead(pool, prepare, draws, training.journal)
        for step in training.left():
            training.learn(step, objective, next(batches))
    training.finish()


def forward(net: HashNet) -> Callable[[Tensor], Tensor]:
    """`net` as a function of normalised pictures to logits; see `in_full`."""
    run = in_full(net)
    return lambda images: run(images)[1]


def in_full(net: HashNet) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """`net` as a function of normalised pictures to features and logits: as in `features`, the head never in bf16.

    In training among several processes each gives its own pictures and gets what is said of all.
    """
    run = features(net)

    def both(images: Tensor) -> tuple[Tensor, Tensor]:
        seen = run(images)
        seen = distributed.all_gather(seen) if net.training else seen
        return seen, net.head(seen)

    return both


def features(net: HashNet) -> Callable[[Tensor], Tensor]:
    """The backbone of `net` as a function of normalised pictures to `[B, D]` of their dtype, in bf16 where that pays.

    bf16 pays on GPUs, and on CPUs with bf16 units, but not for networks with hard swishes.
    Measured on 2 cores: ViT-B trains 2.4 times faster, EfficientNet-lite2 and MobileNetV2 1.6 times, MobileNetV3 1.4
    to 1.7 times slower.
    """
    capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    on_cpu = capable and not any(isinstance(module, nn.Hardswish) for module in net.modules())

    def seen(images: Tensor) -> Tensor:
        device = images.device.type
        with torch.autocast(device, torch.bfloat16, enabled=on_cpu or device == "cuda"):
            out: Tensor = net.backbone(images)
        return out.to(images.dtype)

    return seen


def limit_threads() -> int:
    """Threads = this process's share of the cores; two greedy jobs on two cores were seen to run 100 times slower."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    torch.set_num_threads(threads)
    return threads


def keep_freed_memory() -> None:
    """Has glibc keep what one step frees for the next, where it would give large blocks back and fetch them anew.

    Measured on 2 cores: MobileNetV2 and EfficientNet-lite2 train 1.2 times faster, crops are made 2 times faster.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def _draws(
    rows: NDArray[np.int64], schedule: TrainSpec, first: int, steps: int
) -> Iterator[tuple[NDArray[np.int64], torch.Generator]]:
    """The rows and the generator of each step."""
    epoch_steps, order = schedule.steps_in_epoch(len(rows)), rows
    for step in range(first, steps):
        epoch, place = divmod(step, epoch_steps)
        if step == first or place == 0:
            order = np.random.default_rng((schedule.seed, epoch)).permutation(rows)
        generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + step)
        yield order[place * schedule.batch : (place + 1) * schedule.batch], generator


def _ahead(
    pool: ThreadPoolExecutor,
    prepare: Prepare,
    draws: Iterator[tuple[NDArray[np.int64], torch.Generator]],
    journal: MetricsLogger,
) -> Iterator[Batch]:
    """Batches, of which the next is under way while one is used."""
    futures = (pool.submit(prepare, *draw) for draw in draws)
    coming = next(futures, None)
    while coming:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # nobody waits while the GPU works; costs the lead of a few launches a step
        start = time.monotonic()
        batch = coming.result()
        journal.waited += time.monotonic() - start
        coming = next(futures, None)
        yield batch


class _ModuleState:
    """A learner with its optimizer and, where there is one, the moving average of its weights."""

    def __init__(self, learner: OptimizedModule, schedule: TrainSpec) -> None:
        distributed.convert_sync_batchnorm(learner.net)
        self.net, self.clip, self.average, self.optimizer = learner.net, schedule.clip, None, None
        self.parts: dict[str, Part] = {f"{learner.name}.net": self.net}
        if groups := learner.groups():  # a loss may have none
            self.optimizer = torch.optim.AdamW(groups, betas=BETAS, fused=True)
            self.parts[f"{learner.name}.optimizer"] = self.optimizer
        if schedule.ema and learner.averaged:
            average = get_ema_multi_avg_fn(schedule.ema)
            self.average = AveragedModel(self.net, multi_avg_fn=average, use_buffers=True)
            self.parts[f"{learner.name}.average"] = self.average

    def update(self, rate: float) -> None:
        """A step along the gradients of this learner's parameters, at a share of the peak rates."""
        if not self.optimizer:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        distributed.average_gradients(self.net.parameters())
        nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
        self.optimizer.step()
        if self.average:
            self.average.update_parameters(self.net)

    def swap(self) -> None:
        """Exchanges the network's weights and their average, if there is one."""
        if self.average:
            own = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
            self.net.load_state_dict(self.average.module.state_dict())
            self.average.module.load_state_dict(own)


class _FitState:
    """One call of `fit`: the trainees, and the files that let another process go on."""

    def __init__(
        self,
        stage: str,
        learners: Sequence[OptimizedModule],
        schedule: TrainSpec,
        validate: Callable[[], float | None],
        folder: Path,
        key: str,
        epoch_steps: int,
    ) -> None:
        self.stage, self.schedule, self.validate, self.key = stage, schedule, validate, key
        self.state, self.best = (folder / f"{stage}.{what}.safetensors" for what in ("checkpoint", "best"))
        self.trainees = [_ModuleState(learner, schedule) for learner in learners]
        self.parts = {name: part for trainee in self.trainees for name, part in trainee.parts.items()}
        self.nets = {learner.name: learner.net for learner in learners}
        self.epoch_steps, self.steps = epoch_steps, epoch_steps * schedule.epochs
        with distributed.main_process_first():
            self.first = load_state(self.state, self.parts, key)
            self.journal = MetricsLogger(folder.parent / "train.jsonl", stage, self.first, epoch_steps)
        self.saved = time.monotonic()
        if self.first:
            log.info("  resuming %s at step %d of %d", stage, self.first, self.steps)
        elif schedule.patience and self.judge() is None:
            fix = "Raise --validation-fraction, or set patience to 0."
            raise InputError("validation pictures, to know when to stop", "none", fix)

    def left(self) -> Iterator[int]:
        """The steps to do; fewer once patience is lost."""
        steps = range(self.first, self.steps)
        for step in track(steps, self.stage, self.steps, self.first) if distributed.is_main_process() else steps:
            if 0 < self.schedule.patience <= self.journal.since_best:
                log.info("  %s stops: no gain in validation for %d epochs", self.stage, self.schedule.patience)
                return
            yield step

    def learn(self, step: int, objective: HashLoss, batch: Batch) -> None:
        """One step, and what there is to write after it."""
        for trainee in self.trainees:
            trainee.net.train()
            trainee.net.zero_grad(set_to_none=True)
        with self.random(step):
            loss, accuracy = objective(batch)
        loss.backward()
        for trainee in self.trainees:
            trainee.update(self.schedule.rate(step, self.steps))
        self.journal.note(step + 1, loss, accuracy)
        ends = (step + 1) % self.epoch_steps == 0
        if ends:
            self.end_epoch(step + 1)
        if ends or time.monotonic() - self.saved > CHECKPOINT_EVERY_S:
            self.write(self.state, self.parts, step + 1)
            self.saved = time.monotonic()

    @contextmanager
    def random(self, step: int) -> Iterator[None]:
        """What dropout draws in a step depends on the step and the process alone; the global state stays as it was."""
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
            torch.manual_seed((self.schedule.seed * 1_000_003 + step) * 1_009 + distributed.rank())
            yield

    def end_epoch(self, step: int) -> None:
        """Judges the weights that would be kept, and puts the best aside."""
        self.swap()
        self.journal.end_epoch(step, self.judge())
        if self.schedule.patience and self.journal.since_best == 0:
            self.write(self.best, self.nets, step)  # before the checkpoint, whose resumption counts on it
        self.swap()

    def swap(self) -> None:
        """Exchanges all networks' weights and their averages."""
        for trainee in self.trainees:
            trainee.swap()

    def judge(self) -> float | None:
        """The validation of the weights as they are, by the first process."""
        return distributed.broadcast_scalar(self.validate() if distributed.is_main_process() else None)

    def write(self, path: Path, parts: Mapping[str, Part], step: int) -> None:
        """A state on disk, by the first process."""
        if distributed.is_main_process():
            save_state(path, parts, step, self.key)

    def finish(self) -> None:
        """Leaves the averaged, the best, or the last weights in the networks, the same in every process."""
        self.swap()
        if self.schedule.patience > 0 and distributed.is_main_process() and self.best.exists():
            load_state(self.best, self.nets, self.key)
            self.swap()
            self.write(self.state, self.parts, self.steps)  # a process that resumes here needs the best ones no more
            self.swap()
            self.best.unlink()
        for net in self.nets.values():
            distributed.broadcast_parameters(net)
            net.eval()
