"""What of a model a phone's accelerators would take, and in how many parts, by the runtimes' own tools.

Nothing runs there: the tools know which operations a delegate or execution provider has, and not a device's limits.
"""

import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

Row = dict[str, Any]  # the fields of `gallery.accelerator_results.AcceleratorPartitions`
GPU = "LiteRT GPU delegate"
SILENT = "ONNX Runtime's checker reads ONNX files alone"


def partitions(path: Path) -> list[Row]:
    """Return a row for each accelerator that a tool here knows; a tool that fails gives a row with the reason."""
    by_tool: dict[str, dict[str, Callable[[Path], list[Row]]]] = {
        ".onnx": {"NNAPI, Core ML": onnx_partitions}, ".tflite": {GPU: litert_partitions},
        ".ort": {"NNAPI, Core ML": lambda _: [{"accelerator": "NNAPI, Core ML", "reason": SILENT}]},
    }  # fmt: skip
    rows = []
    for name, tool in by_tool.get(path.suffix, {}).items():
        try:
            rows += tool(path)
        except Exception as error:  # noqa: BLE001  (shape inference and the analyzer raise whatever they like)
            rows.append({"accelerator": name, "reason": f"{type(error).__name__}: {error}"[:300]})
    return rows


def onnx_partitions(path: Path) -> list[Row]:
    """Ask ONNX Runtime's mobile checker about its execution providers, of the graph after its basic optimization."""
    from onnxruntime.tools.mobile_helpers import usability_checker as checker
    from onnxruntime.tools.onnx_model_utils import ModelProtoWithShapeInfo, optimize_model

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder, path.name)
        optimize_model(path, optimized, use_external_initializers=True)
        model = ModelProtoWithShapeInfo(optimized).model_with_shape_info
    core_ml = {
        "NeuralNetwork": "coreml_supported_neuralnetwork_ops.md",
        "MLProgram": "coreml_supported_mlprogram_ops.md",
    }
    checks = {"NNAPI": checker.check_nnapi_partitions} | {
        f"Core ML {kind}": partial(checker.check_coreml_partitions, config_filename=name)
        for kind, name in core_ml.items()
    }
    found = {name: check(model, require_fixed_input_sizes=True) for name, check in checks.items()}
    return [
        {"accelerator": name, "operations": one.num_nodes, "supported": one.num_supported_nodes,
         "partitions": one.num_partitions}
        for name, one in found.items()
    ]  # fmt: skip


def litert_partitions(path: Path) -> list[Row]:
    """Ask LiteRT's analyzer about its GPU delegate; into how many parts operations it lacks cut the rest it keeps."""
    from ai_edge_litert import _pywrap_analyzer_wrapper as analyzer

    text = analyzer.ModelAnalyzer(str(path), True, True)
    operations = len(re.findall(r"^  Op#\d+ ", text, re.MULTILINE))
    lacking = {
        int(one)
        for line in re.findall(r"compatibility issues at nodes? (.*)", text)
        for one in re.findall(r"\d+", line)
    }
    if not lacking and "looks compatible with GPU delegate" not in text:
        return [{"accelerator": GPU, "reason": "LiteRT's analyzer gives no verdict"}]
    row = {"accelerator": GPU, "operations": operations, "supported": operations - len(lacking)}
    return [row if lacking else row | {"partitions": 1}]
