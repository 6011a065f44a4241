"""The export benchmark's second student of the quantizer: every layer 8-bit."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.export import quantize_all_layers
from export.fake_quant import insert_fake_quant, layers


def test_every_layer_that_supports_it_is_quantized() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Conv2d(3, 24, 3, 2, 1), nn.Hardswish(), nn.Conv2d(24, 160, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        net = insert_fake_quant(nn.Sequential(*body, nn.Conv2d(160, 16, 1), nn.Flatten()).eval())
    for layer in layers(net).values():
        layer.mode = "observe"
    net(torch.rand(2, 3, 16, 16))
    modes = {name: layer.mode for name, layer in layers(quantize_all_layers(net)).items()}
    assert modes == {"0": "int8", "2": "int8", "5": "weights"}
