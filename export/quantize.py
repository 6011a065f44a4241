"""Which layers become 8-bit: each is measured alone, and the worst are left as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.artifact import FLOAT, SMALL_WEIGHTS
from export.fake_quant import ANYTHING, FakeQuantConv2d, Mode, layers, set_mode, simulated, unwrapped, watched
from export.gptq import round_weights
from export.query_model import deployable
from gallery.codespace import Preprocessing
from gallery.console import log
from gallery.errors import InputError

Pixels = NDArray[np.uint8]
BATCH = 32
MOST: dict[Mode, float] = {"weights": 0.3, "int8": 0.5}  # share of the layers that are taken back, at most


class QuantizationError(NamedTuple):
    """What rounding does to logits.

    flips: share of the bits that turn; noise: mean squared change over the variance of the logits
    A network that is sure of itself turns few bits, but those of the queries that are at the edge between two classes:
    UC Merced lost 0.0045 of its mAP to 0.46 % and 0.0042, imagenet20 no more to 1.3 % and 0.0044.
    """

    flips: float
    noise: float

    @staticmethod
    def of(found: Tensor, expected: Tensor) -> QuantizationError:
        """That of logits `[n, bits]` against those expected."""
        return QuantizationError(flipped(found, expected), float((found - expected).square().mean() / expected.var()))

    def within(self, most: QuantizationError) -> bool:
        """Whether it is no more than that, in both."""
        return self.flips <= most.flips and self.noise <= most.noise


# What may remain, on pictures held out; for more of it, layers are taken back.
ENOUGH: dict[Mode, QuantizationError] = {
    "weights": QuantizationError(0.003, 0.0002),
    "int8": QuantizationError(0.01, 0.002),
}


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer alone on its grid.

    mode: "weights", or "int8" for its activations too; flips: share of bits that turn; error: mean |change of a logit|;
    kept: whether the layer was taken back for it
    """

    layer: str
    mode: Mode
    flips: float
    error: float
    kept: bool = False


@dataclass(frozen=True, eq=False)
class QuantizationResult:
    """A network with simulated 8-bit layers, each in the mode it is to be shipped in, and how that came about.

    stored: the network without simulation, its larger weights on their grids but for those of `float_layers`
    sensitivities: worst first, of the weights and then of the activations
    flips: share of the bits that turn on the pictures held out, with the weights alone and with all
    """

    net: nn.Module
    stored: nn.Module
    sensitivities: tuple[LayerSensitivity, ...]
    flips: dict[Mode, float]
    calibration: str

    @property
    def float_layers(self) -> tuple[str, ...]:
        """Layers whose weights stay float: in every file with 8-bit weights."""
        return tuple(one.layer for one in self.sensitivities if one.mode == "weights" and one.kept)

    def record(self) -> dict[str, Any]:
        """All but the network, for a file of results."""
        rows = [dataclasses.asdict(one) for one in self.sensitivities]
        return {"calibration": self.calibration, "flips": self.flips, "layers": rows}


def quantize(
    net: nn.Module, preprocessing: Preprocessing, seen: Pixels, held: Pixels, activations: bool = True
) -> QuantizationResult:
    """Simulates `net` (folded; normalised float32 to logits) in 8-bit, without any training.

    seen: pictures `[n, S, S, 3]` that the ranges are taken from; held: those that the layers are chosen on, best such
    as the network has not learned by heart, where nearly every logit is far from zero and nothing turns.
    activations: choose those too.  Layers whose output is one pixel (squeeze-excite gates, what is behind the pooling)
    keep float activations: they cost next to nothing.  Weights of fewer than `SMALL_WEIGHTS` numbers are float unless
    their activations are 8-bit.
    Raises `InputError` without pictures.
    """
    if not len(seen) or not len(held):
        raise InputError("pictures to take the ranges from", "none", "Give some of those the app will ask about.")
    made, familiar, pictures = simulated(net), normalised(seen, preprocessing), normalised(held, preprocessing)
    spatial = _calibrate(made, familiar)
    expected = logits(made, pictures)
    large = [name for name, layer in layers(made).items() if layer.conv.weight.numel() >= SMALL_WEIGHTS]
    _round(made, familiar, large)
    found, flips = _chosen(made, pictures, expected, large, "weights")
    stored, calibration = unwrapped(made), f"ranges of {len(seen)} pictures, layers chosen on {len(held)}"
    if not activations:
        return QuantizationResult(made, stored, tuple(found), {"weights": flips}, calibration)
    _round(made, familiar, [name for name in spatial if name not in large])
    left = {one.layer for one in found if one.kept}
    others, turned = _chosen(made, pictures, expected, [name for name in spatial if name not in left], "int8")
    return QuantizationResult(made, stored, (*found, *others), {"weights": flips, "int8": turned}, calibration)


def simulate(
    net: nn.Module, preprocessing: Preprocessing, seen: Pixels, held: Pixels, forms: Sequence[str]
) -> tuple[QuantizationResult | None, dict[str, nn.Module]]:
    """What `export_all` needs for 8-bit `forms` of the trained `net`: the choice of layers, a network per precision."""
    precisions = {form.partition("-")[2] for form in forms}
    if precisions <= set(FLOAT):
        return None, {}
    ranged = bool(precisions & {"w8a8", "w8a16"})
    quantized = quantize(deployable(net, preprocessing.size), preprocessing, seen, held, ranged)
    simulated = {"w8a32": quantized.stored}
    if ranged:
        simulated["w8a8"] = quantized.net
    return quantized, simulated


def _round(net: nn.Module, pictures: Sequence[Tensor], names: Sequence[str]) -> None:
    """Chooses the 8-bit weights of layers together, and leaves each in the mode that it is in."""
    before = {name: layer.mode for name, layer in layers(net).items()}
    round_weights(net, pictures, names)
    for name, layer in layers(net).items():
        layer.mode = before[name]


def _chosen(
    net: nn.Module, pictures: Sequence[Tensor], expected: Tensor, names: Sequence[str], mode: Mode
) -> tuple[list[LayerSensitivity], float]:
    """Puts as many of the layers in `mode` as they bear: what each does alone, and the share of bits that turn."""
    ranked = _ranked(net, pictures, expected, names, mode)
    count, flips = _settle(net, pictures, expected, [one.layer for one in ranked], mode)
    log.info("  %s: %d of %d layers taken back, %.2f%% of bits turn", mode, count, len(ranked), 100 * flips)
    return [dataclasses.replace(one, kept=place < count) for place, one in enumerate(ranked)], flips


def normalised(pixels: Pixels, preprocessing: Preprocessing) -> list[Tensor]:
    """Batches of normalised pictures `[B, 3, S, S]`."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    batches = [torch.from_numpy(np.ascontiguousarray(pixels[i : i + BATCH])) for i in range(0, len(pixels), BATCH)]
    return [(batch.permute(0, 3, 1, 2) / 255 - mean) / std for batch in batches]


@torch.no_grad()
def logits(net: nn.Module, pictures: Sequence[Tensor]) -> Tensor:
    """Logits `[n, bits]`, in eval mode."""
    net.eval()
    return torch.cat([net(batch) for batch in pictures])


def flipped(found: Tensor, expected: Tensor) -> float:
    """Share of bits that differ."""
    return float(((found > 0) != (expected > 0)).double().mean())


def _calibrate(net: nn.Module, pictures: Sequence[Tensor]) -> list[str]:
    """Sets all ranges, and returns the layers whose output has more than one pixel."""
    own = layers(net)
    set_mode(net, "observe")
    with watched(net) as curved:
        logits(net, pictures)
    for name, layer in own.items():
        layer.input.settle(ANYTHING)
        layer.output.settle(curved.get(name, ANYTHING))
    set_mode(net, "float")
    return [name for name, layer in own.items() if layer.pixels > 1]


def _ranked(
    net: nn.Module, pictures: Sequence[Tensor], expected: Tensor, names: Sequence[str], mode: Mode
) -> list[LayerSensitivity]:
    """What each layer alone does to the logits, worst first; by the error, which is finer than a count of bits."""
    own, found = layers(net), []
    before = {name: layer.mode for name, layer in own.items()}
    set_mode(net, "float")
    for name in names:
        own[name].mode = mode
        changed = logits(net, pictures)
        found.append(LayerSensitivity(name, mode, flipped(changed, expected), float((changed - expected).abs().mean())))
        own[name].mode = "float"
    for name, layer in own.items():
        layer.mode = before[name]
    return sorted(found, key=lambda one: -one.error)


def _settle(
    net: nn.Module, pictures: Sequence[Tensor], expected: Tensor, ranked: Sequence[str], mode: Mode
) -> tuple[int, float]:
    """Puts all layers in `mode` and takes back the worst until few enough bits turn: how many, and what is left."""
    own: dict[str, FakeQuantConv2d] = layers(net)
    before = {name: own[name].mode for name in ranked}
    for name in ranked:
        own[name].mode = mode
    harm, count = QuantizationError.of(logits(net, pictures), expected), 0
    while not harm.within(ENOUGH[mode]) and count < int(MOST[mode] * len(ranked)):
        own[ranked[count]].mode = before[ranked[count]]
        harm, count = QuantizationError.of(logits(net, pictures), expected), count + 1
    return count, harm.flips
