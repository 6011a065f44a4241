"""What `results.json` says of training and quantization: curves, hash centers, layers."""

from typing import Literal, Self

from pydantic import model_validator

from gallery.record import Record


class TrainingCurve(Record):
    """Training of one stage.  loss and accuracy (0..1, maybe empty) belong to `steps`; validation: (step, accuracy)."""

    stage: str
    steps: tuple[int, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...] = ()
    validation: tuple[tuple[int, float], ...] = ()

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if len(self.loss) != len(self.steps) or len(self.accuracy) not in (0, len(self.steps)):
            raise ValueError(f"{len(self.steps)} steps, {len(self.loss)} losses, {len(self.accuracy)} accuracies")
        return self


class HashCenterSummary(Record):
    """Hamming distances between the hash centers of some classes, and the similarity of the classes.

    similarity: cosines, of what `similarity_of` says; correlation: of the centers' with it, None where it is constant
    """

    classes: tuple[str, ...]
    distance: tuple[tuple[int, ...], ...]
    similarity: tuple[tuple[float, ...], ...]
    similarity_of: str
    construction: str
    assignment: str
    correlation: float | None


class LayerSensitivity(Record):
    """What one 8-bit layer alone does: share of bits that flip, mean |change of a logit|; `kept` in float for that.

    mode: "weights", or "int8" for its activations too
    """

    layer: str
    mode: Literal["weights", "int8"]
    flips: float
    error: float
    kept: bool = False


class Quantization(Record):
    """How 8-bit layers were chosen.  flips: final share, by mode; layers: weights, then activations, worst first."""

    calibration: str
    flips: dict[str, float]
    layers: tuple[LayerSensitivity, ...]
