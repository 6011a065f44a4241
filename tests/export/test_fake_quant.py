"""8-bit convolutions against integer arithmetic in numpy, and the choice of layers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from export import quantize as q
from export.artifact import SMALL_WEIGHTS
from export.fake_quant import (
    LARGEST,
    LEVELS,
    ActivationRange,
    FakeQuantConv2d,
    convert_qdq,
    insert_fake_quant,
    layers,
    set_mode,
    track_activations,
)
from export.query_model import inference_copy
from gallery.errors import InputError
from tests.export.factories import IMAGENET, Student, synthetic_images


@pytest.fixture(scope="module")
def folded(v3: Student) -> nn.Module:
    return inference_copy(v3.net, IMAGENET.size)


@pytest.fixture(scope="module")
def quantized(folded: nn.Module) -> q.QuantizationResult:
    return q.quantize(folded, IMAGENET, synthetic_images(64, seed=4)[0], synthetic_images(32, seed=5)[0])


def activation_range(low: float, high: float) -> ActivationRange:
    grid = ActivationRange()
    grid.low, grid.high = low, high
    return grid


def random_layer(seed: int, groups: int) -> tuple[FakeQuantConv2d, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    conv = nn.Conv2d(4, 8, 3, padding=1, stride=2, groups=groups)
    for parameter in conv.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    layer = FakeQuantConv2d(conv)
    layer.input, layer.output, layer.mode = activation_range(-1.0, 2.5), activation_range(0.0, 9.0), "int8"
    return layer, 3 * torch.randn(2, 4, 7, 7, generator=generator)


def in_integers(layer: FakeQuantConv2d, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """What an integer unit does: whole numbers in, an int32 sum with the bias on its grid, one rescaling."""
    conv, a, b = layer.conv, layer.input, layer.output
    whole = np.clip(np.round(x / a.scale) + a.zero_point, 0, LEVELS).astype(np.int64) - a.zero_point
    weight = conv.weight.detach().numpy().astype(np.float64)
    steps = np.abs(weight).max(axis=(1, 2, 3)) / LARGEST
    levels = np.round(weight / steps[:, None, None, None]).astype(np.int64)
    bias = np.round(conv.bias.detach().numpy() / (steps * a.scale)).astype(np.int64)
    padded = np.pad(whole, ((0, 0), (0, 0), (1, 1), (1, 1)))
    size, share = (x.shape[2] + 1) // 2, 4 // conv.groups
    sums = np.zeros((len(x), 8, size, size), np.int64)
    for o in range(8):
        first = o // (8 // conv.groups) * share
        for i, j in np.ndindex(size, size):
            patch = padded[:, first : first + share, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            sums[:, o, i, j] = (patch * levels[o]).sum(axis=(1, 2, 3)) + bias[o]
    assert np.abs(sums).max() < 2**31
    real = sums * (steps * a.scale)[None, :, None, None]
    return (np.clip(np.round(real / b.scale) + b.zero_point, 0, LEVELS) - b.zero_point) * b.scale


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 4]))
def test_a_simulated_convolution_is_integer_arithmetic(seed: int, groups: int) -> None:
    layer, x = random_layer(seed, groups)
    expected = in_integers(layer, x.numpy())
    for signed in (False, True):
        net = nn.Sequential(layer)
        for found in (net(x), convert_qdq(net, True, signed)(x), convert_qdq(net, False, signed)(x)):
            steps = np.abs(found.detach().numpy() - expected) / layer.output.scale
            assert steps.max() < 1.01  # one step where a sum lies halfway between two
            assert (steps > 0.01).mean() < 0.02


def test_gradients_pass_where_nothing_is_cut() -> None:
    layer, x = random_layer(0, 1)
    layer.output = activation_range(-100.0, 100.0)
    layer(x).sum().backward()
    assert layer.conv.weight.grad is not None
    assert (layer.conv.weight.grad != 0).all()
    layer.output = activation_range(0.0, 1e-6)  # everything is cut
    layer.conv.weight.grad = None
    layer(x).sum().backward()
    assert (layer.conv.weight.grad == 0).all()


def test_a_dead_channel_with_a_bias_stays_inside_int32() -> None:
    layer, x = random_layer(1, 1)
    layer.conv.weight.data[3] = 1e-20
    layer.conv.bias.data[3] = 5.0
    sums = layer.conv.bias.detach() / (layer.scales() * layer.input.scale)
    assert sums.abs().max() < 2**31
    assert abs(float(layer(x).detach()[0, 3].mean()) - 5.0) < layer.output.scale


def test_a_range_holds_zero_and_leaves_out_the_rarest() -> None:
    grid = ActivationRange()
    grid.observe(torch.cat([torch.linspace(2, 3, 50_000), torch.tensor([1e6])]))
    grid.freeze((-np.inf, np.inf))
    assert grid.low == 0.0
    assert 2.9 < grid.high < 3.1
    assert grid.zero_point == 0
    assert not grid.seen


def test_nothing_below_an_activation_that_is_flat_there_takes_up_the_grid(folded: nn.Module) -> None:
    net = insert_fake_quant(folded)
    set_mode(net, "observe")
    with track_activations(net) as curved:
        q.logits(net, q.normalize(synthetic_images(4, seed=0)[0], IMAGENET))
    assert curved["backbone.conv_stem"] == (-3.0, np.inf)
    assert curved["backbone.blocks.0.0.conv_dw"] == (0.0, np.inf)
    assert curved["backbone.blocks.0.0.se.conv_expand"] == (-3.0, 3.0)
    assert "backbone.blocks.0.0.conv_pw" not in curved  # nothing follows it but a sum


def test_float_mode_is_the_network_itself(folded: nn.Module, v3: Student) -> None:
    images = q.normalize(v3.images, IMAGENET)
    assert torch.equal(q.logits(insert_fake_quant(folded), images), q.logits(folded, images))


def test_the_chosen_layers_keep_within_the_error_budget(
    quantized: q.QuantizationResult, folded: nn.Module, v3: Student
) -> None:
    own = layers(quantized.net)
    modes = {name: layer.mode for name, layer in own.items()}
    assert set(modes.values()) <= {"float", "weights", "int8"}
    assert list(modes.values()).count("int8") >= len([layer for layer in own.values() if layer.pixels > 1]) // 3
    floats = {name for name, mode in modes.items() if mode == "float"}
    assert set(quantized.float_layers) <= floats
    assert all(own[name].conv.weight.numel() < SMALL_WEIGHTS for name in floats - set(quantized.float_layers))
    assert all(layer.pixels > 1 for layer in own.values() if layer.mode == "int8")
    assert not any(name.startswith("head") for name in own)
    held = q.normalize(synthetic_images(32, seed=5)[0], IMAGENET)
    assert q.bit_flip_rate(q.logits(quantized.net, held), q.logits(folded, held)) == quantized.flips["int8"]
    images = q.normalize(v3.images, IMAGENET)
    assert q.bit_flip_rate(q.logits(quantized.net, images), torch.from_numpy(v3.logits)) < 0.03


def test_qdq_matches_the_simulation(quantized: q.QuantizationResult, v3: Student) -> None:
    images = q.normalize(v3.images, IMAGENET)
    expected = q.logits(quantized.net, images)
    for stored, signed in ((True, False), (True, True), (False, True)):
        found = q.logits(convert_qdq(quantized.net, stored, signed), images)
        assert q.bit_flip_rate(found, expected) < 0.005
        assert float((found - expected).abs().mean()) < 0.02


def test_a_layer_with_one_huge_channel_is_found_and_kept_in_float(folded: nn.Module) -> None:
    net, name = copy.deepcopy(folded), "backbone.blocks.1.0.conv_pw"
    conv, after = net.get_submodule(name), net.get_submodule("backbone.blocks.1.0.conv_dw")
    conv.weight.data[0] *= 3000  # followed by a ReLU and a depthwise layer, which takes it back: the same function,
    conv.bias.data[0] *= 3000
    after.weight.data[0] /= 3000  # but one grid for all channels is now far too coarse
    found = q.quantize(net, IMAGENET, synthetic_images(64, seed=4)[0], synthetic_images(32, seed=5)[0])
    worst = next(one for one in found.sensitivities if one.mode == "int8")
    assert worst.layer in (name, "backbone.blocks.1.0.conv_dw")
    assert worst.kept
    assert layers(found.net)[worst.layer].mode != "int8"


@pytest.mark.parametrize("missing", [0, 1])
def test_quantize_without_images_is_an_error(folded: nn.Module, missing: int) -> None:
    given_ = [synthetic_images(4, seed=0)[0], synthetic_images(4, seed=0)[0]]
    given_[missing] = given_[missing][:0]
    with pytest.raises(InputError, match="images to take the ranges from"):
        q.quantize(folded, IMAGENET, *given_)
