"""Fold batch norm into the layer before it: with s = g / sqrt(v + eps), `w' = w s` and `b' = (b - m) s + beta`."""

import sys
from collections import Counter
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from export.plain_layers import is_plain
from gallery.console import log


def fold_batch_norm(net: nn.Module) -> int:
    """Fold, in place, each batch norm that reads one convolution or linear layer which nothing else reads.

    The module tree keeps its names: the layer takes the folded weights, the norm becomes its activation
    (timm's BatchNormAct2d) or nothing.  A network that `torch.fx` cannot trace stays as it is, which costs no
    accuracy: the converters fold most of it again.  Returns the number of norms folded.
    """
    pairs = _pairs(net)
    for layer, norm in pairs:
        before, bn = net.get_submodule(layer), net.get_submodule(norm)
        fuse: Any = fuse_linear_bn_eval if isinstance(before, nn.Linear) else fuse_conv_bn_eval
        net.set_submodule(layer, fuse(before, bn))
        net.set_submodule(norm, _activation_of(bn))
    return len(pairs)


def _pairs(net: nn.Module) -> list[tuple[str, str]]:
    """Names of (layer, batch norm) that can become one."""
    try:
        graph = _Tracer().trace(net)
    except Exception as error:  # noqa: BLE001  (tracing runs the network's own code, which may raise anything)
        log.info("batch norm stays as it is, torch.fx cannot trace %s: %s", type(net).__name__, error)
        return []
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    found = []
    for node in graph.nodes:
        if not _calls(net, node, _BatchNorm) or calls[node.target] > 1 or not _is_known(net.get_submodule(node.target)):
            continue
        source = node.args[0]
        if not _calls(net, source, (nn.Conv2d, nn.Linear)) or calls[source.target] > 1 or len(source.users) > 1:
            continue
        if is_plain(net.get_submodule(source.target)):
            found.append((source.target, node.target))
    return found


def _calls(net: nn.Module, node: Any, kind: Any) -> bool:
    is_call = isinstance(node, fx.Node) and node.op == "call_module"
    return is_call and isinstance(net.get_submodule(node.target), kind)


def _is_known(norm: Any) -> bool:
    """Whether a batch norm is a constant (it has running statistics) and what follows it is in `_activation_of`."""
    kinds: list[Any] = [_BatchNorm, nn.SyncBatchNorm]
    if "timm" in sys.modules:
        from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct

        kinds += [BatchNormAct2d, SyncBatchNormAct]
    hooks = norm._forward_pre_hooks or norm._forward_hooks or "forward" in vars(norm)
    stored = {"weight", "bias"} <= norm._parameters.keys() and norm.running_var is not None
    return stored and not hooks and any(type(norm).forward is kind.forward for kind in kinds)


def _activation_of(norm: nn.Module) -> nn.Module:
    parts = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    parts = [part for part in parts if not isinstance(part, nn.Identity)]
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts) if parts else nn.Identity()


class _Tracer(fx.Tracer):
    """Keeps layers and norms whole, timm's subclasses too: norms with an activation, convolutions that pad."""

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.Conv2d, nn.Linear, _BatchNorm)) or super().is_leaf_module(m, module_qualified_name)
