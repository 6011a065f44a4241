"""Fake-quantized convolutions: what a phone's integer units compute, in torch; and the same as Q/DQ for converters."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from export.artifact import SMALL_WEIGHTS
from export.plain_layers import is_plain, same_padded

Mode = Literal["float", "observe", "weights", "int8"]
LEVELS, LARGEST = 255, 127  # steps of an activation's range; the largest weight: symmetric, so that zero is exact
CLIPPED = 1e-4  # share of an activation's values beyond either end of its range; none: a third more bits flip
SAMPLED = 20_000  # values of one activation kept of each batch, for its range
SMALLEST_SCALE = 1e-4  # a range of nothing: a channel that is always zero
SUM_BITS = 30  # of int32, for the bias on the grid of the sums
# Where an activation is flat, nothing is lost by cutting what comes into it.
ANYTHING = (-np.inf, np.inf)
FLAT = {"relu": (0.0, np.inf), "relu6": (0.0, 6.0), "hardswish": (-3.0, np.inf), "hardsigmoid": (-3.0, 3.0)}


@dataclass
class ActivationRange:
    """The range of one activation; zero is exact on its grid.  seen: samples of its values"""

    low: float = 0.0
    high: float = 0.0
    seen: list[Tensor] = field(default_factory=list)

    def observe(self, values: Tensor) -> None:
        """Keep evenly spaced samples of the values."""
        flat = values.detach().flatten()
        self.seen.append(flat[:: max(1, len(flat) // SAMPLED)].clone())

    def freeze(self, flat: tuple[float, float]) -> None:
        """Set the range from the observed quantiles, clipped to where the next activation is not `flat`."""
        low, high = np.quantile(torch.cat(self.seen).numpy(), (CLIPPED, 1 - CLIPPED))
        self.low, self.high = max(min(float(low), 0.0), flat[0]), min(max(float(high), 0.0), flat[1])
        self.seen.clear()

    @property
    def scale(self) -> float:
        """Step of the grid."""
        return max((self.high - self.low) / LEVELS, SMALLEST_SCALE)

    @property
    def zero_point(self) -> int:
        """Level that represents zero, 0..255."""
        return min(max(round(-self.low / self.scale), 0), LEVELS)


def pad_same(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Pad as timm's TensorFlow-like convolutions do, by the size of the input; others pad by themselves."""
    if not isinstance(conv, same_padded()):
        return x
    from timm.layers.padding import pad_same

    padded: Tensor = pad_same(x, list(conv.kernel_size), list(conv.stride), list(conv.dilation))
    return padded


def convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `conv` with other parameters."""
    return conv._conv_forward(pad_same(conv, x), weight, bias)


class FakeQuantConv2d(nn.Module):
    """A convolution with input, weights and output on 8-bit grids: Q(conv(Q(x), Q(w)) + b).

    Activations have one grid each, weights one for each output channel; gradients pass through the rounding
    (straight-through, none where a value is cut).  `mode` says how much of that happens.
    rounded: the weights on their grid, where they were chosen together (`export.gptq`); else each is the nearest
    """

    rounded: Tensor | None

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.pixels = conv, 0
        self.mode: Mode = "float"
        self.input, self.output = ActivationRange(), ActivationRange()
        self.register_buffer("rounded", None)

    def __getattr__(self, name: str) -> Any:
        """Whatever a network reads of its convolution: EdgeNeXt asks one for the type of its weights."""
        members: dict[str, Any] = self.__dict__.get("_modules", {})
        if name in members or "conv" not in members or name in self._buffers:
            return super().__getattr__(name)
        return getattr(members["conv"], name)

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "observe":
            self.input.observe(x)
        weight = self.conv.weight if self.mode in ("float", "observe") else self.quantized_weight()
        y = convolve(self.conv, self._quantize(self.input, x), weight, self.conv.bias)
        if self.mode == "observe":
            self.output.observe(y)
            self.pixels = y.shape[2] * y.shape[3]
        return self._quantize(self.output, y)

    def scales(self) -> Tensor:
        """Return the step of each output channel's weights; no finer than the bias has room for in an int32 sum."""
        weight, bias = self.conv.weight.detach(), self.conv.bias
        steps = weight.abs().amax(dim=(1, 2, 3)) / LARGEST
        room = 0 if bias is None else bias.detach().abs() / (self.input.scale * 2**SUM_BITS)
        return torch.maximum(steps, torch.as_tensor(room, dtype=steps.dtype)).clamp(min=torch.finfo(steps.dtype).tiny)

    def quantized_weight(self) -> Tensor:
        """Return the weights on their grid."""
        if self.rounded is not None:
            return self.rounded
        steps = self.scales()
        zeros = torch.zeros_like(steps, dtype=torch.int32)
        weight: Tensor = torch.fake_quantize_per_channel_affine(self.conv.weight, steps, zeros, 0, -LARGEST, LARGEST)
        return weight

    def _quantize(self, grid: ActivationRange, x: Tensor) -> Tensor:
        if self.mode != "int8":
            return x
        return torch.fake_quantize_per_tensor_affine(x, grid.scale, grid.zero_point, 0, LEVELS)


class QDQConv2d(nn.Module):
    """`FakeQuantConv2d` as the quantize and dequantize operations that converters expect: the same numbers.

    stored: `levels` as int8 in the graph; else as floats that are rounded there, which LiteRT's converter wants
    signed: activations as int8, which LiteRT and Core ML want; ONNX Runtime is four times faster with uint8
    """

    levels: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self, layer: FakeQuantConv2d, stored: bool, signed: bool) -> None:
        super().__init__()
        import torch.ao.quantization.fx._decomposed  # declares torch.ops.quantized_decomposed

        self.bias, self.stored, self.shift = layer.conv.bias, stored, 128 if signed else 0
        self.convolve = partial(convolve, layer.conv)  # in no module: its float weights are not exported
        self.ranges = [(grid.scale, grid.zero_point - self.shift) for grid in (layer.input, layer.output)]
        weight, scales = layer.quantized_weight().detach(), layer.scales()
        whole = torch.round(weight / scales.view(-1, 1, 1, 1)).clamp(-LARGEST, LARGEST).to(torch.int8)
        self.register_buffer("levels", whole if stored else weight)
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int64))

    def __getattr__(self, name: str) -> Any:
        """Whatever a network reads of its convolution, as it was in float."""
        convolve = self.__dict__.get("convolve")
        if convolve is None or name in self._buffers or name in self._parameters:
            return super().__getattr__(name)
        return getattr(convolve.args[0], name)

    def forward(self, x: Tensor) -> Tensor:
        ops: Any = torch.ops.quantized_decomposed
        grid = self.scales, self.zeros, 0, -LARGEST, LARGEST, torch.int8
        whole = self.levels if self.stored else ops.quantize_per_channel(self.levels, *grid)
        weight = ops.dequantize_per_channel(whole, *grid)
        return self._quantize(1, self.convolve(self._quantize(0, x), weight, self.bias))

    def _quantize(self, place: int, x: Tensor) -> Tensor:
        ops: Any = torch.ops.quantized_decomposed
        kind = torch.int8 if self.shift else torch.uint8
        grid = *self.ranges[place], -self.shift, LEVELS - self.shift, kind
        y: Tensor = ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *grid), *grid)
        return y


def insert_fake_quant(net: nn.Module) -> nn.Module:
    """Copy `net` with fake-quantized convolutions, but for those of the hash head and those that are not plain."""
    copied = copy.deepcopy(net)
    for name, conv in list(copied.named_modules()):
        if isinstance(conv, nn.Conv2d) and is_plain(conv) and not name.startswith("head"):
            copied.set_submodule(name, FakeQuantConv2d(conv))
    return copied


def unsupported_layers(net: nn.Module) -> list[str]:
    """Names of the convolutions and linear layers whose numbers do not follow from their stored weights."""
    return [n for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and not is_plain(m)]


def layers(net: nn.Module) -> dict[str, FakeQuantConv2d]:
    """Return the fake-quantized convolutions of a network by name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, FakeQuantConv2d)}


def set_mode(net: nn.Module, mode: Mode) -> None:
    """Set the mode of all fake-quantized convolutions."""
    for layer in layers(net).values():
        layer.mode = mode


def convert_qdq(net: nn.Module, stored: bool, signed: bool) -> nn.Module:
    """Copy a fake-quantized network with Q/DQ convolutions for layers in mode "int8", plain ones for the others."""
    copied = copy.deepcopy(net)
    for name, layer in layers(copied).items():
        if layer.mode == "int8":
            copied.set_submodule(name, QDQConv2d(layer, stored, signed))
    return strip_fake_quant(copied)


def strip_fake_quant(net: nn.Module) -> nn.Module:
    """Copy a fake-quantized network with plain convolutions, their weights quantized unless in mode "float"."""
    copied = copy.deepcopy(net)
    for name, layer in layers(copied).items():
        if layer.mode != "float":
            layer.conv.weight = nn.Parameter(layer.quantized_weight().detach(), requires_grad=False)
        copied.set_submodule(name, layer.conv)
    return copied.eval()


def ranges_only(net: nn.Module) -> nn.Module:
    """Copy a fake-quantized network in mode "float" with its ranges; large weights are quantized."""
    copied = copy.deepcopy(net)
    for layer in layers(copied).values():
        if layer.mode != "float" and layer.conv.weight.numel() >= SMALL_WEIGHTS:
            layer.conv.weight = nn.Parameter(layer.quantized_weight().detach(), requires_grad=False)
        layer.mode = "float"
    return copied.eval()


@contextmanager
def track_activations(net: nn.Module) -> Iterator[dict[str, tuple[float, float]]]:
    """Record, per convolution, the input range in which the following activation is not saturated."""
    found: dict[str, tuple[float, float]] = {}
    last: dict[str, Any] = {}

    def remember(name: str) -> Any:
        return lambda module, args, out: last.update(name=name, out=out)

    def compare(module: nn.Module, args: Any) -> None:
        kind = type(module).__name__.lower().removesuffix("me")
        if kind in FLAT and args and args[0] is last.get("out"):
            found[last["name"]] = FLAT[kind]

    hooks = [layer.register_forward_hook(remember(name)) for name, layer in layers(net).items()]
    hooks += [m.register_forward_pre_hook(compare) for m in net.modules() if not list(m.children())]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
