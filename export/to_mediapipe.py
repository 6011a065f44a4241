"""LiteRT without the codes, for MediaPipe's ImageEmbedder, and for accelerators that take all operations or none.

Two outputs, one of whole numbers, MediaPipe refuses.  Pixels as bytes it takes as they are, without a scale and a mean
in its own metadata: these are in the graph.
"""

from pathlib import Path

from export.artifact import LOGITS_ALONE, ExportedModel, ModelMetadata
from export.to_litert import PRECISIONS, QDQ_STYLE, ConvertedModel, convert, finish
from gallery.files import atomic_write

__all__ = ["FORMAT", "LAYOUT", "PRECISIONS", "QDQ_STYLE", "SUFFIX", "convert", "write"]

FORMAT, SUFFIX, LAYOUT = "mediapipe", ".mediapipe.tflite", LOGITS_ALONE


def write(converted: ConvertedModel, metadata: ModelMetadata, path: Path) -> ExportedModel:
    """Store the weights at `metadata.precision` as LiteRT's file does, drop the codes, and write the file."""
    atomic_write(path, finish(converted, metadata))
    return ExportedModel.of(path, FORMAT, metadata)
