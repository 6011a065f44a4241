"""A bundle opens when it is what was signed off, and names the file that is not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.artifact import KEY, ExportedModel, ExportFailure, first_line
from export.bundle import MANIFEST, Golden, Manifest, open_bundle, read_golden, write_bundle
from gallery import codespace
from gallery.codes import pack
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError, TwinhashError
from gallery.files import sha256_of, size_of
from mobile_eval.runtimes import open_model
from tests.export.factories import SIZE, Exports, Student

VARIANTS = ("onnx-w8a32", "litert-w8a32", "coreml-w8a32")
FAILURE = ExportFailure("coreml-fp16", "ValueError: no such operation")
SPEC = "query-w8a32.mlpackage/Data/com.apple.CoreML/model.mlmodel"


def golden(student: Student, count: int = 5) -> Golden:
    logits = student.logits[:count]
    return Golden(student.images[:count], pack(logits), logits)


def write(folder: Path, exports: Exports, **changes: Any) -> Manifest:
    student = exports.student
    parts: dict[str, Any] = {
        "exported": [*(exports.files[variant] for variant in VARIANTS), FAILURE],
        "space": student.space,
        "centers": student.centers,
        "golden": golden(student),
    }
    return write_bundle(folder, **{**parts, **changes})


@pytest.fixture(scope="module")
def original(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    write(folder, exports)
    return folder


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "bundle"))


def test_open_bundle_returns_what_was_written(original: Path, exports: Exports) -> None:
    manifest = open_bundle(original)
    assert manifest.space == exports.student.space
    assert manifest.failures == (FAILURE,)
    assert [file.variant for file in manifest.files] == list(VARIANTS)
    for file in manifest.files:
        exported = exports.files[file.variant]
        assert (file.metadata, file.sha256, file.bytes) == (exported.metadata, exported.sha256, exported.bytes)
        assert file.path == original / exported.path.name
        assert sha256_of(file.path) == sha256_of(exported.path)
        assert np.array_equal(open_model(file.path).encode(exports.student.images[:2]),
                              open_model(exported.path).encode(exports.student.images[:2]))  # fmt: skip


def test_golden_inputs_round_trip_exactly(original: Path, exports: Exports) -> None:
    good = golden(exports.student)
    found = read_golden(original, open_bundle(original))
    assert np.array_equal(found.images, good.images)
    assert np.array_equal(found.codes, good.codes)
    assert found.logits.dtype == np.float32
    assert np.array_equal(found.logits, good.logits)


def test_the_readme_of_the_bundle_runs(original: Path, monkeypatch: pytest.MonkeyPatch, exports: Exports) -> None:
    text = (original / "README.md").read_text()
    assert "$" not in text
    for file in open_bundle(original).files:
        assert file.path.name in text
    snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert snippet is not None
    monkeypatch.chdir(original)
    told: dict[str, Any] = {}
    exec(snippet[1], told)
    assert told["nearest"][0] == 0
    assert told["distances"][0] <= 2  # the int8 file against the float student
    assert told["distances"].shape == (5,)
    assert np.array_equal(told["codes"], pack(told["logits"]))


def files_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def test_one_flipped_bit_in_any_file_is_found_and_the_file_named(bundle: Path) -> None:
    rng = np.random.default_rng(0)
    paths = files_of(bundle)
    assert len(paths) > 10
    for path in paths:
        data = path.read_bytes()
        for place in {0, len(data) - 1, int(rng.integers(len(data)))}:
            damaged = bytearray(data)
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            with pytest.raises(TwinhashError) as error:
                open_bundle(bundle)
            # a manifest that disagrees with a file it lists names that file
            assert path.name == MANIFEST or path.relative_to(bundle).parts[0] in str(error.value)
        path.write_bytes(data)
    open_bundle(bundle)


def test_a_truncated_or_missing_file_is_found(bundle: Path) -> None:
    for path in files_of(bundle):
        data = path.read_bytes()
        path.write_bytes(data.rstrip(b"\n")[:-1])
        with pytest.raises(CorruptFile):
            open_bundle(bundle)
        path.unlink()
        with pytest.raises(CorruptFile):
            open_bundle(bundle)
        path.write_bytes(data)
    open_bundle(bundle)


def to_link(bundle: Path) -> None:
    target = bundle / "README.md"
    shutil.copy(target, bundle.parent / "same bytes")
    target.unlink()
    target.symlink_to(bundle.parent / "same bytes")


def to_linked_weights(bundle: Path) -> None:
    weights = (bundle / SPEC).parent / "weights"
    shutil.move(weights, bundle.parent / "weights")
    weights.symlink_to(bundle.parent / "weights", target_is_directory=True)


def to_pipe(bundle: Path) -> None:
    (bundle / "README.md").unlink()
    os.mkfifo(bundle / "README.md")


STRAYS: dict[str, Callable[[Path], object]] = {
    "extra file": lambda b: (b / "extra.onnx").write_bytes(b"x"),
    "hidden file": lambda b: (b / ".hidden").write_bytes(b"x"),
    "extra folder": lambda b: (b / "extra").mkdir(),
    "extra golden": lambda b: (b / "golden" / "999.png").write_bytes(b"x"),
    "extra in a package": lambda b: (b / SPEC).with_name("more").write_bytes(b"x"),
    "link to equal bytes": to_link,
    "link inside a package": to_linked_weights,
    "dangling link": lambda b: (b / "link").symlink_to("/nowhere"),
    "pipe": to_pipe,
}


@pytest.mark.parametrize("stray", STRAYS)
def test_nothing_unlisted_and_nothing_but_plain_files(bundle: Path, stray: str) -> None:
    STRAYS[stray](bundle)
    with pytest.raises(CorruptFile):
        open_bundle(bundle)


def edited(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edits the manifest the way its writer would have written it."""
    record = json.loads((bundle / MANIFEST).read_text())
    change(record)
    (bundle / MANIFEST).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def renamed(record: dict[str, Any], name: str) -> None:
    record["files"][name] = record["files"].pop("README.md")


def first(record: dict[str, Any]) -> Any:
    return record["files"]["query-w8a32.onnx"]


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "metadata": lambda r: first(r)["metadata"].update(precision="fp32"),
    "metadata of another space": lambda r: first(r)["metadata"].update(code_space="0" * 16),
    "metadata without a field": lambda r: first(r)["metadata"].pop("rule"),
    "no metadata": lambda r: first(r).pop("metadata"),
    "format": lambda r: first(r).update(format="litert"),
    "sha256": lambda r: first(r).update(sha256="0" * 64),
    "bytes": lambda r: first(r).update(bytes=first(r)["bytes"] + 1),
    "bytes as text": lambda r: first(r).update(bytes=str(first(r)["bytes"])),
    "unknown field": lambda r: first(r).update(more=1),
    "file left out": lambda r: r["files"].pop("README.md"),
    "files as a list": lambda r: r.update(files=list(r["files"])),
    "version": lambda r: r.update(version=2),
    "more at the top": lambda r: r.update(more=1),
    "a failure without a reason": lambda r: r["failures"].append({"variant": "onnx-fp16"}),
    "a failure of a list": lambda r: r["failures"].append({"variant": ["onnx-fp16"], "reason": "x"}),
    "a failure of a number": lambda r: r["failures"].append({"variant": 5, "reason": "x"}),
    "space as text": lambda r: r.update(code_space="x"),
    "space renumbered": lambda r: r["code_space"].update(id="0" * 16),
    "space with other bits": lambda r: r["code_space"].update(bits=32),
    "space with another teacher": lambda r: r["code_space"].update(teacher="someone"),
    "space with other classes": lambda r: r["code_space"]["classes"].reverse(),
    "parent folder": lambda r: renamed(r, "../README.md"),
    "absolute": lambda r: renamed(r, "/etc/passwd"),
    "inner parent": lambda r: renamed(r, "golden/../README.md"),
    "backslash": lambda r: renamed(r, "..\\README.md"),
    "hidden": lambda r: renamed(r, ".README.md"),
    "empty": lambda r: renamed(r, ""),
    "newline": lambda r: renamed(r, "README.md\n"),
    "manifest lists itself": lambda r: renamed(r, MANIFEST),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_manifest_is_an_error(bundle: Path, edit: str) -> None:
    edited(bundle, EDITS[edit])
    with pytest.raises(TwinhashError):
        open_bundle(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": 1}', "[" * 100_000, "\udcff"])
def test_an_unreadable_manifest_is_an_error(bundle: Path, text: str) -> None:
    (bundle / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CorruptFile, match="manifest"):
        open_bundle(bundle)


def test_a_giant_manifest_is_not_read(bundle: Path) -> None:
    with (bundle / MANIFEST).open("r+b") as stream:
        stream.truncate(1 << 40)  # a hole: reading it would need a terabyte
    with pytest.raises(CorruptFile, match="bytes"):
        open_bundle(bundle)


def resigned(bundle: Path) -> None:
    """What a forger does who knows the format: new sums for the new bytes."""

    def sign(record: dict[str, Any]) -> None:
        for name, entry in record["files"].items():
            entry.update(sha256=sha256_of(bundle / name), bytes=size_of(bundle / name))

    edited(bundle, sign)


def test_permuted_centers_are_found_even_with_new_sums(bundle: Path, exports: Exports) -> None:
    codespace.save(bundle, exports.student.space, exports.student.centers[::-1])
    with pytest.raises(CorruptFile, match="centers"):
        open_bundle(bundle)
    resigned(bundle)
    with pytest.raises(CorruptFile, match="centers"):
        open_bundle(bundle)


def test_a_swapped_code_space_is_found_even_with_new_sums(bundle: Path, exports: Exports) -> None:
    other = replace(exports.student.space, teacher_sha256="1" * 64)
    codespace.save(bundle, other, exports.student.centers)
    resigned(bundle)
    with pytest.raises(CorruptFile, match="code space"):
        open_bundle(bundle)
    edited(bundle, lambda record: record.update(code_space=other.to_dict()))
    with pytest.raises(CodeSpaceMismatch, match=r"query-w8a32\.onnx"):  # the models still speak the old one
        open_bundle(bundle)


def test_metadata_changed_inside_the_file_is_found_even_with_new_sums(bundle: Path) -> None:
    import onnx

    path = bundle / "query-w8a32.onnx"
    model = onnx.load(path)
    entry, *_ = model.metadata_props  # Twinhash's own comes first
    assert entry.key == KEY
    entry.value = entry.value.replace('"size": 32', '"size": 64')
    path.write_bytes(model.SerializeToString())
    resigned(bundle)
    with pytest.raises(CorruptFile, match="metadata"):
        open_bundle(bundle)


def test_damaged_golden_inputs_are_an_error(bundle: Path) -> None:
    rows, manifest = json.loads((bundle / "golden.json").read_text()), open_bundle(bundle)
    for damage in ([{**rows[0], "code": "xyz"}], [{"file": "golden/000.png"}], {}, [rows[0]] * 9):
        (bundle / "golden.json").write_text(json.dumps(damage))
        with pytest.raises(CorruptFile, match="golden"):
            read_golden(bundle, manifest)


def test_a_bundle_is_replaced_whole_or_left_alone(bundle: Path, exports: Exports) -> None:
    before = sha256_of(bundle)
    with pytest.raises(InputError):
        write(bundle, exports, golden=replace(golden(exports.student), images=exports.student.images[:5, :8]))
    assert sha256_of(bundle) == before
    write(bundle, exports, exported=[exports.files["onnx-fp32"]])
    assert [file.variant for file in open_bundle(bundle).files] == ["onnx-fp32"]
    assert not (bundle / "query-w8a32.tflite").exists()
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_the_same_parts_make_the_same_bundle(original: Path, exports: Exports, tmp_path: Path) -> None:
    write(tmp_path / "bundle", exports)
    assert sha256_of(tmp_path / "bundle") == sha256_of(original)


def test_parts_that_do_not_fit_are_an_error(exports: Exports, tmp_path: Path) -> None:
    good = golden(exports.student)
    onnx = exports.files["onnx-fp32"]
    for change in (
        {"exported": []},
        {"exported": [onnx, onnx]},
        {"golden": replace(good, codes=good.codes[::-1])},
        {"golden": replace(good, logits=good.logits[:4])},
        {"golden": golden(exports.student, 0)},
    ):
        with pytest.raises(InputError):
            write(tmp_path / "bundle", exports, **change)
    with pytest.raises(InputError, match="no such operation"):
        write(tmp_path / "bundle", exports, exported=[FAILURE])
    stranger = replace(onnx, metadata=replace(onnx.metadata, code_space="f" * 16))
    with pytest.raises(CodeSpaceMismatch, match=r"query-fp32\.onnx"):
        write(tmp_path / "bundle", exports, exported=[stranger])
    assert not (tmp_path / "bundle").exists()


def test_a_model_that_changed_after_its_export_is_an_error(exports: Exports, tmp_path: Path) -> None:
    exported = exports.files["litert-fp32"]
    path = tmp_path / exported.path.name
    path.write_bytes(exported.path.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptFile, match=r"query-fp32\.tflite"):
        write(
            tmp_path / "bundle",
            exports,
            exported=[ExportedModel(path, "litert", exported.metadata, exported.sha256, exported.bytes)],
        )


def test_the_golden_size_is_that_of_the_metadata(exports: Exports) -> None:
    assert {file.metadata.size for file in exports.files.values()} == {SIZE}


DESKTOP: dict[str, Callable[[Path], object]] = {
    "Finder": lambda b: [(folder / ".DS_Store").write_bytes(b"x") for folder in (b, b / "golden", (b / SPEC).parent)],
    "a Mac's archive": lambda b: (b / "__MACOSX").mkdir() or (b / "__MACOSX" / "._query-w8a32.onnx").write_bytes(b"x"),
    "a resource fork": lambda b: (b / SPEC).with_name("._model.mlmodel").write_bytes(b"x"),
    "Explorer": lambda b: [(b / name).write_bytes(b"x") for name in ("Thumbs.db", "desktop.ini", "golden/THUMBS.DB")],
    "a file server": lambda b: (b / "golden" / "@eaDir").mkdir(),
    "a pipe of such a name": lambda b: os.mkfifo(b / ".DS_Store"),
}


@pytest.mark.parametrize("software", DESKTOP)
def test_what_desktop_software_leaves_behind_is_no_tampering(bundle: Path, software: str) -> None:
    before = open_bundle(bundle)
    DESKTOP[software](bundle)
    assert open_bundle(bundle) == before
    assert len(read_golden(bundle, before).images) == 5


def test_a_package_that_coremltools_opened_is_the_one_it_was(bundle: Path) -> None:
    import coremltools

    package = bundle / "query-w8a32.mlpackage"
    before = open_bundle(bundle), (package / "Manifest.json").read_bytes()
    for _ in range(2):
        coremltools.models.MLModel(str(package), skip_model_load=True)
        assert (open_bundle(bundle), (package / "Manifest.json").read_bytes()) == before
    listing = json.loads((package / "Manifest.json").read_text())
    (package / "Manifest.json").write_text(json.dumps(listing).replace("/", "\\/"))  # as macOS writes it
    assert open_bundle(bundle) == before[0]
    listing["itemInfoEntries"][listing["rootModelIdentifier"]]["path"] = "com.apple.CoreML/other.mlmodel"
    (package / "Manifest.json").write_text(json.dumps(listing))
    with pytest.raises(CorruptFile, match=r"query-w8a32\.mlpackage"):
        open_bundle(bundle)


def test_golden_images_are_png_files_of_the_models_size(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, path = open_bundle(bundle), bundle / "golden" / "000.png"
    image, opened = Image.open(path).copy(), []
    monkeypatch.setattr(subprocess, "Popen", lambda *command, **_: opened.append(command))  # Ghostscript's
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(CorruptFile, match="32 x 32 images"):
        read_golden(bundle, manifest)
    assert opened == []
    for other, format in ((image, "BMP"), (image, "JPEG"), (Image.new("RGB", (13_000, 13_000)), "PNG"),
                          (image.convert("L"), "PNG"), (image.resize((16, 64)), "PNG")):  # fmt: skip
        other.save(path, format)
        with pytest.raises(CorruptFile, match="32 x 32 images"):
            read_golden(bundle, manifest)


def test_golden_rows_name_their_images_in_order_and_nothing_else(bundle: Path) -> None:
    rows, manifest = json.loads((bundle / "golden.json").read_text()), open_bundle(bundle)
    zeros = [{**row, "logits": [0.0] * 64} for row in rows]
    nan = [{**row, "logits": [float("nan")] * 64, "code": "00" * 8} for row in rows]
    outside = [{**rows[0], "file": "../../secret.png"}, *rows[1:]]
    for damage in (zeros, nan, outside, rows[:-1], rows[::-1], [], [None], {"rows": rows}):
        (bundle / "golden.json").write_text(json.dumps(damage))
        with pytest.raises(CorruptFile, match="golden"):
            read_golden(bundle, manifest)
    (bundle / "golden.json").write_text("[" * 100_000)
    with pytest.raises(CorruptFile, match="deep"):
        read_golden(bundle, manifest)


def test_a_manifest_that_is_a_pipe_is_not_opened(bundle: Path) -> None:
    (bundle / MANIFEST).unlink()
    os.mkfifo(bundle / MANIFEST)
    with pytest.raises(CorruptFile, match="pipe"):
        open_bundle(bundle)


def test_a_bundle_without_a_model_is_an_error(bundle: Path) -> None:
    def drop_models(record: dict[str, Any]) -> None:
        for name in [name for name, entry in record["files"].items() if "metadata" in entry]:
            del record["files"][name]
            (shutil.rmtree if (bundle / name).is_dir() else os.remove)(bundle / name)

    edited(bundle, drop_models)
    with pytest.raises(CorruptFile, match="no model"):
        open_bundle(bundle)


def test_the_reason_of_a_failure_may_be_a_long_line_with_colours(exports: Exports, tmp_path: Path) -> None:
    failed = ExportFailure("litert-fp16", first_line(RuntimeError("\x1b[31m" + "error " * 5000)))
    parts = [exports.files["onnx-fp32"], failed]
    assert write(tmp_path / "bundle", exports, exported=parts).failures == (failed,)


def test_a_failure_in_the_manifest_may_not_steer_a_terminal(bundle: Path) -> None:
    edited(bundle, lambda record: record["failures"].append({"variant": "onnx-fp16", "reason": "\x1b[2J"}))
    with pytest.raises(CorruptFile, match="manifest"):
        open_bundle(bundle)


LIES: dict[str, Any] = {
    "precision": "fp32", "size": 64, "bits": 32, "rule": 3, "layout": "NCHW float32",
    "colour_order": "BGR", "bit_order": "big", "version": -1, "student": 5,
    "author": "\x1b[2J", "model_version": "1", "float_layers": "abc", "calibration": None,
}  # fmt: skip


@pytest.mark.parametrize("field", LIES)
def test_metadata_that_lies_is_found_even_where_file_and_manifest_agree(bundle: Path, field: str) -> None:
    import onnx

    path = bundle / "query-w8a32.onnx"
    model = onnx.load(path)
    entry, *_ = model.metadata_props  # Twinhash's own comes first
    said = json.loads(entry.value) | {field: LIES[field]}
    entry.value = json.dumps(said, sort_keys=True)
    path.write_bytes(model.SerializeToString())
    edited(bundle, lambda record: first(record).update(metadata=said))
    resigned(bundle)
    with pytest.raises(CorruptFile, match=r"query-w8a32\.onnx"):
        open_bundle(bundle)


def test_one_bundle_has_one_student(bundle: Path) -> None:
    path = bundle / "query-w8a32.tflite"
    path.write_bytes(path.read_bytes().replace(b"mobilenetv3_small_100", b"mobilenetv3_small_050"))
    text = json.loads((bundle / MANIFEST).read_text())
    text["files"]["query-w8a32.tflite"]["metadata"]["student"] = "mobilenetv3_small_050"
    edited(bundle, lambda record: record.update(text))
    resigned(bundle)
    with pytest.raises(CorruptFile, match="one student"):
        open_bundle(bundle)


def test_without_parsing_the_models_all_else_is_verified(bundle: Path) -> None:
    found, parsed = open_bundle(bundle, parse_models=False), open_bundle(bundle)
    assert [(one.path, one.metadata, one.sha256) for one in found.files] == [
        (one.path, one.metadata, one.sha256) for one in parsed.files
    ]
    path = bundle / "query-w8a32.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(CorruptFile, match=r"query-w8a32\.onnx of"):
        open_bundle(bundle, parse_models=False)
