"""LiteRT (.tflite), batch 1: a float32 conversion, and one with integer layers; the rest are rewrites of weights."""

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.artifact import KEY, LOGITS_ALONE, SMALL_WEIGHTS, ExportedModel, ModelMetadata, check_layers
from export.description import TFLITE_METADATA, summarize, tflite_metadata
from export.fake_quant import ActivationRange, QDQConv2d, layers
from export.query_model import QueryModel
from gallery.files import atomic_write

FORMAT, SUFFIX, LAYOUT = "litert", ".tflite", "NHWC uint8"
PRECISIONS = ("fp32", "fp16", "w8a32", "w8a8", "w8a16", "w8a8-dynamic")
QDQ_STYLE = {"stored": False, "signed": True}
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_ROOM = 4  # times a range's larger end is the end of its int16 grid: the range leaves out the rarest values


@dataclass(frozen=True)
class ConvertedModel:
    """A converted file; modules: the names of the network's.

    ranges: what goes into and comes out of the layers that "w8a16" calculates in int16
    """

    data: bytes
    ranges: dict[str, tuple[ActivationRange, ActivationRange]]
    modules: tuple[str, ...]


def _rule(algorithm: str, smallest: int, dynamic: bool = False, **weights: Any) -> dict[str, Any]:
    """Build a rule for the quantizer: activations float32, or `dynamic`: int8 by the range of each input."""
    config = {
        "weight_tensor_config": {"symmetric": True, **weights}, "compute_precision": "INTEGER" if dynamic else "FLOAT",
        "explicit_dequantize": not dynamic, "skip_checks": False, "min_weight_elements": smallest,
    }  # fmt: skip
    return {"regex": ".*", "operation": "*", "algorithm_key": algorithm, "op_config": config}


_CHANNELWISE: dict[str, Any] = {"num_bits": 8, "granularity": "CHANNELWISE", "dtype": "INT"}
_RULES = {
    "fp16": _rule("float_casting", 0, num_bits=16, granularity="TENSORWISE", dtype="FLOAT"),
    "w8a32": _rule("min_max_uniform_quantize", SMALL_WEIGHTS, **_CHANNELWISE),
    "w8a8-dynamic": _rule("min_max_uniform_quantize", SMALL_WEIGHTS, True, **_CHANNELWISE),
}
_INT16 = {"num_bits": 16, "symmetric": True, "granularity": "TENSORWISE", "dtype": "INT"}


def convert(model: QueryModel) -> ConvertedModel:
    """Convert to a file with float32 weights, and integer layers where the model has them.

    A module of its own gives the signature its names: image, codes, logits.
    """
    import litert_torch

    folding = None
    if any(isinstance(module, QDQConv2d) for module in model.modules()):
        from litert_torch.quantize import pt2e_quantizer
        from litert_torch.quantize.quant_config import QuantConfig

        static = pt2e_quantizer.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
        folding = QuantConfig(pt2e_quantizer.PT2EQuantizer().set_global(static))  # fuses layers with their Q/DQ
    edge = litert_torch.convert(_Named(model).eval(), sample_kwargs={"image": model.example()}, quant_config=folding)
    with tempfile.TemporaryDirectory() as folder:
        edge.export(f"{folder}/float.tflite")
        modules = tuple(name for name, _ in model.net.named_modules() if name)
        return ConvertedModel(Path(folder, "float.tflite").read_bytes(), _ranges(model), modules)


def _ranges(model: QueryModel) -> dict[str, tuple[ActivationRange, ActivationRange]]:
    """Ranges of the fake-quantized layers whose weights "w8a32" rounds, so that no bit flips that does not flip there.

    The int8 weights of smaller layers, most of them depthwise, flipped 3.2 % of a trained MobileNetV3-small's bits
    instead of 0.85 %.
    """
    large = {n: m for n, m in layers(model.net).items() if m.pixels > 1 and m.conv.weight.numel() >= SMALL_WEIGHTS}
    return {name: (layer.input, layer.output) for name, layer in large.items()}


def write(converted: ConvertedModel, metadata: ModelMetadata, path: Path) -> ExportedModel:
    """Store the weights at `metadata.precision`, embed the metadata, and write the file."""
    atomic_write(path, finish(converted, metadata))
    return ExportedModel.of(path, FORMAT, metadata)


def finish(converted: ConvertedModel, metadata: ModelMetadata) -> bytes:
    """Return the file with weights at `metadata.precision` and the metadata, and with the outputs of its layout."""
    stored = converted.data if metadata.precision == "fp32" else _quantized(converted, metadata)
    return _embed_metadata(stored, metadata)


class _Named(nn.Module):
    """Normalises whole rows of `[3 * S]` numbers, where the processor's vectors are full, before channels move.

    With three channels as the last dimension, XNNPACK's subtraction and product took a third of the file's time.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, query: QueryModel) -> None:
        super().__init__()
        self.query = query
        self.register_buffer("mean", query.mean.flatten().repeat(query.size))
        self.register_buffer("scale", query.scale.flatten().repeat(query.size))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        side = self.query.size
        rows = (image.reshape(-1, side, 3 * side).float() - self.mean) * self.scale
        logits = self.query.net(rows.reshape(-1, side, side, 3).permute(0, 3, 1, 2))
        return {"codes": self.query.pack(logits).to(torch.uint8), "logits": logits}


def _quantized(program: ConvertedModel, metadata: ModelMetadata) -> bytes:
    """Store weights at `metadata.precision`; "w8a8-dynamic" keeps the last layer, the hash head, in float."""
    from ai_edge_quantizer.quantizer import Quantizer

    operations = _weighted_operations(program.data)
    made_of = _modules_of(operations, program.modules)
    left = _operations_of(made_of, metadata.float_layers)
    if metadata.precision == "w8a8-dynamic":
        left.append(list(operations)[-1])
    rules = [_RULES.get(metadata.precision, _RULES["w8a32"])]
    rules += [_only(name, "no_quantize", {}) for name in left]
    ends: dict[str, dict[str, Any]] | None = None
    if metadata.precision == "w8a16":
        ranges = {name: both for name, both in program.ranges.items() if name not in metadata.float_layers}
        more, ends = _w8a16_rules(operations, made_of, ranges)
        rules += more
    quantizer = Quantizer(bytearray(program.data))
    quantizer.load_quantization_recipe(rules)
    return bytes(quantizer.quantize(ends).quantized_model)


def _only(operation: str, algorithm: str, config: dict[str, Any]) -> dict[str, Any]:
    """Build a rule for one operation, by the name of its output."""
    return {"regex": f"^{re.escape(operation)};$", "operation": "*", "algorithm_key": algorithm, "op_config": config}


def _w8a16_rules(
    operations: dict[str, str], made_of: Mapping[str, set[str]],
    ranges: dict[str, tuple[ActivationRange, ActivationRange]],
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:  # fmt: skip
    """Build rules for int8 weights between int16 activations, and the symmetric ranges of these by tensor."""
    config = _rule("", 0, True, **_CHANNELWISE)["op_config"] | {"activation_tensor_config": _INT16}
    rules, ends = [], defaultdict[str, float](float)
    for layer, both in ranges.items():
        for operation in _operations_of(made_of, [layer]):
            rules.append(_only(operation, "min_max_uniform_quantize", config))
            for tensor, grid in zip((operations[operation], operation), both, strict=True):
                ends[tensor] = max(ends[tensor], _ROOM * max(-grid.low, grid.high))
    grids = {tensor: np.array([-end, end], np.float32) for tensor, end in ends.items()}
    return rules, {tensor: {"min": grid[:1], "max": grid[1:]} for tensor, grid in grids.items()}


def _weighted_operations(program: bytes) -> dict[str, str]:
    """Map output to input tensors of convolutions and linear layers, by name, in the order of the graph."""
    from ai_edge_litert import schema_py_generated as schema

    kinds = {getattr(schema.BuiltinOperator, name) for name in _WEIGHTED}
    model = schema.Model.GetRootAs(program, 0)
    graph = model.Subgraphs(0)
    operations = [graph.Operators(i) for i in range(graph.OperatorsLength())]
    return {
        graph.Tensors(operation.Outputs(0)).Name().decode(): graph.Tensors(operation.Inputs(0)).Name().decode()
        for operation in operations
        if model.OperatorCodes(operation.OpcodeIndex()).BuiltinCode() in kinds
    }


def _modules_of(operations: Iterable[str], modules: Sequence[str]) -> dict[str, set[str]]:
    """Return the modules that each operation is made of, by the path "a.b.Class_name/a.b.Class_name;1" in its name."""
    patterns = {name: _path_pattern(name) for name in modules}
    found: dict[str, set[str]] = {}
    for operation in operations:
        scopes = [scope for scope in operation.split(";") if "/" in scope]
        paths = {".".join(re.sub(r".*\._?[^._]+_", "", part) for part in scope.split("/")[2:]) for scope in scopes}
        alike = [[name for name, pattern in patterns.items() if pattern.fullmatch(path)] for path in paths - {*modules}]
        found[operation] = (paths & {*modules}).union(*(names for names in alike if len(names) == 1))
    return found


def _path_pattern(module: str) -> re.Pattern[str]:
    """Match the path that litert_torch writes: without the containers whose modules a network calls one by one."""
    steps = module.split(".")
    parts = [
        f"({re.escape(step)}\\.)?" if after.isdigit() else rf"{re.escape(step)}\." for step, after in pairwise(steps)
    ]
    return re.compile("".join(parts) + re.escape(steps[-1]))


def _operations_of(made_of: Mapping[str, set[str]], wanted: Sequence[str]) -> list[str]:
    check_layers(wanted, sorted({name for names in made_of.values() for name in names}))
    return [operation for operation, names in made_of.items() if names & {*wanted}]


def _embed_metadata(program: bytes, metadata: ModelMetadata) -> bytes:
    """Embed the metadata and a description in metadata buffers, all weights inside the flatbuffer and aligned.

    The quantizer appends weights behind the flatbuffer, where only new runtimes look; reading resolves that.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

    model = read_model_from_bytearray(bytearray(program))
    if metadata.layout == LOGITS_ALONE:
        _drop_codes(model)
    model.metadata, model.description = model.metadata or [], summarize(metadata)
    for name, data in {KEY: metadata.to_json().encode(), TFLITE_METADATA: tflite_metadata(metadata)}.items():
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data, entry.name, entry.buffer = data, name, len(model.buffers)
        model.buffers, model.metadata = [*model.buffers, buffer], [*model.metadata, entry]
    for buffer in (one for one in model.buffers if one.data is not None):
        buffer.data = np.frombuffer(buffer.data, np.uint8)  # anything else is packed byte by byte: 2 s
    builder = _aligned_builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _drop_codes(model: Any) -> None:
    """Drop the output of the codes, and the operations that nothing but the codes needs."""
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    signature.outputs = [one for one in signature.outputs if one.name == b"logits"]
    graph.outputs = [one.tensorIndex for one in signature.outputs]
    needed, kept = set(graph.outputs), []
    for operation in reversed(graph.operators):
        if needed.intersection(operation.outputs):
            needed.update(operation.inputs)
            kept.append(operation)
    graph.operators = kept[::-1]


def _aligned_builder() -> Any:
    """The schema asks for buffers on 16 bytes; the Python writer forgets, and some ARM kernels need it."""
    import flatbuffers

    def start_vector(builder: Any, item_bytes: int, count: int, alignment: int) -> Any:
        return flatbuffers.Builder.StartVector(builder, item_bytes, count, 16 if item_bytes == 1 else alignment)

    return type("Aligned", (flatbuffers.Builder,), {"StartVector": start_vector})(1 << 20)
