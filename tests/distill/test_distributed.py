"""Two processes train as one would: the same losses, the same weights, and again after one of them was killed.

This file is also what the two processes run: `torchrun tests/distill/test_distributed.py FOLDER SCENE`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill import distributed, engine
from distill.engine import Batches, Checkpoint, OptimizedModule, TrainSpec, fit
from distill.infer import forward_logits
from distill.metrics_log import read_metrics
from distill.models.hash_net import HashHead, HashNet
from gallery.errors import InputError, TwinhashError

ROOT = Path(__file__).parents[2]
SCHEDULE = TrainSpec(
    epochs=4,
    batch_size=8,
    lr=0.01,
    weight_decay=0.05,
    warmup_ratio=0.1,
    clip_grad=1.0,
    seed=3,
    model_ema_decay=0.5,
    early_stopping_patience=2,
)
PIXELS = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()
LABELS = (PIXELS[:, 0].mean((1, 2)) > 0.5).long()
STEPS, DIES_AT = 15, 11


def net(seed: int, norm: bool = False) -> HashNet:
    """A small network, with a hash head and, unless `norm`, a backbone that treats each image alone.

    float64, where rounding is far below what a wrong gradient does: AdamW makes full steps of gradients that are noise.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        first = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8) if norm else nn.GELU()]
        backbone = nn.Sequential(*first, nn.Conv2d(8, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return HashNet(backbone, 8, 16).double().to(memory_format=torch.channels_last)


def train(folder: Path, schedule: TrainSpec = SCHEDULE, tick: Callable[[], object] = lambda: None) -> list[HashNet]:
    """A teacher and a student at once, on crops sampled for the whole batch."""
    nets = [net(0), net(1)]
    run, ask = map(forward_logits, nets)
    words = torch.randn(2, 16, generator=torch.Generator().manual_seed(2)).sign().double()

    def prepare(rows: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = 0.1 * torch.randn(len(rows), 3, 8, 8, generator=generator)
        return PIXELS[distributed.shard(rows)] + distributed.shard(noise), LABELS[rows]

    def loss_fn(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        tick()
        images, y = batch
        gallery, query = run(images), ask(images)
        loss = sum(nn.functional.cross_entropy(out @ words.T, y) for out in (gallery, query))
        loss = loss + (query - gallery.detach().tanh()).square().mean()
        return loss, (query @ words.T).argmax(1).eq(y).float().mean()

    def validate() -> float:
        """It falls: training ends when patience does, after three epochs, and takes the first one's weights."""
        assert distributed.is_main_process(), "the others take its word"
        nets[1].eval()
        with torch.inference_mode():
            return round(float(nn.functional.cross_entropy(ask(PIXELS) @ words.T, LABELS)), 6)

    (folder / "cache").mkdir(exist_ok=True, parents=True)
    learners = [
        OptimizedModule("teacher", nets[0], 3e-3, 0.05),
        OptimizedModule("student", nets[1], 1e-3, 0.05),
    ]
    fit(learners, Batches(40, prepare), loss_fn, schedule, Checkpoint(folder / "cache", "pair", "key"), validate)
    return nets


def tensors(nets: list[HashNet]) -> dict[str, Tensor]:
    return {f"{i}.{name}": value for i, one in enumerate(nets) for name, value in one.state_dict().items()}


def rounded_only(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.allclose(a[name], b[name], rtol=1e-8, atol=1e-9) for name in a | b)


# ---- what each of two processes does


def whole(folder: Path) -> None:
    """Trains to the end, then meets every kind of trouble; the findings of each process go to a file of its own."""
    torch.save(tensors(train(folder)), folder / f"{distributed.rank()}.pt")
    odd = SCHEDULE.model_copy(update={"batch_size": 7, "early_stopping_patience": 0})
    found = {
        "share": distributed.broadcast(0.1 if distributed.is_main_process() else 7.0),
        "none": distributed.broadcast(None),
        "gather": gathered(), "odd": trouble(lambda: train(folder / "odd", odd)),
        "blind": trouble(lambda: failing(folder)), "first": entered(folder), "aligned": aligned(),
        "warned": warned(),
    }  # fmt: skip
    distributed.barrier()
    (folder / f"{distributed.rank()}.json").write_text(json.dumps(found))


def gathered() -> list[list[float]]:
    """Rows of both processes, and the averaged gradient of a loss on all of them: sum of w * row squared."""
    net, unused = nn.Linear(1, 1, bias=False), nn.Linear(1, 1)
    nn.init.constant_(net.weight, 2.0)

    def loss_fn(numbers: Tensor) -> tuple[Tensor, Tensor]:
        everything = distributed.all_gather(net(distributed.shard(numbers)[:, None]))
        return everything.square().sum(), everything.detach()

    step = distributed.data_parallel({"net": net, "unused": unused}, loss_fn)
    loss, everything = step(torch.arange(4.0))
    loss.backward()
    assert unused.weight.grad is None
    return [everything.flatten().tolist(), net.weight.grad.flatten().tolist()]


def trouble(act: Callable[[], object]) -> str:
    try:
        act()
    except TwinhashError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def failing(folder: Path) -> None:
    with distributed.main_process_first() as first:
        (folder / f"entered{distributed.rank()}").touch()
        if first:
            raise InputError("light", "darkness", "Open your eyes.")


def entered(folder: Path) -> bool:
    with distributed.main_process_first() as first:
        if first:
            (folder / "made").touch()
        return (folder / "made").exists()


def aligned() -> float:
    one = net(distributed.rank())
    distributed.broadcast_parameters(one)
    return float((tensors([one])["0.backbone.0.weight"] - tensors([net(0)])["0.backbone.0.weight"]).abs().max())


def warned() -> list[int]:
    from gallery.console import log

    said: list[str] = []
    log.addFilter(lambda record: said.append(record.getMessage()) or False)
    for norm in (False, True):
        distributed.convert_sync_batchnorm(net(0, norm))
    return [len(said), log.level]


def killed(folder: Path) -> None:
    """Trains; the first time, the second process dies in the middle."""
    engine.CHECKPOINT_EVERY_S = 0.0
    steps: list[int] = []

    def tick() -> None:
        steps.append(1)
        if distributed.rank() == 1 and len(steps) == DIES_AT and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save(tensors(train(folder, tick=tick)), folder / f"{distributed.rank()}.pt")
    (folder / f"{distributed.rank()}.json").write_text(json.dumps(len(steps)))


# ---- what they are held to


def two(folder: Path, scene: Callable[[Path], None]) -> list[tuple[dict[str, Tensor], object]]:
    """Runs `scene` in two processes and returns the networks and the findings of each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command += [__file__, str(folder), scene.__name__]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr
    return [
        (torch.load(folder / f"{i}.pt", weights_only=True), json.loads((folder / f"{i}.json").read_text()))
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    torch.save(tensors(train(folder)), folder / "0.pt")
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[dict[str, Tensor], object]]]:
    folder = tmp_path_factory.mktemp("pair")
    return folder, two(folder, whole)


Pair = tuple[Path, list[tuple[dict[str, Tensor], dict[str, object]]]]


def test_two_processes_train_as_one(alone: Path, pair: Pair) -> None:
    folder, (first, second) = pair
    one, both = (read_metrics(path / "train.jsonl") for path in (alone, folder))
    assert [(p.stage, p.step, p.accuracy) for p in one] == [(p.stage, p.step, p.accuracy) for p in both]
    assert [p.loss for p in both] == pytest.approx([p.loss for p in one], abs=1.1e-5)
    assert min(p.loss for p in one) < one[0].loss
    assert both[-1].step == STEPS < 5 * SCHEDULE.epochs
    judged = [[p.validation for p in points if p.validation] for points in (one, both)]
    assert judged[1] == pytest.approx(judged[0], abs=1.1e-6)
    assert rounded_only(torch.load(alone / "0.pt", weights_only=True), first[0])
    assert not rounded_only(tensors([net(0), net(1)]), first[0])
    assert all(torch.equal(value, second[0][name]) for name, value in first[0].items())


def test_the_head_sees_the_whole_batch(alone: Path, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above would notice: half batches end elsewhere."""
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "shard", lambda rows: rows[: len(rows) // 2])
        patch.setattr(distributed, "all_gather", lambda rows: torch.cat([rows, rows]))
        halved = train(pair[0].parent / "halved")
    assert not rounded_only(tensors(halved), pair[1][0][0])


def test_only_the_first_process_writes_and_speaks(pair: Pair) -> None:
    folder, (first, second) = pair
    assert not list((folder / "cache").glob("*best*"))
    assert len(read_metrics(folder / "train.jsonl")) == len({p.step for p in read_metrics(folder / "train.jsonl")})
    assert first[1]["warned"] == [1, 20]  # of batch norms that cannot meet; INFO
    assert second[1]["warned"] == [0, 40]


def test_a_batch_that_cannot_be_shared_is_an_error_in_every_process(pair: Pair) -> None:
    for _, found in pair[1]:
        assert str(found["odd"]).startswith("InputError")
        assert "multiple of 2" in str(found["odd"])


def test_rows_meet_and_gradients_are_those_of_one_process(pair: Pair) -> None:
    for _, found in pair[1]:
        assert found["gather"] == [[0.0, 2.0, 4.0, 6.0], [2 * 2.0 * (0 + 1 + 4 + 9)]]
        assert found["share"] == 0.1
        assert found["none"] is None
        assert found["aligned"] == 0


def test_the_first_process_goes_first_and_its_failure_is_everyones(pair: Pair) -> None:
    folder, (first, second) = pair
    assert first[1]["first"] is second[1]["first"] is True
    assert "Open your eyes" in str(first[1]["blind"])
    assert "See its message" in str(second[1]["blind"])
    assert not (folder / "entered1").exists()


def test_a_killed_pair_ends_where_an_unbroken_one_does(tmp_path: Path, pair: Pair) -> None:
    with pytest.raises(AssertionError, match="exitcode: -9"):
        two(tmp_path, killed)
    resumed = two(tmp_path, killed)
    assert resumed[0][1] in (STEPS - DIES_AT + 1, STEPS - DIES_AT + 2)  # the last state may not have been whole yet
    for mine, its in zip(resumed, pair[1], strict=True):
        assert all(torch.equal(value, its[0][name]) for name, value in mine[0].items())


# ---- alone, and on GPUs that are not here


def test_alone_everything_is_a_no_op(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    rows = torch.arange(3.0)
    with distributed.init_distributed(), distributed.main_process_first() as first:
        assert (first, distributed.rank(), distributed.world_size(), distributed.is_main_process()) == (
            True,
            0,
            1,
            True,
        )
        assert distributed.all_gather(rows) is rows
        assert torch.equal(distributed.shard(rows), rows)
        assert (distributed.broadcast(0.3), distributed.broadcast(None)) == (0.3, None)
        assert distributed.data_parallel({}, trouble) is trouble
        distributed.barrier()
        distributed.broadcast_parameters(nn.Linear(2, 2))
        distributed.convert_sync_batchnorm(net(0))
    assert not torch.distributed.is_initialized()


def test_shares_cover_the_batch_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(distributed.shard(np.arange(6)))
    assert np.concatenate(shares).tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(InputError, match="multiple of 3"):
        distributed.shard(torch.zeros(7, 2))


def test_on_gpus_only_the_backbones_norms_are_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    one = net(0, norm=True)
    before = dict(one.named_parameters())
    distributed.convert_sync_batchnorm(one)
    assert isinstance(one.backbone[1], nn.SyncBatchNorm)
    assert type(one.head[1]) is type(HashHead(2, 8)[1]) is nn.BatchNorm2d
    assert all(p is before[name] for name, p in one.named_parameters())


def test_more_processes_than_gpus_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "4"), ("RANK", "2"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="--nproc-per-node 2"), distributed.init_distributed():
        pytest.fail("it started")


def test_a_rank_that_is_not_torchruns_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.rank() == 0
    assert distributed.is_main_process()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.init_distributed():
        {"whole": whole, "killed": killed}[sys.argv[2]](Path(sys.argv[1]))
    assert not torch.distributed.is_initialized()
