"""The training loop: plain torch, AdamW, cosine with warm-up, resumable bit for bit after a kill at any moment.

No random state is kept between steps: the order of an epoch and the crops of a step are sampled from (seed, epoch) and
(seed, step), so a run restarted from any checkpoint repeats what an uninterrupted one would have done.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from distill import distributed
from distill.checkpoint import Part, load_state, save_state
from distill.metrics_log import MetricsLogger
from gallery.console import log, track
from gallery.errors import InputError

CHECKPOINT_EVERY_S = 120.0
BETAS = (0.9, 0.99)  # of AdamW: the average over a thousand steps is too long for runs of a few hundred

Batch = Any
BatchFn = Callable[[NDArray[np.int64], torch.Generator], Batch]  # rows and this step's generator -> what a step needs
LossFn = Callable[[Any], tuple[Tensor, Tensor]]  # batch -> (loss, accuracy)
ValidateFn = Callable[[], float | None]


@dataclass(frozen=True)
class TrainSpec:
    """How a network is trained.

    lr: peak learning rate; warmup_ratio: share of the steps; clip_grad: largest norm of each module's gradient
    crop_min_scale: smallest share of an image's area that a crop shows
    model_ema_decay: a step, of the moving average of the weights that is validated and kept; 0: none
    early_stopping_patience: epochs without a gain in validation after which training stops with the best weights; 0:
    never
    """

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup_ratio: float
    clip_grad: float
    seed: int
    crop_min_scale: float = 1.0
    model_ema_decay: float = 0.0
    early_stopping_patience: int = 0

    def steps_per_epoch(self, rows: int) -> int:
        """Return the number of full batches; the remaining rows are left out of the epoch."""
        return max(1, rows // self.batch_size)

    def lr_factor(self, step: int, steps: int) -> float:
        """Return the share of the peak learning rate at `step`: linear warm-up, then half a cosine to zero."""
        warmup = max(1, round(self.warmup_ratio * steps))
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class Checkpoint(NamedTuple):
    """Where a stage keeps its state; a state with another key is not resumed."""

    directory: Path
    stage: str
    key: str


class Batches(NamedTuple):
    """A training set by rows: their number, and the function that loads a batch of them."""

    num_rows: int
    load: BatchFn


@dataclass(frozen=True)
class OptimizedModule:
    """A network in training, or a loss with parameters and buffers.

    lr: peak learning rate; head_lr: that of `module.head` where it differs; averaged: whether a moving average of its
    weights is kept where the training has one
    """

    name: str
    module: nn.Module
    lr: float
    weight_decay: float
    head_lr: float | None = None
    averaged: bool = True

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return parameters by peak learning rate and weight decay; norms and biases have no decay."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, p in self.module.named_parameters():
            peak = self.head_lr if self.head_lr is not None and name.startswith("head.") else self.lr
            groups.setdefault((peak, self.weight_decay if p.ndim > 1 else 0.0), []).append(p)
        return [{"params": own, "peak": peak, "weight_decay": decay} for (peak, decay), own in groups.items()]


def fit(
    modules: Sequence[OptimizedModule],
    batches: Batches,
    loss_fn: LossFn,
    spec: TrainSpec,
    checkpoint: Checkpoint,
    validate: ValidateFn = lambda: None,
) -> None:
    """Train the modules in place by one loss, resuming from the checkpoint.

    batches: loaded a step ahead, in a thread; among several processes `load` gets the rows of the whole batch in each,
    and loads `distributed.shard` of them.  validate: sees the weights that would be kept; never called beside training.
    Raises `InputError` where `spec.early_stopping_patience` has no validation images.
    """
    training = _FitState(modules, spec, checkpoint, spec.steps_per_epoch(batches.num_rows), validate)
    samples = _epoch_batches(batches.num_rows, spec, training.first_step, training.steps)
    gpu = torch.cuda.current_device() if torch.cuda.is_available() else -1  # threads forget it
    with ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(gpu,)) as pool:
        loaded = _prefetch(pool, batches.load, samples, training.metrics)
        for step in training.remaining_steps():
            training.training_step(step, loss_fn, next(loaded))
    training.finalize()


def _epoch_batches(
    num_rows: int, spec: TrainSpec, first_step: int, steps: int
) -> Iterator[tuple[NDArray[np.int64], torch.Generator]]:
    """Yield the rows and the generator of each step."""
    epoch_steps, order = spec.steps_per_epoch(num_rows), np.arange(num_rows)
    for step in range(first_step, steps):
        epoch, position = divmod(step, epoch_steps)
        if step == first_step or position == 0:
            order = np.random.default_rng((spec.seed, epoch)).permutation(num_rows)
        generator = torch.Generator().manual_seed(spec.seed * 1_000_003 + step)
        yield order[position * spec.batch_size : (position + 1) * spec.batch_size], generator


def _prefetch(
    pool: ThreadPoolExecutor,
    load: BatchFn,
    samples: Iterator[tuple[NDArray[np.int64], torch.Generator]],
    metrics: MetricsLogger,
) -> Iterator[Batch]:
    """Yield batches, loading the next one while one is used."""
    futures = (pool.submit(load, *sample) for sample in samples)
    coming = next(futures, None)
    while coming:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # so that waiting is measured on an idle GPU; costs the lead of a few launches
        start = time.monotonic()
        batch = coming.result()
        metrics.data_wait_s += time.monotonic() - start
        coming = next(futures, None)
        yield batch


class _ModuleState:
    """A module with its optimizer and, where there is one, the moving average of its weights."""

    def __init__(self, optimized: OptimizedModule, spec: TrainSpec) -> None:
        distributed.convert_sync_batchnorm(optimized.module)
        self.module, self.clip_grad, self.average, self.optimizer = optimized.module, spec.clip_grad, None, None
        self.parts: dict[str, Part] = {f"{optimized.name}.net": self.module}
        if groups := optimized.parameter_groups():  # a loss may have none
            self.optimizer = torch.optim.AdamW(groups, betas=BETAS, fused=True)
            self.parts[f"{optimized.name}.optimizer"] = self.optimizer
        if spec.model_ema_decay and optimized.averaged:
            average = get_ema_multi_avg_fn(spec.model_ema_decay)
            self.average = AveragedModel(self.module, multi_avg_fn=average, use_buffers=True)
            self.parts[f"{optimized.name}.average"] = self.average

    def update(self, lr_factor: float) -> None:
        """Take a step along the gradients, at a share of the peak learning rates."""
        if not self.optimizer:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * lr_factor
        distributed.average_gradients(self.module.parameters())
        nn.utils.clip_grad_norm_(self.module.parameters(), self.clip_grad)
        self.optimizer.step()
        if self.average:
            self.average.update_parameters(self.module)

    def swap(self) -> None:
        """Exchange the module's weights and their average, if there is one."""
        if self.average:
            own = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}
            self.module.load_state_dict(self.average.module.state_dict())
            self.average.module.load_state_dict(own)


class _FitState:
    """One call of `fit`: the modules' states, and the files from which another process resumes."""

    def __init__(
        self,
        modules: Sequence[OptimizedModule],
        spec: TrainSpec,
        checkpoint: Checkpoint,
        epoch_steps: int,
        validate: ValidateFn,
    ) -> None:
        folder, self.stage, self.key = checkpoint
        self.spec, self.validate_fn = spec, validate
        self.state, self.best = (folder / f"{self.stage}.{what}.safetensors" for what in ("checkpoint", "best"))
        self.states = [_ModuleState(module, spec) for module in modules]
        self.parts = {name: part for state in self.states for name, part in state.parts.items()}
        self.modules = {module.name: module.module for module in modules}
        self.epoch_steps, self.steps = epoch_steps, epoch_steps * spec.epochs
        with distributed.main_process_first():
            self.first_step = load_state(self.state, self.parts, self.key)
            self.metrics = MetricsLogger(folder.parent / "train.jsonl", self.stage, self.first_step, epoch_steps)
        self.saved = time.monotonic()
        if self.first_step:
            log.info("  resuming %s at step %d of %d", self.stage, self.first_step, self.steps)
        elif spec.early_stopping_patience and self.validate() is None:
            fix = "Raise --validation-fraction, or set early-stopping-patience to 0."
            raise InputError("validation images for early stopping", "none", fix)

    def remaining_steps(self) -> Iterator[int]:
        """Yield the steps to do, until early stopping."""
        steps, patience = range(self.first_step, self.steps), self.spec.early_stopping_patience
        for step in track(steps, self.stage, self.steps, self.first_step) if distributed.is_main_process() else steps:
            if 0 < patience <= self.metrics.epochs_since_best:
                log.info("  %s stops early: no gain in validation for %d epochs", self.stage, patience)
                return
            yield step

    def training_step(self, step: int, loss_fn: LossFn, batch: Batch) -> None:
        """Take one step, and write the metrics and checkpoints that are due after it."""
        for state in self.states:
            state.module.train()
            state.module.zero_grad(set_to_none=True)
        with self.seeded_step(step):
            loss, accuracy = loss_fn(batch)
        loss.backward()
        for state in self.states:
            state.update(self.spec.lr_factor(step, self.steps))
        self.metrics.log_step(step + 1, loss, accuracy)
        ends = (step + 1) % self.epoch_steps == 0
        if ends:
            self.end_epoch(step + 1)
        if ends or time.monotonic() - self.saved > CHECKPOINT_EVERY_S:
            self.save(self.state, self.parts, step + 1)
            self.saved = time.monotonic()

    @contextmanager
    def seeded_step(self, step: int) -> Iterator[None]:
        """Seed dropout by the step and the process alone; the global state stays as it was."""
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
            torch.manual_seed((self.spec.seed * 1_000_003 + step) * 1_009 + distributed.rank())
            yield

    def end_epoch(self, step: int) -> None:
        """Validate the weights that would be kept, and save the best."""
        self.swap()
        self.metrics.end_epoch(step, self.validate())
        if self.spec.early_stopping_patience and self.metrics.epochs_since_best == 0:
            self.save(self.best, self.modules, step)  # before the checkpoint, whose resumption counts on it
        self.swap()

    def swap(self) -> None:
        """Exchange the weights of all modules and their averages."""
        for state in self.states:
            state.swap()

    def validate(self) -> float | None:
        """Return the validation of the current weights by the first process."""
        return distributed.broadcast_scalar(self.validate_fn() if distributed.is_main_process() else None)

    def save(self, path: Path, parts: Mapping[str, Part], step: int) -> None:
        """Write a state, in the first process."""
        if distributed.is_main_process():
            save_state(path, parts, step, self.key)

    def finalize(self) -> None:
        """Leave the averaged, the best, or the last weights in the modules, the same in every process."""
        self.swap()
        if self.spec.early_stopping_patience > 0 and distributed.is_main_process() and self.best.exists():
            load_state(self.best, self.modules, self.key)
            self.swap()
            self.save(self.state, self.parts, self.steps)  # a process that resumes here needs the best ones no more
            self.swap()
            self.best.unlink()
        for module in self.modules.values():
            distributed.broadcast_parameters(module)
            module.eval()
