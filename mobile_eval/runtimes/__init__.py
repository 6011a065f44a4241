"""Inference engines for exported models, one module each; `open_model` picks the one of a file."""

import platform
from pathlib import Path

from export.artifact import ModelMetadata
from gallery.errors import InputError
from mobile_eval.runtimes.base import ModelOutput, Runtime

__all__ = ["ModelOutput", "Runtime", "open_model"]
KINDS = "an .onnx, .ort, .tflite, .mlpackage or .aimodel file"


def open_model(path: Path | str, threads: int = 1, metadata: ModelMetadata | None = None, unit: str = "ALL") -> Runtime:
    """Open an .onnx, .ort, .tflite, .mlpackage or .aimodel with Twinhash's metadata.

    threads:  how many the engine may use
    metadata: of the file; by default it is read from the file
    unit:     the compute unit of Core ML, on macOS
    Raises `InputError` for anything else, `CorruptFile` for a damaged file, `CodeSpaceMismatch` for one without
    metadata, `MissingBackend` where its engine is not installed or lacks an operation.
    """
    path = Path(path)
    if not path.exists():
        raise InputError("a model file", f"nothing at {path}", f"Name {KINDS}.")
    if not (path.is_file() or path.is_dir()):
        raise InputError("a model file", f"a device or a pipe at {path}", "Name a file of the bundle.")
    if path.suffix in (".onnx", ".ort"):
        from mobile_eval.runtimes.onnxruntime_cpu import OnnxRuntime

        return OnnxRuntime(path, threads, metadata)
    if path.suffix == ".tflite":
        from mobile_eval.runtimes.litert import LiteRt

        return LiteRt(path, threads, metadata)
    if path.suffix == ".mlpackage":
        from mobile_eval.runtimes.coreml import AppleCoreMl, ReferenceCoreMl

        on_mac = platform.system() == "Darwin"  # elsewhere the reference evaluator takes its place
        return AppleCoreMl(path, unit, metadata) if on_mac else ReferenceCoreMl(path, threads, metadata)
    if path.suffix == ".aimodel":
        from mobile_eval.runtimes.coreai import CoreAi

        return CoreAi(path)
    raise InputError(KINDS, path.name, "Name a file of the bundle.")
