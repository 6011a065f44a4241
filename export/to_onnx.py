"""ONNX: one float32 export with a free batch size; the other precisions are rewrites of its weights."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.artifact import SMALL_WEIGHTS, Artifact
from export.card import KEY, Card
from export.query_model import QueryModel
from gallery.files import write_whole

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

FORMAT, SUFFIX, LAYOUT = "onnx", ".onnx", "NHWC uint8"
PRECISIONS = ("fp32", "fp16", "int8-weights")
_OUTPUT_CHANNELS = {"Conv": 0, "Gemm": 0, "MatMul": 1}  # axis of the weights; torch writes Gemm transposed


def to_onnx(model: QueryModel, card: Card, path: Path) -> Artifact:
    """Writes `model` at `card.precision`: image uint8 `[batch, S, S, 3]` to codes uint8 and logits float32."""
    return write(convert(model), card, path)


def convert(model: QueryModel) -> ModelProto:
    """The float32 graph, without what the exporter notes down for debugging (stack traces with local paths)."""
    import torch

    program: Any = torch.onnx.export(
        model, (model.example(2),), dynamo=True, verbose=False, input_names=["image"], output_names=["codes", "logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    exported: ModelProto = program.model_proto  # made anew at each reading
    graph = exported.graph
    del graph.value_info[:]
    for item in [graph, *graph.node, *graph.input, *graph.output, *graph.initializer]:
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    return exported


def write(program: ModelProto, card: Card, path: Path) -> Artifact:
    """Casts the weights to `card.precision`, embeds the card, and writes the file."""
    import onnx

    finished = copy.deepcopy(program)
    if card.precision == "fp16":
        finished = _fp16(finished)
    elif card.precision == "int8-weights":
        _store_int8(finished.graph)
    onnx.helper.set_model_props(finished, {KEY: card.to_json()})
    onnx.checker.check_model(finished)
    write_whole(path, finished.SerializeToString(deterministic=True))
    return Artifact.of(path, FORMAT, card)


def _fp16(program: ModelProto) -> ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half: ModelProto = convert_float_to_float16(program, keep_io_types=True)
    return half


def _store_int8(graph: GraphProto) -> None:
    """Stores the larger weights of convolutions and linear layers as int8 with one float32 scale per output channel.

    They come back through Cast and Mul, which every runtime folds into constants when it loads the file.
    ONNX Runtime never folds DequantizeLinear unless told to: the same file was 4.4 times slower with it.
    """
    nodes: list[NodeProto] = []
    weights = {tensor.name: tensor for tensor in graph.initializer if math.prod(tensor.dims) >= SMALL_WEIGHTS}
    for node in graph.node:
        if node.op_type in _OUTPUT_CHANNELS and (tensor := weights.pop(node.input[1], None)) is not None:
            graph.initializer.extend(_stored(tensor, _OUTPUT_CHANNELS[node.op_type]))
            graph.initializer.remove(tensor)
            nodes += _restore(tensor.name)
    nodes += graph.node
    del graph.node[:]
    graph.node.extend(nodes)


def _stored(tensor: TensorProto, channels: int) -> list[TensorProto]:
    from onnx import numpy_helper

    whole, scale = _quantized(numpy_helper.to_array(tensor), channels)
    name = tensor.name
    return [numpy_helper.from_array(whole, f"{name}.int8"), numpy_helper.from_array(scale, f"{name}.scale")]


def _quantized(weights: NDArray[np.float32], channels: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 along axis `channels`: round(w / s) with s = max|w| / 127; s keeps the dimensions as ones."""
    others = tuple(axis for axis in range(weights.ndim) if axis != channels)
    scale = np.abs(weights).max(axis=others, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1
    return np.round(weights / scale).astype(np.int8), scale


def _restore(name: str) -> list[NodeProto]:
    import onnx

    node, cast = onnx.helper.make_node, f"{name}.cast"
    return [
        node("Cast", [f"{name}.int8"], [cast], to=onnx.TensorProto.FLOAT),
        node("Mul", [cast, f"{name}.scale"], [name]),
    ]
