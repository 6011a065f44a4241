"""Encoding in shards: stopped anywhere and started again, it gives what one go gives, bit for bit."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gallery.encode import ShardCache, encode
from gallery.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (23, 4, 4, 3)).astype(np.uint8)
WEIGHTS = np.random.default_rng(1).normal(size=(48, 16)).astype(np.float32)


class Encoder:
    """A linear map whose logits depend on the batch, as those of real networks do; it fails after `stop` batches."""

    def __init__(self, stop: int = 10**9) -> None:
        self.stop, self.batches = stop, list[int]()

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        if len(self.batches) == self.stop:
            raise ConnectionError("the plug was pulled")
        self.batches.append(len(batch))
        assert batch.flags.c_contiguous
        return batch.reshape(len(batch), -1) @ WEIGHTS + np.float32(batch.mean())


def run(folder: Path, encoder: Callable[[Any], Any], pixels: Any = PIXELS, **changes: Any) -> np.ndarray:
    batch_size = changes.pop("batch_size", 3)
    return encode(encoder, pixels, batch_size, ShardCache(folder, "x", **{"shard_size": 8, "key": "k", **changes}))


def test_it_is_the_encoder_batch_by_batch_within_shards(tmp_path: Path) -> None:
    encoder = Encoder()
    logits = run(tmp_path, encoder)
    edges = [0, 3, 6, 8, 11, 14, 16, 19, 22, 23]
    expected = np.concatenate([Encoder()(PIXELS[a:b]) for a, b in pairwise(edges)])
    assert logits.dtype == np.float32
    assert np.array_equal(logits, expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000.npy", "00001.npy", "00002.npy", "shards.json"]
    again = Encoder(stop=0)
    assert np.array_equal(run(tmp_path, again), logits)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 9), max_size=4), st.integers(1, 30), st.integers(1, 30))
def test_stopped_anywhere_it_ends_the_same(stops: list[int], batch_size: int, shard: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        sizes = {"batch_size": batch_size, "shard_size": shard}
        expected = run(Path(name) / "one", Encoder(), **sizes)
        for stop in stops:
            with suppress(ConnectionError):
                run(Path(name) / "two", Encoder(stop), **sizes)
        assert np.array_equal(run(Path(name) / "two", Encoder(), **sizes), expected)


def test_finished_shards_are_not_computed_again(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        run(tmp_path, Encoder(stop=5))  # the first shard takes three batches
    rest = Encoder()
    run(tmp_path, rest)
    assert rest.batches == [3, 3, 2, 3, 3, 1]


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from gallery.encode import ShardCache, encode
seen = []
def encoder(batch):
    seen.append(1)
    if len(seen) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch.reshape(len(batch), -1)[:, :16].astype(np.float32)
encode(encoder, np.load(sys.argv[1]), 3, ShardCache(Path(sys.argv[2]), "x", shard_size=8))
"""


def test_killed_for_good_it_resumes(tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", PIXELS)
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", KILLED, tmp_path / "pixels.npy", tmp_path / "s"]
    process = subprocess.run(command, cwd=root, check=False)
    assert process.returncode == -signal.SIGKILL
    calls = []

    def encoder(batch: np.ndarray) -> np.ndarray:
        calls.append(len(batch))
        return batch.reshape(len(batch), -1)[:, :16].astype(np.float32)

    logits = encode(encoder, PIXELS, 3, ShardCache(tmp_path / "s", "x", shard_size=8))
    assert sum(calls) == 23 - 8
    assert np.array_equal(logits, PIXELS.reshape(23, -1)[:, :16])


@pytest.mark.parametrize(
    "change",
    [{"key": "other"}, {"batch_size": 4}, {"shard_size": 9}, {"pixels": PIXELS[:22]}],
    ids=lambda c: next(iter(c)),
)
def test_shards_made_from_something_else_are_discarded(tmp_path: Path, change: dict[str, Any]) -> None:
    run(tmp_path, Encoder())
    encoder = Encoder()
    logits = run(tmp_path, encoder, **change)
    assert sum(encoder.batches) == len(logits) == len(change.get("pixels", PIXELS))
    fresh = run(tmp_path / "fresh", Encoder(), **change)
    assert np.array_equal(logits, fresh)
    assert len(list(tmp_path.glob("*.npy"))) == len(list((tmp_path / "fresh").glob("*.npy")))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_damaged_shard_is_made_again_and_told(
    tmp_path: Path, damage: Callable[[Path], Any], number: int, caplog: pytest.LogCaptureFixture
) -> None:
    expected = run(tmp_path, Encoder())
    damage(tmp_path / f"0000{number}.npy")
    encoder = Encoder()
    with caplog.at_level(logging.WARNING, "twinhash"):
        assert np.array_equal(run(tmp_path, encoder), expected)
    assert sum(encoder.batches) == (8, 8, 7)[number]
    assert f"0000{number}.npy" in caplog.text


@pytest.mark.parametrize("text", ["", "[", "[]", "null", "{}", '{"sha256": 3}'])
def test_a_damaged_stamp_means_starting_over(tmp_path: Path, text: str) -> None:
    expected = run(tmp_path, Encoder())
    (tmp_path / "shards.json").write_text(text)
    encoder = Encoder()
    assert np.array_equal(run(tmp_path, encoder), expected)
    assert sum(encoder.batches) == 23
    assert json.loads((tmp_path / "shards.json").read_text())["made_from"]["key"] == "k"


def test_a_memory_map_is_read_a_batch_at_a_time(tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", PIXELS)
    slices = []

    class Map:
        data = np.load(tmp_path / "pixels.npy", mmap_mode="r")

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, part: slice) -> np.ndarray:
            slices.append(part)
            return self.data[part]

    assert np.array_equal(run(tmp_path / "s", Encoder(), Map()), run(tmp_path / "t", Encoder()))
    assert max(part.stop - part.start for part in slices) == 3


@pytest.mark.parametrize("wrong", [
    lambda b: np.zeros((len(b) + 1, 8)), lambda b: np.zeros(len(b)), lambda b: np.full((len(b), 8), np.nan),
    lambda b: np.full((len(b), 8), np.inf),
], ids=["too many", "flat", "nan", "inf"])  # fmt: skip
def test_logits_of_a_wrong_shape_or_not_finite_are_rejected(tmp_path: Path, wrong: Callable[[Any], Any]) -> None:
    with pytest.raises(InputError, match="finite logits"):
        run(tmp_path, wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"pixels": PIXELS[:0]}, {"batch_size": 0}, {"shard_size": 0}])
def test_nothing_to_do_is_rejected(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        run(tmp_path, Encoder(), **change)
