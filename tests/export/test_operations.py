"""Operations that converters once refused, each in the smallest network that has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.artifact import ExportedModel
from export.exporter import export_all
from export.quantize import normalize
from export.query_model import QueryModel, inference_copy
from mobile_eval.runtimes import open_model
from tests.export.factories import IMAGENET, SIZE, request_of, synthetic_images


class Between(nn.Module):
    """A function between a convolution and a hash head."""

    def __init__(self, function: object) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv, self.pool = nn.Conv2d(3, 16, 3, 2, 1), nn.AdaptiveAvgPool2d(2)
            self.function, self.head = function, nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.function(self.conv(x))).flatten(1))


class Last(nn.Module):
    """The view is the output itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Between(torch.sigmoid)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, :]


VIEWS = {
    "channels up to all": lambda x: x[:, :16] + 1,
    "slice of all": lambda x: x[:, :],
    "slice of all, twice": lambda x: x[:][:, :, :] * 2,
    "expand to the same shape": lambda x: x.expand(-1, 16, -1, -1),
    "expand of one channel's neighbour": lambda x: x.expand_as(x) - x[:, :1].expand(-1, 16, -1, -1),
    "view as itself": lambda x: x.view_as(x),
    "reshape to the same": lambda x: x.reshape(x.shape) + x.flatten(2).view_as(x),
    "detached": lambda x: x.detach().relu(),
    "a constant made inside": lambda x: x * torch.tensor([0.5, 2.0]).repeat(8).view(1, 16, 1, 1),
    "alias": lambda x: torch.ops.aten.alias(x),
    "repeat once": lambda x: x.repeat(1, 1, 1, 1).squeeze(1),
    "dropout": lambda x: F.dropout(x, 0.5, False),
}  # fmt: skip


@pytest.mark.parametrize("case", [*VIEWS, "output"])
def test_a_view_of_everything_is_exported_to_core_ml(case: str, tmp_path: Path) -> None:
    net = (Last() if case == "output" else Between(VIEWS[case])).eval()
    images = synthetic_images(4, seed=0)[0]
    (row,) = export_all(request_of(net, case, IMAGENET), ["coreml-fp32"], tmp_path)
    assert isinstance(row, ExportedModel), row
    with torch.no_grad():
        expected = net(normalize(images, IMAGENET)[0]).numpy()
    found = open_model(row.path).run(images)
    assert np.abs(found.logits - expected).max() < 1e-4


def summed(x: Tensor) -> Tensor:
    """Two running sums of one tensor, as in EdgeNeXt's position encoding."""
    return x.cumsum(2) / 16 + x.cumsum(3) / 16


def largest(x: Tensor) -> Tensor:
    return x.topk(8, dim=2).values + x.topk(8, dim=2, largest=False).values.flip(1)


def resized(x: Tensor) -> Tensor:
    up = F.interpolate(x, scale_factor=2.0, mode="bilinear") + F.interpolate(x, scale_factor=2.0, mode="nearest")
    return up + F.interpolate(x, size=(32, 32), mode="bicubic")


def mixed(x: Tensor) -> Tensor:
    x = x.relu()
    return (
        F.interpolate(x.cumsum(2), scale_factor=2.0)
        + F.interpolate(x, scale_factor=2.0)
        + x.cumsum(3).repeat(1, 1, 2, 2)
    )


HALVES = {"cumsum": summed, "topk": largest, "resize": resized, "mixed": mixed}


@pytest.mark.parametrize("case", HALVES)
def test_a_tensor_may_feed_several_operations_that_stay_float32(case: str, tmp_path: Path) -> None:
    import onnx

    net = Between(HALVES[case]).eval()
    images = synthetic_images(8, seed=0)[0]
    exact, half = export_all(request_of(net, case, IMAGENET), ["onnx-fp32", "onnx-fp16"], tmp_path)
    assert isinstance(exact, ExportedModel), exact
    assert isinstance(half, ExportedModel), half
    with torch.no_grad():
        expected = QueryModel(inference_copy(net, SIZE), IMAGENET)(torch.from_numpy(images))[1].numpy()
    assert np.abs(open_model(exact.path).run(images).logits - expected).max() < 1e-4
    found = open_model(half.path).run(images).logits
    assert 0 < np.abs(found - expected).max() < 0.01 * np.abs(expected).max()
    graph = onnx.load(half.path).graph
    assert len({name for node in graph.node for name in node.output}) == sum(len(node.output) for node in graph.node)
    assert len({one.name for one in graph.value_info}) == len(graph.value_info)


def padded(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1, 1, 1))


POOLS = {
    "max": lambda x: F.max_pool2d(padded(x), 3, 2),
    "max of a padded one": lambda x: F.max_pool2d(padded(x), 3, 2, padding=1),
    "two max": lambda x: F.max_pool2d(padded(x), 3, 2) + F.max_pool2d(padded(x + 1), 3, 2),
    "average": lambda x: F.avg_pool2d(padded(x), 3, 2, count_include_pad=False),
    "average of a padded one": lambda x: F.avg_pool2d(padded(x), 3, 2, padding=1, count_include_pad=False),
}


@pytest.mark.parametrize("case", POOLS)
def test_zeros_around_negative_numbers_are_there_when_they_are_pooled(case: str, tmp_path: Path) -> None:
    net = Between(lambda x: POOLS[case](x - 5)).eval()
    images = synthetic_images(4, seed=0)[0]
    (row,) = export_all(request_of(net, case, IMAGENET), ["onnx-fp32"], tmp_path)
    assert isinstance(row, ExportedModel), row
    with torch.no_grad():
        expected = net(normalize(images, IMAGENET)[0]).numpy()
    assert np.abs(open_model(row.path).run(images).logits - expected).max() < 1e-4
