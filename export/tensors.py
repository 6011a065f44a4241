"""Read what a model file takes, returns and stores, and compare it with what its metadata says; nothing is executed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from export.artifact import ANY_SIZE, FLOAT, LOGITS_ALONE, SMALL_WEIGHTS, ModelMetadata
from export.metadata import coreml_spec, corrupt_file, import_backend, litert_model, onnx_model, ort_model, text_of
from gallery.errors import CorruptFile, MissingBackend

MAX_TENSORS, MAX_DIMENSIONS = 200_000, 8
MAX_NAME, MAX_NAMES = 1000, 64 << 20  # bytes of a name, and of all that are read
QUANTIZED = "integers"
COREML_WEIGHTS = "@model_path/weights/weight.bin"
Interface = dict[str, tuple[str, tuple[Any, ...]]]


@dataclass(frozen=True)
class ModelTensors:
    """interface: type and shape of image, codes (but in a file of logits alone) and logits

    weights: numbers of the largest tensor of weights by how they are stored: "fp32", "fp16", `QUANTIZED`
    """

    interface: Interface
    weights: dict[str, int]


def check_tensors_of(path: Path, metadata: ModelMetadata) -> str:
    """Return the precision of the weights: that of the metadata, or the float one of a file that has nothing to round.

    Raises `CorruptFile` unless inputs, outputs and weights are those that the metadata says.  A Core AI program, which
    only its own engine reads, is not looked into.
    """
    readers = {".onnx": _onnx, ".ort": _ort, ".tflite": _litert, ".mlpackage": _coreml}
    if path.suffix not in readers:
        return metadata.precision
    try:
        found = readers[path.suffix](path)
    except (CorruptFile, MissingBackend):
        raise
    except Exception as error:  # what protobuf and flatbuffers raise for a damaged file
        raise corrupt_file(path, error) from error
    if found.interface != (expected := _expected(metadata)):
        what = f"{path.name} to take and return {expected}, as its metadata says"
        raise CorruptFile(what, str(found.interface), "Export it again.")
    return _stored_precision(found.weights, metadata, path.name)


def _expected(metadata: ModelMetadata) -> Interface:
    image, code = ("RGB image", "int32") if metadata.layout == "image" else ("uint8", "uint8")
    sides = ("height", "width") if metadata.layout == ANY_SIZE else (metadata.size, metadata.size)
    codes: Interface = {} if metadata.layout == LOGITS_ALONE else {"codes": (code, (1, metadata.bits // 8))}
    return {**codes, "image": (image, (1, *sides, 3)), "logits": ("float32", (1, metadata.bits))}


def _stored_precision(weights: dict[str, int], metadata: ModelMetadata, name: str) -> str:
    """fp16 may leave tensors in fp32, as converters do; a precision with integers small ones, and layers it names."""
    floats = {kind: weights[kind] for kind in FLOAT if kind in weights}
    if metadata.precision in FLOAT:
        right = metadata.precision in floats and weights.keys() <= {"fp32", metadata.precision}
    else:
        right = QUANTIZED in weights or bool(metadata.float_layers) or max(floats.values(), default=0) < SMALL_WEIGHTS
    if not right:
        found = ", ".join(f"{count:,} numbers as {kind}" for kind, count in weights.items()) or "none"
        raise CorruptFile(f"weights of {metadata.precision} in {name}, as its metadata says", found, "Export it again.")
    said = metadata.precision in FLOAT or QUANTIZED in weights or not floats
    return metadata.precision if said else max(floats, key=floats.__getitem__)


def _check_ends(inputs: int, outputs: int) -> None:
    if inputs != 1 or outputs not in (1, 2):
        raise ValueError(f"{inputs:,} inputs and {outputs:,} outputs, not one, and one or two")


def _check_count(what: str, count: int) -> None:
    if count > MAX_TENSORS:
        raise ValueError(f"{count:,} {what}")


def _largest(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, int]:
    """Return the numbers of the largest tensor of each kind, of those with two dimensions or more."""
    found: dict[str, int] = {}
    for kind, shape in tensors:
        if len(shape) > MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {len(shape)} dimensions")
        if kind and len(shape) > 1:
            found[kind] = max(found.get(kind, 0), math.prod(shape))
    return found


def _onnx(path: Path) -> ModelTensors:
    onnx = import_backend("onnx")
    types, model = onnx.TensorProto, onnx_model(path)
    names = {types.UINT8: "uint8", types.FLOAT: "float32"}
    kinds = {types.FLOAT: "fp32", types.DOUBLE: "fp32", types.FLOAT16: "fp16", types.BFLOAT16: "fp16"}
    others = (types.UNDEFINED, types.INT32, types.INT64, types.BOOL, types.STRING)  # shapes, axes and flags
    interface: Interface = {}
    _check_ends(len(model.graph.input), len(model.graph.output))
    for value in (*model.graph.input, *model.graph.output):
        tensor = value.type.tensor_type
        kind = names.get(tensor.elem_type, f"type {tensor.elem_type}")
        interface[value.name] = kind, tuple(one.dim_param or one.dim_value for one in tensor.shape.dim)
    _check_count("nodes", len(model.graph.node))
    tensors = list(islice(_onnx_tensors(model), MAX_TENSORS + 1))
    _check_count("tensors", len(tensors))
    if any(tensor.data_location == types.EXTERNAL or tensor.external_data for tensor in tensors):
        raise ValueError("weights outside the file")
    stored = [(one.data_type, tuple(one.dims)) for one in tensors if one.data_type not in others]
    weights = _largest((kinds.get(kind, QUANTIZED), shape) for kind, shape in stored)
    return ModelTensors(dict(sorted(interface.items())), weights)


def _onnx_tensors(model: Any) -> Iterator[Any]:
    """Yield every constant of graphs, inner graphs and functions; of the outer graph those that a node reads."""
    read = {name for node in model.graph.node for name in node.input}
    yield from (one for one in model.graph.initializer if one.name in read or one.external_data)
    yield from (part for one in model.graph.sparse_initializer for part in (one.values, one.indices))
    nodes = [node for part in (model.graph, *model.functions) for node in part.node]
    while nodes:
        for attribute in nodes.pop().attribute:
            yield from (attribute.t, *attribute.tensors)
            for graph in (attribute.g, *attribute.graphs):
                yield from graph.initializer
                nodes.extend(graph.node)


def _ort(path: Path) -> ModelTensors:
    graph = ort_model(path).Graph()
    from ort_flatbuffers_py.fbs.TensorDataType import TensorDataType

    types: Any = TensorDataType
    names = {types.UINT8: "uint8", types.FLOAT: "float32"}
    kinds = {types.FLOAT: "fp32", types.DOUBLE: "fp32", types.FLOAT16: "fp16", types.BFLOAT16: "fp16"}
    others = (types.UNDEFINED, types.INT32, types.INT64, types.BOOL, types.STRING)
    _check_ends(graph.InputsLength(), graph.OutputsLength())
    ends = {bytes(name): name.decode() for name in (graph.Inputs(0), *map(graph.Outputs, range(graph.OutputsLength())))}
    interface: Interface = {}
    _check_count("values", graph.NodeArgsLength())
    for value in map(graph.NodeArgs, range(graph.NodeArgsLength())):
        if name := ends.get(text_of(value, 4, MAX_NAME)):
            kind, shape = _ort_type(value.Type())
            interface[name] = names.get(kind, f"type {kind}"), shape
    stored = [(one.DataType(), _ort_dims(one)) for one in _ort_tensors(graph)]
    weights = _largest((kinds.get(kind, QUANTIZED), shape) for kind, shape in stored if kind not in others)
    return ModelTensors(dict(sorted(interface.items())), weights)


def _ort_type(info: Any) -> tuple[int, tuple[Any, ...]]:
    """Type and shape of a value that is a tensor; a side that is free by its name."""
    from ort_flatbuffers_py.fbs.DimensionValueType import DimensionValueType
    from ort_flatbuffers_py.fbs.TensorTypeAndShape import TensorTypeAndShape
    from ort_flatbuffers_py.fbs.TypeInfoValue import TypeInfoValue

    if info.ValueType() != TypeInfoValue.tensor_type:
        raise ValueError("a value that is no tensor")
    tensor, found = info.Value(), TensorTypeAndShape()
    found.Init(tensor.Bytes, tensor.Pos)
    if found.Shape().DimLength() > MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {found.Shape().DimLength()} dimensions")
    sides = [found.Shape().Dim(i).Value() for i in range(found.Shape().DimLength())]
    free = DimensionValueType.PARAM
    return found.ElemType(), tuple(
        text_of(side, 8, MAX_NAME).decode() if side.DimType() == free else side.DimValue() for side in sides
    )


def _ort_tensors(graph: Any) -> Iterator[Any]:
    """Yield every constant of graphs and inner graphs; of the outer graph those that a node reads."""
    nodes = _ort_nodes(graph)
    read = set(_bounded(name for node in nodes for name in map(node.Inputs, range(node.InputsLength()))))
    if graph.SparseInitializersLength():
        raise ValueError("sparse weights")
    _check_count("tensors", found := graph.InitializersLength())
    stored = [graph.Initializers(i) for i in range(found)]
    if any(one.ExternalDataOffset() != -1 for one in stored):
        raise ValueError("weights outside the file")
    yield from (one for one, name in zip(stored, _bounded(one.Name() for one in stored), strict=True) if name in read)
    while nodes:
        node = nodes.pop()
        for attribute in map(node.Attributes, range(node.AttributesLength())):
            parts = [attribute.T(), *map(attribute.Tensors, range(attribute.TensorsLength()))]
            graphs = [attribute.G(), *map(attribute.Graphs, range(attribute.GraphsLength()))]
            for inner in filter(None, graphs):
                parts += map(inner.Initializers, range(inner.InitializersLength()))
                nodes += _ort_nodes(inner)
            _check_count("tensors", found := found + len(parts))
            yield from filter(None, parts)


def _bounded(names: Iterable[bytes]) -> Iterator[bytes]:
    """Yield names that are copied out of a flatbuffer, where any number may be the same megabytes."""
    total = 0
    for name in names:
        if (total := total + len(name)) > MAX_NAMES:
            raise ValueError(f"names of more than {MAX_NAMES:,} bytes")
        yield name


def _ort_nodes(graph: Any) -> list[Any]:
    _check_count("nodes", graph.NodesLength())
    return [graph.Nodes(i) for i in range(graph.NodesLength())]


def _ort_dims(tensor: Any) -> tuple[int, ...]:
    if tensor.DimsLength() > MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {tensor.DimsLength()} dimensions")
    return tuple(tensor.Dims(i) for i in range(tensor.DimsLength()))


def _litert(path: Path) -> ModelTensors:
    schema, model = import_backend("ai_edge_litert.schema_py_generated"), litert_model(path)
    types = schema.TensorType
    names = {types.UINT8: "uint8", types.FLOAT32: "float32"}
    kinds = {types.FLOAT32: "fp32", types.FLOAT64: "fp32", types.FLOAT16: "fp16"}
    others = (types.INT32, types.INT64, types.BOOL, types.STRING)
    graph = model.Subgraphs(0)
    _check_ends(graph.InputsLength(), graph.OutputsLength())
    _check_count("graphs", model.SubgraphsLength())
    if model.ExternalBufferGroupsLength():
        raise ValueError("weights outside the file")
    ends = [graph.Inputs(0), *(graph.Outputs(i) for i in range(graph.OutputsLength()))]
    tensors = [graph.Tensors(i) for i in ends]
    image, *outputs = [(names.get(one.Type(), f"type {one.Type()}"), _shape(one)) for one in tensors]
    named = zip(("logits", "codes"), sorted(outputs), strict=False)  # by type: names and order depend on the converter
    interface = dict(sorted([("image", image), *named]))
    stored = ((tensor.Type(), _shape(tensor)) for tensor in _litert_constants(model))
    weights = _largest((kinds.get(kind, QUANTIZED), shape) for kind, shape in stored if kind not in others)
    return ModelTensors(interface, weights)


def _litert_constants(model: Any) -> Iterator[Any]:
    count = 0
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for tensor in map(graph.Tensors, range(graph.TensorsLength())):
            _check_count("tensors", count := count + 1)
            buffer = model.Buffers(tensor.Buffer())
            if buffer is not None and (buffer.DataLength() or buffer.Size()):
                yield tensor


def _shape(tensor: Any) -> tuple[int, ...]:
    if tensor.ShapeLength() > MAX_DIMENSIONS:
        raise ValueError(f"a tensor of {tensor.ShapeLength()} dimensions")
    return tuple(tensor.Shape(i) for i in range(tensor.ShapeLength()))


def _coreml(path: Path) -> ModelTensors:
    spec = coreml_spec(path)
    from coremltools.proto import FeatureTypes_pb2, MIL_pb2

    if list(spec.mlProgram.functions) != ["main"] or spec.description.functions:
        raise ValueError("other functions than main")
    array, colour = FeatureTypes_pb2.ArrayFeatureType, FeatureTypes_pb2.ImageFeatureType
    names = {array.INT32: "int32", array.FLOAT32: "float32"}
    interface: Interface = {}
    _check_ends(len(spec.description.input), len(spec.description.output))
    for feature in (*spec.description.input, *spec.description.output):
        image, numbers = feature.type.imageType, feature.type.multiArrayType
        if feature.type.WhichOneof("Type") == "imageType":
            kind = "RGB image" if image.colorSpace == colour.RGB else f"image of colours {image.colorSpace}"
            interface[feature.name] = kind, (1, image.height, image.width, 3)
        else:
            kind = names.get(numbers.dataType, f"type {numbers.dataType}")
            interface[feature.name] = kind, tuple(numbers.shape)
    weights = _largest(_coreml_weights(spec, MIL_pb2))
    return ModelTensors(dict(sorted(interface.items())), weights)


def _coreml_weights(spec: Any, mil: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield kind and shape of the constants of an ML Program; raises `ValueError` for one outside the package."""
    kinds = {mil.FLOAT32: "fp32", mil.FLOAT64: "fp32", mil.FLOAT16: "fp16"}
    others = (mil.BOOL, mil.STRING, mil.INT32, mil.INT64, mil.UINT32, mil.UINT64)
    functions = spec.mlProgram.functions.values()
    blocks = [block for function in functions for block in function.block_specializations.values()]
    count = 0
    while blocks:
        operations = blocks.pop().operations
        _check_count("operations", count := count + len(operations))
        for operation in operations:
            blocks.extend(operation.blocks)
            given = [part.value for one in operation.inputs.values() for part in one.arguments]
            for value in (*operation.attributes.values(), *given):
                if value.blobFileValue.fileName not in ("", COREML_WEIGHTS):
                    raise ValueError("weights outside the package")
            if operation.outputs and (operation.type == "const" or operation.type.startswith("constexpr_")):
                tensor = operation.outputs[0].type.tensorType
                shape = tuple(one.constant.size for one in tensor.dimensions)
                packed = operation.type not in ("const", "constexpr_cast")
                kind = QUANTIZED if packed else kinds.get(tensor.dataType, QUANTIZED)
                yield "" if tensor.dataType in others else kind, shape
