#!/usr/bin/env python3
"""Run this bundle's Core ML files on this Mac, by compute unit: compare them with the golden codes, and time them.

    pip install coremltools numpy pillow
    python apps/run_on_mac.py

Writes mac.json for Twinhash, beside the bundle: python mobile_eval/run.py import-results mac.json
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

UNITS = ("CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE", "ALL")
WARM_UPS, SAMPLES, MAX_SECONDS = 10, 200, 10.0
RULE = 2  # of the metadata: what `read_photo` does
TOLERANCE = 1e-3  # |golden logit| above which a bit that differs is counted apart
Pixels = NDArray[np.uint8]
Output = tuple[NDArray[np.uint8], NDArray[np.float32]]
Predict = Callable[[Pixels], Output]
Open = Callable[[Path, str], Predict]
MAX_JSON, MAX_IMAGE, MAX_SIDE = 8 << 20, 64 << 20, 4096  # bytes, bytes, pixels
MAX_FACTOR = 12  # longer side of a golden photograph, in sides of the model's input
DESKTOP_FILES = {  # no part of a package
    ".ds_store", ".localized", ".apdisk", "__macosx", ".appledouble", ".spotlight-v100", ".fseventsd", ".trashes",
    ".temporaryitems", "icon\r", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin",
    "system volume information", ".directory", "lost+found", "@eadir", "#recycle", ".@__thumb",
}  # fmt: skip
Golden = list[tuple[Pixels, NDArray[np.uint8], NDArray[np.float32]]]


class CoreMl:
    """An .mlpackage as macOS runs it on a compute unit; opening compiles it."""

    def __init__(self, path: Path, unit: str) -> None:
        import coremltools

        self._model = coremltools.models.MLModel(str(path), compute_units=coremltools.ComputeUnit[unit])

    def __call__(self, image: Pixels) -> Output:
        """Turn an image uint8 `[S, S, 3]` into its code uint8 `[bits/8]` and logits float32 `[bits]`."""
        found = self._model.predict({"image": Image.fromarray(image)})
        return np.ravel(found["codes"]).astype(np.uint8), np.ravel(found["logits"]).astype(np.float32)


def main(arguments: Sequence[str] | None = None, open_file: Open = CoreMl) -> int:
    """Return the exit code: 0, 1 when a model failed, 2 without a model or without Core ML."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--out", type=Path, help="by default mac.json beside the bundle")
    parser.add_argument("--units", nargs="+", choices=UNITS, default=UNITS)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    options = parser.parse_args(arguments)
    if open_file is CoreMl and platform.system() != "Darwin":
        return _bad_input(f"Core ML runs on macOS; this is {platform.system()}.")
    if find_spec("coremltools") is None:
        return _bad_input("coremltools is missing: pip install coremltools")
    bundle = options.bundle.resolve()
    out = (options.out or bundle.parent / "mac.json").resolve()
    if out.is_relative_to(bundle):
        return _bad_input(
            f"{out} lies in the bundle, which holds only what its manifest.json lists: choose another --out"
        )
    if not os.access(out.parent, os.W_OK):
        return _bad_input(f"{out.parent} is no folder that can be written: choose another --out")
    try:
        files, golden = read_bundle(bundle)
    except Exception as error:  # noqa: BLE001 - whatever json, numpy and Pillow raise for files that are damaged
        return _bad_input(f"{bundle} is no Twinhash bundle with Core ML files: {type(error).__name__}: {error}")
    rows = []
    for path, sha256 in files.items():
        for unit in options.units:
            result = check(path, unit, golden, open_file, options.samples)
            rows.append({"file": path.name, "sha256": sha256, "unit": unit, **result})
            print(_line(rows[-1]), flush=True)
    out.write_text(json.dumps({"run_on_mac": 1, "machine": machine(), "rows": rows}, indent=1) + "\n")
    return int(any("error" in row for row in rows))


def read_bundle(folder: Path) -> tuple[dict[Path, str], Golden]:
    """Return the Core ML files with their checksums, and the golden inputs with codes and logits."""
    listed = json.loads(read_regular(folder / "manifest.json", MAX_JSON))["files"]
    files = {folder / name: entry["sha256"] for name, entry in listed.items() if entry.get("format") == "coreml"}
    if not files:
        raise ValueError("none is listed in manifest.json")
    for path, sha256 in files.items():
        if path.parent != folder or not path.name.isprintable() or digest(path) != sha256:
            raise ValueError(f"{path.name!a} is not what manifest.json says")
        if (rule := listed[path.name]["metadata"].get("rule")) != RULE:
            raise ValueError(f"{path.name} wants rule {rule!a}, this script does {RULE}: export the bundle again")
    golden, size = [], listed[next(iter(files)).name]["metadata"]["size"]
    for i, row in enumerate(json.loads(read_regular(folder / "golden.json", MAX_JSON))):
        name, code = row["file"], bytes.fromhex(row["code"])
        is_photo = re.fullmatch(r"golden/photos/[a-z0-9-]{1,40}\.(jpg|png)", name)
        name = name if is_photo else f"golden/{i:03}.png"
        image = read_photo(folder / name, size) if is_photo else read_png(folder / name)
        if hashlib.sha256(image.tobytes()).hexdigest() != row["square"]:
            fix = "restore it, or: pip install pillow==13.*" if is_photo else "the file was changed: restore it"
            raise ValueError(f"{name} gives another square here than where the bundle was made: {fix}")
        golden.append((image, np.frombuffer(code, np.uint8), np.array(row["logits"], np.float32)))
    return files, golden


def read_regular(path: Path, most: int) -> bytes:
    """Read a regular file of at most `most` bytes."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > most:
        raise ValueError(f"{path.name} is no file of at most {most} bytes")
    return path.read_bytes()


def read_png(path: Path) -> Pixels:
    """Read a PNG image as RGB pixels `[S, S, 3]`; no other decoder sees the file, and none a large image."""
    with Image.open(io.BytesIO(read_regular(path, MAX_IMAGE)), formats=("PNG",)) as image:
        if max(image.size) > MAX_SIDE:
            raise ValueError(f"{path.name} has {image.size} pixels")
        return np.asarray(image.convert("RGB"))


def read_photo(path: Path, size: int) -> Pixels:
    """Read a golden photograph as a square by rule 2: upright, sRGB, on white, resized, cropped."""
    with Image.open(io.BytesIO(read_regular(path, MAX_IMAGE)), formats=("JPEG", "PNG")) as file:
        if max(file.size) > MAX_FACTOR * size:
            raise ValueError(f"{path.name} has {file.size} pixels")
        profile, image = file.info.get("icc_profile"), ImageOps.exif_transpose(file)
    if profile and image.mode == "RGB":
        source, intent = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.Intent.RELATIVE_COLORIMETRIC
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), intent)
        image = converted or image
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    width, height = (max(size, int(size * side / min(image.size))) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def digest(folder: Path) -> str:
    """Return the manifest's checksum of a package: SHA-256 over the sorted names of its files and their SHA-256.

    Of Manifest.json only the content counts, since coremltools writes it again when it opens the package; what Finder
    and the like leave in a folder does not.
    """
    total = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder)
        if any(part.startswith("._") or part.lower() in DESKTOP_FILES for part in name.parts):
            continue
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        if name == Path("Manifest.json"):
            data = json.dumps(json.loads(read_regular(file, MAX_JSON)), sort_keys=True)
            sha256 = hashlib.sha256(data.encode()).hexdigest()
        total.update(f"{name.as_posix()}\0{sha256}\n".encode())
    return total.hexdigest()


def check(path: Path, unit: str, golden: Golden, open_file: Open, samples: int) -> dict[str, Any]:
    """Compare and time one model on one compute unit, or return the error that it failed with."""
    try:
        start = time.perf_counter()
        predict = open_file(path, unit)
        load_ms = 1e3 * (time.perf_counter() - start)
        first_ms, samples_ms = timed(lambda: predict(golden[0][0]), samples)
        return {"load_ms": load_ms, "first_ms": first_ms, "samples_ms": samples_ms, **compare(predict, golden)}
    except Exception as error:  # noqa: BLE001 - Core ML raises whatever it likes; the other rows must still be made
        return {"error": f"{type(error).__name__}: {error}"[:1000]}


def compare(predict: Predict, golden: Golden) -> dict[str, Any]:
    """Count the bit flips against the golden codes, those beyond the tolerance among them; the largest logit error."""
    images, codes, logits = (np.stack(part) for part in zip(*golden, strict=True))
    found_codes, found_logits = (np.stack(part) for part in zip(*map(predict, images), strict=True))
    flipped = np.unpackbits(found_codes ^ codes, axis=1, bitorder="little").astype(bool)
    return {
        "bits_compared": flipped.size,
        "bits_flipped": int(flipped.sum()),
        "flips_beyond_tolerance": int((flipped & (np.abs(logits) > TOLERANCE)).sum()),
        "largest_logit_error": float(np.abs(found_logits - logits).max()),
    }


def timed(call: Callable[[], Any], samples: int) -> tuple[float, list[float]]:
    """Return the milliseconds of the very first call, and of those after the warm-up."""

    def once() -> float:
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)

    first = once()
    for _ in range(WARM_UPS):
        once()
    samples_ms, end = [once()], time.perf_counter() + MAX_SECONDS
    while len(samples_ms) < samples and time.perf_counter() < end:
        samples_ms.append(once())
    return first, samples_ms


def machine() -> dict[str, str]:
    """Describe this Mac."""
    return {
        "name": _output("sysctl", "-n", "hw.model") or platform.machine(),
        "chip": _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor(),
        "macos": platform.mac_ver()[0],
        "coremltools": version("coremltools"),
        "thermal": _output("pmset", "-g", "therm"),
    }


def _output(*command: str) -> str:
    try:
        return " ".join(subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.split())[:200]
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _line(row: dict[str, Any]) -> str:
    name = f"{row['file']:32} {row['unit']:12}"
    if "error" in row:
        return f"{name} {row['error']}"
    flips = f"{row['bits_flipped']} of {row['bits_compared']} bits differ"
    beyond = f"{row['flips_beyond_tolerance']} where |logit| > {TOLERANCE:g}"
    return f"{name} {flips}, {beyond}; median {np.median(row['samples_ms']):.2f} ms"


def _bad_input(reason: str) -> int:
    print(reason, file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
