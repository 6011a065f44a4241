"""ONNX Runtime's own format (.ort): the ONNX file, optimized for the CPU ahead of time, for runtimes built small."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export import to_onnx
from export.artifact import ExportedModel, ModelMetadata
from export.capture_output import quiet
from export.to_onnx import LAYOUT, QDQ_STYLE, convert
from gallery.files import atomic_path

__all__ = ["FORMAT", "LAYOUT", "OPERATORS", "PRECISIONS", "QDQ_STYLE", "SUFFIX", "convert", "write", "write_operators"]

FORMAT, SUFFIX = "ort", ".ort"
PRECISIONS = ("fp32", "w8a32", "w8a8")  # with fp16 it has its weights in fp32: the CPU kernels are
OPERATORS = "required_operators_and_types.config"  # as ONNX Runtime's build script knows it
# Blocked channels are of x86 alone.  Constants that are folded are weights in float: 6.4 MB instead of 1.8 with w8a32.
LEFT_OUT = ["NchwcTransformer", "ConstantFolding"]


def write(program: Any, metadata: ModelMetadata, path: Path) -> ExportedModel:
    """Write the ONNX file of `metadata.precision` aside, and what ONNX Runtime makes of it to `path`."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder, atomic_path(path) as draft:
        onnx = to_onnx.write(program, metadata, Path(folder, "query.onnx")).path
        options = ort.SessionOptions()
        options.log_severity_level, options.optimized_model_filepath = 3, str(draft)
        options.add_session_config_entry("session.save_model_format", "ORT")
        ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"], disabled_optimizers=LEFT_OUT)
    return ExportedModel.of(path, FORMAT, metadata)


def write_operators(models: Sequence[Path], path: Path) -> Path:
    """Write which operators, and for which types, an ONNX Runtime must be built with (`--include_ops_by_config`)."""
    from onnxruntime.tools.ort_format_model import create_config_from_models

    with quiet():
        create_config_from_models(models, path, enable_type_reduction=True)
    lines = path.read_text("utf-8").splitlines()  # the first ones name the files, by where they lie here
    path.write_text("".join(f"{line}\n" for line in lines if not line.startswith("#")), "utf-8")
    return path
