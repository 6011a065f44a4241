"""Layers that compute their weights: replaced by plain ones with the same numbers, or left in float and said."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from distill.models.hash_net import import_timm
from export.artifact import ExportedModel
from export.exporter import export_all, prepare_quantized
from export.fake_quant import ANYTHING, convert_qdq, insert_fake_quant, layers
from export.fold_bn import fold_batch_norm
from export.plain_layers import is_plain, materialize_weights
from export.quantize import logits, normalize, quantize
from export.query_model import inference_copy
from mobile_eval.runtimes import open_model
from tests.export.factories import IMAGENET, SIZE, request_of, synthetic_images

import_timm()
from timm.layers import (  # noqa: E402
    BatchNormAct2d,
    Conv2dSame,
    ScaledStdConv2d,
    ScaledStdConv2dSame,
    StdConv2d,
    StdConv2dSame,
)


class Halved(nn.Conv2d):
    """A user's own: other weights than those stored."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / 2 + 0.1, self.bias)


class HalvedInside(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight / 2, bias)


class WindowSame(nn.Conv2d):
    """Plain, though its name has timm's word for padding by the size of the input."""


class Scaled(nn.Conv2d):
    """More than a convolution with other weights, as far as one call shows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 1.5


class ByInput(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * x.mean().sigmoid(), self.bias)


class ByProduct(nn.Conv2d):
    """A convolution of one pixel as a product of matrices."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x.movedim(1, -1), self.weight[:, :, 0, 0], self.bias).movedim(-1, 1)


class LowRank(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + nn.functional.linear(x, self.weight.mean(0, keepdim=True))


class NormWithActivation(nn.BatchNorm2d):
    """A user's own: what follows the norm is in no attribute."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def conv(kind: Any, **options: Any) -> nn.Conv2d:
    layer: nn.Conv2d = kind(3, 8, 3, stride=2, **options)
    return layer


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    return layer


COMPUTED = {
    "StdConv2d": lambda: conv(StdConv2d),
    "StdConv2dSame": lambda: conv(StdConv2dSame),
    "ScaledStdConv2d": lambda: conv(ScaledStdConv2d, gamma=1.7),
    "ScaledStdConv2dSame": lambda: conv(ScaledStdConv2dSame),
    "grouped": lambda: ScaledStdConv2d(3, 6, 5, groups=3, dilation=2),
    "weight norm": lambda: parametrizations.weight_norm(conv(nn.Conv2d, padding=1)),
    "weight norm by a hook": lambda: torch.nn.utils.weight_norm(conv(nn.Conv2d)),
    "spectral norm": lambda: parametrizations.spectral_norm(conv(nn.Conv2d)),
    "spectral norm, around": lambda: parametrizations.spectral_norm(
        nn.Conv2d(3, 8, 5, padding=2, padding_mode="circular")
    ),
    "same, of timm, normalized": lambda: parametrizations.weight_norm(conv(Conv2dSame)),
    "own forward": lambda: conv(Halved),
    "own inner forward": lambda: conv(HalvedInside, padding="valid"),
    "linear": lambda: parametrizations.weight_norm(nn.Linear(3, 8)),
}  # fmt: skip
LEFT = {
    "scaled after": lambda: conv(Scaled),
    "weights by input": lambda: conv(ByInput),
    "hooked": lambda: hooked(conv(nn.Conv2d)),
    "a product": lambda: ByProduct(3, 8, 1),
    "two products": lambda: LowRank(3, 8),
}
PLAIN = {"conv": conv(nn.Conv2d), "same": conv(Conv2dSame), "by name": conv(WindowSame), "linear": nn.Linear(3, 8)}


def lived_in(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) / 5)
        layer.train()(torch.randn(2, 3) if isinstance(layer, nn.Linear) else torch.randn(2, 3, 16, 16))
    return layer.eval()


def outputs(net: nn.Module, layer: nn.Module) -> list[Tensor]:
    random = torch.Generator().manual_seed(5)
    shapes: list[tuple[int, ...]] = [(2, 3, 16, 21), (1, 3, 17, 16), (3, 3, 33, 32)]
    if isinstance(layer, nn.Linear):
        shapes = [(4, 3)]
    with torch.no_grad():
        return [net(torch.randn(shape, generator=random)) for shape in shapes]


@pytest.mark.parametrize("case", COMPUTED)
def test_a_layer_that_computes_its_weights_is_replaced(case: str) -> None:
    layer = lived_in(COMPUTED[case]())
    net = nn.Sequential(layer)
    assert not is_plain(layer)
    expected, state = outputs(net, layer), torch.get_rng_state()
    assert materialize_weights(net) == []
    assert torch.equal(torch.get_rng_state(), state)
    assert is_plain(net[0])
    assert not {"original0", "gain", "weight_v"} & {name.split(".")[-1] for name in net.state_dict()}
    for found, exact in zip(outputs(net, layer), expected, strict=True):
        assert torch.allclose(found, exact, rtol=0, atol=1e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("case", LEFT)
def test_a_layer_that_no_plain_one_repeats_stays(case: str) -> None:
    layer = lived_in(LEFT[case]())
    net = nn.Sequential(layer)
    assert materialize_weights(net) == ["0"]
    assert net[0] is layer
    assert list(layers(insert_fake_quant(net))) == []


@pytest.mark.parametrize("case", PLAIN)
def test_a_plain_layer_is_left_alone(case: str) -> None:
    net = nn.Sequential(PLAIN[case])
    assert is_plain(net[0])
    assert materialize_weights(net) == []
    assert net[0] is PLAIN[case]
    before = outputs(net, net[0])
    quantized = insert_fake_quant(net)
    assert all(torch.equal(a, b) for a, b in zip(before, outputs(quantized, net[0]), strict=True))


def test_a_layer_in_two_places_stays_one() -> None:
    layer = lived_in(StdConv2d(3, 3, 3))
    net = nn.Sequential(layer, nn.ReLU(), layer)
    materialize_weights(net)
    assert net[0] is net[2]
    assert is_plain(net[0])


def small_net(kind: Any, norm: Any = nn.BatchNorm2d) -> nn.Module:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        body = kind(3, 16, 3, stride=2), norm(16), nn.ReLU(), kind(16, 160, 3), norm(160), nn.AdaptiveAvgPool2d(1)
        net = nn.Sequential(*body, nn.Flatten(), nn.Linear(160, 64), nn.BatchNorm1d(64))
        for _ in range(4):
            net.train()(torch.randn(16, 3, SIZE, SIZE))
    return net.eval()


@pytest.mark.parametrize("kind", [StdConv2d, StdConv2dSame, ScaledStdConv2d])
def test_norms_behind_standardized_weights_are_folded_and_layers_are_chosen_for_this_network(kind: Any) -> None:
    net = small_net(kind)
    folded = inference_copy(net, SIZE)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in folded.modules())
    assert all(is_plain(module) for module in folded.modules() if isinstance(module, nn.Conv2d))
    images = [synthetic_images(24, seed)[0] for seed in (1, 2)]
    chosen = quantize(folded, IMAGENET, *images)
    batches = normalize(images[1], IMAGENET)
    exact, stored = logits(net, batches), logits(chosen.stored, batches)
    assert chosen.flips["weights"] == pytest.approx(float(((stored > 0) != (exact > 0)).double().mean()), abs=1e-6)
    assert chosen.flips["weights"] < 0.02


def test_a_layer_that_stays_is_said_and_keeps_its_weights(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("twinhash").propagate = True
    net = inference_copy(small_net(Scaled), SIZE)
    images = [synthetic_images(24, seed)[0] for seed in (1, 2)]
    with caplog.at_level(logging.WARNING):
        chosen = quantize(net, IMAGENET, *images)
    assert chosen.float_layers == ("0", "3")
    assert chosen.unsupported == ("0", "3")
    said = {record.getMessage().strip() for record in caplog.records}
    assert {f"{layer} is kept in float: Scaled is not plain" for layer in ("0", "3")} <= said
    assert torch.equal(chosen.stored.get_submodule("3").weight, net.get_submodule("3").weight)


def test_a_norm_of_an_unknown_class_is_not_folded() -> None:
    known = copy.deepcopy(small_net(nn.Conv2d, BatchNormAct2d))
    assert fold_batch_norm(known) == 3
    net = small_net(nn.Conv2d, NormWithActivation)
    assert fold_batch_norm(copy.deepcopy(net)) == 1
    with torch.no_grad():
        x = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
        assert np.allclose(net(x), inference_copy(net, SIZE)(x), atol=1e-5)


class Curious(nn.Module):
    """Reads its convolution, as EdgeNeXt's position encoding does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[-1]).to(self.conv.weight.dtype) / self.conv.out_channels
        return self.conv(x + positions) * self.conv.stride[0] - self.conv.bias.view(-1, 1, 1)


@pytest.mark.parametrize("stored", [True, False])
def test_a_network_may_read_its_quantized_convolutions(stored: bool) -> None:
    net = Curious().eval()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    quantized = insert_fake_quant(net)
    with torch.no_grad():
        expected = net(x)
        assert torch.equal(quantized(x), expected)
        layer = layers(quantized)["conv"]
        layer.mode = "observe"
        quantized(x)
        for grid in (layer.input, layer.output):
            grid.freeze(ANYTHING)
        layer.mode = "int8"
        assert (quantized(x) - expected).abs().mean() < 0.1
        qdq = convert_qdq(quantized, stored, signed=True)
        assert torch.allclose(qdq(x), quantized(x), atol=1e-5)
    assert not hasattr(layer, "no_such_attribute")
    assert not hasattr(qdq.conv, "no_such_attribute")


def test_layers_that_stay_keep_their_weights_in_every_format(tmp_path: Path) -> None:
    """One whose output is scaled, one whose weights depend on the input, and a plain one that is quantized."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        body = Scaled(3, 128, 3, stride=2), nn.ReLU(), ByInput(128, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)
        net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(64))
        for seed in range(4):
            net.train()(normalize(synthetic_images(32, seed)[0], IMAGENET)[0])
    net = net.eval()
    images = [synthetic_images(24, seed)[0] for seed in (1, 2)]
    variants = [f"{format}-{precision}" for format in ("onnx", "litert", "coreml") for precision in ("w8a32", "w8a8")]
    request = request_of(net, "own", IMAGENET, calibration=(images[0], images[1]))
    quantized = prepare_quantized(request, variants)
    assert quantized is not None
    assert set(quantized.float_layers) >= {"0", "2"}
    queries = [image[None] for image in images[1][:4]]  # one by one: weights by the input mix a batch
    batches = [normalize(query, IMAGENET)[0] for query in queries]
    exact, expected = logits(net, batches).numpy(), logits(quantized.stored, batches).numpy()
    for row in export_all(request, variants, tmp_path, quantized):
        assert isinstance(row, ExportedModel), row
        model = open_model(row.path)
        found = np.concatenate([model.run(query).logits for query in queries])
        assert np.mean((found > 0) != (exact > 0)) < 0.05
        if row.variant in ("onnx-w8a32", "litert-w8a32"):
            assert np.abs(found - expected).max() < 1e-4
