"""Metadata survives the tools of each format, and is read without torch or a converter."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.artifact import KEY, ModelMetadata
from export.metadata import COREAI_ABOUT, COREAI_HASH, COREAI_OWN, COREAI_PROGRAM, SPEC, import_backend, read_metadata
from gallery.errors import CodeSpaceMismatch, CorruptFile, MissingBackend
from tests.export.factories import Exports

ROOT = Path(__file__).parents[2]
VARIANTS = ("onnx-fp16", "litert-w8a32", "coreml-w8a32")
BLOCKED = ("torch", "tensorflow", "jax", "onnxruntime", "ai_edge_litert.interpreter", "litert_torch", "coreai")
LIBRARIES = ("onnx", "ai_edge_litert.schema_py_generated", "coremltools")  # that read them
READER = """
import dataclasses, json, pathlib, sys
blocked, *paths = sys.argv[1:]
sys.modules.update(dict.fromkeys(blocked.split(",")))  # importing any of them raises
from export.metadata import read_metadata
print(json.dumps([dataclasses.asdict(read_metadata(pathlib.Path(path))) for path in paths]))
"""


def resaved(path: Path, folder: Path) -> Path:
    """The file after its format's own library has read and written it."""
    copied = folder / path.name
    if path.suffix == ".onnx":
        import onnx

        onnx.save(onnx.load(path), copied)
    elif path.suffix == ".tflite":
        from ai_edge_litert.tools.flatbuffer_utils import read_model, write_model

        write_model(read_model(str(path)), str(copied))
    else:
        import coremltools

        opened = shutil.copytree(path, folder / "opened.mlpackage")  # opening rewrites its manifest
        coremltools.models.MLModel(str(opened), skip_model_load=True).save(str(copied))
    return copied


def read_elsewhere(*paths: Path) -> list[ModelMetadata]:
    done = subprocess.run(
        [sys.executable, "-c", READER, ",".join(BLOCKED), *map(str, paths)],
        capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [ModelMetadata(**one | {"float_layers": tuple(one["float_layers"])}) for one in json.loads(done.stdout)]


def aimodel(folder: Path, metadata: str, program: bytes = b"program", hashed: bytes = b"program") -> Path:
    """The three files of a Core AI asset as far as they are read."""
    path = folder / "query-fp32.aimodel"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    (path / COREAI_ABOUT).write_text(json.dumps({"assetVersion": "2.0", COREAI_OWN: {KEY: metadata}}))
    (path / COREAI_PROGRAM).write_bytes(program)
    (path / COREAI_HASH).write_bytes(hashlib.sha256(hashed).digest())
    return path


@pytest.mark.parametrize("variant", VARIANTS)
def test_metadata_survives_its_formats_own_tools(exports: Exports, variant: str, tmp_path: Path) -> None:
    artifact = exports.files[variant]
    again = resaved(artifact.path, tmp_path)
    assert read_metadata(again) == read_metadata(artifact.path) == artifact.metadata


def test_metadata_is_read_without_torch_or_a_converter(exports: Exports, tmp_path: Path) -> None:
    onnx, litert, coreml = (exports.files[variant] for variant in VARIANTS)
    asset = aimodel(tmp_path, onnx.metadata.to_json())
    found = read_elsewhere(onnx.path, litert.path, coreml.path, asset)
    assert found == [onnx.metadata, litert.metadata, coreml.metadata, onnx.metadata]


@pytest.mark.parametrize(("variant", "library"), zip(VARIANTS, LIBRARIES, strict=True))
def test_a_missing_library_says_what_to_install(
    exports: Exports, variant: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    package = library.split(".")[0].replace("_", "-")
    with pytest.raises(MissingBackend, match=rf"pip install (-e '\.\[export\]'|{package})"):  # installed, or not
        read_metadata(exports.files[variant].path)


def test_a_program_that_was_not_hashed_is_corrupt_and_one_without_metadata_is_not_trusted(tmp_path: Path) -> None:
    text = ModelMetadata("s" * 16, 64, "small", "fp32", 32, "any").to_json()
    with pytest.raises(CorruptFile, match=r"main\.hash"):
        read_metadata(aimodel(tmp_path, text, program=b"another"))
    with pytest.raises(CodeSpaceMismatch, match="metadata"):
        read_metadata(aimodel(tmp_path, ""))
    path = aimodel(tmp_path, text)
    (path / COREAI_ABOUT).write_text("[]")
    with pytest.raises(CorruptFile):
        read_metadata(path)
    (path / COREAI_ABOUT).unlink()
    with pytest.raises(CorruptFile):
        read_metadata(path)


junk = st.one_of(
    st.binary(max_size=400),
    st.binary(max_size=400).map(lambda tail: b"\x20\x00\x00\x00TFL3" + tail),
    st.binary(max_size=400).map(lambda tail: b"\x20\x00\x00\x00ORTM" + tail),
    st.binary(max_size=400).map(lambda tail: b"\x08\x09" + tail),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)
fields = st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(ModelMetadata)]), values)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk, st.sampled_from([".onnx", ".ort", ".tflite", ".mlpackage", ".aimodel"]))
def test_junk_is_an_error_that_names_the_file(tmp_path: Path, data: bytes, suffix: str) -> None:
    path = tmp_path / f"junk{suffix}"
    if suffix == ".mlpackage":
        (path / SPEC).parent.mkdir(parents=True, exist_ok=True)
        (path / SPEC).write_bytes(data)
        entry = {"path": SPEC.relative_to("Data").as_posix()}
        (path / "Manifest.json").write_text(json.dumps({"rootModelIdentifier": "a", "itemInfoEntries": {"a": entry}}))
    elif suffix == ".aimodel":
        path = aimodel(tmp_path, "x")
        (path / COREAI_ABOUT).write_bytes(data)
    else:
        path.write_bytes(data)
    with pytest.raises((CorruptFile, CodeSpaceMismatch), match=path.name):
        read_metadata(path)


@settings(max_examples=200, deadline=None)
@given(values | fields)
def test_metadata_of_any_json_is_metadata_or_an_error(value: object) -> None:
    with contextlib.suppress(CorruptFile, CodeSpaceMismatch):
        assert isinstance(ModelMetadata.from_json(json.dumps(value), "here"), ModelMetadata)


@pytest.mark.parametrize(
    "error", ["ImportError('x.so: failed to map segment')", "OSError(12, 'Cannot allocate memory')"]
)
def test_a_library_that_is_installed_and_does_not_load_is_not_to_be_installed(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "an_engine.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingBackend, match=r"an-engine, which is installed, to load.* more memory"):
        import_backend("an_engine")
    with pytest.raises(MissingBackend, match=r"pip install (-e '\.\[all\]'|no-engine)"):
        import_backend("no_engine")
