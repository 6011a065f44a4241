"""Pictures are decoded once, into `<cache>/<key>/<size>.npy`: uint8 `[N, size, size, 3]`, opened memory-mapped.

The key is a hash of the listing (path, size, modification time and mode of each file), the resize rule and Pillow's
version.  Beside each array lies `<size>.json`, written after it: the array's own size and time, so that nothing else
is taken for it; the digests of the files; and the ledger of pictures that could not be read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import PIL
from filelock import Timeout
from numpy.typing import NDArray

from distill.data.dataset import ImageSource, Indices, Skipped
from distill.data.decode import to_square
from gallery.codespace import Preprocessing
from gallery.console import log, track
from gallery.errors import CorruptFile, InputError
from gallery.files import acquire_lock, atomic_path, write_json

BYTES = hashlib.sha256().digest_size
T = TypeVar("T")
Record = dict[str, Any]
DeviceOutput = tuple[str, list[NDArray[np.uint8]]] | str  # a picture's SHA-256 and squares, or why there are none


@dataclass(frozen=True)
class DecodedImages:
    """The pictures that could be read: indices into the listing, SHA-256 of their files, their squares by size."""

    kept: Indices
    skipped: tuple[Skipped, ...]
    digests: tuple[bytes, ...]
    pixels: dict[int, NDArray[np.uint8]]


def decoded(pictures: ImageSource, names: Sequence[str], sizes: Sequence[int], cache: Path) -> DecodedImages:
    """Opens the squares of `pictures` at `sizes`, after decoding them where that has not been done.

    Raises `InputError` when the cache cannot be written, e.g. for want of room.
    """
    key = f"{Preprocessing.resize}\0{PIL.__version__}\0{pictures.stamp()}"
    folder = cache / hashlib.sha256(key.encode()).hexdigest()[:32]
    path, fix = folder / ".lock", "Choose another cache folder."
    try:
        lock = acquire_lock(path, fix, timeout=0)
    except Timeout:
        log.info("another process is decoding the same images: waiting for it")
        lock = acquire_lock(path, fix)
    with lock:
        record = _up_to_date(folder, pictures, len(names), sizes)
    reasons = dict(record["skipped"])
    kept = np.array([i for i in range(len(names)) if i not in reasons], np.int64)
    skipped = tuple(Skipped(names[i], reason) for i, reason in reasons.items())
    digests = bytes.fromhex(record["digests"])
    each = tuple(digests[i : i + BYTES] for i in range(0, len(digests), BYTES))
    return DecodedImages(kept, skipped, each, {size: _open(folder, size, len(kept)) for size in sizes})


def _up_to_date(folder: Path, pictures: ImageSource, count: int, sizes: Sequence[int]) -> Record:
    """Fills in the sizes that are missing, or all where they are not of the same pictures; returns their record."""
    old = {size: record for size in sizes if (record := _record(folder, size, count))}
    missing = [size for size in sizes if size not in old]
    records = [*old.values(), *([_fill(folder, pictures, count, missing)] if missing else [])]
    same = all(record[kind] == records[0][kind] for record in records for kind in ("digests", "skipped"))
    return records[0] if same else _fill(folder, pictures, count, sizes)


def _record(folder: Path, size: int, count: int) -> Record | None:
    """What was noted of a whole array; None where there is none, or it is not as it was written."""
    path = folder / f"{size}.json"
    try:
        record: Record = json.loads(path.read_bytes())
        sound = len(bytes.fromhex(record["digests"])) == BYTES * (count - len(record["skipped"]))
        if sound and record["array"] == _state(folder, size) and all(0 <= i < count for i, _ in record["skipped"]):
            return {"digests": str(record["digests"]), "skipped": record["skipped"]}
        log.warning("the array of %s is not as it was written: decoding again", path)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s): decoding again", path, error)
    return None


def _state(folder: Path, size: int) -> list[int]:
    status = (folder / f"{size}.npy").stat()
    return [status.st_size, status.st_mtime_ns]


def _open(folder: Path, size: int, count: int) -> NDArray[np.uint8]:
    path = folder / f"{size}.npy"
    array: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.shape != (count, size, size, 3) or array.dtype != np.uint8:
        raise CorruptFile(f"{count} pictures of {size} px in {path}", str(array.shape), f"Delete {folder}.")
    return array


def _fill(folder: Path, pictures: ImageSource, count: int, sizes: Sequence[int]) -> Record:
    """Decodes every picture once and writes its squares at all `sizes`; returns the arrays' common record."""
    for draft in folder.glob(".[0-9]*"):  # left by a killed run: the lock says that nobody is writing
        shutil.rmtree(draft)
    need, free = sum(count * size * size * 3 for size in sizes), shutil.disk_usage(folder).free
    if need > free:
        raise _no_room(folder, need, f"{free:,} free")
    skipped: list[list[Any]] = []
    digests: list[str] = []
    try:
        with ExitStack() as stack:
            streams = [stack.enter_context(_growing(folder / f"{size}.npy", size)) for size in sizes]
            for i, outcome in enumerate(track(_outcomes(pictures, count, sizes), "decoding pictures", count)):
                if isinstance(outcome, str):
                    skipped.append([i, outcome])
                    continue
                digests.append(outcome[0])
                for stream, square in zip(streams, outcome[1], strict=True):
                    stream.write(square.data)
        record: Record = {"digests": "".join(digests), "skipped": skipped}
        for size in sizes:
            write_json(folder / f"{size}.json", {**record, "array": _state(folder, size)})
    except OSError as error:  # of writing: those of reading are in the ledger
        raise _no_room(folder, need, str(error)) from error
    return record


def _no_room(folder: Path, need: int, found: str) -> InputError:
    fix = "Free some space, choose another cache folder, or ask for smaller inputs."
    return InputError(f"room for {need:,} bytes of decoded pictures in {folder}", found, fix)


@contextmanager
def _growing(path: Path, size: int) -> Iterator[BinaryIO]:
    """A .npy that pictures are appended to; its header is written again at the end, with their number.

    numpy pads the header so that the first axis may grow.  Appending, unlike a memory map, reports a full disk.
    """
    with atomic_path(path) as draft, draft.open("wb") as stream:
        _write_header(stream, 0, size)
        start = stream.tell()
        yield stream
        count = (stream.tell() - start) // (size * size * 3)
        stream.seek(0)
        _write_header(stream, count, size)


def _write_header(stream: BinaryIO, count: int, size: int) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
    np.lib.format.write_array_header_1_0(stream, header)


def _outcomes(pictures: ImageSource, count: int, sizes: Sequence[int]) -> Iterator[DeviceOutput]:
    def work(index: int) -> DeviceOutput:
        try:
            image, digest = pictures.read(index)
        except InputError as error:
            return error.found
        return digest, [to_square(image, size) for size in sizes]

    with warnings.catch_warnings():  # Pillow's remarks on odd metadata; what matters is in the ledger
        warnings.filterwarnings("ignore", module="PIL")
        yield from _in_order(work, count, os.cpu_count() or 1)


def _in_order(work: Callable[[int], T], count: int, workers: int) -> Iterator[T]:
    """`work(0), work(1), ...` by threads (Pillow decodes without the GIL), a few ahead of the consumer."""
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[T]] = deque()
        for i in range(count):
            ahead.append(pool.submit(work, i))
            if len(ahead) > 4 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
