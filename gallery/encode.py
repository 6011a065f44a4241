"""Encoding many pictures: in shards that appear whole, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gallery.console import log, track
from gallery.errors import InputError
from gallery.files import sha256_of, whole, write_json

STAMP = "shards.json"
Logits = NDArray[np.float32]
Encoder = Callable[[NDArray[Any]], Logits]


def encode(
    encoder: Encoder, pictures: Any, folder: Path, batch_size: int, label: str, shard: int = 4096, key: str = ""
) -> Logits:
    """Runs `encoder` over all pictures and returns its logits, float32 `[n, bits]`.

    encoder:    a slice of `pictures`, at most `batch_size` long, to float32 `[b, bits]`
    pictures:   `[n, ...]`: pixels, may be memory-mapped (a batch is read at a time), or indices the encoder looks up
    folder:     for the shards `00000.npy`..., `shard` pictures each; shards already there are not computed again
    key:        what the logits depend on beside the pictures' number (hashes of weights and data); shards made under
                another key, batch size or shard size are discarded
    Raises `InputError` for an encoder whose logits have a wrong shape or are not finite.
    """
    count = len(pictures)
    if batch_size < 1 or shard < 1 or not count:
        raise InputError(
            "pictures, a batch size and a shard size of at least 1",
            f"{count}, {batch_size} and {shard}",
            "Check the data.",
        )
    shards = _Shards(folder, {"key": key, "pictures": count, "batch": batch_size, "shard": shard})
    batches = [
        (a, min(a + batch_size, start + shard, count))
        for start in range(0, count, shard)
        for a in range(start, min(start + shard, count), batch_size)
    ]
    missing = {number for number in range(-(-count // shard)) if not shards.has(number)}
    todo = [(first, last) for first, last in batches if first // shard in missing]
    parts: list[Logits] = []
    for first, last in track(todo, label, len(batches), len(batches) - len(todo)):
        parts.append(_run(encoder, np.ascontiguousarray(pictures[first:last])))
        if last % shard == 0 or last == count:
            shards.add(first // shard, np.concatenate(parts))
            parts = []
    return shards.read()


def _run(encoder: Encoder, batch: NDArray[Any]) -> Logits:
    logits = np.asarray(encoder(batch), np.float32)
    if logits.ndim != 2 or len(logits) != len(batch) or not np.isfinite(logits).all():
        raise InputError(
            f"finite logits [{len(batch)}, bits] from the encoder",
            f"{logits.shape}, {np.isfinite(logits).sum()} of {logits.size} finite",
            "Check the model.",
        )
    return logits


class _Shards:
    """The shards in `folder` and, in `shards.json`, what they were made from and the checksum of each."""

    def __init__(self, folder: Path, made_from: dict[str, Any]) -> None:
        self.folder, self.made_from = folder, made_from
        self.sums = self._known()
        if not self.sums:
            self._discard()

    def _known(self) -> dict[str, str]:
        path = self.folder / STAMP
        try:
            stamp = json.loads(path.read_text())
            return dict(stamp["sha256"]) if stamp["made_from"] == self.made_from else {}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, KeyError) as error:
            log.warning("  %s is damaged (%r): encoding again", path, error)
            return {}

    def _discard(self) -> None:
        shards = sorted(self.folder.glob("[0-9]*.npy"))
        if shards:
            log.info("  %d shards in %s belong to other weights or data: encoding again", len(shards), self.folder)
        for path in shards:
            path.unlink()

    def has(self, number: int) -> bool:
        """Whether the shard is there and undamaged."""
        path = self._path(number)
        if path.name not in self.sums:
            return False
        if path.exists() and sha256_of(path) == self.sums[path.name]:
            return True
        log.warning("  shard %s is missing or damaged: encoding it again", path)
        return False

    def add(self, number: int, logits: Logits) -> None:
        """Writes a shard, then its checksum: a shard without one is computed again."""
        path = self._path(number)
        with whole(path) as draft, draft.open("wb") as stream:
            np.save(stream, logits, allow_pickle=False)
        self.sums[path.name] = sha256_of(path)
        write_json(self.folder / STAMP, {"made_from": self.made_from, "sha256": self.sums})

    def read(self) -> Logits:
        """All shards, joined."""
        paths = [self._path(number) for number in range(len(self.sums))]
        return np.concatenate([np.load(path, mmap_mode="r", allow_pickle=False) for path in paths])

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.npy"
