"""The ML Program operations that mobile backbones turn into, under the parameter names of Apple's MIL reference.

Sums (convolutions, products, means) and transcendental functions run in float64, where neither the order of terms nor
vector instructions show after rounding; the caller rounds each result to the type the program declares.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Number = Tensor | float


def cast(x: Tensor, dtype: str) -> Tensor:
    return x  # the declared output type does the work


def conv(
    x: Tensor, weight: Tensor, strides: list[int], pad_type: str, pad: list[int], dilations: list[int],
    groups: int, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(weight.shape[2:], dilations, strict=True)]
    padded = _padded(x.double(), reach, strides, pad_type, pad, 0.0)
    return F.conv2d(padded, weight.double(), None if bias is None else bias.double(), strides, 0, dilations, groups)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double())


def batch_norm(
    x: Tensor, mean: Tensor, variance: Tensor, epsilon: float, gamma: Tensor | None = None, beta: Tensor | None = None
) -> Tensor:
    doubles = [None if part is None else part.double() for part in (gamma, beta)]
    return F.batch_norm(x.double(), mean.double(), variance.double(), doubles[0], doubles[1], False, 0.0, epsilon)


def max_pool(
    x: Tensor, kernel_sizes: list[int], strides: list[int], pad_type: str, pad: list[int], ceil_mode: bool
) -> Tensor:
    padded = _padded(x, kernel_sizes, strides, pad_type, pad, -torch.inf)
    return F.max_pool2d(padded, kernel_sizes, strides, 0, 1, ceil_mode)


def avg_pool(
    x: Tensor, kernel_sizes: list[int], strides: list[int], pad_type: str, pad: list[int],
    exclude_padding_from_average: bool, ceil_mode: bool,
) -> Tensor:  # fmt: skip
    def pooled(values: Tensor) -> Tensor:
        padded = _padded(values.double(), kernel_sizes, strides, pad_type, pad, 0.0)
        return F.avg_pool2d(padded, kernel_sizes, strides, 0, ceil_mode)

    return pooled(x) / pooled(torch.ones_like(x)) if exclude_padding_from_average else pooled(x)


def reduce_mean(x: Tensor, axes: list[int], keep_dims: bool) -> Tensor:
    return x.double().mean(axes, keepdim=keep_dims)


def reduce_sum(x: Tensor, axes: list[int], keep_dims: bool) -> Tensor:
    return x.double().sum(axes, keepdim=keep_dims)


def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x.clamp(alpha, beta)


def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x >= alpha, x, 0.0)


def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    return (x.double() * alpha + beta).clamp(0, 1)


def gelu(x: Tensor, mode: str) -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x.double() * torch.sigmoid(1.702 * x.double())
    return F.gelu(x.double(), approximate="none" if mode == "EXACT" else "tanh")


def reshape(x: Tensor, shape: list[int]) -> Tensor:
    """A leading 1 is the batch, which the program fixed and the evaluator frees."""
    return x.reshape([len(x) if shape[0] == 1 else shape[0], *shape[1:]])


def expand_dims(x: Tensor, axes: list[int]) -> Tensor:
    for axis in sorted(axes):
        x = x.unsqueeze(axis)
    return x


def squeeze(x: Tensor, axes: list[int]) -> Tensor:
    return x.squeeze(tuple(axes))


def transpose(x: Tensor, perm: list[int]) -> Tensor:
    return x.permute(*perm)


def pad(x: Tensor, pad: list[int], mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """`pad` lists (before, after) from the first padded axis to the last; torch wants the last axis first."""
    backwards = [size for pair in reversed(list(zip(pad[::2], pad[1::2], strict=True))) for size in pair]
    return F.pad(x, backwards, mode, constant_val)


def quantize(input: Tensor, scale: Number, zero_point: Number = 0, axis: int = 0, output_dtype: str = "") -> Tensor:
    """round(x / scale) + zero_point, ties to even; the caller cuts it to the declared type's range."""
    return torch.round(input.double() / _along(scale, axis, input)) + _along(zero_point, axis, input)


def dequantize(input: Tensor, scale: Number, zero_point: Number = 0, axis: int = 0) -> Tensor:
    return (input.double() - _along(zero_point, axis, input)) * _along(scale, axis, input)


def _along(numbers: Number, axis: int, x: Tensor) -> Tensor:
    """One number for all of `x`, or one for each of its slices along `axis`."""
    found = torch.as_tensor(numbers, dtype=torch.float64)
    return found.view([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]) if found.ndim else found


def greater(x: Number, y: Number) -> Tensor:
    return torch.as_tensor(x > y)


def _padded(x: Tensor, reach: list[int], strides: list[int], pad_type: str, pad: list[int], value: float) -> Tensor:
    """Pads the two image axes by MIL's rule; "same" puts the odd pixel behind, "same_lower" in front."""
    if pad_type == "custom":
        (top, bottom), (left, right) = pad[:2], pad[2:]
        return F.pad(x, [left, right, top, bottom], value=value)
    if pad_type == "valid":
        return x
    sides = []
    for size, window, stride in reversed(list(zip(x.shape[2:], reach, strides, strict=True))):
        total = max((-(-size // stride) - 1) * stride + window - size, 0)
        before = total // 2 if pad_type == "same" else total - total // 2
        sides += [before, total - before]
    return F.pad(x, sides, value=value)


OPS: dict[str, Callable[..., Tensor]] = {
    op.__name__: op
    for op in (
        cast, conv, linear, batch_norm, max_pool, avg_pool, reduce_mean, reduce_sum, clip, thresholded_relu,
        sigmoid_hard, gelu, reshape, expand_dims, squeeze, transpose, pad, greater, quantize, dequantize,
    )
} | {
    "relu": lambda x: F.relu(x),
    "relu6": lambda x: F.relu6(x),
    "sigmoid": lambda x: torch.sigmoid(x.double()),
    "silu": lambda x: F.silu(x.double()),
    "tanh": lambda x: torch.tanh(x.double()),
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "real_div": lambda x, y: x / y,
    "maximum": lambda x, y: torch.maximum(torch.as_tensor(x), torch.as_tensor(y)),
    "minimum": lambda x, y: torch.minimum(torch.as_tensor(x), torch.as_tensor(y)),
}  # fmt: skip
