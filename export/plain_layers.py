"""Convolutions and linear layers that compute their weights at each call, replaced by plain ones with these weights.

timm's `StdConv2d` and `ScaledStdConv2d` standardize what they store, `torch.nn.utils` has weight and spectral norm:
whoever reads the stored weights of such a layer (to fold a batch norm, to quantize) takes it for another network.
"""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gallery.console import log

TOLERANCE = 1e-5  # of the largest output; the same weights give the same numbers
_OFFSETS = range(4)  # added to the side of an example: padding may depend on what the stride leaves over
_NAMES: dict[Any, tuple[str, ...]] = {
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.linear: ("input", "weight", "bias"),
}


def same_padded() -> tuple[type[nn.Conv2d], ...]:
    """timm's plain convolution that pads by the size of its input, where timm is loaded."""
    if "timm" not in sys.modules:
        return ()
    from timm.layers.conv2d_same import Conv2dSame

    return (Conv2dSame,)


def is_plain(layer: nn.Module) -> bool:
    """Whether a convolution or linear layer does what its class says, with the weights that it stores."""
    kind: Any = type(layer)
    known: tuple[Any, ...] = nn.Conv2d, nn.Linear, *same_padded()
    hooks = layer._forward_pre_hooks or layer._forward_hooks or "forward" in vars(layer)
    inner = getattr(kind, "_conv_forward", None) in (None, nn.Conv2d._conv_forward)
    known_forward = any(kind.forward is one.forward for one in known)
    return known_forward and inner and not hooks and {"weight", "bias"} <= layer._parameters.keys()


@torch.no_grad()
def materialize_weights(net: nn.Module) -> list[str]:
    """Replace, in place, each layer that is not plain by one that is and gives the same numbers in eval mode.

    Returns the names of those for which there is none: their weights depend on the input, or more is computed.
    """
    made: dict[int, nn.Module | None] = {}
    left = []
    for name, layer in list(net.named_modules(remove_duplicate=False)):
        if not name or not isinstance(layer, (nn.Conv2d, nn.Linear)) or is_plain(layer):
            continue
        if id(layer) not in made:
            made[id(layer)] = _plain_copy(layer)
        if (plain := made[id(layer)]) is None:
            left.append(name)
        else:
            net.set_submodule(name, plain)
    return left


def _plain_copy(layer: nn.Conv2d | nn.Linear) -> nn.Module | None:
    examples = _examples(layer)
    try:
        expected = [layer(x) for x in examples]
        with _Calls() as calls:
            layer(examples[0])
        for plain in _candidates(layer, **calls.seen[0]) if len(calls.seen) == 1 else ():
            if all(_close(plain(x), y) for x, y in zip(examples, expected, strict=True)):
                return plain
    except Exception as error:  # noqa: BLE001  (the layer's own code, which may raise anything)
        log.debug("weights of %s stay where they are: %s", type(layer).__name__, error)
    return None


def _examples(layer: nn.Conv2d | nn.Linear) -> list[Tensor]:
    """Random inputs, images of several sizes that are wider than high."""
    random = torch.Generator().manual_seed(0)
    if isinstance(layer, nn.Linear):
        return [torch.randn(count, layer.in_features, generator=random) for count in (1, 5)]
    sides = zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)
    rows, columns = ((size - 1) * dilation + 1 + 2 * stride for size, dilation, stride in sides)
    shapes = [(2, layer.in_channels, rows + offset, columns + 2 * offset + 1) for offset in _OFFSETS]
    return [torch.randn(shape, generator=random) for shape in shapes]


def _candidates(layer: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None, **how: Any) -> Iterator[Any]:
    """Plain layers with the weights of the one call that was seen: padded as there, as `layer` says, by size."""
    if isinstance(layer, nn.Linear):
        if weight.shape == layer.weight.shape:
            outputs, features = weight.shape
            yield _with(nn.Linear(features, outputs, bias is not None, device="meta"), weight, bias)
        return
    how = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | how
    outputs, channels, *size = weight.shape
    padding = layer.padding, layer.padding_mode
    others: list[tuple[type[nn.Conv2d], dict[str, Any]]] = [(nn.Conv2d, {})]
    others.append((nn.Conv2d, {"padding": padding[0], "padding_mode": padding[1]}))
    others += [(kind, {"padding": 0}) for kind in same_padded()]
    for kind, other in others:
        plain = kind(
            channels * how["groups"], outputs, (size[0], size[1]), bias=bias is not None, device="meta", **how | other
        )
        yield _with(plain, weight, bias)


def _with(plain: Any, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Give an empty layer its parameters: nothing is drawn for it at random."""
    plain.weight = nn.Parameter(weight.detach().clone().contiguous(), requires_grad=False)
    plain.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
    layer: nn.Module = plain.eval()
    return layer


def _close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


class _Calls(TorchFunctionMode):
    """Record the arguments of convolutions and products with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _NAMES:
            self.seen.append(dict(zip(_NAMES[func], args, strict=False)) | (kwargs or {}))
        return func(*args, **(kwargs or {}))
