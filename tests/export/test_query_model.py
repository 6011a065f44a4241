"""The folded network repeats the network; the query model repeats preprocessing, network and packing done by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distill.models.hash_net import build
from export import query_model
from export.fold_bn import fold_batch_norm
from export.query_model import QueryModel, inference_copy
from gallery.codes import pack
from gallery.codespace import Preprocessing
from gallery.errors import InputError
from tests.export.factories import IMAGENET, SIZE, Student, normalised, synthetic_images


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in net.modules())


def lived_in(net: nn.Module, size: int = SIZE) -> nn.Module:
    """Gives every batch norm statistics, weights and biases that matter."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for module in net.modules():
            if isinstance(module, _BatchNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
        net.train()
        for _ in range(6):
            net(torch.randn(8, 3, size, size))
    return net.eval()


def both(before: nn.Module, after: nn.Module, size: int = SIZE) -> tuple[Tensor, Tensor]:
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return before(images), after(images)


@pytest.mark.parametrize(
    "name",
    ["mobilenetv3_small_100", "tf_mobilenetv3_small_100", "mobilenetv2_100", "tf_efficientnet_lite0",
     "mobilenetv4_conv_small", "fastvit_t8", "mobileone_s0"],
)  # fmt: skip
def test_every_batch_norm_of_a_mobile_backbone_is_folded(name: str) -> None:
    net = lived_in(build(name, SIZE, 16, seed=0))
    assert norms(net) > 20
    folded = inference_copy(net, SIZE)
    expected, found = both(net, folded)
    assert norms(folded) == 0
    assert (expected - found).abs().max() <= 1e-5 * expected.abs().max()
    assert expected.abs().max() > 0.1


def test_the_callers_module_is_left_alone() -> None:
    net = lived_in(build("mobilenetv3_small_100", SIZE, 16, seed=0)).train()
    before = copy.deepcopy(net.state_dict())
    structure = str(net)
    folded = inference_copy(net, SIZE)
    assert net.training
    assert not folded.training
    assert str(net) == structure
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in folded.parameters()}


def test_a_half_precision_network_is_deployed_in_float32() -> None:
    net = lived_in(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    folded = inference_copy(net.bfloat16(), SIZE)
    assert {parameter.dtype for parameter in folded.parameters()} == {torch.float32}


class TwoReaders(nn.Module):
    """The convolution's output is also used raw, the second norm reads a sum, the third belongs to two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.left, self.right, self.shared = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.linear, self.last = nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.second(x + self.first(x))
        x = self.shared(self.left(x)) + self.shared(self.right(x))
        return self.last(self.linear(x.mean((2, 3))))


def test_only_what_may_be_folded_is_folded() -> None:
    net = lived_in(TwoReaders())
    folded = copy.deepcopy(net)
    assert fold_batch_norm(folded) == 1
    assert isinstance(folded.last, nn.Identity)
    assert all(isinstance(norm, nn.BatchNorm2d) for norm in (folded.first, folded.second, folded.shared))
    expected, found = both(net, folded)
    assert torch.allclose(expected, found, atol=1e-5 * float(expected.abs().max()))


class Untraceable(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(-x if x.mean() > 1e9 else x)


def test_a_network_that_cannot_be_traced_keeps_its_norms_and_its_numbers() -> None:
    net = lived_in(Untraceable(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    kept = inference_copy(net, SIZE)
    assert norms(kept) == 1
    assert torch.equal(*both(net, kept))


def test_a_copy_that_differs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fold_wrongly(net: nn.Module) -> None:
        net.get_submodule("0").bias.data += 0.01

    monkeypatch.setattr(query_model, "fold_batch_norm", fold_wrongly)
    with pytest.raises(InputError, match="difference of"):
        inference_copy(nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), SIZE)


def test_weights_that_are_not_finite_are_an_error() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net[0].weight.data[0] = torch.nan
    with pytest.raises(InputError):
        inference_copy(net, SIZE)


def test_the_query_model_is_preprocessing_network_and_packing(v3: Student) -> None:
    model = QueryModel(inference_copy(v3.net, SIZE), IMAGENET)
    with torch.no_grad():
        codes, logits = model(torch.from_numpy(v3.images))
    assert codes.dtype == torch.uint8
    assert logits.dtype == torch.float32
    assert np.abs(logits.numpy() - v3.logits).max() < 1e-5
    assert np.array_equal(codes.numpy(), pack(logits.numpy()))
    sure = np.abs(v3.logits) > 1e-3
    assert np.array_equal((logits.numpy() > 0)[sure], (v3.logits > 0)[sure])
    assert 0.3 < np.unpackbits(codes.numpy()).mean() < 0.7


@given(bytes_=st.integers(1, 16), seed=st.integers(0, 2**32 - 1))
def test_packing_is_exact_in_half_precision_too(bytes_: int, seed: int) -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 8 * bytes_))
    model = QueryModel(net, Preprocessing(4, (0.5,) * 3, (0.25,) * 3))
    logits = np.random.default_rng(seed).choice([-1.0, -0.0, 0.0, 1e-30, 2.0], (5, 8 * bytes_)).astype(np.float32)
    expected = pack(logits)
    assert np.array_equal(model.pack(torch.from_numpy(logits)).numpy(), expected)
    assert np.array_equal(model.half().pack(torch.from_numpy(logits)).half().numpy(), expected)


def test_code_lengths_that_fill_no_bytes_are_an_error() -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match="whole bytes"):
        QueryModel(net, IMAGENET)


def test_the_border_needs_the_mean_in_front_of_the_convolution() -> None:
    """Folding mean and scale into a padded convolution gives other numbers along the border: why it is not done."""
    conv = nn.Conv2d(3, 4, 3, padding=1)
    folded = nn.Conv2d(3, 4, 3, padding=1)
    mean, std = (255 * torch.tensor(part).view(1, 3, 1, 1) for part in (IMAGENET.mean, IMAGENET.std))
    images = torch.from_numpy(synthetic_images(2, seed=0)[0])
    pixels = images.permute(0, 3, 1, 2).float()
    with torch.no_grad():
        folded.weight.copy_(conv.weight / std)
        folded.bias.copy_(conv.bias - (conv.weight * (mean / std)).sum((1, 2, 3)))
        expected, found = conv(normalised(images.numpy())), folded(pixels)
    assert torch.allclose(expected[..., 1:-1, 1:-1], found[..., 1:-1, 1:-1], atol=1e-4)
    assert not torch.allclose(expected, found, atol=0.1)
