"""The loop: it learns, repeats itself bit for bit, and a killed run ends where an unbroken one does."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill import engine
from distill.engine import Batches, BatchFn, Checkpoint, OptimizedModule, TrainSpec, fit
from distill.infer import extract_features, forward_logits
from distill.metrics_log import MetricsLogger, read_metrics, to_tensorboard
from distill.system import limit_threads
from gallery import cores
from gallery.cores import cgroup_cores
from gallery.errors import CorruptFile, InputError, MissingBackend

SCHEDULE = TrainSpec(epochs=3, batch_size=8, lr=0.01, weight_decay=0.05, warmup_ratio=0.1, clip_grad=1.0, seed=3)
DATA = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the loop may catch it."""


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def chaotic(model: nn.Module) -> float:
    """A validation that any other bit in the weights would change."""
    return round(sum(float(p.double().sum()) for p in model.state_dict().values()) * 1e4 % 1, 4)


def noisy(rows: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return DATA[rows] + 0.1 * torch.randn(len(rows), 6, generator=generator), (DATA[rows, 0] > 0).long()


def train(
    models: list[nn.Module],
    folder: Path,
    schedule: TrainSpec = SCHEDULE,
    tick: Callable[[], object] = lambda: None,
    key: str = "k",
    validate: Callable[[], float | None] | None = None,
    prepare: BatchFn = noisy,
    **learner: Any,
) -> list[nn.Module]:
    """Fits `models` by one loss: each its own, and the second the first's answers too."""

    def loss_fn(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        tick()
        outs = [model(batch[0]) for model in models]
        loss = torch.stack([nn.functional.cross_entropy(out, batch[1]) for out in outs]).sum()
        if len(models) == 2:
            loss = loss + (outs[1] - outs[0].detach()).square().mean()
        return loss, (outs[0].argmax(1) == batch[1]).float().mean()

    (folder / "cache").mkdir(exist_ok=True, parents=True)
    learners = [
        OptimizedModule(f"n{i}", m, **{"lr": 0.01, "weight_decay": 0.05, **learner}) for i, m in enumerate(models)
    ]
    validate = validate or (lambda: chaotic(models[-1]))
    fit(learners, Batches(40, prepare), loss_fn, schedule, Checkpoint(folder / "cache", "teacher", key), validate)
    return models


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def lines(folder: Path) -> list[tuple[Any, ...]]:
    return [(p.stage, p.step, p.epoch, p.loss, p.accuracy, p.validation) for p in read_metrics(folder / "train.jsonl")]


def test_it_learns_and_sees_every_image_once_an_epoch(tmp_path: Path) -> None:
    seen: list[int] = []

    def prepare(rows: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        seen.extend(rows.tolist())
        return noisy(rows, generator)

    train([net()], tmp_path, prepare=prepare)
    assert sorted(seen[:40]) == list(range(40))
    assert seen[:40] != seen[40:80]
    points = read_metrics(tmp_path / "train.jsonl")
    assert points[-1].loss < points[0].loss
    assert [p.step for p in points if p.validation is not None] == [5, 10, 15]


def test_the_log_says_what_an_epoch_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train([net()], tmp_path)
    assert (
        "teacher: 3 epochs x 5 steps of 8 images: 15 steps and 120 images in all; an epoch is one pass over the 40 "
        "images of train"
    ) in caplog.text
    said = SCHEDULE.describe(1234, added=8)
    assert "3 epochs x 154 steps of 16 images (8 of train + 8 unlabeled): 462 steps and 7,392 images" in said
    assert said.endswith("an epoch is one pass over the 1,234 images of train")


def test_unlabeled_images_in_a_batch_take_more_steps_an_epoch_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []

    def prepare(rows: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        seen.extend(rows.tolist())
        return noisy(rows, generator)

    train([net()], tmp_path, SCHEDULE.model_copy(update={"n_unlabeled": 4}), prepare=prepare)
    assert [p.step for p in read_metrics(tmp_path / "train.jsonl") if p.validation is not None] == [10, 20, 30]
    assert sorted(seen[:40]) == sorted(seen[40:80]) == list(range(40))
    assert (
        "teacher: 3 epochs x 10 steps of 8 images (4 of train + 4 unlabeled): 30 steps and 240 images in all; an epoch "
        "is one pass over the 40 images of train, in 5 steps without unlabeled ones"
    ) in caplog.text


class Bomb:
    """Goes off at the `at`-th event: before or after any write or deletion, or in a step."""

    def __init__(self, at: int | None) -> None:
        self.left = count() if at is None else iter(range(at))

    def __call__(self) -> None:
        if next(self.left, None) is None:
            raise Killed

    def wrap(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            self()
            result = original(*args, **options)
            self()
            return result

        monkeypatch.setattr(owner, name, wrapped)

    def set(self, monkeypatch: pytest.MonkeyPatch) -> Bomb:
        for owner, name in ((engine, "save_state"), (MetricsLogger, "_write"), (Path, "unlink")):
            self.wrap(monkeypatch, owner, name)
        return self


@pytest.mark.parametrize(
    ("ema", "patience", "learners", "every_s", "n_unlabeled"),
    [(0, 0, 1, 0, 0), (0, 1, 1, 1e9, 0), (0, 2, 2, 0, 15), (0.7, 0, 2, 1e9, 5), (0.7, 1, 1, 0, 0), (0.7, 1, 2, 1e9, 0)],
)
def test_killed_at_any_moment_it_ends_bit_for_bit_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float, patience: int, learners: int, every_s: float,
    n_unlabeled: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(engine, "CHECKPOINT_EVERY_S", every_s)
    schedule = SCHEDULE.model_copy(
        update={"epochs": 4, "batch_size": 20, "model_ema_decay": ema, "early_stopping_patience": patience,
                "n_unlabeled": n_unlabeled}
    )  # fmt: skip
    unbroken = train([net(i) for i in range(learners)], tmp_path / "whole", schedule)
    for moment in count():
        folder = tmp_path / str(moment)
        with monkeypatch.context() as patch:
            try:
                train([net(i) for i in range(learners)], folder, schedule, Bomb(moment).set(patch))
                break
            except Killed:
                pass
        resumed = train([net(i) for i in range(learners)], folder, schedule)
        assert all(map(same, unbroken, resumed)), moment
        assert lines(folder) == lines(tmp_path / "whole"), moment
        assert not (folder / "cache" / "teacher.best.safetensors").exists()
    assert moment > 15  # the bomb ran out of moments, not the test


def test_finished_training_is_not_done_again(tmp_path: Path) -> None:
    schedule = SCHEDULE.model_copy(update={"epochs": 6, "model_ema_decay": 0.7, "early_stopping_patience": 2})
    first = train([net()], tmp_path, schedule)
    before = lines(tmp_path)
    again = train([net(5)], tmp_path, schedule, tick=lambda: pytest.fail("a step was done"))
    assert same(first[0], again[0])
    assert lines(tmp_path) == before


def test_a_checkpoint_of_something_else_is_not_taken_up(tmp_path: Path) -> None:
    steps: list[int] = []
    train([net()], tmp_path, key="one data set")
    train([net()], tmp_path, key="another", tick=lambda: steps.append(1))
    assert len(steps) == 15


def test_a_line_cut_by_a_kill_is_dropped(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train([net()], tmp_path, tick=Bomb(7))
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"stage": "teach')
    assert read_metrics(tmp_path / "train.jsonl")[-1].step == 7
    train([net()], tmp_path)
    assert [json.loads(line)["step"] for line in (tmp_path / "train.jsonl").read_text().splitlines()][-1] == 15


def test_the_global_random_state_is_left_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    train([net()], tmp_path, SCHEDULE.model_copy(update={"model_ema_decay": 0.5, "early_stopping_patience": 1}))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("ema", [0.0, 0.7])
def test_a_learner_nothing_reaches_trains_as_if_alone(tmp_path: Path, ema: float) -> None:
    schedule = SCHEDULE.model_copy(update={"model_ema_decay": ema})
    alone = train([net(0)], tmp_path / "a", schedule)
    beside = train([net(0), net(1)], tmp_path / "b", schedule)
    assert same(alone[0], beside[0])
    assert not same(train([net(1)], tmp_path / "c", schedule)[0], beside[1])


def test_the_average_is_that_of_its_definition_and_is_what_validation_sees(tmp_path: Path) -> None:
    model, trail, plain, seen = net(), [], net(), []
    train([plain], tmp_path / "plain", tick=lambda: trail.append(plain[0].weight.detach().clone()))
    trail = [*trail[1:], plain[0].weight.detach()]  # after each step
    schedule = SCHEDULE.model_copy(update={"model_ema_decay": 0.7})
    train([model], tmp_path / "ema", schedule, validate=lambda: seen.append(model[0].weight.detach().clone()))
    slow, judged = trail[0].double(), []
    for step, weight in enumerate(trail):
        slow = 0.7 * slow + 0.3 * weight.double()
        judged += [slow] if step % 5 == 4 else []
    assert torch.allclose(model[0].weight.double(), slow, atol=1e-6)
    assert not torch.allclose(model[0].weight, plain[0].weight, atol=1e-3)
    assert all(torch.allclose(a.double(), b, atol=1e-6) for a, b in zip(seen, judged, strict=True))
    assert not model.training


def test_patience_stops_and_takes_the_best_weights(tmp_path: Path) -> None:
    script = iter([0.0, 0.1, 0.5, 0.4, 0.5, 0.9])  # before the first epoch, then after each; a tie is no gain
    model, trail = net(), []

    def validate() -> float:
        trail.append(net())
        trail[-1].load_state_dict(model.state_dict())
        return next(script)

    train([model], tmp_path, SCHEDULE.model_copy(update={"epochs": 5, "early_stopping_patience": 2}), validate=validate)
    assert [p.validation for p in read_metrics(tmp_path / "train.jsonl") if p.validation] == [0.1, 0.5, 0.4, 0.5]
    assert same(model, trail[2])
    assert not same(model, trail[4])


def test_best_weights_that_are_damaged_are_not_replaced_by_the_last_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit_again() -> nn.Module:
        scores = iter([0.0, 0.1, 0.5, 0.4])
        patient = SCHEDULE.model_copy(update={"early_stopping_patience": 2})
        return train([net()], tmp_path, patient, validate=lambda: next(scores))[0]

    def damage(self: Any) -> None:
        self.best.write_bytes(self.best.read_bytes()[:-9])
        finalize(self)

    finalize = engine._FitState.finalize
    monkeypatch.setattr(engine._FitState, "finalize", damage)
    with pytest.raises(CorruptFile, match="Run the same command again"):
        fit_again()
    monkeypatch.undo()
    found = fit_again()
    shutil.rmtree(tmp_path / "cache")
    assert same(found, fit_again())


def test_patience_without_validation_is_rejected_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--validation-fraction"):
        train(
            [net()],
            tmp_path,
            SCHEDULE.model_copy(update={"early_stopping_patience": 2}),
            pytest.fail,
            validate=lambda: None,
        )


def test_the_first_step_is_one_rate_long_and_norms_do_not_decay(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = net(), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.backbone(x))

    def moved(folder: str, **learner: float) -> dict[str, float]:
        model = Net()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        schedule = TrainSpec(
            epochs=1, batch_size=40, lr=0.01, weight_decay=0.05, warmup_ratio=0, clip_grad=1e9, seed=0
        )  # one step, at the peak rate
        train([model], tmp_path / folder, schedule, **learner)
        return {name: (p - before[name]).abs().max().item() for name, p in model.named_parameters()}

    by = moved("a", lr=1e-3, weight_decay=0.0)
    assert by["head.weight"] == pytest.approx(1e-3, rel=1e-2)
    assert by["head.bias"] == pytest.approx(1e-3, rel=1e-2)
    assert by["backbone.3.weight"] == pytest.approx(1e-3, rel=1e-2)
    decayed = moved("b", lr=1e-3, weight_decay=100.0)
    assert decayed["backbone.1.weight"] == pytest.approx(1e-3, rel=1e-2)  # a norm of ones would have lost 0.1
    assert decayed["backbone.3.weight"] > 5e-3


def test_rate_warms_up_then_falls_to_zero_along_a_cosine() -> None:
    rates = [SCHEDULE.lr_factor(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert rates[-1] < 1e-3
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_the_next_batch_is_prepared_beside_the_step_and_only_the_next(tmp_path: Path) -> None:
    begun, used, threads = [threading.Event() for _ in range(17)], count(), set()

    def prepare(rows: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        threads.add(threading.get_ident())
        next(event for event in begun if not event.is_set()).set()
        return noisy(rows, generator)

    def step() -> None:
        done = next(used)
        assert done == 14 or begun[done + 1].wait(30)
        assert not begun[done + 2].is_set()

    train([net()], tmp_path, prepare=prepare, tick=step)
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def workers() -> list[threading.Thread]:
    """Threads of preparation that live on."""
    found = [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]
    for thread in found:
        thread.join(10)
    return [thread for thread in found if thread.is_alive()]


def test_an_error_in_preparation_comes_out_as_it_is(tmp_path: Path) -> None:
    calls, steps = count(), []

    def prepare(rows: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if next(calls) == 3:
            raise InputError("an image", "noise", "Look again.")
        return noisy(rows, generator)

    with pytest.raises(InputError, match="Look again"):
        train([net()], tmp_path, prepare=prepare, tick=lambda: steps.append(1))
    assert len(steps) == 3
    assert not workers()


def test_an_interrupt_while_waiting_ends_the_loop_and_its_thread(tmp_path: Path) -> None:
    def prepare(rows: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)  # the loop waits meanwhile
        return noisy(rows, generator)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            train([net()], tmp_path, prepare=prepare)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not workers()


def test_the_time_spent_waiting_is_in_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()  # a second passes between any two looks at it
    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    train(
        [net()],
        tmp_path,
        TrainSpec(epochs=2, batch_size=2, lr=0.01, weight_decay=0.05, warmup_ratio=0, clip_grad=1, seed=0),
    )
    assert [p.data_wait_s for p in read_metrics(tmp_path / "train.jsonl")] == [2.0] * 20  # 2 steps a line
    old = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    del old["data_wait_s"]
    (tmp_path / "old.jsonl").write_text(json.dumps(old) + "\n")
    assert read_metrics(tmp_path / "old.jsonl")[0].data_wait_s == 0


def test_forward_keeps_the_head_in_fp32() -> None:
    from distill.models.hash_net import build

    model = build("vit_tiny_patch16_224", 32, 16, seed=0).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = forward_logits(model)(images)
    assert logits.dtype == extract_features(model)(images).dtype == torch.float32
    assert torch.equal(logits, model.head(extract_features(model)(images)))
    assert torch.allclose(logits, model(images), atol=0.05 * model(images).abs().max().item())


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
        monkeypatch.setattr(cores, "cgroup_cores", lambda: 8.0)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # torchrun's own
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
        assert limit_threads() == torch.get_num_threads() == 2
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
        assert limit_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_journal_becomes_tensorboard_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train([net()], tmp_path)
    to_tensorboard(tmp_path / "train.jsonl", tmp_path / "events")
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    points = read_metrics(tmp_path / "train.jsonl")
    losses = [(e.step, pytest.approx(e.value, abs=1e-6)) for e in events.Scalars("teacher/loss")]
    assert [(p.step, p.loss) for p in points] == losses
    assert [e.step for e in events.Scalars("teacher/validation")] == [5, 10, 15]


def test_without_tensorboard_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingBackend, match=r"tensorboard to be installed.*pip install"):
        to_tensorboard(tmp_path / "train.jsonl", tmp_path / "events")


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("teacher", "--teacher-train.lr"),
        ("head", "--teacher-train.linear-probe-lr"),
        ("student", "--student-train.lr"),
        ("other", "the learning rate"),
    ],
)
def test_training_that_diverges_stops_before_it_is_saved(tmp_path: Path, name: str, flag: str) -> None:
    def fit_at(lr: float) -> None:
        model, spec = net(), SCHEDULE.model_copy(update={"lr": lr, "epochs": 1})

        def loss_fn(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            out = model(batch[0])
            return out.pow(4).sum(), out.mean()

        optimized = [OptimizedModule(name, model, lr, 0.05)]
        fit(optimized, Batches(40, noisy), loss_fn, spec, Checkpoint(folder / "cache", "teacher", "k"))

    folder = tmp_path / "run"
    (folder / "cache").mkdir(parents=True)
    with pytest.raises(InputError, match=rf"at step [2-5] of 5 of the teacher, with a learning rate.* Lower {flag}"):
        fit_at(1e30)
    assert not list((folder / "cache").glob("*.safetensors"))
    assert all(math.isfinite(point.loss) for point in read_metrics(folder / "train.jsonl"))
    folder = tmp_path / "another name"
    (folder / "cache").mkdir(parents=True)
    fit_at(1e-3)


def test_a_network_whose_outputs_overflow_where_its_weights_do_not_is_not_saved(tmp_path: Path) -> None:
    """In training a batch norm divides by what the batch has; in use by its running statistics."""
    with pytest.raises(InputError, match="outputs that are not, at step 5 of 15"):
        train([net()], tmp_path, validate=lambda: math.nan)
    assert not list((tmp_path / "cache").iterdir())


def test_a_gradient_that_is_not_finite_stops_the_last_step_too(tmp_path: Path) -> None:
    class Spoiled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * math.nan

    model, spec = net(), SCHEDULE.model_copy(update={"epochs": 1, "batch_size": 40})

    def loss_fn(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        out = Spoiled.apply(model(batch[0]))
        return out.square().mean(), out.mean()

    (tmp_path / "cache").mkdir()
    optimized = [OptimizedModule("student", model, 0.1, 0.05)]
    with pytest.raises(InputError, match="weights that are not, at step 1 of 1"):
        fit(optimized, Batches(40, noisy), loss_fn, spec, Checkpoint(tmp_path / "cache", "student", "k"))
    assert not list((tmp_path / "cache").glob("*.safetensors"))


@pytest.mark.parametrize("line", ["", "7", "[" * 100_000, '{"stage": 5}', "\x00\xff", '{"stage": "teacher"}', "{}"])
def test_damaged_lines_of_the_metrics_are_left_out_with_a_warning(
    tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    train([net()], tmp_path)
    path, before = tmp_path / "train.jsonl", lines(tmp_path)
    path.write_text(line + "\n" + path.read_text() + '{"cut sh')
    assert lines(tmp_path) == before
    assert "1 of" in caplog.text
    path.unlink()
    path.mkdir()
    assert lines(tmp_path) == []
    assert "cannot be read" in caplog.text


def test_threads_stay_within_what_was_asked_and_what_the_group_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        monkeypatch.setenv("OMP_NUM_THREADS", "1,4")
        assert limit_threads() == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    proc, root = tmp_path / "cgroup", tmp_path / "fs"
    (root / "user" / "job").mkdir(parents=True)
    proc.write_text("0::/user/job\n")
    assert cgroup_cores(proc, root) == math.inf
    (root / "user" / "job" / "cpu.max").write_text("max 100000\n")
    assert cgroup_cores(proc, root) == math.inf
    (root / "user" / "cpu.max").write_text("50000 100000\n")
    assert cgroup_cores(proc, root) == 0.5
    assert cgroup_cores(tmp_path / "none", root) == math.inf
