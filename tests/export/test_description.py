"""Model files say who made them, who may use them and what they do, where each format's own library looks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers
import pytest

from export.artifact import KEY, VERSION, ExportedModel, ModelMetadata
from export.description import NOT_STATED
from export.exporter import ExportRequest, export_all
from export.metadata import read_metadata
from gallery.codes import RULE
from gallery.errors import CorruptFile, InputError
from gallery.files import sha256_of
from tests.export.factories import IMAGENET, Exports, request_of
from tests.export.test_exporter import small

VARIANTS = "onnx-fp32", "litert-fp32", "coreml-fp16"
STATED: dict[str, Any] = {"author": "Éva & Søn GmbH", "license": "CC-BY-4.0", "model_version": 12}
TENSORS = "image", "codes", "logits"


def shown(path: Path) -> dict[str, Any]:
    """Author, license, version, description and the lines on tensors, as the format's library reads them."""
    if path.suffix == ".onnx":
        import onnx

        model = onnx.load(path)
        props = {entry.key: entry.value for entry in model.metadata_props}
        tensors = {value.name: value.doc_string for value in (*model.graph.input, *model.graph.output)}
        found = {"author": props["author"], "license": props["license"], "description": model.doc_string}
        return found | {"version": str(model.model_version or NOT_STATED), "tensors": tensors}
    if path.suffix == ".mlpackage":
        import coremltools

        package = coremltools.models.MLModel(str(path), skip_model_load=True)
        given = {"image": package.input_description, "codes": package.output_description}
        tensors = {name: given.get(name, package.output_description)[name] for name in TENSORS}
        assert KEY in package.user_defined_metadata
        return {"author": package.author, "license": package.license, "version": package.version,
                "description": package.short_description, "tensors": tensors}  # fmt: skip
    return shown_by_litert(path)


def shown_by_litert(path: Path) -> dict[str, Any]:
    """By the schema of TensorFlow Lite's metadata: name, description, version, subgraphs, author, license."""
    from ai_edge_litert.tools.flatbuffer_utils import read_model

    model = read_model(str(path))
    (entry,) = (one for one in model.metadata if one.name == b"TFLITE_METADATA")
    data = bytes(model.buffers[entry.buffer].data)
    assert data[4:8] == b"M001"
    table = flatbuffers.table.Table(
        data, flatbuffers.encode.Get(flatbuffers.number_types.UOffsetTFlags.packer_type, data, 0)
    )
    fields = {"name": 4, "description": 6, "version": 8, "author": 12, "license": 14}
    found = {name: table.String(table.Pos + table.Offset(place)).decode() for name, place in fields.items()}
    assert found.pop("name") == "Twinhash query encoder, 64 bits"
    assert model.description.decode() == found["description"]
    return found


def exported(folder: Path, **stated: Any) -> list[ExportedModel]:
    request: ExportRequest = request_of(small(), "small", IMAGENET, **stated)
    files = [one for one in export_all(request, VARIANTS, folder) if isinstance(one, ExportedModel)]
    assert len(files) == len(VARIANTS)
    return files


def test_what_is_stated_is_where_viewers_look_for_it(tmp_path: Path) -> None:
    for file in exported(tmp_path, **STATED):
        found = shown(file.path)
        assert (found["author"], found["license"], found["version"]) == ("Éva & Søn GmbH", "CC-BY-4.0", "12")
        metadata = read_metadata(file.path)
        assert {name: getattr(metadata, name) for name in STATED} == STATED


def test_nothing_is_claimed_that_nobody_stated_and_nothing_is_blank(exports: Exports) -> None:
    for variant, file in exports.files.items():
        found = shown(file.path)
        assert [found[name] for name in ("author", "license", "version")] == [NOT_STATED] * 3, variant
        for said in (
            "64 bits",
            "32 x 32 pixels",
            file.metadata.code_space,
            file.metadata.student,
            file.metadata.precision,
        ):
            assert said in found["description"], variant
        if variant.partition("-")[0] != "litert":
            assert set(found["tensors"]) == set(TENSORS)
            assert all(found["tensors"].values())


def test_an_onnx_file_names_its_producer(exports: Exports) -> None:
    import onnx
    import torch

    model = onnx.load(exports.files["onnx-fp32"].path)
    assert (model.producer_name, model.producer_version) == ("Twinhash", f"torch {torch.__version__}")


def test_files_with_an_author_are_the_same_each_time(tmp_path: Path) -> None:
    first, second = (exported(tmp_path / name, **STATED) for name in ("a", "b"))
    assert [sha256_of(one.path) for one in first] == [sha256_of(one.path) for one in second]


@pytest.mark.parametrize("stated", [{"author": "two\nlines"}, {"license": "x" * 1001}, {"model_version": -1}])
def test_metadata_of_other_texts_is_not_read(stated: dict[str, Any]) -> None:
    metadata = ModelMetadata("s" * 16, 64, "small", "fp32", 32, RULE, **stated)
    with pytest.raises(CorruptFile, match="readable metadata"):
        ModelMetadata.from_json(metadata.to_json(), "here")


@pytest.mark.parametrize(("version", "fix"), [(1, "Export the file again"), (VERSION + 1, "Update Twinhash")])
def test_metadata_of_another_version_is_refused_with_the_fix(version: int, fix: str) -> None:
    text = ModelMetadata("s" * 16, 64, "small", "fp32", 32, RULE, version=version).to_json()
    with pytest.raises(InputError, match=rf"metadata of version {VERSION} in here; found version {version}\. {fix}"):
        ModelMetadata.from_json(text, "here")
