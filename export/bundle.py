"""Write, open and verify a bundle: the models, golden inputs and app code that an app engineer receives."""

import dataclasses
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.artifact import ExportedModel, ExportFailure, ExportResult, ModelMetadata
from export.metadata import read_metadata
from gallery import codespace
from gallery.codes import Codes, pack
from gallery.codespace import CodeSpace
from gallery.errors import CorruptFile, InputError
from gallery.files import atomic_path, sha256_of, size_of, write_json

MANIFEST, GOLDEN, VERSION = "manifest.json", "golden.json", 1
IMAGE = "golden/{:03}.png"
MAX_MANIFEST_BYTES = 8 << 20  # the names of 100,000 classes fit
FORMATS = {".onnx": "onnx", ".tflite": "litert", ".mlpackage": "coreml", ".aimodel": "coreai"}
APPS = {
    "queryEncoder.ts": "onnx",
    "QueryEncoder.kt": "litert",
    "QueryEncoder.swift": "coreml",
    "run_on_mac.py": "coreml",
}
_FAILURE = {"variant": str, "reason": str}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?")


@dataclass(frozen=True)
class Manifest:
    """Contents of a bundle.

    files:   the models, their paths inside the folder that was opened
    failures: the variants that could not be exported, and why
    """

    space: CodeSpace
    files: tuple[ExportedModel, ...]
    failures: tuple[ExportFailure, ...]


@dataclass(frozen=True)
class Golden:
    """Images uint8 `[n, S, S, 3]` with the float student's codes `[n, bits/8]` and logits `[n, bits]`."""

    images: NDArray[np.uint8]
    codes: Codes
    logits: NDArray[np.float32]


def write_bundle(
    folder: Path, exported: Sequence[ExportResult], space: CodeSpace, centers: NDArray[np.int8], golden: Golden
) -> Manifest:
    """Copy the exported models into a new folder, whole or not at all, and verify it.

    exported: what `export.exporter.export_all` returned; failures are listed in the manifest
    Raises `InputError` when the parts do not fit together, `CodeSpaceMismatch` for a model of another code space,
    `CorruptFile` when a model changed after its export.
    """
    models = [one for one in exported if isinstance(one, ExportedModel)]
    failures = [one for one in exported if isinstance(one, ExportFailure)]
    _check_parts(models, failures, space, golden)
    apps = [name for name, format in APPS.items() if format in {model.format for model in models}]
    with atomic_path(folder) as draft:
        for name in ("golden", "apps"):
            (draft / name).mkdir(parents=True)
        for model in models:
            (shutil.copytree if model.path.is_dir() else shutil.copy)(model.path, draft / model.path.name)
        for name in apps:
            shutil.copyfile(Path(__file__).parent / "apps" / name, draft / "apps" / name)
        codespace.save(draft, space, centers)
        _write_golden(draft, golden)
        (draft / "README.md").write_text(_readme(models, space, apps), "utf-8")
        write_json(draft / MANIFEST, _record(draft, models, failures, space))
        open_bundle(draft)
    return open_bundle(folder)


def open_bundle(folder: Path) -> Manifest:
    """Read and verify a bundle: names, links, sizes, checksums, code space, and the metadata inside every model.

    Raises `CorruptFile` or `CodeSpaceMismatch` naming the file that is not what the manifest says.
    """
    record, space = _read_manifest(folder / MANIFEST)
    files = record["files"]
    _check_names(folder, set(files))
    for name, entry in files.items():
        size = size_of(folder / name)
        digest = sha256_of(folder / name) if size == entry["bytes"] else "not computed"
        if digest != entry["sha256"]:
            expected, found = f"{entry['bytes']} bytes, sha256 {entry['sha256'][:16]}", f"{size} bytes, {digest[:16]}"
            raise CorruptFile(f"{name} of {expected}", found, "The file was changed or damaged: restore it.")
    if codespace.load(folder)[0] != space:
        raise CorruptFile(f"the manifest's code space in {codespace.FILE}", "another one", "Restore the bundle.")
    models = []
    for name, entry in ((name, entry) for name, entry in files.items() if "metadata" in entry):
        metadata = read_metadata(folder / name)
        if json.loads(metadata.to_json()) != entry["metadata"]:
            raise CorruptFile(f"the manifest's metadata in {name}", metadata.to_json(), "Restore the bundle.")
        _check_metadata(metadata, space, name)
        models.append(ExportedModel(folder / name, entry["format"], metadata, entry["sha256"], entry["bytes"]))
    return Manifest(space, tuple(models), tuple(ExportFailure(**one) for one in record["failures"]))


def read_golden(folder: Path, bits: int) -> Golden:
    """Read the golden inputs of a bundle; raises `CorruptFile` unless their logits give codes of `bits` bits."""
    try:
        rows = json.loads((folder / GOLDEN).read_text("utf-8"))
        images = np.stack([np.asarray(Image.open(folder / IMAGE.format(i)).convert("RGB")) for i in range(len(rows))])
        codes = np.stack([np.frombuffer(bytes.fromhex(row["code"]), np.uint8) for row in rows])
        logits = np.array([row["logits"] for row in rows], np.float32)
        if logits.shape != (len(rows), bits) or not np.array_equal(pack(logits), codes):
            raise ValueError(f"codes of {8 * codes.shape[1]} bits and logits {list(logits.shape)}, which give others")
        return Golden(images, codes, logits)
    except (OSError, ValueError, KeyError, TypeError, Image.DecompressionBombError) as error:
        what = f"golden logits that give the golden codes of {bits} bits in {folder}"
        raise CorruptFile(what, str(error), "Restore the bundle.") from error


def _check_parts(
    models: Sequence[ExportedModel], failures: Sequence[ExportFailure], space: CodeSpace, golden: Golden
) -> None:
    names = [model.path.name for model in models]
    if not names or len(set(names)) < len(names):
        found = ", ".join(names) or "; ".join(f"{one.variant}: {one.reason}" for one in failures) or "none"
        fix = "Export at least one variant that can be exported."
        raise InputError("exported files with names of their own", found, fix)
    for model in models:
        _check_metadata(model.metadata, space, model.path.name)
        if sha256_of(model.path) != model.sha256:
            raise CorruptFile(f"{model.path.name} as it was exported", "other bytes", "Export it again.")
    size, count = models[0].metadata.size, len(golden.images)
    fits = golden.images.shape == (count, size, size, 3) and golden.logits.shape == (count, space.bits)
    if not (fits and count and np.array_equal(pack(golden.logits), golden.codes)):
        found = f"{list(golden.images.shape)} with logits {list(golden.logits.shape)}"
        fix = "Take all three from the float student."
        raise InputError(f"golden inputs [n, {size}, {size}, 3] with {space.bits} logits and their codes", found, fix)


def _check_metadata(metadata: ModelMetadata, space: CodeSpace, name: str) -> None:
    space.check_compatible(metadata.code_space, "the bundle", name)
    said, meant = (metadata.bits, metadata.bit_rule, metadata.bit_order), (space.bits, space.bit_rule, space.bit_order)
    if said != meant:
        raise CorruptFile(f"metadata of {meant} in {name}", str(said), "Export it again.")


def _write_golden(folder: Path, golden: Golden) -> None:
    rows = []
    for i, (image, code, logits) in enumerate(zip(golden.images, golden.codes, golden.logits, strict=True)):
        Image.fromarray(image).save(folder / IMAGE.format(i))
        nine_digits = [float(f"{value:.9g}") for value in logits]  # enough to restore a float32 exactly
        rows.append({"file": IMAGE.format(i), "code": code.tobytes().hex(), "logits": nine_digits})
    write_json(folder / GOLDEN, rows)


def _readme(models: Sequence[ExportedModel], space: CodeSpace, apps: Sequence[str]) -> str:
    """Fill in the template; of the lines on app code, those of the apps in the bundle."""
    rows = [f"| `{a.path.name}` | {a.format} | {a.metadata.precision} | {a.bytes / 1e6:.1f} MB |" for a in models]
    onnx = next((a.path.name for a in models if a.format == "onnx"), "query-fp32.onnx")
    metadata, text = models[0].metadata, Path(__file__).with_name("bundle_readme.md").read_text("utf-8")
    for name in set(APPS) - set(apps):
        text = re.sub(rf"- `apps/{name}`.*\n", "", text)
    return Template(text).substitute(
        files="\n".join(rows), space=space.id, bits=space.bits, bytes=space.bits // 8, size=metadata.size,
        resize=metadata.resize, student=metadata.student, onnx=onnx,
    )  # fmt: skip


def _record(
    folder: Path, models: Sequence[ExportedModel], failures: Sequence[ExportFailure], space: CodeSpace
) -> dict[str, Any]:
    files: dict[str, dict[str, Any]] = {
        model.path.name: {"format": model.format, "metadata": dataclasses.asdict(model.metadata)} for model in models
    }
    others = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    files |= {name: {} for name in sorted(path.as_posix() for path in others if path.parts[0] not in files)}
    for name, entry in files.items():
        files[name] = {"sha256": sha256_of(folder / name), "bytes": size_of(folder / name), **entry}
    rows = [dataclasses.asdict(one) for one in failures]
    return {"version": VERSION, "code_space": space.to_dict(), "files": files, "failures": rows}


def _read_manifest(path: Path) -> tuple[dict[str, Any], CodeSpace]:
    """Read the manifest; every key and type is checked, and the text must be as `write_bundle` writes it."""
    try:
        if path.is_symlink() or path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError(f"a link, or more than {MAX_MANIFEST_BYTES} bytes")
        text = path.read_text("utf-8")
        record = json.loads(text)
        if set(record) != {"version", "code_space", "files", "failures"} or record["version"] != VERSION:
            raise ValueError(f"not the fields of version {VERSION}")
        if any({key: type(value) for key, value in one.items()} != _FAILURE for one in record["failures"]):
            raise ValueError("a failure without its reason")
        for name, entry in record["files"].items():
            _check_entry(name, entry)
        if text != json.dumps(record, indent=1, ensure_ascii=False) + "\n":
            raise ValueError("edited text")
        return record, CodeSpace.from_dict(record["code_space"])
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, CorruptFile) as error:
        raise CorruptFile(f"a bundle's manifest at {path}", str(error), "Restore the bundle from its run.") from error


def _check_entry(name: str, entry: dict[str, Any]) -> None:
    if not _NAME.fullmatch(name) or name == MANIFEST:
        raise ValueError(f"the name {name!r}, which may not be in a bundle")
    kind = FORMATS.get(Path(name).suffix)
    expected = {"sha256": str, "bytes": int} | ({"format": str, "metadata": dict} if kind else {})
    if {key: type(value) for key, value in entry.items()} != expected or entry.get("format") != kind:
        raise ValueError(f"the entry of {name}")


def _check_names(folder: Path, listed: set[str]) -> None:
    """Raise unless exactly the listed entries and the manifest exist, and nothing is a link or a device."""
    parents = {name.split("/")[0] for name in listed if "/" in name}
    found = set()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise CorruptFile(f"plain files in {folder}", f"{name}, a link or a device", "Restore the bundle.")
        inside = any(name.startswith(f"{entry}/") for entry in listed)
        if not inside and name != MANIFEST and not (path.is_dir() and name in parents):
            found.add(name)
    for what, names in (("nothing but the listed files", found - listed), ("every listed file", listed - found)):
        if names:
            raise CorruptFile(f"{what} in {folder}", ", ".join(sorted(names)[:5]), "Restore the bundle.")
