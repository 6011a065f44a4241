"""Write, open and verify a bundle: the models, golden inputs and app code that an app engineer receives."""

import dataclasses
import json
import os
import re
import shutil
import stat
import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.artifact import (
    ANY_SIZE,
    FORMATS,
    LAYOUTS,
    PRECISIONS,
    ExportedModel,
    ExportFailure,
    ExportResult,
    ModelMetadata,
    first_line,
    suffix_of,
)
from export.artifact import Manifest as Manifest
from export.golden import GOLDEN as GOLDEN
from export.golden import Golden as Golden
from export.golden import read_golden as read_golden
from export.golden import write_golden
from export.metadata import MAX_MODEL, read_metadata
from export.tensors import check_tensors_of
from gallery import codespace
from gallery.codes import pack
from gallery.codespace import RULE_TEXT, CodeSpace
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError
from gallery.files import (
    atomic_path,
    list_entries,
    read_bytes,
    sha256_of,
    size_of,
    write_json,
)
from gallery.onnx_student import MANIFEST as MANIFEST

VERSION = 1
MAX_MANIFEST_BYTES = 8 << 20  # the names of 100,000 classes fit
MAX_REASON = 1 << 17  # characters: a line of the log, all escaped, is shorter
ATTRIBUTES = ".gitattributes"  # or git on Windows would end the lines of text files in another way
APPS = {  # app code, and the formats that it is for
    "queryEncoder.ts": {"onnx", "litert"},
    "onnx.ts": {"onnx"},
    "litert.ts": {"litert"},
    "QueryEncoder.kt": {"litert"},
    "PhotoDecoder.kt": {"litert"},
    "QueryEncoder.swift": {"coreml"},
    "release.ts": {"onnx", "litert"},
    "Release.kt": {"litert"},
    "Release.swift": {"coreml"},
    "run_on_mac.py": {"coreml"},
    "README.md": {*FORMATS.values()},
}
APP_FOLDERS = {  # of an app's source, by suffix, where that is not `apps`
    ".ts": "apps/web/src", ".kt": "apps/android/src/main/kotlin/twinhash", ".swift": "apps/swift/Sources/TwinhashQuery",
}  # fmt: skip
_FAILURE = {"variant": str, "reason": str}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){0,2}|\.gitattributes")
VARIANTS = {f"{format}-{precision}" for format in FORMATS.values() for precision in PRECISIONS}


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
    apps = [name for name, formats in APPS.items() if formats & {model.format for model in models}]
    with atomic_path(folder) as draft:
        for name in ("golden", "apps"):
            (draft / name).mkdir(parents=True)
        for model in models:
            (shutil.copytree if model.path.is_dir() else shutil.copy)(model.path, draft / model.path.name)
        if small := [draft / model.path.name for model in models if model.format == "ort"]:
            from export.to_ort import OPERATORS, write_operators

            write_operators(small, draft / OPERATORS)
        for name in apps:
            shutil.copyfile(source_of(name), draft / "apps" / name)
        codespace.save(draft, space, centers)
        write_golden(draft, golden)
        (draft / "README.md").write_text(_readme(models, space, apps), "utf-8")
        (draft / ATTRIBUTES).write_text("* -text\n")
        write_json(draft / MANIFEST, _record(draft, models, failures, space))
        open_bundle(draft)
    return open_bundle(folder)


def source_of(app: str) -> Path:
    """Return where the source of one of `APPS` is here."""
    return Path(__file__).parent / APP_FOLDERS.get(Path(app).suffix, "apps") / app


def open_bundle(folder: Path, parse_models: bool = True) -> Manifest:
    """Read and verify a bundle: names, links, sizes, checksums, code space, and the metadata inside every model.

    The metadata must be that of the manifest and of the code space, and fit the model's inputs, outputs and weights.
    What desktop software leaves behind is passed over.  Nothing of a model is executed.
    parse_models: False leaves the inside of the models to the runtime that opens one of them: no library of a format
    is needed, and their metadata is the manifest's
    Raises `CorruptFile` or `CodeSpaceMismatch` naming the file that is not what the manifest says, `MissingBackend`
    without the library of a format.
    """
    record, space = _read_manifest(folder / MANIFEST)
    files = record["files"]
    _check_names(folder, files)
    for name, entry in files.items():
        size = size_of(folder / name)
        digest = sha256_of(folder / name) if size == entry["bytes"] else "not computed"
        if digest != entry["sha256"]:
            expected, found = f"{entry['bytes']} bytes, sha256 {entry['sha256'][:16]}", f"{size} bytes, {digest[:16]}"
            raise CorruptFile(f"{name} of {expected}", found, "The file was changed or damaged: restore it.")
    if codespace.load(folder)[0] != space:
        raise CorruptFile(f"the manifest's code space in {codespace.FILE}", "another one", "Restore the bundle.")
    described = {folder / name: entry for name, entry in files.items() if "metadata" in entry}
    models = [_open_model(path, entry, space, parse_models) for path, entry in described.items()]
    if len({(model.metadata.student, model.metadata.size) for model in models}) != 1:
        found = ", ".join(f"{one.metadata.student} at {one.metadata.size} pixels" for one in models) or "no model"
        raise CorruptFile(f"models of one student and input size in {folder}", found, "Restore the bundle.")
    failures = [ExportFailure(**one) for one in record["failures"]]
    variants = [*(model.variant for model in models), *(failure.variant for failure in failures)]
    if len(set(variants)) < len(variants) or not set(variants) <= VARIANTS:
        raise CorruptFile(f"each variant once in {folder}", ", ".join(variants)[:300], "Restore the bundle.")
    return Manifest(space, tuple(models), tuple(failures))


def _open_model(path: Path, entry: dict[str, Any], space: CodeSpace, parse: bool) -> ExportedModel:
    said = json.dumps(entry["metadata"], sort_keys=True)
    metadata = read_metadata(path) if parse else ModelMetadata.from_json(said, path.name)
    if json.loads(metadata.to_json()) != entry["metadata"]:
        raise CorruptFile(f"the manifest's metadata in {path.name}", metadata.to_json(), "Restore the bundle.")
    _check_metadata(metadata, space, path.name)
    stored_as = check_tensors_of(path, metadata) if parse else metadata.precision
    return ExportedModel(path, entry["format"], metadata, entry["sha256"], entry["bytes"], stored_as)


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
    said = metadata.bits, metadata.bit_rule, metadata.bit_order, metadata.rule
    meant = space.bits, space.bit_rule, space.bit_order, space.preprocessing.rule
    if said != meant:
        raise CorruptFile(f"metadata of {meant} in {name}", str(said), "Export it again.")
    suffix = suffix_of(name)
    if name != (right := f"query-{metadata.precision}{suffix}"):
        raise CorruptFile(f"a file of {metadata.precision} to be named {right}", name, "Export it again.")
    layouts = LAYOUTS[FORMATS[suffix]]
    if metadata.layout not in layouts:
        raise CorruptFile(f"an input {' or '.join(layouts)} in {name}", metadata.layout, "Export it again.")


def _readme(models: Sequence[ExportedModel], space: CodeSpace, apps: Sequence[str]) -> str:
    """Fill in the template; of the lines on app code, those of the apps in the bundle."""
    rows = [f"| `{a.path.name}` | {a.format} | {a.metadata.precision} | {a.bytes / 1e6:.1f} MB |" for a in models]
    onnx = next((a.path.name for a in models if a.format == "onnx"), "query-fp32.onnx")
    metadata, text = models[0].metadata, Path(__file__).with_name("bundle_readme.md").read_text("utf-8")
    if not any(model.metadata.layout == ANY_SIZE for model in models):
        text = re.sub(r"   The ONNX files \(.onnx, .ort\) resize inside:(.*\n)*?(?=3\. )", "", text)
    absent = {f"apps/{name}" for name in set(APPS) - set(apps)}
    absent |= {f"query-*{suffix}" for suffix, format in FORMATS.items() if format not in {a.format for a in models}}
    for name in absent:
        text = re.sub(rf"- `{re.escape(name)}`.*\n(  .*\n)*", "", text)
    rule = textwrap.fill(RULE_TEXT, 115).replace("\n", "\n   ")
    return Template(text).substitute(
        files="\n".join(rows), space=space.id, bits=space.bits, bytes=space.bits // 8, size=metadata.size,
        rule=metadata.rule, rule_text=rule, student=metadata.student, onnx=onnx,
    )  # fmt: skip


def _record(
    folder: Path, models: Sequence[ExportedModel], failures: Sequence[ExportFailure], space: CodeSpace
) -> dict[str, Any]:
    files: dict[str, dict[str, Any]] = {
        model.path.name: {"format": model.format, "metadata": dataclasses.asdict(model.metadata)} for model in models
    }
    others = [path.relative_to(folder) for path, status in list_entries(folder) if stat.S_ISREG(status.st_mode)]
    files |= {name: {} for name in sorted(path.as_posix() for path in others if path.parts[0] not in files)}
    for name, entry in files.items():
        files[name] = {"sha256": sha256_of(folder / name), "bytes": size_of(folder / name), **entry}
    rows = [dataclasses.asdict(one) for one in failures]
    return {"version": VERSION, "code_space": space.to_dict(), "files": files, "failures": rows}


def _read_manifest(path: Path) -> tuple[dict[str, Any], CodeSpace]:
    """Read the manifest; every key and type is checked, and the text must be as `write_bundle` writes it."""
    try:
        text = read_bytes(path, MAX_MANIFEST_BYTES).decode()
        record = json.loads(text)
        if set(record) != {"version", "code_space", "files", "failures"} or record["version"] != VERSION:
            raise ValueError(f"not the fields of version {VERSION}")
        for name, entry in record["files"].items():
            _check_entry(name, entry)
        for one in record["failures"]:
            fits = {key: type(value) for key, value in one.items()} == _FAILURE and one["reason"].isprintable()
            if not fits or len(one["reason"]) > MAX_REASON:
                raise ValueError("a failure without a reason")
        if text != json.dumps(record, indent=1, ensure_ascii=False) + "\n":
            raise ValueError("edited text")
        return record, CodeSpace.from_dict(record["code_space"])
    except CodeSpaceMismatch:  # of another version
        raise
    except Exception as error:  # OSError, and whatever a text of another structure raises
        found, fix = first_line(error), "Restore the bundle from its run."
        raise CorruptFile(f"a bundle's manifest at {path}", found, fix) from error


def _check_entry(name: str, entry: dict[str, Any]) -> None:
    kind = FORMATS.get(suffix_of(name))
    if not _NAME.fullmatch(name) or name == MANIFEST or (kind and "/" in name):
        raise ValueError(f"the name {name!r:.99}, which may not be in a bundle")
    expected = {"sha256": str, "bytes": int} | ({"format": str, "metadata": dict} if kind else {})
    if {key: type(value) for key, value in entry.items()} != expected or entry.get("format") != kind:
        raise ValueError(f"the entry of {name}")
    if not 0 <= entry["bytes"] <= MAX_MODEL:
        raise ValueError(f"{name} of {entry['bytes']} bytes")


def _check_names(folder: Path, listed: Collection[str]) -> None:
    """Raise unless exactly the listed entries and the manifest exist, and nothing is a link, a pipe or a device."""
    parents = {str(parent) for name in listed for parent in PurePosixPath(name).parents} - {"."}
    found = set()
    for path, status in _entries(folder):
        name, is_folder = path.relative_to(folder).as_posix(), stat.S_ISDIR(status.st_mode)
        if not is_folder and not stat.S_ISREG(status.st_mode):
            what = f"{ascii(name)[1:-1]}, a link or a device"
            raise CorruptFile(f"plain files in {folder}", what, "Restore the bundle.")
        package = name.split("/")[0]
        if package != name and package in listed and package not in parents:
            continue  # inside a model that is a folder: its checksum is over all that it holds
        if name in listed and is_folder != (Path(name).suffix in (".mlpackage", ".aimodel")):
            raise CorruptFile(
                f"{name} to be {'a file' if is_folder else 'a folder'}", "the other", "Restore the bundle."
            )
        if name != MANIFEST and not (is_folder and name in parents):
            found.add(name)
    for what, names in (
        ("nothing but the listed files", found - set(listed)),
        ("every listed file", set(listed) - found),
    ):
        if names:
            some = ", ".join(ascii(name)[1:-1] for name in sorted(names)[:5])
            raise CorruptFile(f"{what} in {folder}", some, "Restore the bundle.")


def _entries(folder: Path) -> list[tuple[Path, os.stat_result]]:
    try:
        return list(list_entries(folder))
    except (OSError, ValueError) as error:
        raise CorruptFile(f"a readable bundle at {folder}", first_line(error), "Restore the bundle.") from error
