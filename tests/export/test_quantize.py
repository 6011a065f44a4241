"""Files with 8-bit activations, executed: they say what the simulation says, in integers."""

from __future__ import annotations

import numpy as np
import pytest

from export import quantize as q
from export.artifact import SMALL_WEIGHTS, ExportedModel, ExportFailure
from export.exporter import export_all, prepare_quantized
from export.fake_quant import layers
from gallery.codes import pack
from gallery.errors import InputError
from gallery.files import size_of
from mobile_eval.runtimes import open_model
from tests.export.factories import IMAGENET, Student, request_for, synthetic_images

FORMATS = ("onnx", "litert", "coreml")


@pytest.fixture(scope="module")
def simulated(
    v3: Student, tmp_path_factory: pytest.TempPathFactory
) -> tuple[q.QuantizationResult, dict[str, ExportedModel]]:
    variants = [f"{format}-{precision}" for format in FORMATS for precision in ("fp16", "w8a8")]
    variants += ["litert-w8a32", "litert-w8a16"]
    seen, held = synthetic_images(64, seed=4)[0], synthetic_images(32, seed=5)[0]
    request = request_for(v3, calibration=(seen, held))
    quantized = prepare_quantized(request, variants)
    assert quantized is not None
    rows = export_all(request, variants, tmp_path_factory.mktemp("static"), quantized)
    files = {row.variant: row for row in rows if isinstance(row, ExportedModel)}
    assert set(files) == set(variants), rows
    return quantized, files


@pytest.mark.parametrize("format", FORMATS)
def test_the_file_matches_the_simulation(
    simulated: tuple[q.QuantizationResult, dict[str, ExportedModel]], v3: Student, format: str
) -> None:
    quantized, files = simulated
    expected = q.logits(quantized.net, q.normalize(v3.images, IMAGENET)).numpy()
    found = open_model(files[f"{format}-w8a8"].path).run(v3.images)
    assert np.array_equal(found.codes, pack(found.logits))
    assert ((found.logits > 0) != (expected > 0)).mean() < 0.01
    assert ((found.logits > 0) != (v3.logits > 0)).mean() < 0.03
    assert np.abs(found.logits - v3.logits).max() > 1e-3  # it is not the float network


@pytest.mark.parametrize("format", FORMATS)
def test_metadata_says_how_and_the_file_is_smaller(
    simulated: tuple[q.QuantizationResult, dict[str, ExportedModel]], format: str
) -> None:
    quantized, files = simulated
    metadata = files[f"{format}-w8a8"].metadata
    assert metadata.calibration == quantized.calibration == "ranges of 64 images, layers chosen on 32"
    assert metadata.float_layers == quantized.float_layers
    assert files[f"{format}-fp16"].metadata.calibration == ""
    assert size_of(files[f"{format}-w8a8"].path) < 0.8 * size_of(files[f"{format}-fp16"].path)


def test_integers_are_what_the_engines_get(simulated: tuple[q.QuantizationResult, dict[str, ExportedModel]]) -> None:
    import onnx

    quantized, files = simulated
    wanted = [layer.mode for layer in layers(quantized.net).values()].count("int8")
    assert wanted > 10
    graph = onnx.load(str(files["onnx-w8a8"].path)).graph
    whole = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    assert sum(node.op_type == "Conv" and set(node.input[:2]) <= whole for node in graph.node) == wanted
    assert tflite_integer_convolutions(files["litert-w8a8"]) == wanted


def test_w8a16_flips_no_more_bits_than_w8a32(
    simulated: tuple[q.QuantizationResult, dict[str, ExportedModel]], v3: Student
) -> None:
    quantized, files = simulated
    own, left = layers(quantized.net), quantized.float_layers
    wide = [n for n, m in own.items() if m.pixels > 1 and m.conv.weight.numel() >= SMALL_WEIGHTS and n not in left]
    assert tflite_integer_convolutions(files["litert-w8a16"], "INT16") == len(wide) > 10
    assert tflite_integer_convolutions(files["litert-w8a32"], "INT16") == 0
    weights, both = (open_model(files[f"litert-{name}"].path).run(v3.images) for name in ("w8a32", "w8a16"))
    assert np.array_equal(both.codes, pack(both.logits))
    assert 0 < np.abs(both.logits - weights.logits).mean() < 0.005
    assert ((both.logits > 0) != (weights.logits > 0)).mean() < 0.003
    assert files["litert-w8a16"].metadata.calibration == quantized.calibration
    assert all(layer.mode != "float" for layer in own.values() if layer.pixels > 1)  # the copy was told, not this one


def tflite_integer_convolutions(file: ExportedModel, kind: str = "INT8") -> int:
    """Convolutions of the file whose input is a tensor of that type."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(file.path.read_bytes(), 0))
    graph = model.subgraphs[0]
    kinds = {schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.DEPTHWISE_CONV_2D}
    inputs = [
        graph.tensors[operator.inputs[0]].type
        for operator in graph.operators
        if model.operatorCodes[operator.opcodeIndex].builtinCode in kinds
    ]
    return inputs.count(getattr(schema.TensorType, kind))


def test_without_a_simulated_network_the_row_says_so(v3: Student, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("none")
    variants = ["onnx-w8a8", "litert-w8a16"]
    rows = export_all(request_for(v3), variants, folder)
    assert rows == [ExportFailure(variant, "ValueError: no images to calibrate by") for variant in variants]


def test_only_what_is_asked_for_is_simulated(v3: Student) -> None:
    seen, held = synthetic_images(8, seed=4)[0], synthetic_images(8, seed=5)[0]
    assert prepare_quantized(request_for(v3), ["onnx-fp32", "coreml-fp16"]) is None
    request = request_for(v3, calibration=(seen, held))
    weights, both = (prepare_quantized(request, [f"litert-{p}", "onnx-fp32"]) for p in ("w8a32", "w8a8"))
    assert weights is not None
    assert both is not None
    assert (weights.activations, both.activations) == (False, True)
    with pytest.raises(InputError, match="images"):
        prepare_quantized(request_for(v3), ["onnx-w8a32"])
