"""What of a model an execution provider or a delegate takes, and in how many parts, by the runtimes themselves.

ONNX Runtime's checker knows the types of operations that its providers for NNAPI and Core ML take, and not a device's
limits.  LiteRT's XNNPACK is asked what it has taken here, on a CPU.  LiteRT's analyzer is not asked about GPUs: that of
ai-edge-litert 2.3 calls every file compatible, also one with operations that the GPU delegate does not have.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from export.artifact import first_line
from export.capture_output import quiet

Row = dict[str, Any]  # the fields of `gallery.partition_results.DelegatePartitions`
PROVIDERS, XNNPACK = "NNAPI, Core ML", "LiteRT XNNPACK (CPU)"
SILENT = "ONNX Runtime's checker reads ONNX files alone"


def partitions(path: Path) -> list[Row]:
    """Return a row for each delegate that something here knows about; what fails gives a row with the reason."""
    readers: dict[str, tuple[str, Callable[[Path], list[Row]]]] = {
        ".onnx": (PROVIDERS, onnx_partitions), ".tflite": (XNNPACK, litert_partitions),
        ".ort": (PROVIDERS, lambda _: [{"delegate": PROVIDERS, "reason": SILENT}]),
    }  # fmt: skip
    if path.suffix not in readers:
        return []
    name, read = readers[path.suffix]
    try:
        with quiet():
            return read(path)
    except Exception as error:  # noqa: BLE001  (shape inference and engines raise whatever they like)
        return [{"delegate": name, "reason": first_line(error)[:300]}]


def onnx_partitions(path: Path) -> list[Row]:
    """Ask ONNX Runtime's mobile checker about the graph as its basic optimization leaves it."""
    from onnxruntime.tools.mobile_helpers import usability_checker as checker
    from onnxruntime.tools.onnx_model_utils import ModelProtoWithShapeInfo, optimize_model

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder, path.name)
        optimize_model(path, optimized, use_external_initializers=True)
        model = ModelProtoWithShapeInfo(optimized).model_with_shape_info
    checks = {"NNAPI": checker.check_nnapi_partitions} | {
        f"Core ML {kind}": partial(
            checker.check_coreml_partitions, config_filename=f"coreml_supported_{kind.lower()}_ops.md"
        )
        for kind in ("NeuralNetwork", "MLProgram")
    }
    found = {name: check(model, require_fixed_input_sizes=True) for name, check in checks.items()}
    return [
        {"delegate": name, "operations": one.num_nodes, "supported": one.num_supported_nodes,
         "partitions": one.num_partitions}
        for name, one in found.items()
    ]  # fmt: skip


def litert_partitions(path: Path) -> list[Row]:
    """Count what LiteRT's interpreter left to itself after XNNPACK took its parts: each became one operation."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    operations = interpreter._get_ops_details()  # those that were taken, too
    taken = [one for one in operations if one["op_name"] == "DELEGATE"]
    own = [one for one in operations if one["op_name"] != "DELEGATE"]
    makers = {int(tensor): one for one in (*own, *taken) for tensor in one["outputs"]}
    wanted, run = [one["index"] for one in interpreter.get_output_details()], {}
    while wanted:
        one = makers.get(int(wanted.pop()))
        if one is not None and one["index"] not in run:
            run[one["index"]] = one["op_name"]
            wanted += list(one["inputs"])
    left = sum(name != "DELEGATE" for name in run.values())
    row = {"operations": len(own), "supported": len(own) - left, "partitions": len(taken)}
    return [{"delegate": XNNPACK} | row]
