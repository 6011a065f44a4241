"""The training loop: plain torch, AdamW, cosine with warm-up, resumable bit for bit after a kill at any moment.

No random state is kept between steps: the order of an epoch and the crops of a step are sampled from (seed, epoch) and
(seed, step), so a run restarted from any checkpoint repeats what an uninterrupted one would have done.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from distill import distributed
from distill.checkpoint import Part, load_state, save_state
from distill.config import OptimizerConfig
from distill.distributed import LossFn
from distill.metrics_log import MetricsLogger
from gallery.console import log, track
from gallery.errors import CorruptFile, InputError

CHECKPOINT_EVERY_S = 120.0
LR_FLAGS = {
    "teacher": "--teacher-train.lr",
    "head": "--teacher-train.linear-probe-lr",
    "student": "--student-train.lr",
}
BETAS = (0.9, 0.99)  # of AdamW: the average over a thousand steps is too long for runs of a few hundred

Batch = Any
BatchFn = Callable[[NDArray[np.int64], torch.Generator], Batch]  # rows and this step's generator -> what a step needs
ValidateFn = Callable[[], float | None]


class TrainSpec(OptimizerConfig):
    """How a network is trained, with every "auto" resolved; gradients are clipped by module.

    n_unlabeled: how many of the `batch_size` images of a step are unlabeled, in the place of training images
    """

    epochs: int
    lr: float
    crop_min_scale: float = 1.0
    seed: int
    n_unlabeled: int = 0

    @property
    def rows_per_step(self) -> int:
        """Number of training images in a step."""
        return self.batch_size - self.n_unlabeled

    def steps_per_epoch(self, rows: int) -> int:
        """Return the number of steps that see each of `rows` training images once, but for those that fill no batch.

        Unlabeled images add steps, and time: with as many as without (fewer epochs do that), half of a batch unlabeled
        found as much of the unseen classes (.448 against .444) and less of the seen ones (.939 against .957), a quarter
        .428 and .956, none .362 and .944 (UC Merced, 15 classes seen and 6 not, 64 px, 8 epochs, two seeds).
        """
        return max(1, rows // self.rows_per_step)

    def describe(self, rows: int, added: int = 0) -> str:
        """Return the sentence of the log on a training of `rows` images: steps, images of a step, what an epoch is.

        added: how many unlabeled images each step has beside those of `batch_size`
        """
        train, unlabeled = min(rows, self.rows_per_step), self.n_unlabeled + added
        each, size = self.steps_per_epoch(rows), train + unlabeled
        parts = f" ({train} of train + {unlabeled} unlabeled)" if unlabeled else ""
        epoch = f"one pass over the {rows:,} images of train"
        if self.n_unlabeled:
            epoch += f", in {max(1, rows // self.batch_size)} steps without unlabeled ones"
        return (
            f"{self.epochs} epochs x {each} steps of {size} images{parts}: {self.epochs * each:,} steps and "
            f"{self.epochs * each * size:,} images in all; an epoch is {epoch}"
        )

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
    """A training set by rows: their number, and the function that loads a batch of them.

    added: how many unlabeled images `load` adds to those of `TrainSpec.batch_size`
    """

    num_rows: int
    load: BatchFn
    added: int = 0


class OptimizedModule:
    """A network in training, or a loss with parameters and buffers, with its optimizer.

    lr: peak learning rate; averaged: whether a moving average of its weights is kept where the training has one
    """

    def __init__(self, name: str, module: nn.Module, lr: float, weight_decay: float, averaged: bool = True) -> None:
        self.name, self.module, self.lr, self.averaged = name, module, lr, averaged
        self.parts: dict[str, Part] = {f"{name}.net": module}
        decays: dict[float, list[nn.Parameter]] = {}
        for p in module.parameters():
            decays.setdefault(weight_decay if p.ndim > 1 else 0.0, []).append(p)  # none of norms and biases
        groups = [{"params": own, "weight_decay": decay} for decay, own in decays.items()]  # a loss may have none
        self.optimizer = torch.optim.AdamW(groups, betas=BETAS, fused=True) if groups else None
        self.average: AveragedModel | None = None
        if self.optimizer:
            self.parts[f"{name}.optimizer"] = self.optimizer

    def start(self, spec: TrainSpec) -> None:
        """Prepare the module for training by `spec`."""
        distributed.convert_sync_batchnorm(self.module)
        if spec.model_ema_decay and self.averaged:
            average = get_ema_multi_avg_fn(spec.model_ema_decay)
            self.average = AveragedModel(self.module, multi_avg_fn=average, use_buffers=True)
            self.parts[f"{self.name}.average"] = self.average

    def update(self, lr_factor: float, clip_grad: float) -> None:
        """Take a step along the gradients, at a share of the peak learning rates."""
        if not self.optimizer:
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * lr_factor
        nn.utils.clip_grad_norm_(self.module.parameters(), clip_grad)
        self.optimizer.step()
        if self.average:
            self.average.update_parameters(self.module)

    def swap(self) -> None:
        """Exchange the module's weights and their average, if there is one."""
        if self.average:
            own = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}
            self.module.load_state_dict(self.average.module.state_dict())
            self.average.module.load_state_dict(own)


def fit(
    modules: Sequence[OptimizedModule], batches: Batches, loss_fn: LossFn, spec: TrainSpec, checkpoint: Checkpoint,
    validate: ValidateFn = lambda: None,
) -> None:  # fmt: skip
    """Train the modules in place by one loss, resuming from the checkpoint.

    batches: loaded a step ahead, in a thread; among several processes `load` gets the rows of the whole batch in each,
    and loads `distributed.shard` of them.  validate: sees the weights that would be kept; never called beside training.
    Raises `InputError` where `spec.early_stopping_patience` has no validation images.
    """
    log.info("  %s: %s", checkpoint.stage, spec.describe(batches.num_rows, batches.added))
    training = _FitState(modules, spec, checkpoint, spec.steps_per_epoch(batches.num_rows), validate)
    gpu = torch.cuda.current_device() if torch.cuda.is_available() else -1  # threads forget it
    with ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(gpu,)) as pool:
        futures = (pool.submit(batches.load, *sample) for sample in _sample_batches(batches.num_rows, training))
        loaded = _prefetch(futures, training.metrics)
        loss_fn = distributed.data_parallel(training.modules, loss_fn)
        for step in training.remaining_steps():
            training.training_step(step, loss_fn, next(loaded))
    training.finalize()


def _prefetch(futures: Iterator[Future[Batch]], metrics: MetricsLogger) -> Iterator[Batch]:
    """Yield batches, loading the next one while one is used."""
    coming = next(futures, None)
    while coming:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # so that waiting is measured on an idle GPU; costs the lead of a few launches
        start = time.monotonic()
        batch = coming.result()
        metrics.data_wait_s += time.monotonic() - start
        coming = next(futures, None)
        yield batch


class _FitState:
    """One call of `fit`, and the files from which another process resumes."""

    def __init__(
        self, modules: Sequence[OptimizedModule], spec: TrainSpec, checkpoint: Checkpoint, epoch_steps: int,
        validate: ValidateFn,
    ) -> None:  # fmt: skip
        folder, self.stage, self.key = checkpoint
        self.spec, self.validate_fn = spec, validate
        self.state, self.best = (folder / f"{self.stage}.{what}.safetensors" for what in ("checkpoint", "best"))
        self.optimized = modules
        for module in modules:
            module.start(spec)
        self.parts = {name: part for module in modules for name, part in module.parts.items()}
        self.modules = {module.name: module.module for module in modules}
        self.epoch_steps, self.steps = epoch_steps, epoch_steps * spec.epochs
        with distributed.main_process_first():
            self.first_step = load_state(self.state, self.parts, self.key)
            self.metrics = MetricsLogger(folder.parent / "train.jsonl", self.stage, self.first_step, epoch_steps)
        self.saved, self.unchecked = time.monotonic(), list[Tensor]()
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
        for module in self.modules.values():
            module.train()
            module.zero_grad(set_to_none=True)
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
            torch.manual_seed((self.spec.seed * 1_000_003 + step) * 1_009 + distributed.rank())  # of dropout
            loss, accuracy = loss_fn(batch)
        ends = (step + 1) % self.epoch_steps == 0
        due = ends or time.monotonic() - self.saved > CHECKPOINT_EVERY_S
        self.unchecked.append(loss.detach())
        if due or loss.device.type == "cpu" or (step + 1) % self.metrics.every == 0:  # a read waits for a GPU
            self.check_losses(step)
        loss.backward()
        for optimized in self.optimized:
            optimized.update(self.spec.lr_factor(step, self.steps), self.spec.clip_grad)
        if due:
            self.check_weights(step)
        self.metrics.log_step(step + 1, loss, accuracy)
        if ends:
            self.end_epoch(step + 1)
        if due:
            self.save(self.state, self.parts, step + 1)
            self.saved = time.monotonic()

    def check_losses(self, step: int) -> None:
        """Raise `InputError` where one of the losses up to this step's is not finite."""
        losses = torch.stack(self.unchecked)
        self.unchecked.clear()
        if len(bad := losses.isfinite().logical_not().nonzero()):
            first = int(bad[0])
            self.stop_diverged(step - len(losses) + 1 + first, f"a loss of {float(losses[first])}")

    def check_weights(self, step: int) -> None:
        """Raise `InputError` where a weight is not finite: the last step's gradient may have been the first."""
        weights = [p.detach() for module in self.modules.values() for p in module.parameters()]
        if weights and not torch.stack([weight.isfinite().all() for weight in weights]).all():
            self.stop_diverged(step, "weights that are not")

    def stop_diverged(self, step: int, found: str) -> None:
        """Raise `InputError` for training that has diverged, before it is saved."""
        trained = [module for module in self.optimized if module.optimizer]
        rate = max((module.lr for module in trained), default=0.0) * self.spec.lr_factor(step, self.steps)
        flags = " and ".join(LR_FLAGS[one.name] for one in trained if one.name in LR_FLAGS) or "the learning rate"
        where = f"at step {step + 1} of {self.steps} of the {self.stage}, with a learning rate of {rate:.3g}"
        fix = f"Lower {flags}, and give the run another --name."
        raise InputError("losses, weights and outputs that are finite numbers", f"{found}, {where}", fix)

    def end_epoch(self, step: int) -> None:
        """Validate the weights that would be kept, and save the best."""
        self.swap()
        value = self.validate()
        if value is not None and math.isnan(value):
            self.stop_diverged(step - 1, "outputs that are not")
        self.metrics.end_epoch(step, value)
        if self.spec.early_stopping_patience and self.metrics.epochs_since_best == 0:
            self.save(self.best, self.modules, step)  # before the checkpoint, whose resumption counts on it
        self.swap()

    def swap(self) -> None:
        """Exchange the weights of all modules and their averages."""
        for optimized in self.optimized:
            optimized.swap()

    def validate(self) -> float | None:
        """Return the validation of the current weights by the main process."""
        value: float | None = distributed.broadcast(self.validate_fn() if distributed.is_main_process() else None)
        return value

    def save(self, path: Path, parts: Mapping[str, Part], step: int) -> None:
        """Write a state, in the main process."""
        if distributed.is_main_process():
            save_state(path, parts, step, self.key)

    def finalize(self) -> None:
        """Leave the averaged, the best, or the last weights in the modules, the same in every process."""
        self.swap()
        if self.spec.early_stopping_patience > 0 and distributed.is_main_process() and self.best.exists():
            if not load_state(self.best, self.modules, self.key):
                self.state.unlink()
                what, fix = f"the best weights of the {self.stage}", "Run the same command again."
                raise CorruptFile(what, f"damage in {self.best}", fix)
            self.swap()
            self.save(self.state, self.parts, self.steps)  # a process that resumes here needs the best ones no more
            self.swap()
            self.best.unlink()
        for module in self.modules.values():
            distributed.broadcast_parameters(module)
            module.eval()


def _sample_batches(num_rows: int, training: _FitState) -> Iterator[tuple[NDArray[np.int64], torch.Generator]]:
    """Yield the rows and the generator of each step."""
    size, seed, order = training.spec.rows_per_step, training.spec.seed, np.arange(num_rows)
    for step in range(training.first_step, training.steps):
        epoch, position = divmod(step, training.epoch_steps)
        if step == training.first_step or position == 0:
            order = np.random.default_rng((seed, epoch)).permutation(num_rows)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        yield order[position * size : (position + 1) * size], generator
