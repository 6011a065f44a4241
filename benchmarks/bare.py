"""What the pixels in front and the code behind cost: a shipped file against the student alone, run in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gallery.files import write_whole
from mobile_eval.latency import MAX_SECONDS, THREADS, WARM_UPS, timed

OPENINGS = 9  # of both files: from one opening to the next their ratio moves by 1 to 3 %
FRONT = {"onnx": {"Transpose", "Cast", "Sub", "Mul"}, "litert": {"RESHAPE", "CAST", "SUB", "MUL"}}
Call = Callable[[], Any]


class Pair(NamedTuple):
    """latency: milliseconds of the shipped file over those of the student alone; bytes: likewise."""

    latency: float
    bytes: float


def compare(path: Path, folder: Path, pairs: int) -> Pair:
    """Cuts the student out of a shipped .onnx or .tflite, with its weights as they are, and runs both in turns.

    The student alone takes normalised floats in its own layout and returns logits.  The ratio of their medians over
    `pairs` calls, and of that the median over several openings of both.
    """
    cut, call = (_cut_onnx, _onnx) if path.suffix == ".onnx" else (_cut_litert, _litert)
    alone = cut(path, folder / f"bare-{path.name}")
    ratios = [_ratio(path, alone, call, pairs, bool(opening % 2)) for opening in range(OPENINGS)]
    return Pair(float(np.median(ratios)), path.stat().st_size / alone.stat().st_size)


def _ratio(shipped: Path, alone: Path, call: Callable[[Path], Call], pairs: int, alone_first: bool) -> float:
    """The ratio of both medians in one opening; which is opened, and called, first alternates."""
    order = (alone, shipped) if alone_first else (shipped, alone)
    first, second = (np.median(taken) for taken in _in_turns(call(order[0]), call(order[1]), pairs))
    return float(second / first if alone_first else first / second)


def _in_turns(first: Call, second: Call, pairs: int) -> tuple[list[float], list[float]]:
    """Milliseconds of both, one call after the other, so that whatever else the machine does disturbs both.

    As many pairs as asked for, or as an opening's share of `MAX_SECONDS` allows.
    """
    taken: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + MAX_SECONDS / OPENINGS
    for place in range(WARM_UPS + pairs):
        if place > WARM_UPS and time.perf_counter() > end:
            break
        for times, call in zip(taken, (first, second), strict=True):
            milliseconds = timed(call)[1]
            if place >= WARM_UPS:
                times.append(milliseconds)
    return taken


def _behind(tensor: Any, operations: Sequence[tuple[str, Sequence[Any], Any]], front: set[str]) -> Any:
    """The tensor at the end of the chain of `front` operations that begins with `tensor`."""
    for kind, inputs, output in operations:
        if kind in front and inputs[0] == tensor:
            tensor = output
    return tensor


def _cut_onnx(path: Path, to: Path) -> Path:
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    chain = [(node.op_type, node.input, node.output[0]) for node in model.graph.node if node.input]
    alone = onnx.utils.Extractor(model).extract_model([_behind("image", chain, FRONT["onnx"])], ["logits"])
    del alone.graph.value_info[:]
    return write_whole(to, alone.SerializeToString())


def _cut_litert(path: Path, to: Path) -> Path:
    """Takes the front's operations and those behind the logits out of the file, and its signature."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    graph, codes = model.subgraphs[0], [names[code.builtinCode] for code in model.operatorCodes]
    chain = [(codes[o.opcodeIndex], list(o.inputs), o.outputs[0]) for o in graph.operators]
    logits = next(t.tensorIndex for t in model.signatureDefs[0].outputs if t.name == b"logits")
    start = _behind(graph.inputs[0], chain, FRONT["litert"])
    last = next(place for place, (_, _, output) in enumerate(chain) if output == logits)
    first = next(place for place, (_, inputs, _) in enumerate(chain) if start in inputs)
    front = [place for place, (kind, _, _) in enumerate(chain[:first]) if kind in FRONT["litert"]]
    graph.operators = [o for place, o in enumerate(graph.operators) if place <= last and place not in front]
    graph.inputs, graph.outputs, model.signatureDefs = [start], [logits], []
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return write_whole(to, bytes(builder.Output()))


def _onnx(path: Path) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    takes = session.get_inputs()[0]
    shape = [side if isinstance(side, int) else 1 for side in takes.shape]
    kind = {"tensor(uint8)": np.uint8, "tensor(float16)": np.float16}.get(takes.type, np.float32)
    fed = {takes.name: _values(shape, kind)}
    return lambda: session.run(None, fed)


def _litert(path: Path) -> Call:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=THREADS)
    interpreter.allocate_tensors()
    takes = interpreter.get_input_details()[0]
    fed = _values(takes["shape"].tolist(), takes["dtype"])

    def call() -> None:
        interpreter.set_tensor(takes["index"], fed)
        interpreter.invoke()

    return call


def _values(shape: Sequence[int], kind: Any) -> Any:
    generator = np.random.default_rng(0)
    values = generator.integers(0, 256, shape) if kind is np.uint8 else generator.normal(size=shape)
    return values.astype(kind)
