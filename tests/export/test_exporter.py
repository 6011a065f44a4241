"""Real files in real engines: codes, precisions, metadata, repeatability, and the variants that cannot be exported."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from export import to_coreml, to_litert, to_onnx
from export.artifact import ANY_SIZE, KEY, SMALL_WEIGHTS, ExportedModel, ExportFailure, ModelMetadata
from export.capture_output import quiet
from export.exporter import FORMATS, ExportRequest, export_all, select_variants
from export.metadata import read_metadata
from export.quantize import QuantizationResult
from export.query_model import QueryModel, inference_copy
from gallery.codes import RULE, pack
from gallery.codespace import Preprocessing
from gallery.decode import decode, to_square
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError
from gallery.files import sha256_of, size_of
from gallery.training_results import LayerSensitivity
from mobile_eval.runtimes import open_model
from tests.export.factories import IMAGENET, SIZE, Exports, Student, request_for, request_of, synthetic_images

ROOT = Path(__file__).parents[2]
DEFAULT_VARIANTS = select_variants(("onnx", "litert", "coreml"))
# Flipped bits of all 6,144, measured: fp16 0.00-0.07 %, int8 0.16 %.
FLIPS = {"fp32": 0.0, "fp16": 0.003, "w8a32": 0.015, "w8a8-dynamic": 0.02}


def compared(exports: Exports, variant: str) -> tuple[np.ndarray, np.ndarray]:
    """The file's logits and which of its bits differ from the float student's."""
    found = open_model(exports.files[variant].path).run(exports.student.images)
    assert np.array_equal(found.codes, pack(found.logits))
    return found.logits, (found.logits > 0) != (exports.student.logits > 0)


@pytest.mark.parametrize("variant", [*DEFAULT_VARIANTS, "coreml-fp32"])
def test_mobilenetv3_keeps_its_codes(exports: Exports, variant: str) -> None:
    check_codes(exports, variant)


def check_codes(exports: Exports, variant: str) -> None:
    logits, flipped = compared(exports, variant)
    expected = exports.student.logits
    precision = variant.partition("-")[2]
    if precision == "fp32":
        assert np.abs(logits - expected).max() < 1e-5
        assert not flipped[np.abs(expected) > 1e-3].any()
    else:
        assert flipped.mean() <= FLIPS[precision]
        assert np.abs(expected[flipped]).max(initial=0) < 0.05  # only bits that were nearly undecided
        assert np.abs(logits - expected).max() > 1e-5  # the precision did change something


def test_every_file_matches_its_description(exports: Exports) -> None:
    for variant, artifact in exports.files.items():
        metadata = artifact.metadata
        assert artifact.variant == variant
        assert artifact.path.name.startswith(f"query-{metadata.precision}.")
        assert (artifact.sha256, artifact.bytes) == (sha256_of(artifact.path), size_of(artifact.path))
        assert read_metadata(artifact.path) == metadata
        assert (metadata.code_space, metadata.bits, metadata.size) == (exports.student.space.id, 64, SIZE)
        assert (metadata.student, metadata.rule) == ("mobilenetv3_small_100", IMAGENET.rule)
        assert metadata.layout == ("image" if artifact.format == "coreml" else "NHWC uint8")


def test_sizes_follow_the_precision(exports: Exports) -> None:
    for format in ("onnx", "litert", "coreml"):
        size = {f.metadata.precision: f.bytes for f in exports.files.values() if f.format == format}
        assert 0.49 < size["fp16"] / size["fp32"] < 0.54
        assert 0.25 < size["w8a32"] / size["fp32"] < 0.31


def test_the_three_int8_files_round_the_same_weights(exports: Exports) -> None:
    """One rule in three formats: independent code paths must flip nearly the same bits."""
    onnx, litert, coreml = (compared(exports, f"{name}-w8a32")[0] for name in ("onnx", "litert", "coreml"))
    assert np.abs(onnx - litert).max() < 1e-5
    assert np.abs(onnx - coreml).max() < 0.01


def test_onnx_takes_one_image(exports: Exports) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exports.files["onnx-fp32"].path), providers=["CPUExecutionProvider"])
    codes, found = session.run(None, {"image": exports.student.images[:1]})
    assert (codes.shape, codes.dtype, found.dtype) == ((1, 8), np.uint8, np.float32)
    assert np.abs(found - exports.student.logits[:1]).max() < 1e-5
    assert session.get_inputs()[0].shape == [1, SIZE, SIZE, 3]
    assert [one.shape for one in session.get_outputs()] == [[1, 8], [1, 64]]


def test_onnx_int8_is_stored_per_channel_and_small_weights_stay(exports: Exports) -> None:
    import onnx

    stored = {
        t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(exports.files["onnx-w8a32"].path).graph.initializer
    }
    exact = {
        t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(exports.files["onnx-fp32"].path).graph.initializer
    }
    rounded = [name.removesuffix(".int8") for name in stored if name.endswith(".int8")]
    assert len(rounded) > 20
    for name, weights in exact.items():
        if name in rounded:
            scale = stored[f"{name}.scale"]
            assert stored[f"{name}.int8"].dtype == np.int8
            assert scale.shape == (len(weights), 1, 1, 1)
            assert np.abs(stored[f"{name}.int8"] * scale - weights).max() <= scale.max() * 0.501
            assert (np.abs(stored[f"{name}.int8"]).max(axis=(1, 2, 3)) == 127).all()
        else:
            assert np.array_equal(stored[name], weights)
            assert weights.size < SMALL_WEIGHTS


def test_onnx_holds_no_paths_of_the_machine(exports: Exports) -> None:
    for variant in ("onnx-fp32", "onnx-fp16", "onnx-w8a32"):
        data = exports.files[variant].path.read_bytes()
        assert b"site-packages" not in data
        assert b".py" not in data


def test_litert_names_its_tensors_and_aligns_its_weights(exports: Exports) -> None:
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    for precision in ("fp32", "fp16", "w8a32"):
        path = exports.files[f"litert-{precision}"].path
        signature = Interpreter(str(path)).get_signature_list()["serving_default"]
        assert signature == {"inputs": ["image"], "outputs": ["codes", "logits"]}
        model = schema.Model.GetRootAs(path.read_bytes(), 0)
        buffers = [model.Buffers(i) for i in range(model.BuffersLength())]
        filled = [buffer._tab for buffer in buffers if buffer.DataLength()]
        assert len(filled) > 50
        assert {table.Vector(table.Offset(4)) % 16 for table in filled} == {0}
        assert not any(buffer.Offset() for buffer in buffers)  # nothing hides behind the flatbuffer


def test_litert_int8_really_holds_int8(exports: Exports) -> None:
    from ai_edge_litert.interpreter import Interpreter

    details = Interpreter(str(exports.files["litert-w8a32"].path)).get_tensor_details()
    weights = [d for d in details if d["dtype"] == np.int8]
    assert sum(int(np.prod(d["shape"])) for d in weights) > 1_400_000
    assert min(int(np.prod(d["shape"])) for d in weights) >= SMALL_WEIGHTS
    for weight in weights:
        rule = weight["quantization_parameters"]
        assert len(rule["scales"]) == weight["shape"][rule["quantized_dimension"]]
        assert not rule["zero_points"].any()


def test_core_ml_takes_an_image_and_its_numbers_have_the_declared_types(exports: Exports) -> None:
    from coremltools.proto import FeatureTypes_pb2, Model_pb2

    for precision, storage in (("fp32", "conv"), ("fp16", "cast"), ("w8a32", "constexpr_affine_dequantize")):
        spec = Model_pb2.Model()
        spec.ParseFromString(
            (exports.files[f"coreml-{precision}"].path / "Data/com.apple.CoreML/model.mlmodel").read_bytes()
        )
        image = spec.description.input[0].type.imageType
        assert (image.width, image.height, image.colorSpace) == (SIZE, SIZE, FeatureTypes_pb2.ImageFeatureType.RGB)
        types = {o.name: o.type.multiArrayType.dataType for o in spec.description.output}
        kinds = FeatureTypes_pb2.ArrayFeatureType
        assert types == {"codes": kinds.INT32, "logits": kinds.FLOAT32}
        block = next(iter(spec.mlProgram.functions["main"].block_specializations.values()))
        assert storage in {operation.type for operation in block.operations}
        assert spec.specificationVersion == 7  # iOS 16, macOS 13


def request(net: nn.Module, preprocessing: Preprocessing = IMAGENET, **options: Any) -> ExportRequest:
    return request_of(net, "small", preprocessing, **options)


def kept_in_float(net: nn.Module, names: Sequence[str]) -> QuantizationResult:
    """Layers that were chosen to be kept in float; the weights of the others are rounded to the nearest."""
    kept = [LayerSensitivity(layer=name, mode="weights", flips=0, error=0, kept=True) for name in names]
    return QuantizationResult(net, inference_copy(net, SIZE), tuple(kept), {"weights": 0}, "")


LEFT = ("backbone.blocks.3.0.conv_pwl", "backbone.conv_head", "head.0")


@pytest.fixture(scope="module")
def partly(v3: Student, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Three layers left float, one of them the hash head; ONNX resizes inside."""
    variants = [
        "onnx-w8a32",
        "litert-w8a32",
        "litert-w8a8-dynamic",
        "coreml-w8a32",
    ]
    folder = tmp_path_factory.mktemp("partly")
    exported = export_all(request_for(v3, dynamic_image_size=True), variants, folder, kept_in_float(v3.net, LEFT))
    files = {one.variant: one for one in exported if isinstance(one, ExportedModel)}
    assert set(files) == set(variants), exported
    return Exports(v3, files)


def float_weights(artifact: ExportedModel) -> list[NDArray[Any]]:
    """Every float array of a file that is large enough to be quantized, output channels first."""
    if artifact.format == "onnx":
        import onnx

        arrays = [onnx.numpy_helper.to_array(t) for t in onnx.load(artifact.path).graph.initializer]
    elif artifact.format == "litert":
        from ai_edge_litert.tools.flatbuffer_utils import read_model

        model = read_model(str(artifact.path))
        stored = [(t, model.buffers[t.buffer].data) for t in model.subgraphs[0].tensors if t.type == 0]  # float32
        arrays = [np.frombuffer(bytes(data), np.float32).reshape(t.shape) for t, data in stored if data is not None]
        arrays = [array.transpose(0, 3, 1, 2) for array in arrays if array.ndim == 4]
    else:
        from mobile_eval.runtimes.mil import _load

        operations = _load(artifact.path).operations
        arrays = [op.outputs[0].val for op in operations if op.op_type == "const" and np.ndim(op.outputs[0].val) == 4]
    return [a for a in arrays if a.dtype.kind == "f" and a.size >= SMALL_WEIGHTS]


def test_float_layers_keep_their_weights_in_every_format(partly: Exports) -> None:
    """By value: of all the weights large enough to be quantized, exactly those layers' are in the file as floats."""
    net = inference_copy(partly.student.net, SIZE)
    expected = sorted((net.get_submodule(name).weight.numpy() for name in LEFT), key=np.size)
    for variant, artifact in partly.files.items():
        assert artifact.metadata.float_layers == LEFT
        assert read_metadata(artifact.path) == artifact.metadata
        found = sorted(float_weights(artifact), key=np.size)
        assert [a.shape for a in found] == [a.shape for a in expected], variant
        for mine, original in zip(found, expected, strict=True):
            assert np.abs(mine - original).max() <= (1e-3 if artifact.format == "coreml" else 0)


def test_float_layers_change_the_logits_alike_in_every_format(partly: Exports, exports: Exports) -> None:
    onnx, litert, coreml = (compared(partly, f"{name}-w8a32")[0] for name in ("onnx", "litert", "coreml"))
    assert np.abs(onnx - litert).max() < 1e-5
    assert np.abs(onnx - coreml).max() < 0.01
    assert np.abs(onnx - compared(exports, "onnx-w8a32")[0]).max() > 1e-4


def test_dynamic_integers_keep_most_bits(partly: Exports) -> None:
    check_codes(partly, "litert-w8a8-dynamic")


@pytest.mark.parametrize("variant", ["onnx-w8a32", "litert-w8a32", "coreml-w8a32"])
def test_an_unknown_layer_is_an_error(variant: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"conv\b.*left|wrong\.name"):
        export_all(request(small()), [variant], tmp_path, kept_in_float(small(), ["conv", "wrong.name"]))
    format = FORMATS[variant.split("-")[0]]
    metadata = ModelMetadata("s" * 16, 64, "small", "w8a32", SIZE, RULE, float_layers=("wrong.name",))
    with quiet():
        program = format.convert(QueryModel(inference_copy(small(), SIZE), IMAGENET))
    with pytest.raises(InputError, match=r"wrong\.name"):
        format.write(program, metadata, tmp_path / f"a{format.SUFFIX}")
    assert not list(tmp_path.iterdir())


def test_metadata_survives_json_and_no_other_text_of_it_is_read() -> None:
    metadata = ModelMetadata("s" * 16, 64, "small", "w8a32", SIZE, RULE, float_layers=("a.b", "c"))
    assert ModelMetadata.from_json(metadata.to_json(), "here") == metadata
    text = metadata.to_json()
    for other in (
        f" {text}",
        text.replace(", ", ","),
        text.replace("{", '{"size": 8, '),
        text.replace('"version": 2', '"x": 2'),
    ):
        with pytest.raises(CorruptFile, match="readable metadata"):
            ModelMetadata.from_json(other, "here")


def photographs(count: int) -> list[Image.Image]:
    folder = os.environ.get("TWINHASH_DATA")
    if not folder:
        pytest.skip("TWINHASH_DATA is not set")
    return [decode(path) for path in sorted(Path(folder, "coco256", "images").iterdir())[:count]]


def test_the_dynamic_image_size_is_the_resize_outside(partly: Exports) -> None:
    """Real photographs, and strips of odd sizes: of the codes' bits at most 0.5 % differ."""
    runtime = open_model(partly.files["onnx-w8a32"].path)
    assert runtime.metadata.layout == ANY_SIZE
    whole = photographs(48)
    sizes = [(31, 77), (32, 32), (20, 25), (61, 35), (35, 61), (33, 32), (400, 39)]
    whole += [image.resize(size) for image, size in zip(whole, sizes, strict=False)]
    inside = np.concatenate([runtime.run(np.asarray(image)[None]).logits for image in whole])
    outside = runtime.run(np.stack([to_square(image, SIZE) for image in whole])).logits
    assert np.mean((inside > 0) != (outside > 0)) <= 0.005
    assert np.abs(inside - outside).max() < 0.1
    batch = np.stack([np.asarray(whole[0]), np.asarray(whole[0])[::-1]])
    assert np.abs(runtime.run(batch).logits[0] - inside[0]).max() < 1e-5
    with pytest.raises(InputError, match="H, W"):
        runtime.run(np.zeros((1, 0, 9, 3), np.uint8))


class Small(nn.Module):
    """Three layers: enough for every converter, quick to convert twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.Linear(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.hardswish(self.norm(self.conv(x))).mean((2, 3)))


def small(kind: type[nn.Module] = Small) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().eval()


class Deep(Small):
    """With a depthwise layer large enough to be quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(32, 128, 5, 1, 2, groups=32)
        self.head = nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.depthwise(F.hardswish(self.norm(self.conv(x))))).mean((2, 3)))


def test_palettize_has_64_values_and_skips_depthwise_layers(tmp_path: Path) -> None:
    from mobile_eval.runtimes.mil import _load

    net, images = small(Deep), synthetic_images(4, seed=1)[0]
    variants = ["coreml-fp16", "coreml-palettize6"]
    exact, table = export_all(request(net), variants, tmp_path)
    assert isinstance(exact, ExportedModel)
    assert isinstance(table, ExportedModel), table
    stored = [op for op in _load(table.path).operations if op.op_type == "constexpr_lut_to_dense"]
    assert [op.outputs[0].shape for op in stored] == [(64, 128)]
    weights = stored[0].materialized_val_inference()
    assert 32 < len(np.unique(weights)) <= 64
    head = net.get_submodule("head").weight.detach().numpy()
    assert 0 < np.abs(weights - head).mean() < np.ptp(head) / 64
    before, after = (open_model(one.path).run(images).logits for one in (exact, table))
    assert 0 < np.abs(before - after).max() < 0.5 * np.abs(before).max()


def test_two_exports_are_the_same_bytes(tmp_path: Path) -> None:
    variants = [variant for variant in DEFAULT_VARIANTS if variant.endswith("w8a32")]
    nets = {"one": small(), "two": small().to(memory_format=torch.channels_last)}
    first, second = (export_all(request(nets[f]), variants, tmp_path / f) for f in nets)
    assert [a.sha256 for a in first] == [b.sha256 for b in second]
    assert not list((tmp_path / "one").rglob("executorch*"))


def test_each_format_writes_a_file_on_its_own(tmp_path: Path) -> None:
    model = QueryModel(inference_copy(small(), SIZE), IMAGENET)
    metadata = ModelMetadata("s" * 16, 64, "small", "fp16", SIZE, RULE)
    images, _ = synthetic_images(4, seed=1)
    with torch.no_grad():
        logits = model(torch.from_numpy(images))[1].numpy()
    with quiet():
        exported = [
            format.write(format.convert(model), metadata, tmp_path / f"a{format.SUFFIX}")
            for format in (to_onnx, to_litert, to_coreml)
        ]
    for artifact in exported:
        assert artifact.metadata == metadata
        assert np.abs(open_model(artifact.path).run(images).logits - logits).max() < 1e-3 * np.abs(logits).max()


class Iterated(Small):
    """Calls the modules of a container one by one, as timm's FastViT does: no converter sees the container."""

    def __init__(self) -> None:
        super().__init__()
        layers = [[nn.Conv2d(32, 32, 3, 1, 1) for _ in range(2)] for _ in range(3)]
        self.stages = nn.Sequential(*(nn.Sequential(*own) for own in layers))

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.conv(x)))
        for stage in self.stages:
            x = F.relu(stage(x))
        return self.head(x.mean((2, 3)))


def test_layers_of_an_iterated_container_are_kept_in_float(tmp_path: Path) -> None:
    net, kept = small(Iterated), ("stages.1.0", "stages.2.1")
    rows = export_all(request(net), ["onnx-w8a32", "litert-w8a32"], tmp_path, kept_in_float(net, kept))
    for row in rows:
        assert isinstance(row, ExportedModel), row
        expected = [net.get_submodule(name).weight for name in kept]
        found = [torch.tensor(array) for array in float_weights(row)]
        assert len(found) == len(kept)
        assert all(any(torch.equal(mine, weight) for mine in found) for weight in expected)


class Antialiased(Small):
    """LiteRT has no lowering for an antialiased resize; ONNX has."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.interpolate(x, (24, 24), mode="bilinear", antialias=True))


def test_a_converter_error_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    variants = ["litert-fp32", "onnx-fp32", "litert-w8a32"]
    rows = export_all(request(small(Antialiased)), variants, tmp_path)
    assert isinstance(rows[1], ExportedModel)
    assert rows[1].variant == "onnx-fp32"
    for row, variant in ((rows[0], variants[0]), (rows[2], variants[2])):
        assert isinstance(row, ExportFailure)
        assert row.variant == variant
        assert "_upsample_bilinear2d_aa" in row.reason
        assert "\n" not in row.reason
    assert [path.name for path in tmp_path.iterdir()] == ["query-fp32.onnx"]


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FORMATS["onnx"], "write", full)
    monkeypatch.setattr(FORMATS["onnx"], "convert", lambda model: None)
    with pytest.raises(OSError, match="No space left"):
        export_all(request(small()), ["onnx-fp32"], tmp_path)


@pytest.mark.parametrize("variants", [[], ["onnx"], ["onnx-int3"], ["onnx-fp32", "onnx-fp32"], ["tflite-fp32"]])
def test_unknown_variants_are_an_error_before_any_export(variants: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="litert-w8a32"):
        export_all(request(small()), variants, tmp_path)
    assert not list(tmp_path.iterdir())


def test_quiet_captures_output_for_the_debug_log_and_lets_errors_pass() -> None:
    code = """
import logging, os, sys, warnings
logging.basicConfig(level=logging.DEBUG, stream=open(sys.argv[1], "w"))
from export.capture_output import quiet
logging.getLogger("twinhash").setLevel(logging.DEBUG)
try:
    with quiet():
        os.write(2, b"from C++")
        print("from Python")
        warnings.warn("from a library")
        1 / 0
except ZeroDivisionError:
    print("after")
"""
    with tempfile.NamedTemporaryFile("r") as log:
        done = subprocess.run(
            [sys.executable, "-c", code, log.name], capture_output=True, text=True, check=True, cwd=ROOT
        )
        said = log.read()
    assert (done.stdout, done.stderr) == ("after\n", "")
    assert "from C++" in said
    assert "from Python" in said
    assert "from a library" not in said


def test_a_file_without_metadata_is_an_error(tmp_path: Path, exports: Exports) -> None:
    import onnx

    model = onnx.load(exports.files["onnx-fp32"].path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "a.onnx")
    bare = tmp_path / "a.tflite"
    bare.write_bytes(exports.files["litert-fp32"].path.read_bytes().replace(KEY.encode(), b"twinhash.metadaty"))
    for path in (tmp_path / "a.onnx", bare):
        with pytest.raises(CodeSpaceMismatch, match="metadata"):
            read_metadata(path)
