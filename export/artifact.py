"""What an export leaves behind: a model file with its metadata and checksum, or the reason why there is none."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from gallery.codes import BIT_ORDER, BIT_RULE, MAX_MODEL_VERSION, MAX_TEXT, RULE
from gallery.codes import KEY as KEY
from gallery.console import plain
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError
from gallery.files import sha256_of, size_of

if TYPE_CHECKING:
    from gallery.codespace import CodeSpace

VERSION = 2  # of the metadata: 1 had a sentence for a rule, and nobody's name
ANY_SIZE = "NHWC uint8, resized inside"  # layout with a dynamic image size: the model itself resizes to `size`
LOGITS_ALONE = "NHWC uint8, logits alone"  # layout of a model without codes: the app takes the logits' signs
LAYOUTS = {  # that a format can have
    "onnx": ("NHWC uint8", ANY_SIZE), "ort": ("NHWC uint8", ANY_SIZE), "litert": ("NHWC uint8",),
    "mediapipe": (LOGITS_ALONE,), "coreml": ("image",), "coreai": ("NHWC uint8",),
}  # fmt: skip
FORMATS = {  # by the end of a file's name, of two that fit the longer first
    ".onnx": "onnx", ".ort": "ort", ".mediapipe.tflite": "mediapipe", ".tflite": "litert", ".mlpackage": "coreml",
    ".aimodel": "coreai",
}  # fmt: skip
FLOAT = ("fp32", "fp16")  # precisions that quantize nothing
PRECISIONS = (*FLOAT, "w8a32", "w8a8", "w8a16", "w8a8-dynamic", "palettize6")
SMALL_WEIGHTS = 2048  # numbers; w8a32 keeps smaller tensors in float: depthwise kernels, squeeze-excite gates
MAX_BITS, MAX_SIZE = 4096, 4096  # of a code; of an input's side, pixels
MAX_METADATA = 1 << 20  # characters


@dataclass(frozen=True)
class ModelMetadata:
    """Everything an app must know to feed the model and to compare its codes; embedded under `KEY`.

    precision: of weights and activations, e.g. "fp32", "fp16", "w8a32"
    size:      side of the square input, pixels
    layout:    "NHWC uint8" (Core ML: "image"; or `ANY_SIZE`, `LOGITS_ALONE`); colour_order: "RGB"
    rule:      the version of the rule that makes the input from an image file (`gallery.codespace.RULE_TEXT`)
    calibration: how the ranges of 8-bit activations were chosen
    float_layers: dotted names of the network's layers whose weights are kept in float, whatever the precision
    version:   of the metadata's own form
    author, license, model_version: as their owner stated them; empty, or 0: not stated
    """

    code_space: str
    bits: int
    student: str
    precision: str
    size: int
    rule: int
    layout: str = "NHWC uint8"
    colour_order: str = "RGB"
    bit_rule: str = "logit > 0"
    bit_order: str = "little"
    version: int = VERSION
    float_layers: tuple[str, ...] = ()
    calibration: str = ""
    author: str = ""
    license: str = ""
    model_version: int = 0

    def to_json(self) -> str:
        """Return one line of JSON, as it is embedded under `KEY`."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | None, where: str) -> Self:
        """Parse embedded metadata.

        Raises `CodeSpaceMismatch` without any, `InputError` for that of another version, `CorruptFile` for unreadable.
        """
        if not text:
            raise CodeSpaceMismatch(f"Twinhash metadata in {where}", "none", "Export the file with Twinhash.")
        try:
            if len(text) > MAX_METADATA:
                raise ValueError(f"{len(text):,} characters")
            fields = json.loads(text)
            _check_version(fields.get("version"), where)
            metadata = cls(**fields | {"float_layers": tuple(_texts(fields["float_layers"]))})._checked()
            if metadata.to_json() != text:
                raise ValueError("a text that Twinhash does not write")
            return metadata
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise CorruptFile(f"readable metadata in {where}", first_line(error), "Export the file again.") from error

    def _checked(self) -> Self:
        """Raise `ValueError` for a field of another type, out of its range, or of a name that is not known."""
        _texts([self.code_space, self.student, self.calibration, self.author, self.license])
        numbers = {"bits": (1, MAX_BITS), "size": (1, MAX_SIZE), "version": (VERSION, VERSION)}
        for name, (least, most) in (numbers | {"model_version": (0, MAX_MODEL_VERSION)}).items():
            if type(value := getattr(self, name)) is not int or not least <= value <= most:
                raise ValueError(f"{name} {value!r:.99}, not a whole number of {least} to {most}")
        known = {
            "precision": PRECISIONS, "layout": {name for names in LAYOUTS.values() for name in names},
            "colour_order": ("RGB",), "bit_rule": (BIT_RULE,), "bit_order": (BIT_ORDER,), "rule": (RULE,),
        }  # fmt: skip
        for name, names in known.items():
            if (value := getattr(self, name)) not in names or type(value) is bool:
                raise ValueError(f"{name} {value!r:.99}, not one of {', '.join(map(str, names))}")
        if self.bits % 8:
            raise ValueError(f"{self.bits} bits, which do not fill whole bytes")
        if self.float_layers and self.precision in FLOAT:
            raise ValueError(f"layers kept in float in a file of {self.precision}")
        return self


@dataclass(frozen=True)
class ExportedModel:
    """A model file (Core ML, Core AI: a folder), complete on disk.

    format: one of `FORMATS`; sha256, bytes: of the file, or over the folder (`gallery.files`)
    stored_as: of what precision its weights are; empty: that of the metadata
    """

    path: Path
    format: str
    metadata: ModelMetadata
    sha256: str
    bytes: int
    stored_as: str = ""

    @property
    def precision(self) -> str:
        """The precision that it is judged by: a file that is quantized in name alone is a float file."""
        return self.stored_as or self.metadata.precision

    @property
    def variant(self) -> str:
        """Format and precision: "onnx-fp32", "litert-w8a32"."""
        return f"{self.format}-{self.metadata.precision}"

    @classmethod
    def of(cls, path: Path, format: str, metadata: ModelMetadata) -> Self:
        """Describe the finished file at `path`."""
        return cls(path, format, metadata, sha256_of(path), size_of(path))


@dataclass(frozen=True)
class ExportFailure:
    """A variant that could not be exported, and why: a row in the report, not a crash."""

    variant: str
    reason: str


ExportResult = ExportedModel | ExportFailure


@dataclass(frozen=True)
class Manifest:
    """Contents of a bundle.

    files:   the models, their paths inside the folder that was opened
    failures: the variants that could not be exported, and why
    """

    space: CodeSpace
    files: tuple[ExportedModel, ...]
    failures: tuple[ExportFailure, ...]


def suffix_of(name: str) -> str:
    """Return the end of a model file's name that tells its format, one of `FORMATS`; empty for another file."""
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), "")


def check_layers(float_layers: Collection[str], known: Collection[str]) -> None:
    """Raise `InputError` unless every layer to keep in float is one of the network's."""
    if wrong := sorted(set(float_layers) - set(known)):
        fix = f"Take them from the network's named_modules(), e.g. {next(iter(known), 'none')}."
        expected = "names of the network's convolutions and linear layers to keep in float"
        raise InputError(expected, ", ".join(wrong), fix)


def first_line(error: Exception) -> str:
    """Return the error's class and the first line of its message that is not empty, fit for a terminal."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return plain(f"{type(error).__name__}: {lines[0] if lines else 'no detail'}")


def _check_version(said: object, where: str) -> None:
    """Raise `InputError` for metadata of another version: it was not damaged, it was written by another Twinhash."""
    if type(said) is int and said > 0 and said != VERSION:
        fix = "Export the file again, with this version of Twinhash: export/run.py RUN."
        if said > VERSION:
            fix = "Update Twinhash, or export the file again with this version: export/run.py RUN."
        raise InputError(f"metadata of version {VERSION} in {where}", f"version {said!r:.9}", fix)


def _texts(values: object) -> Sequence[str]:
    """Return a list of printable texts as it is; raises `ValueError` for anything else."""
    if not isinstance(values, list):
        raise ValueError(f"{values!r:.99}, not a list of texts")
    for value in values:
        if not isinstance(value, str) or not value.isprintable() or len(value) > MAX_TEXT:
            raise ValueError(f"{value!r:.99}, not a printable text of at most {MAX_TEXT} characters")
    return values
