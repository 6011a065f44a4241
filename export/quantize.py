"""Choose the layers that become 8-bit: each is measured alone, and the worst are kept in float."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export import fake_quant
from export.artifact import SMALL_WEIGHTS
from export.fake_quant import ANYTHING, layers, set_mode
from export.gptq import gptq_
from export.query_model import TOLERANCE
from gallery.codespace import Preprocessing
from gallery.console import log
from gallery.errors import InputError
from gallery.training_results import LayerSensitivity

Pixels = NDArray[np.uint8]
QuantMode = Literal["weights", "int8"]
BATCH = 32
MAX_EXCLUDED: dict[QuantMode, float] = {"weights": 0.3, "int8": 0.5}  # largest share of the layers kept in float


class QuantizationError(NamedTuple):
    """Effect of quantization on logits.

    flips: bit flip rate; noise: mean squared change over the variance of the logits
    A confident network flips few bits, but those of the queries at the edge between two classes: UC Merced lost 0.0045
    of its mAP to 0.46 % and 0.0042, imagenet20 no more to 1.3 % and 0.0044.
    """

    flips: float
    noise: float

    @classmethod
    def of(cls, found: Tensor, expected: Tensor) -> Self:
        """Compare logits `[n, bits]` with those of the float network."""
        noise = float((found - expected).square().mean() / expected.var())
        return cls(bit_flip_rate(found, expected), noise)

    def within(self, most: Self) -> bool:
        """Whether both figures are within `most`."""
        return self.flips <= most.flips and self.noise <= most.noise


# Allowed on held-out images; above it, layers are kept in float.
MAX_ERROR: dict[QuantMode, QuantizationError] = {
    "weights": QuantizationError(0.003, 0.0002),
    "int8": QuantizationError(0.01, 0.002),
}


@dataclass(frozen=True, eq=False)
class QuantizationResult:
    """A fake-quantized network, each layer in the mode it is exported in, and how the modes were chosen.

    stored: the network of plain convolutions, its larger weights quantized but for those of `float_layers`
    unsupported: layers whose numbers do not follow from their stored weights
    sensitivities: worst first, of the weights and then of the activations
    flips: bit flip rate on the held-out images, with the weights alone and with all
    """

    net: nn.Module
    stored: nn.Module
    sensitivities: tuple[LayerSensitivity, ...]
    flips: dict[QuantMode, float]
    calibration: str
    unsupported: tuple[str, ...] = ()

    @property
    def activations(self) -> bool:
        """Whether 8-bit activations were chosen too."""
        return "int8" in self.flips

    @property
    def float_layers(self) -> tuple[str, ...]:
        """Layers whose weights are kept in float in every quantized precision."""
        kept = tuple(one.layer for one in self.sensitivities if one.mode == "weights" and one.kept)
        return kept + self.unsupported

    def record(self) -> dict[str, Any]:
        """Return all but the networks, for a file of results."""
        rows = [one.model_dump() for one in self.sensitivities]
        return {"calibration": self.calibration, "flips": self.flips, "layers": rows}


def quantize(
    net: nn.Module, preprocessing: Preprocessing, seen: Pixels, held: Pixels, activations: bool = True
) -> QuantizationResult:
    """Fake-quantize `net` (folded; normalised float32 to logits), without any training.

    seen: images `[n, S, S, 3]` that the ranges are taken from; held: those that the layers are chosen on, best not
    memorized by the network: there nearly every logit is far from zero and no bit flips.
    activations: choose those too.  Layers whose output is one pixel (squeeze-excite gates, what is behind the pooling)
    keep float activations: they cost next to nothing.  Weights of fewer than `SMALL_WEIGHTS` numbers are float unless
    their activations are 8-bit.
    A layer of a class that is not known, and that no plain layer repeats, is kept in float, which the log and the
    result say.  Raises `InputError` without images, or when the network and its copy in float differ.
    """
    if not len(seen) or not len(held):
        raise InputError("images to take the ranges from", "none", "Give some like the app's queries.")
    before, unsupported = net, tuple(fake_quant.unsupported_layers(net))
    for name in unsupported:
        log.warning("  %s is kept in float: %s is not plain", name, type(net.get_submodule(name)).__name__)
    net = fake_quant.insert_fake_quant(net)
    images, held_out = normalize(seen, preprocessing), normalize(held, preprocessing)
    spatial = _calibrate(net, images)
    expected = logits(before, held_out)
    _check_same(logits(net, held_out), expected)
    large = [name for name, layer in layers(net).items() if layer.conv.weight.numel() >= SMALL_WEIGHTS]
    gptq_layers(net, images, large)
    flips: dict[QuantMode, float] = {}
    sensitivities, flips["weights"] = choose_layers(net, held_out, expected, large, "weights")
    stored = fake_quant.strip_fake_quant(net)
    if activations:
        gptq_layers(net, images, [name for name in spatial if name not in large])
        left = {one.layer for one in sensitivities if one.kept}
        names = [name for name in spatial if name not in left]
        of_activations, flips["int8"] = choose_layers(net, held_out, expected, names, "int8")
        sensitivities += of_activations
    calibration = f"ranges of {len(seen)} images, layers chosen on {len(held)}"
    return QuantizationResult(net, stored, tuple(sensitivities), flips, calibration, unsupported)


def _check_same(found: Tensor, expected: Tensor) -> None:
    """Raise `InputError` unless fake-quantized layers in float repeat the network."""
    difference, scale = float((found - expected).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE * scale:
        what = f"fake-quantized layers in float to repeat the network's logits within {TOLERANCE:g} of {scale:.3g}"
        raise InputError(what, f"a difference of {difference:.3g}", "Export it without 8-bit precisions.")


def gptq_layers(net: nn.Module, images: Sequence[Tensor], names: Sequence[str]) -> None:
    """Round the weights of layers by GPTQ; modes stay as they are."""
    before = {name: layer.mode for name, layer in layers(net).items()}
    gptq_(net, images, names)
    for name, layer in layers(net).items():
        layer.mode = before[name]


def choose_layers(
    net: nn.Module, images: Sequence[Tensor], expected: Tensor, names: Sequence[str], mode: QuantMode
) -> tuple[list[LayerSensitivity], float]:
    """Quantize as many layers as the error budget allows; return each one's sensitivity and the bit flip rate."""
    ranked = rank_layers(net, images, expected, names, mode)
    count, flips = exclude_worst(net, images, expected, [one.layer for one in ranked], mode)
    log.info("  %s: %d of %d layers kept in float, bit flip rate %.2f%%", mode, count, len(ranked), 100 * flips)
    return [one.model_copy(update={"kept": rank < count}) for rank, one in enumerate(ranked)], flips


def normalize(pixels: Pixels, preprocessing: Preprocessing) -> list[Tensor]:
    """Split images into normalised batches `[B, 3, S, S]`."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    batches = [torch.from_numpy(np.ascontiguousarray(pixels[i : i + BATCH])) for i in range(0, len(pixels), BATCH)]
    return [(batch.permute(0, 3, 1, 2) / 255 - mean) / std for batch in batches]


@torch.no_grad()
def logits(net: nn.Module, images: Sequence[Tensor]) -> Tensor:
    """Compute logits `[n, bits]` in eval mode."""
    net.eval()
    return torch.cat([net(batch) for batch in images])


def bit_flip_rate(found: Tensor, expected: Tensor) -> float:
    """Return the share of bits that differ."""
    return float(((found > 0) != (expected > 0)).double().mean())


def _calibrate(net: nn.Module, images: Sequence[Tensor]) -> list[str]:
    """Set all ranges; return the layers whose output has more than one pixel."""
    own = layers(net)
    set_mode(net, "observe")
    with fake_quant.track_activations(net) as curved:
        logits(net, images)
    for name, layer in own.items():
        layer.input.freeze(ANYTHING)
        layer.output.freeze(curved.get(name, ANYTHING))
    set_mode(net, "float")
    return [name for name, layer in own.items() if layer.pixels > 1]


def rank_layers(
    net: nn.Module, images: Sequence[Tensor], expected: Tensor, names: Sequence[str], mode: QuantMode
) -> list[LayerSensitivity]:
    """Measure what each layer alone does to the logits, worst first; by the error, finer than a count of bits."""
    own, found = layers(net), []
    before = {name: layer.mode for name, layer in own.items()}
    set_mode(net, "float")
    for name in names:
        own[name].mode = mode
        changed = logits(net, images)
        error = float((changed - expected).abs().mean())
        flips = bit_flip_rate(changed, expected)
        found.append(LayerSensitivity(layer=name, mode=mode, flips=flips, error=error))
        own[name].mode = "float"
    for name, layer in own.items():
        layer.mode = before[name]
    return sorted(found, key=lambda one: -one.error)


def exclude_worst(
    net: nn.Module, images: Sequence[Tensor], expected: Tensor, ranked: Sequence[str], mode: QuantMode
) -> tuple[int, float]:
    """Quantize all layers, then keep the worst in float until the error is allowed: their number, the bit flip rate."""
    own = layers(net)
    before = {name: own[name].mode for name in ranked}
    for name in ranked:
        own[name].mode = mode
    error, count = QuantizationError.of(logits(net, images), expected), 0
    while not error.within(MAX_ERROR[mode]) and count < int(MAX_EXCLUDED[mode] * len(ranked)):
        own[ranked[count]].mode = before[ranked[count]]
        error, count = QuantizationError.of(logits(net, images), expected), count + 1
    return count, error.flips
