"""What is in a model file decides what it is, and not what it calls itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.artifact import KEY, ExportedModel
from export.exporter import export_all
from export.metadata import SPEC, coreml_spec, read_metadata
from export.tensors import MAX_TENSORS, check_tensors_of
from gallery.errors import CorruptFile
from tests.export.factories import IMAGENET, Exports, request_of


def test_every_variant_is_what_it_says(exports: Exports) -> None:
    assert len(exports.files) > 8
    for variant, file in exports.files.items():
        assert check_tensors_of(file.path, file.metadata) == file.metadata.precision, variant


@pytest.mark.parametrize("other", ["fp32", "fp16", "w8a32", "w8a8"])
def test_a_file_of_another_precision_is_an_error(exports: Exports, other: str) -> None:
    for variant, file in exports.files.items():
        same = other == file.metadata.precision or {other, file.metadata.precision} == {"w8a8", "w8a32"}
        if not same:
            with pytest.raises(CorruptFile, match=f"weights of {other} in "):
                check_tensors_of(file.path, replace(file.metadata, precision=other))
        else:
            assert check_tensors_of(file.path, file.metadata) == file.metadata.precision, variant


def test_layers_kept_in_float_make_a_file_no_quantized_one(exports: Exports) -> None:
    file = exports.files["onnx-fp32"]
    named = replace(file.metadata, precision="w8a32", float_layers=("all.of.them",))
    assert check_tensors_of(file.path, named) == "fp32"
    assert replace(file, metadata=named, stored_as="fp32").precision == "fp32"


@pytest.mark.parametrize("variant", ["onnx-fp32", "litert-fp32", "coreml-fp16"])
@pytest.mark.parametrize("changes", [{"size": 64}, {"bits": 32}])
def test_other_shapes_than_those_of_the_metadata_are_an_error(
    exports: Exports, variant: str, changes: dict[str, Any]
) -> None:
    file = exports.files[variant]
    with pytest.raises(CorruptFile, match="as its metadata says"):
        check_tensors_of(file.path, replace(file.metadata, **changes))


def bgr(package: Path) -> None:
    spec = coreml_spec(package)
    spec.description.input[0].type.imageType.colorSpace = 30
    (package / SPEC).write_bytes(spec.SerializeToString())


def outside(package: Path) -> None:
    path = package / SPEC
    old, new = b"@model_path/weights/weight.bin", b"@model_path/../../../../secret"
    assert len(old) == len(new)
    path.write_bytes(path.read_bytes().replace(old, new))


@pytest.mark.parametrize("change", [bgr, outside])
def test_a_package_for_another_colour_order_or_with_weights_outside_is_an_error(
    exports: Exports, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    package = Path(shutil.copytree(exports.files["coreml-fp16"].path, tmp_path / "a.mlpackage"))
    change(package)
    with pytest.raises(CorruptFile, match=r"a\.mlpackage"):
        check_tensors_of(package, exports.files["coreml-fp16"].metadata)


def test_weights_outside_an_onnx_file_are_an_error(exports: Exports, tmp_path: Path) -> None:
    file = exports.files["onnx-fp32"]
    model = onnx.load(file.path)
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    assert (tmp_path / "weights").exists()
    with pytest.raises(CorruptFile, match="outside"):
        check_tensors_of(tmp_path / "a.onnx", file.metadata)


def rewritten(path: Path, to: Path, change: Callable[[Any, Any], object]) -> Path:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

    model = read_model_from_bytearray(bytearray(path.read_bytes()))
    change(model, schema)
    for buffer in model.buffers:
        if buffer.data is not None:
            buffer.data = np.frombuffer(bytes(buffer.data), np.uint8)
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    to.write_bytes(bytes(builder.Output()))
    return to


def add_entries(name: str, count: int, size: int) -> Callable[[Any, Any], None]:
    def change(model: Any, schema: Any) -> None:
        buffer = schema.BufferT()
        buffer.data = bytes(size)
        model.buffers.append(buffer)
        for _ in range(count):
            one = schema.MetadataT()
            one.name, one.buffer = name, len(model.buffers) - 1
            model.metadata.insert(0, one)

    return change


def test_metadata_entries_of_a_tflite_are_few_and_small(exports: Exports, tmp_path: Path) -> None:
    file, to = exports.files["litert-fp32"], tmp_path / "a.tflite"
    assert read_metadata(rewritten(file.path, to, add_entries("min_runtime_version", 20, 16))) == file.metadata
    for count, size in ((3000, 16), (1, 6 << 20)):
        with pytest.raises(CorruptFile, match=r"a\.tflite"):
            read_metadata(rewritten(file.path, to, add_entries(KEY, count, size)))


def test_an_fp16_file_may_keep_larger_tensors_in_fp32(tmp_path: Path) -> None:
    """The packing of 512 bits is larger than the weights of 16 channels; LiteRT leaves positional embeddings."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 512)).eval()
    (file,) = export_all(request_of(net, "own", IMAGENET), ["onnx-fp16"], tmp_path)
    assert isinstance(file, ExportedModel)
    assert check_tensors_of(file.path, file.metadata) == "fp16"
    with pytest.raises(CorruptFile, match="weights of fp32 in "):
        check_tensors_of(file.path, replace(file.metadata, precision="fp32"))


def test_weights_outside_an_onnx_file_do_not_hide_behind_many_tensors(exports: Exports, tmp_path: Path) -> None:
    file = exports.files["onnx-fp32"]
    model = onnx.load(file.path)
    attribute = model.graph.node[0].attribute.add(name="tensors", type=onnx.AttributeProto.TENSORS)
    attribute.tensors.extend([onnx.TensorProto(data_type=onnx.TensorProto.INT64)] * (MAX_TENSORS + 2))
    attribute.tensors.add(data_location=onnx.TensorProto.EXTERNAL)
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(CorruptFile, match="tensors"):
        check_tensors_of(tmp_path / "a.onnx", file.metadata)
