"""LiteRT (.tflite): one float32 conversion of batch 1; the other precisions are rewrites of its weights."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from export.artifact import SMALL_WEIGHTS, Artifact
from export.card import KEY, Card
from export.query_model import QueryModel
from gallery.files import write_whole

FORMAT, SUFFIX, LAYOUT = "litert", ".tflite", "NHWC uint8"
PRECISIONS = ("fp32", "fp16", "int8-weights")


def _rule(algorithm: str, smallest: int, **weights: Any) -> list[dict[str, Any]]:
    """A recipe of one rule for the quantizer: weights as described, dequantized on loading, activations float32."""
    config = {
        "weight_tensor_config": {"symmetric": True, **weights}, "compute_precision": "FLOAT",
        "explicit_dequantize": True, "skip_checks": False, "min_weight_elements": smallest,
    }  # fmt: skip
    return [{"regex": ".*", "operation": "*", "algorithm_key": algorithm, "op_config": config}]


_RECIPES = {
    "fp16": _rule("float_casting", 0, num_bits=16, granularity="TENSORWISE", dtype="FLOAT"),
    "int8-weights": _rule(
        "min_max_uniform_quantize", SMALL_WEIGHTS, num_bits=8, granularity="CHANNELWISE", dtype="INT"
    ),
}


def to_litert(model: QueryModel, card: Card, path: Path) -> Artifact:
    """Writes `model` at `card.precision`: image uint8 `[1, S, S, 3]` to codes uint8 and logits float32."""
    return write(convert(model), card, path)


def convert(model: QueryModel) -> bytes:
    """The float32 file.  A module of its own gives the signature its names: image, codes, logits."""
    import litert_torch

    edge = litert_torch.convert(_Named(model).eval(), sample_kwargs={"image": model.example()})
    with tempfile.TemporaryDirectory() as folder:
        edge.export(f"{folder}/float.tflite")
        return Path(folder, "float.tflite").read_bytes()


def write(program: bytes, card: Card, path: Path) -> Artifact:
    """Stores the weights at `card.precision`, embeds the card, and writes the file."""
    stored = program if card.precision == "fp32" else _quantized(program, card.precision)
    write_whole(path, _with_card(stored, card))
    return Artifact.of(path, FORMAT, card)


class _Named(nn.Module):
    def __init__(self, query: QueryModel) -> None:
        super().__init__()
        self.query = query

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        codes, logits = self.query(image)
        return {"codes": codes, "logits": logits}


def _quantized(program: bytes, precision: str) -> bytes:
    from ai_edge_quantizer.quantizer import Quantizer

    quantizer = Quantizer(bytearray(program))
    quantizer.load_quantization_recipe(_RECIPES[precision])
    return bytes(quantizer.quantize().quantized_model)


def _with_card(program: bytes, card: Card) -> bytes:
    """The file with the card in a metadata buffer, all weights inside the flatbuffer and aligned.

    The quantizer appends weights behind the flatbuffer, where only new runtimes look; reading resolves that.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

    model = read_model_from_bytearray(bytearray(program))
    text, entry = schema.BufferT(), schema.MetadataT()
    text.data = card.to_json().encode()
    entry.name, entry.buffer = KEY, len(model.buffers)
    model.buffers.append(text)
    for buffer in model.buffers:
        if buffer.data is not None:
            buffer.data = np.frombuffer(buffer.data, np.uint8)  # anything else is packed byte by byte: 2 s
    model.metadata = [*(model.metadata or []), entry]
    builder = _aligned_builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _aligned_builder() -> Any:
    """The schema asks for buffers on 16 bytes; the Python writer forgets, and some ARM kernels need it."""
    import flatbuffers

    def start_vector(builder: Any, item_bytes: int, count: int, alignment: int) -> Any:
        return flatbuffers.Builder.StartVector(builder, item_bytes, count, 16 if item_bytes == 1 else alignment)

    return type("Aligned", (flatbuffers.Builder,), {"StartVector": start_vector})(1 << 20)
