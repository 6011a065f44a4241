"""LiteRT, or the tflite_runtime of an old board, which has no schema: the metadata must then be given."""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from export.artifact import LOGITS_ALONE, ModelMetadata
from export.capture_output import quiet
from export.metadata import corrupt_file, import_backend, read_metadata
from gallery.codes import pack
from gallery.errors import CorruptFile
from mobile_eval.runtimes.base import Images, ModelOutput, Runtime, check_tensors


class LiteRt(Runtime):
    """One interpreter, one image at a time: the files have a fixed batch of 1."""

    def __init__(self, path: Path, threads: int, metadata: ModelMetadata | None = None) -> None:
        self.metadata = metadata or read_metadata(path)
        old = find_spec("ai_edge_litert") is None and find_spec("tflite_runtime") is not None
        package = "tflite_runtime" if old else "ai_edge_litert"
        module = import_backend(f"{package}.interpreter")
        try:
            with quiet():
                self._interpreter = module.Interpreter(str(path), num_threads=threads)
                self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise corrupt_file(path, error) from error
        # told apart by type: order and names depend on the converter
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        by_type = {np.dtype(tensor["dtype"]).name: tensor for tensor in outputs}
        expected = {"float32"} if self.metadata.layout == LOGITS_ALONE else {"uint8", "float32"}
        if len(inputs) != 1 or set(by_type) != expected:
            what = f"one image, and of float32 logits and uint8 codes {sorted(expected)} in {path.name}"
            raise CorruptFile(what, str(sorted(by_type)), "Export it again.")
        image, codes, logits = inputs[0], by_type.get("uint8"), by_type["float32"]
        shape = codes["shape"] if codes else (1, self.metadata.bits // 8)
        check_tensors(self.metadata, path, image["shape"], shape, logits["shape"])
        self._image, self._logits = image["index"], logits["index"]
        self._codes = codes["index"] if codes else None
        self.engine = f"{'TensorFlow Lite' if old else 'LiteRT'} {version(package.replace('_', '-'))} XNNPACK"

    def _run(self, images: Images) -> ModelOutput:
        self._interpreter.set_tensor(self._image, images)
        self._interpreter.invoke()
        logits = self._interpreter.get_tensor(self._logits)
        return ModelOutput(pack(logits) if self._codes is None else self._interpreter.get_tensor(self._codes), logits)
