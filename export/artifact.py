"""What an export leaves behind: a file with its card and checksum, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from export.card import ModelMetadata
from gallery.errors import InputError
from gallery.files import sha256_of, size_of

FLOAT = ("fp32", "fp16")  # precisions that quantize nothing
SMALL_WEIGHTS = 2048  # numbers; w8a32 leaves smaller tensors float: depthwise kernels, squeeze-excite gates


def check_layers(float_layers: Collection[str], known: Collection[str]) -> None:
    """Raises `InputError` unless every layer that shall stay float is one of the network's."""
    if wrong := sorted(set(float_layers) - set(known)):
        raise InputError(
            "names of the network's convolutions and linear layers to leave float",
            ", ".join(wrong),
            f"Take them from the network's named_modules(), e.g. {next(iter(known), 'none')}.",
        )


@dataclass(frozen=True)
class ExportedModel:
    """A shipped file (Core ML: a folder), whole on disk.

    format: "onnx", "litert" or "coreml"; sha256, bytes: of the file, or over the folder (`gallery.files`)
    """

    path: Path
    format: str
    card: ModelMetadata
    sha256: str
    bytes: int

    @property
    def form(self) -> str:
        """Format and precision, the name people use: "onnx-fp32", "litert-w8a32"."""
        return f"{self.format}-{self.card.precision}"

    @staticmethod
    def of(path: Path, format: str, card: ModelMetadata) -> ExportedModel:
        """Describes the finished file at `path`."""
        return ExportedModel(path, format, card, sha256_of(path), size_of(path))


@dataclass(frozen=True)
class ExportFailure:
    """A form that could not be made, and why: a row in the report, not a crash."""

    form: str
    reason: str
