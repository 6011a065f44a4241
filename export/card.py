"""The card: what a shipped file says about itself, embedded in it and repeated in the bundle's manifest."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from gallery.errors import CodeSpaceMismatch, CorruptFile

KEY = "twinhash.card"
VERSION = 1
ANY_SIZE = "NHWC uint8, resized inside"  # the file follows the rule itself, `size` is what it makes


@dataclass(frozen=True)
class ModelMetadata:
    """Everything an app must know to feed the file and to compare its codes.

    precision: what the weights and activations are, e.g. "fp32", "fp16", "w8a32"
    size:      side of the square input, pixels
    layout:    "NHWC uint8" (Core ML: "image"; with the resize inside: `ANY_SIZE`); colour_order: "RGB"
    resize:    the rule that makes the input from a decoded, upright picture
    calibration: what 8-bit activations were chosen by, in words
    float_layers: dotted names of the network's layers whose weights were left as they were, whatever the precision
    """

    code_space: str
    bits: int
    student: str
    precision: str
    size: int
    resize: str
    layout: str = "NHWC uint8"
    colour_order: str = "RGB"
    bit_rule: str = "logit > 0"
    bit_order: str = "little"
    version: int = VERSION
    float_layers: tuple[str, ...] = ()
    calibration: str = ""

    def to_json(self) -> str:
        """One line of JSON, the form that is embedded under `KEY`."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str | None, where: str) -> ModelMetadata:
        """Reads an embedded card; a file without one is refused (`CodeSpaceMismatch`), never trusted."""
        if not text:
            raise CodeSpaceMismatch(f"a Twinhash card in {where}", "none", "Export the file with Twinhash.")
        try:
            fields = json.loads(text)
            return ModelMetadata(**fields | {"float_layers": tuple(fields.get("float_layers", ()))})
        except (ValueError, TypeError, AttributeError) as error:
            raise CorruptFile(f"a readable card in {where}", str(error), "Export the file again.") from error
