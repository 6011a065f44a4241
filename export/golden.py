"""Golden inputs of a bundle: images of the model's size, and photographs that have yet to be decoded and resized."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.artifact import Manifest, first_line
from gallery.codes import Codes, pack
from gallery.decode import decode, to_square
from gallery.errors import CorruptFile
from gallery.files import is_desktop_file, read_bytes, read_json, write_json

GOLDEN, IMAGE, PHOTOS, SQUARES = "golden.json", "golden/{:03}.png", "golden/photos/", "golden/squares/"
MAX_ROWS = 8 << 20  # bytes
MAX_GOLDEN, MAX_GOLDEN_PIXELS = 99, 1 << 27  # images, each of which an engine may take seconds for; pixels of all
MAX_PHOTO, MAX_FACTOR = 4 << 20, 12  # bytes of a photo; its longer side, in sides of the input
_PHOTO = re.compile(PHOTOS + r"[a-z0-9-]{1,40}\.(jpg|png)")


@dataclass(frozen=True)
class Golden:
    """Images uint8 `[n, S, S, 3]` with the float student's codes `[n, bits/8]` and logits `[n, bits]`.

    photos: files by name; the last images are their squares by the rule (`gallery.codespace.RULE_TEXT`), in this order
    """

    images: NDArray[np.uint8]
    codes: Codes
    logits: NDArray[np.float32]
    photos: dict[str, bytes] = field(default_factory=dict)


def write_golden(folder: Path, golden: Golden) -> None:
    """Write `golden.json` and the images below `golden`, of a photo its square too."""
    for name in (PHOTOS, SQUARES) if golden.photos else ("golden",):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = _rows(golden)
    for row, image in zip(rows, golden.images, strict=True):
        Image.fromarray(image).save(folder / _square_of(row["file"]))
    for name, data in golden.photos.items():
        (folder / PHOTOS / name).write_bytes(data)
    write_json(folder / GOLDEN, rows)


def read_golden(folder: Path, manifest: Manifest) -> Golden:
    """Read the golden inputs of a bundle that was opened; photos are decoded and resized here.

    Raises `CorruptFile` unless the images are PNG files of the models' input size, the photos give their squares to the
    last bit, and the logits give the codes.
    """
    bits, size = manifest.space.bits, manifest.files[0].metadata.size
    try:
        rows = read_json(folder / GOLDEN, list, MAX_ROWS)
        if not 0 < len(rows) <= min(MAX_GOLDEN, MAX_GOLDEN_PIXELS // size**2):
            raise ValueError(f"{len(rows)} images")
        names = [row["file"] for row in rows if _PHOTO.fullmatch(row["file"])]
        names = [IMAGE.format(i) for i in range(len(rows) - len(names))] + names
        if {*names, *map(_square_of, names)} != _files(folder) or len(set(names)) < len(rows):
            raise ValueError("images without a code")
        photos = {name: read_bytes(folder / name, MAX_PHOTO) for name in names if name.startswith(PHOTOS)}
        squares = {name: _read_png(folder / _square_of(name), size) for name in names}
        made = {name: _square(name, data, size) for name, data in photos.items()}
        images = np.stack([(squares | made)[name] for name in names])
        codes = np.stack([np.frombuffer(bytes.fromhex(row["code"]), np.uint8) for row in rows])
        logits = np.array([row["logits"] for row in rows], np.float32)
        fits = logits.shape == (len(rows), bits) and bool(np.isfinite(logits).all())
        if not fits or not np.array_equal(pack(logits), codes):
            raise ValueError(f"codes of {8 * codes.shape[1]} bits and logits {list(logits.shape)}, which give others")
        golden = Golden(images, codes, logits, {Path(name).name: data for name, data in photos.items()})
        _check_squares(folder, rows, golden)
        if wrong := [name for name, image in made.items() if not np.array_equal(image, squares[name])]:
            raise ValueError(f"{_square_of(wrong[0])}, which is not the square of {wrong[0]}")
        if json.dumps(rows) != json.dumps(_rows(golden)):  # 1 is not "1", nor true
            raise ValueError(f"rows that are not as Twinhash writes them, of {IMAGE.format(0)} and the next")
        return golden
    except CorruptFile:
        raise
    except Exception as error:  # OSError, what JSON and numpy raise for other data, and Pillow, which documents none
        what = f"{size} x {size} images, and golden logits that give the golden codes of {bits} bits, in {folder}"
        raise CorruptFile(what, first_line(error), "Restore the bundle.") from error


def _files(folder: Path) -> set[str]:
    """Return the names of all golden images, but for what desktop software leaves behind."""
    folders = [path for path in (folder / "golden", folder / PHOTOS, folder / SQUARES) if path.is_dir()]
    paths = [path for one in folders for path in one.iterdir() if path not in folders]
    return {path.relative_to(folder).as_posix() for path in paths if not is_desktop_file(path.name)}


def _square_of(name: str) -> str:
    """Return the file of an image of the model's size: of a photo another one, of others the image itself."""
    return f"{SQUARES}{Path(name).stem}.png" if name.startswith(PHOTOS) else name


def _check_squares(folder: Path, rows: list[dict[str, Any]], golden: Golden) -> None:
    """Raise unless the photos' squares are those that were made when the bundle was."""
    for row, found in zip(rows, _rows(golden), strict=True):
        if row["file"].startswith(PHOTOS) and row["square"] != found["square"]:
            fix = "Restore the bundle, or install the Pillow that pyproject.toml names: this one decodes otherwise."
            expected = f"the square of golden photograph {row['file']} in {folder} to have sha256 {row['square']!r:.20}"
            raise CorruptFile(expected, found["square"][:16], fix)


def _read_png(path: Path, size: int) -> NDArray[np.uint8]:
    """Read RGB pixels `[size, size, 3]`; no decoder but PNG's sees the file, and none before its header fits."""
    data = read_bytes(path, 4 * size**2 + (1 << 16))
    with Image.open(BytesIO(data), formats=("PNG",)) as image:
        if (*image.size, image.mode) != (size, size, "RGB"):
            raise ValueError(f"{path.name} of {image.size} pixels, {image.mode}")
        return np.array(image)


def _square(name: str, data: bytes, size: int) -> NDArray[np.uint8]:
    """Decode a photo and resize it by the rule; raises `ValueError` for one that is larger than any golden one."""
    with Image.open(BytesIO(data), formats=("JPEG", "PNG")) as image:
        if max(image.size) > MAX_FACTOR * size:
            raise ValueError(f"{name} of {image.size} pixels")
    return to_square(decode(data), size)


def _rows(golden: Golden) -> list[dict[str, Any]]:
    """Codes and SHA-256 of squares in hexadecimal, logits of nine digits: enough to restore a float32 exactly."""
    names = [IMAGE.format(i) for i in range(len(golden.images) - len(golden.photos))]
    names += [PHOTOS + name for name in golden.photos]
    return [
        {"file": name, "square": hashlib.sha256(image.tobytes()).hexdigest(), "code": code.tobytes().hex(),
         "logits": [float(f"{value:.9g}") for value in logits]}
        for name, image, code, logits in zip(names, golden.images, golden.codes, golden.logits, strict=True)
    ]  # fmt: skip
