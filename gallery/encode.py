"""Resumable, sharded batch inference over many images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gallery.console import log, track
from gallery.errors import CorruptFile, InputError
from gallery.files import atomic_path, open_array, read_json, sha256_of, write_json

INDEX = "shards.json"
Logits = NDArray[np.float32]
Encoder = Callable[[NDArray[Any]], Logits]


@dataclass(frozen=True)
class ShardCache:
    """Where logits are kept, so that a run that was stopped resumes.

    folder: of the shards `00000.npy`..., `shard_size` images each; label: names the work in the progress
    key:    what the logits depend on beside the number of images (hashes of weights and data); shards of another key,
            batch size or shard size are discarded
    """

    folder: Path
    label: str
    key: str = ""
    shard_size: int = 4096


def encode(encoder: Encoder, images: Any, batch_size: int, cache: ShardCache) -> Logits:
    """Run `encoder` over all images and return its logits, float32 `[n, bits]`; shards already there are read.

    encoder: a slice of `images`, at most `batch_size` long, to float32 `[b, bits]`
    images:  `[n, ...]`: pixels, may be memory-mapped (a batch is read at a time), or indices the encoder looks up
    Raises `InputError` for an encoder whose logits have a wrong shape or are not finite.
    """
    count, size = len(images), cache.shard_size
    if batch_size < 1 or size < 1 or not count:
        expected = "images, a batch size and a shard size of at least 1"
        raise InputError(expected, f"{count}, {batch_size} and {size}", "Check the data.")
    shards = _Shards(cache, {"key": cache.key, "images": count, "batch": batch_size, "shard": size})
    batches = [
        (first, min(first + batch_size, start + size, count))
        for start in range(0, count, size)
        for first in range(start, min(start + size, count), batch_size)
    ]
    missing = {number for number in range(-(-count // size)) if not shards.has(number)}
    todo = [(first, last) for first, last in batches if first // size in missing]
    parts: list[Logits] = []
    for first, last in track(todo, cache.label, len(batches), len(batches) - len(todo)):
        logits = np.asarray(encoder(np.ascontiguousarray(images[first:last])), np.float32)
        if logits.ndim != 2 or len(logits) != last - first or not np.isfinite(logits).all():
            found = f"{logits.shape}, {np.isfinite(logits).sum()} of {logits.size} finite"
            raise InputError(f"finite logits [{last - first}, bits] from the encoder", found, "Check the model.")
        parts.append(logits)
        if last % size == 0 or last == count:
            shards.add(first // size, np.concatenate(parts))
            parts = []
    return shards.read()


class _Shards:
    """The shards in a folder and, in `shards.json`, what they were made from and the checksum of each."""

    def __init__(self, cache: ShardCache, made_from: dict[str, Any]) -> None:
        self.folder, self.made_from = cache.folder, made_from
        self.sums = self._read_sums()
        if not self.sums and (stale := sorted(self.folder.glob("[0-9]*.npy"))):
            log.info("  %d shards in %s belong to other weights or data: encoding again", len(stale), self.folder)
            for path in stale:
                path.unlink()

    def _read_sums(self) -> dict[str, str]:
        path = self.folder / INDEX
        try:
            record = read_json(path, dict)
            sums = dict(record["sha256"]) if record["made_from"] == self.made_from else {}
            return {f"{number:05d}.npy": str(sums[f"{number:05d}.npy"]) for number in range(len(sums))}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, KeyError) as error:
            log.warning("  %s is damaged (%r): encoding again", path, error)
            return {}

    def has(self, number: int) -> bool:
        """Return whether the shard is there and undamaged."""
        path = self._path(number)
        if path.name not in self.sums:
            return False
        if path.is_file() and sha256_of(path) == self.sums[path.name]:
            return True
        log.warning("  shard %s is missing or damaged: encoding it again", path)
        return False

    def add(self, number: int, logits: Logits) -> None:
        """Write a shard, then its checksum: a shard without one is computed again."""
        path = self._path(number)
        with atomic_path(path) as draft, draft.open("wb") as stream:
            np.save(stream, logits, allow_pickle=False)
        self.sums[path.name] = sha256_of(path)
        write_json(self.folder / INDEX, {"made_from": self.made_from, "sha256": self.sums})

    def read(self) -> Logits:
        """Return all shards, joined; raises `CorruptFile` where they are not logits, whatever their checksums."""
        paths = [self._path(number) for number in range(-(-self.made_from["images"] // self.made_from["shard"]))]
        try:
            logits = np.concatenate([open_array(path, path.stat().st_size) for path in paths])
            if logits.dtype != np.float32 or logits.ndim != 2 or len(logits) != self.made_from["images"]:
                raise ValueError(f"{logits.dtype} {logits.shape}")
        except ValueError as error:
            expected = f"logits of {self.made_from['images']} images in {self.folder}"
            raise CorruptFile(expected, str(error), f"Delete {self.folder} to encode them again.") from error
        return logits

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.npy"
