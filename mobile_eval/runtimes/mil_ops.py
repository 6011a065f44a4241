"""The ML Program operations that mobile backbones turn into, under the parameter names of Apple's MIL reference.

Sums (convolutions, products, means) and transcendental functions run in float64, where neither the order of terms nor
vector instructions show after rounding; the caller rounds each result to the type the program declares.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Number = Tensor | float


def conv(
    x: Tensor, weight: Tensor, strides: list[int], pad_type: str, pad: list[int], dilations: list[int],
    groups: int, bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(weight.shape[2:], dilations, strict=True)]
    padded = _padded(x.double(), reach, strides, pad_type, pad, 0.0)
    return F.conv2d(padded, weight.double(), _double(bias), strides, 0, dilations, groups)


def batch_norm(
    x: Tensor, mean: Tensor, variance: Tensor, epsilon: float, gamma: Tensor | None = None, beta: Tensor | None = None
) -> Tensor:
    scale, shift = _double(gamma), _double(beta)
    return F.batch_norm(x.double(), mean.double(), variance.double(), scale, shift, False, 0.0, epsilon)


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


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x.double() * torch.sigmoid(1.702 * x.double())
    return F.gelu(x.double(), approximate="none" if mode == "EXACT" else "tanh")


def layer_norm(
    x: Tensor,
    axes: list[int] | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Along any axes; gamma and beta have the sizes of these."""
    along = [axis % x.ndim for axis in (range(x.ndim) if axes is None else axes)]
    shape = [size if axis in along else 1 for axis, size in enumerate(x.shape)]
    centred = x.double() - x.double().mean(along, keepdim=True)
    y = centred / torch.sqrt(centred.square().mean(along, keepdim=True) + epsilon)
    y = y if gamma is None else y * gamma.double().view(shape)
    return y if beta is None else y + beta.double().view(shape)


def matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    return (x.mT if transpose_x else x).double() @ (y.mT if transpose_y else y).double()


def concat(values: Sequence[Tensor], axis: int, interleave: bool = False) -> Tensor:
    """A constant of one row is there for each image, unless along the batch; interleaved: a1 b1 a2 b2 ..."""
    images = max(len(value) for value in values)
    if axis % values[0].ndim:
        values = [value.expand(images, *value.shape[1:]) if len(value) == 1 else value for value in values]
    if interleave:
        return torch.stack(list(values), axis % values[0].ndim + 1).flatten(
            axis % values[0].ndim, axis % values[0].ndim + 1
        )
    return torch.cat(list(values), axis)


def slice_by_index(
    x: Tensor, begin: list[int], end: list[int], stride: list[int] | None = None, begin_mask: list[bool] | None = None,
    end_mask: list[bool] | None = None, squeeze_mask: list[bool] | None = None,
) -> Tensor:  # fmt: skip
    """As NumPy slices: masked ends are left out, a squeezed axis is the one slice at `begin`."""
    none = [False] * x.ndim
    for axis in reversed(range(x.ndim)):
        first = None if (begin_mask or none)[axis] else begin[axis]
        if (squeeze_mask or none)[axis]:
            x = x.select(axis, first or 0)
            continue
        last = None if (end_mask or none)[axis] else end[axis]
        chosen = range(x.shape[axis])[first : last : (stride or [1] * x.ndim)[axis]]
        x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64))
    return x


def split(
    x: Tensor, axis: int, num_splits: int | None = None, split_sizes: list[int] | None = None
) -> tuple[Tensor, ...]:
    parts = x.split(split_sizes or x.shape[axis] // (num_splits or 1), axis)
    return parts


def upsample_nearest_neighbor(x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1) -> Tensor:
    return F.interpolate(x, _upsampled(x, scale_factor_height, scale_factor_width), mode="nearest")


def upsample_bilinear(
    x: Tensor, scale_factor_height: float = 1, scale_factor_width: float = 1, align_corners: bool = True,
) -> Tensor:  # fmt: skip
    size = _upsampled(x, scale_factor_height, scale_factor_width)
    return F.interpolate(x.double(), size, mode="bilinear", align_corners=align_corners)


def _upsampled(x: Tensor, height: float, width: float) -> list[int]:
    return [round(x.shape[2] * height), round(x.shape[3] * width)]


def reshape(x: Tensor, shape: list[int]) -> Tensor:
    """A leading 1 is the batch, which the program fixed and the evaluator frees: as many as there are numbers for."""
    return x.reshape([-1 if shape[0] == 1 else shape[0], *shape[1:]])


def expand_dims(x: Tensor, axes: list[int]) -> Tensor:
    for axis in sorted(axes):
        x = x.unsqueeze(axis)
    return x


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


def _double(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.double()


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


FUNCTIONS: tuple[Callable[..., Any], ...] = (
    conv, batch_norm, layer_norm, matmul, max_pool, avg_pool, gelu, concat, slice_by_index, split, reshape, expand_dims,
    pad, upsample_nearest_neighbor, upsample_bilinear, quantize, dequantize,
)  # fmt: skip
OPS: dict[str, Callable[..., Any]] = {function.__name__: function for function in FUNCTIONS} | {
    "cast": lambda x, dtype: x,  # the declared output type does the work
    "linear": lambda x, weight, bias=None: F.linear(x.double(), weight.double(), _double(bias)),
    "reduce_mean": lambda x, axes=None, keep_dims=False: x.double().mean(axes, keepdim=keep_dims),
    "reduce_sum": lambda x, axes=None, keep_dims=False: x.double().sum(axes, keepdim=keep_dims),
    "softmax": lambda x, axis=-1: torch.softmax(x.double(), axis),
    "tile": lambda x, reps: x.repeat(*reps),
    "stack": lambda values, axis: torch.stack(list(values), axis),
    "reduce_l2_norm": lambda x, axes=None, keep_dims=False: torch.linalg.vector_norm(
        x.double(), dim=axes, keepdim=keep_dims
    ),
    "sqrt": lambda x: torch.sqrt(x.double()), "square": lambda x: x.double().square(),
    "clip": lambda x, alpha, beta: x.clamp(alpha, beta),
    "thresholded_relu": lambda x, alpha: torch.where(x >= alpha, x, 0.0),
    "sigmoid_hard": lambda x, alpha, beta: (x.double() * alpha + beta).clamp(0, 1),
    "squeeze": lambda x, axes: x.squeeze(tuple(axes)),
    "transpose": lambda x, perm: x.permute(*perm),
    "greater": lambda x, y: torch.as_tensor(x > y),
    "relu": lambda x: F.relu(x), "relu6": lambda x: F.relu6(x), "silu": lambda x: F.silu(x.double()),
    "sigmoid": lambda x: torch.sigmoid(x.double()), "tanh": lambda x: torch.tanh(x.double()),
    "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y, "real_div": lambda x, y: x / y,
    "maximum": lambda x, y: torch.maximum(torch.as_tensor(x), torch.as_tensor(y)),
    "minimum": lambda x, y: torch.minimum(torch.as_tensor(x), torch.as_tensor(y)),
}  # fmt: skip
