"""ONNX, batch 1: one float32 export; the other precisions are rewrites of its weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.artifact import ANY_SIZE, KEY, SMALL_WEIGHTS, ExportedModel, ModelMetadata, check_layers
from export.description import PRODUCER, authorship, describe_tensors, summarize
from export.query_model import QueryModel
from gallery.files import atomic_write

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

FORMAT, SUFFIX, LAYOUT = "onnx", ".onnx", "NHWC uint8"
PRECISIONS = ("fp32", "fp16", "w8a32", "w8a8")
QDQ_STYLE = {"stored": True, "signed": False}
_OUTPUT_CHANNELS = {"Conv": 0, "Gemm": 0, "MatMul": 1}  # axis of the weights; torch writes Gemm transposed


def convert(model: QueryModel) -> ModelProto:
    """Export the float32 graph, without debug information (stack traces with local paths).

    An app hashes one image at a time, and accelerators of phones take no node of a graph whose batch is free.
    """
    import torch

    program: Any = torch.onnx.export(
        model, (model.example(),), dynamo=True, verbose=False, input_names=["image"], output_names=["codes", "logits"]
    )  # fmt: skip
    exported: ModelProto = program.model_proto  # made anew at each reading
    graph = exported.graph
    del graph.value_info[:]
    for item in [graph, *graph.node, *graph.input, *graph.output, *graph.initializer]:
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    _fold_scale(graph)
    _keep_pads(graph)
    return exported


def _fold_scale(graph: GraphProto) -> None:
    """Multiply the weights of a first convolution in float by the pixels' scale, so that no step is left for it.

    The mean stays outside: see `QueryModel`.
    """
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    product = next(node for node in graph.node if "scale" in node.input)
    users = [node for node in graph.node if product.output[0] in node.input]
    if [node.op_type for node in users] != ["Conv"] or users[0].input[1] not in tensors:
        return  # an integer layer has its grid for the scaled pixels
    conv, weight = users[0], tensors[users[0].input[1]]
    scaled = numpy_helper.to_array(weight) * numpy_helper.to_array(tensors["scale"])
    weight.CopyFrom(numpy_helper.from_array(scaled, weight.name))
    conv.input[0] = next(name for name in product.input if name != "scale")
    graph.node.remove(product)
    graph.initializer.remove(tensors["scale"])


def _keep_pads(graph: GraphProto) -> None:
    """Name the axes of each Pad in front of a MaxPool, or ONNX Runtime replaces it by the pool's own padding.

    That one is below all numbers, and zeros are not where numbers are negative: 19 % of the bits of a BiT ResNet.
    """
    from onnx import numpy_helper

    pooled = {node.input[0] for node in graph.node if node.op_type == "MaxPool"}
    pads = [node for node in graph.node if node.op_type == "Pad" and node.output[0] in pooled and len(node.input) < 4]
    for node in pads:
        node.input.extend([""] * (3 - len(node.input)) + ["pad.axes"])
    if pads:
        graph.initializer.append(numpy_helper.from_array(np.arange(4), "pad.axes"))


def _cast_before_transpose(graph: GraphProto) -> None:
    """Cast the pixels to float before the transpose, which moves bytes one at a time.

    A MobileNetV3-small in fp32 at 128 pixels takes 1.034 of the bare student's time with this, 1.045 without (median
    of 15 openings of each).  Not where the file resizes, which wants bytes with the channels in front.
    """
    transpose, cast = graph.node[0], graph.node[1]
    if [node.op_type for node in (transpose, cast)] == ["Transpose", "Cast"] and cast.input[0] == transpose.output[0]:
        pixels, between, floats = transpose.input[0], transpose.output[0], cast.output[0]
        cast.input[0], cast.output[0] = pixels, between
        transpose.input[0], transpose.output[0] = between, floats
        _set_nodes(graph, [cast, transpose, *graph.node[2:]])


def write(program: ModelProto, metadata: ModelMetadata, path: Path) -> ExportedModel:
    """Cast the weights to `metadata.precision`, embed the metadata, and write the file."""
    import onnx

    finished = copy.deepcopy(program)
    if metadata.layout != ANY_SIZE:
        _cast_before_transpose(finished.graph)
    if metadata.precision == "fp16":
        finished = _fp16(finished)
    elif metadata.precision != "fp32":
        _quantize_weights(finished.graph, metadata.float_layers)
    if metadata.layout == ANY_SIZE:
        _embed_resize(finished.graph, metadata.size)
    _describe(finished, metadata)
    onnx.checker.check_model(finished)
    atomic_write(path, finished.SerializeToString(deterministic=True))
    return ExportedModel.of(path, FORMAT, metadata)


def _describe(program: ModelProto, metadata: ModelMetadata) -> None:
    """Embed the metadata, and fill in the fields that viewers show."""
    import onnx

    stated, lines = authorship(metadata), describe_tensors(metadata)
    props = {KEY: metadata.to_json(), "author": stated["author"], "license": stated["license"]}
    onnx.helper.set_model_props(program, props)
    program.producer_name, program.producer_version = PRODUCER, f"torch {program.producer_version}"
    program.model_version, program.doc_string = metadata.model_version, summarize(metadata)
    for value in (*program.graph.input, *program.graph.output):
        value.doc_string = lines.get(value.name, "")


def _fp16(program: ModelProto) -> ModelProto:
    """Cast the network alone: normalisation and packing stay float32.

    On a CPU, which casts back and forth, all in half precision took 1.17 of the bare student's time; this takes 1.04.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    nodes = program.graph.node
    first = next(place for place, node in enumerate(nodes) if any(name.startswith("net.") for name in node.input))
    last = next(place for place, node in enumerate(nodes) if "logits" in node.output)
    others = [node.name for node in (*nodes[:first], *nodes[last + 1 :])]
    half = OnnxModel(convert_float_to_float16(program, keep_io_types=True, node_block_list=others))
    _drop_repeated(half.model.graph)
    half.topological_sort()  # the casts come last otherwise
    in_order: ModelProto = half.model
    return in_order


def _drop_repeated(graph: GraphProto) -> None:
    """Keep the first of the casts that the converter names alike: it adds one for each node that stays float32."""
    for items, names in ((graph.node, lambda one: tuple(one.output)), (graph.value_info, lambda one: one.name)):
        unique = list({names(one): one for one in reversed(items)}.values())[::-1]
        if len(unique) < len(items):
            del items[:]
            items.extend(unique)


def _quantize_weights(graph: GraphProto, float_layers: Sequence[str]) -> None:
    """Store the larger weights of convolutions and linear layers as int8 with one float32 scale per output channel.

    They come back through Cast and Mul, which every runtime folds into constants when it loads the file.
    ONNX Runtime never folds DequantizeLinear unless told to: the same file was 4.4 times slower with it.
    """
    import onnx

    nodes: list[NodeProto] = []
    weights = {tensor.name: tensor for tensor in graph.initializer}
    check_layers(float_layers, [name[len("net.") : -len(".weight")] for name in weights if name.endswith(".weight")])
    left = {"packing", *(f"net.{layer}.weight" for layer in float_layers)}  # the bits' places are no weights
    weights = {n: t for n, t in weights.items() if n not in left and math.prod(t.dims) >= SMALL_WEIGHTS}
    for node in graph.node:
        if node.op_type in _OUTPUT_CHANNELS and (tensor := weights.pop(node.input[1], None)) is not None:
            name, cast = tensor.name, f"{tensor.name}.cast"
            whole, scale = _quantized(onnx.numpy_helper.to_array(tensor), _OUTPUT_CHANNELS[node.op_type])
            for value, suffix in ((whole, "int8"), (scale, "scale")):
                graph.initializer.append(onnx.numpy_helper.from_array(value, f"{name}.{suffix}"))
            graph.initializer.remove(tensor)
            nodes.append(onnx.helper.make_node("Cast", [f"{name}.int8"], [cast], to=onnx.TensorProto.FLOAT))
            nodes.append(onnx.helper.make_node("Mul", [cast, f"{name}.scale"], [name]))
    _set_nodes(graph, [*nodes, *graph.node])


def _quantized(weights: NDArray[np.float32], channels: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 along axis `channels`: round(w / s) with s = max|w| / 127; s keeps the dimensions as ones."""
    others = tuple(axis for axis in range(weights.ndim) if axis != channels)
    scale = np.abs(weights).max(axis=others, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1
    return np.round(weights / scale).astype(np.int8), scale


def _embed_resize(graph: GraphProto, size: int) -> None:
    """Insert resize and crop (`gallery.codespace.RULE_TEXT`) behind the transpose of the pixels, in whole numbers.

    The sides become size * side / shorter, rounded down; the crop starts at half of what is over, ties to even.
    ONNX Runtime's antialiased resize of uint8 is a port of Pillow's: 0.02 % of the pixels differ, by 1 or 2 of 255.
    """
    import onnx

    def node(kind: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
        names = [f"resize.{name}" if name != "-" else "" for name in inputs.split()]
        return onnx.helper.make_node(kind, names, [output if output == square else f"resize.{output}"], **attributes)

    transpose = next(one for one in graph.node if one.input[:1] == ["image"])
    square, transpose.output[0] = transpose.output[0], "resize.pixels"
    for axis, name in ((1, "height"), (2, "width")):
        graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    for name, value in {"size": [size], "two": [2], "axes": [2, 3]}.items():
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.int64), f"resize.{name}"))
    nodes = list(graph.node)
    place = nodes.index(transpose) + 1
    nodes[place:place] = [
        node("Shape", "pixels", "sides", start=2, end=4),
        node("ReduceMin", "sides", "shorter", keepdims=1),
        node("Mul", "sides size", "products"),
        node("Div", "products shorter", "resized"),
        node("Shape", "pixels", "others", start=0, end=2),
        node("Concat", "others resized", "shape", axis=0),
        node("Resize", "pixels - - shape", "whole", mode="linear", antialias=1, exclude_outside=1),
        node("Sub", "resized size", "over"),
        node("Div", "over two", "half"),  # rounded down; a half goes up where that is even
        node("Mod", "over two", "odd"),
        node("Mod", "half two", "half_odd"),
        node("Mul", "odd half_odd", "up"),
        node("Add", "half up", "start"),
        node("Add", "start size", "end"),
        node("Slice", "whole start end axes", square),
    ]
    _set_nodes(graph, nodes)


def _set_nodes(graph: GraphProto, nodes: Sequence[NodeProto]) -> None:
    del graph.node[:]
    graph.node.extend(nodes)
