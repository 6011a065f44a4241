"""Memory-mapped cache of decoded images: `<cache>/<key>/<size>.npy`, uint8 `[N, size, size, 3]`.

As apps make them (`distill.data.app_pixels`) they are in `<size>-apps-<recipe>.npy`, `[N, APPS, size, size, 3]`.

The key is a hash of the list (path, size, modification time and mode of each file), the version of the rule by which
an image becomes a square, the formats and sizes read, and Pillow's version.  Beside each array lies its `.json`,
written after it: the array's own size and time, so that nothing else is taken for it; the digests of the files; the
images that could not be read; and of those with 16 bits a channel how many bits their values take.
"""

import hashlib
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import PIL
from filelock import Timeout
from numpy.typing import NDArray
from PIL.Image import Image

from distill.data.app_pixels import APPS, RECIPE, app_squares
from distill.data.dataset import ImageSource, Indices
from gallery.codes import RULE
from gallery.console import log, track
from gallery.cores import map_ahead
from gallery.decode import FORMATS, LARGEST_PIXELS, to_square
from gallery.errors import CorruptFile, InputError
from gallery.files import acquire_lock, atomic_path, is_writable, open_array, read_json, remove_partial, write_json
from gallery.results import Skipped

BYTES = hashlib.sha256().digest_size
MAX_RECORD = 4 << 30  # bytes: fifty million images
Record = dict[str, Any]
# An image's SHA-256, its bits where it has 16 a channel, and its squares; or why there are none.
DecodeResult = tuple[str, int | None, list[NDArray[np.uint8]]] | str


class CachedArray(NamedTuple):
    """An array of the cache: squares of `size` pixels by the rule, or as apps make them."""

    size: int
    by_apps: bool = False

    @property
    def name(self) -> str:
        """The name of its files."""
        return f"{self.size}-apps-{RECIPE}" if self.by_apps else str(self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what it holds of each image."""
        square = self.size, self.size, 3
        return (APPS, *square) if self.by_apps else square

    def make(self, image: Image, digest: str) -> NDArray[np.uint8]:
        """Return what it holds of an upright RGB image; digest: of its file."""
        return app_squares(image, self.size, digest) if self.by_apps else to_square(image, self.size)


@dataclass(frozen=True)
class DecodedImages:
    """The images that could be read: indices into the list, SHA-256 of their files, their squares by size.

    app_pixels: `[N, APPS, size, size, 3]`, where they were asked for
    bits: of the largest value, in order, of those with 16 bits a channel (`decode`)
    """

    kept: Indices
    skipped: tuple[Skipped, ...]
    digests: tuple[bytes, ...]
    bits: tuple[int, ...]
    pixels: dict[int, NDArray[np.uint8]]
    app_pixels: NDArray[np.uint8] | None = None


def decode_all(
    source: ImageSource, names: Sequence[str], sizes: Sequence[int], cache: Path, app_size: int | None = None
) -> DecodedImages:
    """Open the squares of the images at `sizes`, after decoding them where that has not been done.

    app_size: side of the squares as apps make them, if any

    A cache that cannot be written is read where it is whole, and otherwise replaced by a temporary folder.
    Raises `InputError` where there is no room.
    """
    key = f"{RULE}\0{PIL.__version__}\0{FORMATS}\0{LARGEST_PIXELS}\0{source.stamp()}"
    folder = cache / hashlib.sha256(key.encode()).hexdigest()[:32]
    arrays = [*map(CachedArray, sizes), *([CachedArray(app_size, by_apps=True)] if app_size else [])]
    with ExitStack() as stack:
        if is_writable(folder):
            stack.enter_context(_lock(folder))
        elif not all(_read_record(folder, array, len(names)) for array in arrays):
            log.info("  %s cannot be written: decoding into a temporary folder", cache)
            folder = Path(stack.enter_context(TemporaryDirectory()))  # what is mapped outlives its name
        return _open(folder, _load_or_decode(folder, source, len(names), arrays), names, arrays)


def _lock(folder: Path) -> AbstractContextManager[object]:
    path, fix = folder / ".lock", "Choose another folder for the run: the cache of decoded images lies beside it."
    try:
        return acquire_lock(path, fix, timeout=0)
    except Timeout:
        log.info("another process is decoding the same images: waiting for it")
        return acquire_lock(path, fix)


def _open(folder: Path, record: Record, names: Sequence[str], arrays: Sequence[CachedArray]) -> DecodedImages:
    reasons = dict(record["skipped"])
    kept = np.array([i for i in range(len(names)) if i not in reasons], np.int64)
    opened: dict[CachedArray, NDArray[np.uint8]] = {}
    for array in arrays:
        try:
            opened[array] = found = open_array(folder / f"{array.name}.npy", sys.maxsize)
            if found.shape != (len(kept), *array.shape) or found.dtype != np.uint8:
                raise ValueError(f"{found.dtype} {found.shape}")
        except ValueError as error:
            raise CorruptFile(
                f"{len(kept)} images of {array.size} px in {folder}", str(error), f"Delete {folder}."
            ) from error
    skipped = tuple(Skipped(path=names[i], reason=reason) for i, reason in reasons.items())
    digests = bytes.fromhex(record["digests"])
    parts = tuple(digests[i : i + BYTES] for i in range(0, len(digests), BYTES))
    pixels = {array.size: found for array, found in opened.items() if not array.by_apps}
    app_pixels = next((found for array, found in opened.items() if array.by_apps), None)
    return DecodedImages(kept, skipped, parts, tuple(record["bits"]), pixels, app_pixels)


def _load_or_decode(folder: Path, source: ImageSource, count: int, arrays: Sequence[CachedArray]) -> Record:
    """Decode the arrays that are missing, or all where they are not of the same images; return their record."""
    old = {array: record for array in arrays if (record := _read_record(folder, array, count))}
    missing = [array for array in arrays if array not in old]
    records = [*old.values(), *([_decode_arrays(folder, source, count, missing)] if missing else [])]
    same = all(record[kind] == records[0][kind] for record in records for kind in ("digests", "skipped", "bits"))
    return records[0] if same else _decode_arrays(folder, source, count, arrays)


def _read_record(folder: Path, array: CachedArray, count: int) -> Record | None:
    """Return the record of an array; None where there is none, or the array is not as it was written."""
    path = folder / f"{array.name}.json"
    try:
        record: Record = read_json(path, dict, MAX_RECORD)
        skipped = {int(i): str(reason) for i, reason in record["skipped"] if 0 <= i < count}
        bits, digests = [int(own) for own in record["bits"]], str(record["digests"])
        kept = count - len(record["skipped"])
        sound = len(bytes.fromhex(digests)) == BYTES * kept and len(bits) <= kept and len(skipped) == count - kept
        if sound and record["array"] == _state(folder, array):
            return {"digests": digests, "skipped": [list(one) for one in skipped.items()], "bits": bits}
        log.warning("the array of %s is not as it was written: decoding again", path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s): decoding again", path, error)
    return None


def _state(folder: Path, array: CachedArray) -> list[int]:
    status = (folder / f"{array.name}.npy").stat()
    return [status.st_size, status.st_mtime_ns]


def _decode_arrays(folder: Path, source: ImageSource, count: int, arrays: Sequence[CachedArray]) -> Record:
    """Decode every image once, write its squares to all `arrays`, and return their common record."""
    remove_partial(folder)
    need, free = sum(count * math.prod(array.shape) for array in arrays), shutil.disk_usage(folder).free
    expected = f"room for {need:,} bytes of decoded images in {folder}"
    fix = "Free some space, put the run on another disk, or ask for smaller inputs."
    if need > free:
        raise InputError(expected, f"{free:,} free", fix)
    skipped: list[list[Any]] = []
    digests: list[str] = []
    bits: list[int] = []
    try:
        with ExitStack() as stack:
            streams = [stack.enter_context(_open_growing_npy(folder / f"{a.name}.npy", a.shape)) for a in arrays]
            for i, result in enumerate(track(_decode_iter(source, count, arrays), "decoding images", count)):
                if isinstance(result, str):
                    skipped.append([i, result])
                    continue
                digest, own_bits, squares = result
                digests.append(digest)
                bits += [own_bits] if own_bits else []
                for stream, square in zip(streams, squares, strict=True):
                    stream.write(square.data)
        record: Record = {"digests": "".join(digests), "skipped": skipped, "bits": bits}
        for array in arrays:
            write_json(folder / f"{array.name}.json", {**record, "array": _state(folder, array)})
    except OSError as error:  # of writing: those of reading are in `skipped`
        raise InputError(expected, str(error), fix) from error
    return record


@contextmanager
def _open_growing_npy(path: Path, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    """Open a .npy that images are appended to; its header is written again at the end, with their number.

    numpy pads the header so that the first axis may grow.  Appending, unlike a memory map, reports a full disk.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (0, *shape)}
    with atomic_path(path) as draft, draft.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        start = stream.tell()
        yield stream
        count = (stream.tell() - start) // math.prod(shape)
        stream.seek(0)
        np.lib.format.write_array_header_1_0(stream, {**header, "shape": (count, *shape)})


def _decode_iter(source: ImageSource, count: int, arrays: Sequence[CachedArray]) -> Iterator[DecodeResult]:
    """Decode by threads, a few images ahead of the consumer."""

    def work(index: int) -> DecodeResult:
        try:
            image, digest = source.read(index)
        except InputError as error:
            return error.found
        except OSError as error:  # a file that went away while it was read
            return str(error.strerror)
        return digest, image.info.get("bits"), [array.make(image, digest) for array in arrays]

    return map_ahead(work, range(count))
