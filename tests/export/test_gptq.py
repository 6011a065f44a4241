"""Weights rounded together against the same rule solved anew for every weight, and what it is for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from export.fake_quant import LARGEST, FakeQuantConv2d, insert_fake_quant, layers, strip_fake_quant
from export.gptq import DAMP, gptq_, gptq_weight, input_hessian


def random_layer(groups: int, each: int, outputs: int, side: int, seed: int) -> tuple[FakeQuantConv2d, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    conv = nn.Conv2d(groups * each, groups * outputs, side, padding=side // 2, groups=groups).requires_grad_(False)
    conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator))
    mixed = torch.randn(groups * each, groups * each, generator=generator)
    images = torch.einsum("cd,bdhw->bchw", mixed, torch.rand(6, groups * each, 5, 5, generator=generator))
    return FakeQuantConv2d(conv), images


def solved(weight: Tensor, step: Tensor, sums: Tensor) -> Tensor:
    """One output `[D]`: after each rounding, what is left is where (w - x)' sums (w - x) is least, from scratch."""
    sums = sums.double() + DAMP * sums.double().diagonal().mean() * torch.eye(len(weight), dtype=torch.float64)
    order, end = sums.diagonal().argsort(descending=True).tolist(), int(weight.abs().argmax())
    w, found = weight.double(), torch.zeros(len(weight), dtype=torch.float64)
    for place, now in enumerate(order):
        past, rest = order[:place], order[place:]
        left = w[rest].clone()
        if past:
            pull = sums[rest][:, past] @ (w[past] - found[past])
            left += torch.linalg.solve(sums[rest][:, rest], pull)
        whole = torch.clamp(torch.round(left[0] / step), -LARGEST, LARGEST)
        found[now] = (LARGEST * w[now].sign() if now == end else whole) * step
    return found.float()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.sampled_from([1, 3]), st.integers(0, 99))
def test_it_is_what_solving_for_each_weight_gives(groups: int, each: int, outputs: int, side: int, seed: int) -> None:
    layer, images = random_layer(groups, each, outputs, side, seed)
    sums = input_hessian(layer, layer, [images])
    found, steps = gptq_weight(layer, sums).flatten(1), layer.scales()
    for output, row in enumerate(layer.conv.weight.flatten(1)):
        expected = solved(row, steps[output], sums[output // outputs])
        wrong = (found[output] - expected).abs() > 1e-4 * steps[output]
        assert not wrong.any() or near_a_tie(row, steps[output], sums[output // outputs])


def near_a_tie(weight: Tensor, step: Tensor, sums: Tensor) -> bool:
    """Whether another rounding of halves is within single precision: then both answers are right."""
    grown = solved(weight * (1 + 1e-5), step * (1 + 1e-5), sums) / (1 + 1e-5)
    return not torch.equal(solved(weight, step, sums), grown)


def test_the_sums_are_those_of_the_convolution() -> None:
    layer, images = random_layer(2, 3, 2, 3, 0)
    sums = input_hessian(layer, layer, [images])
    outputs = F.conv2d(images, layer.conv.weight, None, padding=1, groups=2)
    power = outputs.square().sum(dim=(0, 2, 3))
    rows = layer.conv.weight.flatten(1)
    expected = torch.stack([row @ sums[place // 2] @ row for place, row in enumerate(rows)])
    torch.testing.assert_close(power, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("groups", "each", "side"), [(1, 24, 1), (8, 1, 3)])
def test_outputs_come_closer_than_with_the_nearest_weights(groups: int, each: int, side: int) -> None:
    layer, images = random_layer(groups, each, 4, side, 1)
    layer.mode = "weights"
    exact = layer.conv(images)
    nearest = (layer(images) - exact).square().mean()
    gptq_(nn.Sequential(layer), [images], ["0"])
    assert (layer(images) - exact).square().mean() < 0.6 * nearest


def test_exporters_find_the_same_grid_again() -> None:
    layer, images = random_layer(2, 6, 5, 3, 2)
    before = layer.conv.weight.clone()
    net = nn.Sequential(layer)
    gptq_(net, [images], ["0"])
    stored = strip_fake_quant(net)[0].weight
    steps = stored.abs().amax(dim=(1, 2, 3), keepdim=True) / LARGEST
    whole = stored / steps
    assert torch.allclose(whole, whole.round(), atol=1e-3)
    torch.testing.assert_close(steps.flatten(), before.abs().amax(dim=(1, 2, 3)) / LARGEST)
    assert torch.equal(layer.conv.weight, before)


def test_an_input_that_is_always_zero_leaves_its_weights_where_they_are_nearest() -> None:
    layer, images = random_layer(1, 4, 3, 1, 3)
    images[:, 2] = 0
    layer.rounded = gptq_weight(layer, input_hessian(layer, layer, [images]))
    nearest = (layer.conv.weight / layer.scales()[:, None, None, None]).round() * layer.scales()[:, None, None, None]
    torch.testing.assert_close(layer.rounded[:, 2], nearest[:, 2])


def test_later_layers_make_up_for_the_earlier_ones() -> None:
    torch.manual_seed(0)
    net = insert_fake_quant(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)).requires_grad_(False))
    images = [torch.rand(8, 3, 12, 12)]
    gptq_(net, images, ["0", "2"])
    own = layers(net)
    alone = gptq_weight(own["2"], input_hessian(nn.Sequential(own["0"].conv, nn.ReLU(), own["2"]), own["2"], images))
    assert not torch.equal(own["2"].rounded, alone)
    assert {layer.mode for layer in own.values()} == {"weights"}
