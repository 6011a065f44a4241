"""Mobile networks in three formats, executed: float32 and float16 repeat torch, int8 repeats the rounded weights.

The sixth, MobileNetV3-small, is trained and exported for all other tests: `test_exporter` compares its codes.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from distill.models.hash_net import build
from export.artifact import SMALL_WEIGHTS, ExportedModel
from export.exporter import export_all
from export.query_model import QueryModel, inference_copy
from export.to_coreai import _halved
from gallery.codes import pack
from mobile_eval.runtimes import open_model
from tests.export.factories import BITS, IMAGENET, request_of

SIZES = {"mobilenetv3_large_100": 32, "mobilenetv2_100": 32, "mobilenetv4_conv_small": 32,
         "tf_efficientnet_lite0": 32, "fastvit_t8": 64}  # fmt: skip
VARIANTS = ("onnx-fp32", "onnx-w8a32", "litert-fp32", "litert-w8a32", "coreml-fp16", "coreml-w8a32")
Logits = NDArray[np.float32]


def settled(name: str, images: NDArray[np.uint8]) -> nn.Module:
    """An untrained network whose batch norms have seen the images: logits of mean 0 and deviation 1 on these."""
    net = build(name, SIZES[name], BITS, seed=0).train()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the mean over all batches, here of one
    pixels = torch.from_numpy(images / np.float32(255)).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET.mean, IMAGENET.std))
    with torch.no_grad(), torch.random.fork_rng():
        net((pixels - mean) / std)
    return net.eval()


def rounded(net: nn.Module) -> nn.Module:
    """A copy with the larger weights on the grid of one int8 scale for each output channel."""
    copied = copy.deepcopy(net)
    for layer in copied.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer.weight.numel() >= SMALL_WEIGHTS:
            flat = layer.weight.data.flatten(1)
            steps = flat.abs().amax(1, keepdim=True) / 127
            layer.weight.data = (torch.round(flat / steps) * steps).view_as(layer.weight)
    return copied


def said(model: QueryModel, images: NDArray[np.uint8]) -> Logits:
    with torch.no_grad():
        return model(torch.from_numpy(images))[1].numpy()


@pytest.mark.parametrize("name", SIZES)
def test_a_student_keeps_its_codes_in_every_format(name: str, tmp_path: Path) -> None:
    size = SIZES[name]
    images = np.random.default_rng(0).integers(0, 256, (24, size, size, 3), np.uint8)
    pre, net = dataclasses.replace(IMAGENET, size=size), settled(name, images)
    folded = inference_copy(net, size)
    model, integers = QueryModel(folded, pre), QueryModel(rounded(folded), pre)
    exact = said(model, images)
    assert 0.5 < exact.std() < 1.5
    half, whole = said(_halved(model), images), said(integers, images)  # what float16, and int8, explain
    assert np.abs(whole - exact).mean() > 4 * np.abs(half - exact).mean() > 0
    for row in export_all(request_of(net, name, pre), VARIANTS, tmp_path):
        assert isinstance(row, ExportedModel), row
        found = open_model(row.path).run(images)
        assert np.array_equal(found.codes, pack(found.logits))
        if row.variant == "coreml-fp16":
            check_half(found.logits, exact, half)
        elif row.variant == "coreml-w8a32":
            check_half_and_rounded(found.logits, exact, whole)
        else:
            check_exact(found.logits, whole if row.variant.endswith("w8a32") else exact)


def check_exact(found: Logits, expected: Logits) -> None:
    """What is left of float32: measured 2e-5 at most for float weights, and for int8 ones against the rounded."""
    assert np.abs(found - expected).max() < 5e-4
    assert not ((found > 0) != (expected > 0))[np.abs(expected) > 1e-3].any()


def check_half(found: Logits, exact: Logits, half: Logits) -> None:
    """No further away than torch's own float16: measured 1.0 to 1.3 times as far."""
    explained, error = np.abs(half - exact), np.abs(found - exact)
    assert error.mean() < 2 * explained.mean()
    assert np.abs(exact[(found > 0) != (exact > 0)]).max(initial=0) < 3 * explained.max()


def check_half_and_rounded(found: Logits, exact: Logits, whole: Logits) -> None:
    """As far away as the rounding takes it (measured 0.97 to 1.03), and in its direction (0.25 to 0.58 of that)."""
    explained = np.abs(whole - exact).mean()
    assert 0.8 * explained < np.abs(found - exact).mean() < 1.2 * explained
    assert np.abs(found - whole).mean() < 0.75 * explained


def test_fastvit_is_exported_without_its_training_time_branches() -> None:
    images = np.random.default_rng(1).integers(0, 256, (24, 64, 64, 3), np.uint8)
    net = settled("fastvit_t8", images)
    folded, pixels = inference_copy(net, 64), torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before, after = (sum(isinstance(m, nn.Conv2d) for m in one.modules()) for one in (net, folded))
    assert after < 0.8 * before
    with torch.no_grad():
        assert (net(pixels) - folded(pixels)).abs().max() < 1e-4
