"""The reference evaluator against torch, on programs that coremltools made, and against fp16 arithmetic by numpy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from export.capture_output import quiet
from gallery.errors import MissingBackend
from mobile_eval.runtimes import mil_ops
from mobile_eval.runtimes.mil import MilProgram

SIZE = 15


class Apply(nn.Module):
    """A function of pixels brought to about -3..3, as a module."""

    def __init__(self, function: Any, *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - 127.5) / 42.5
        for part in self.parts:
            x = part(x)
        return self.function(x)


def saved(net: nn.Module, path: Path, precision: str = "FLOAT32", target: str = "iOS16") -> MilProgram:
    import coremltools as ct

    image = ct.ImageType("image", (1, 3, SIZE, SIZE), color_layout=ct.colorlayout.RGB)
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(net.eval(), torch.zeros(1, 3, SIZE, SIZE), check_trace=False)
        program = ct.convert(
            traced, convert_to="mlprogram", inputs=[image], skip_model_load=True,
            outputs=[ct.TensorType("y", dtype=np.float32)],
            compute_precision=ct.precision[precision], minimum_deployment_target=ct.target[target],
        )  # fmt: skip
        program.save(str(path))
    return MilProgram(path)


def operations(program: MilProgram) -> set[str]:
    known = {function: name for name, function in mil_ops.OPS.items()}
    return {known[step.operation] for step in program._steps}


def random_images(count: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def in_torch(net: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    with torch.no_grad():
        found: NDArray[np.float64] = net.double()(torch.from_numpy(images).permute(0, 3, 1, 2).double()).numpy()
    return found


def itself(x: Tensor) -> Tensor:
    return x


def lived_in(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


torch.manual_seed(0)
CASES: dict[str, tuple[str, nn.Module]] = {
    "conv": ("conv", Apply(itself, nn.Conv2d(3, 8, 3))),
    "conv, stride and padding": ("conv", Apply(itself, nn.Conv2d(3, 8, 5, 2, 2))),
    "conv, uneven padding": ("conv", Apply(itself, nn.Conv2d(3, 8, (3, 5), (2, 1), (1, 2), bias=False))),
    "conv, dilated": ("conv", Apply(itself, nn.Conv2d(3, 8, 3, 1, 2, dilation=2))),
    "conv, same": ("conv", Apply(itself, nn.Conv2d(3, 8, 4, padding="same"))),
    "conv, depthwise": ("conv", Apply(itself, nn.Conv2d(3, 6, 5, 2, 2, groups=3))),
    "conv, groups": ("conv", Apply(itself, nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, groups=2))),
    "linear": ("linear", Apply(itself, nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 16))),
    "batch_norm": ("batch_norm", Apply(itself, nn.ReLU(), lived_in(3))),
    "max_pool": ("max_pool", Apply(itself, nn.MaxPool2d(3, 2, 1))),
    "avg_pool": ("avg_pool", Apply(itself, nn.AvgPool2d(3, 2, 1))),
    "avg_pool without the border": ("avg_pool", Apply(itself, nn.AvgPool2d(3, 2, 1, count_include_pad=False))),
    "mean": ("reduce_mean", Apply(lambda x: x.mean((2, 3)))),
    "mean, kept": ("reduce_mean", Apply(itself, nn.AdaptiveAvgPool2d(1))),
    "sum": ("reduce_sum", Apply(lambda x: x.sum(-1))),
    "relu": ("relu", Apply(F.relu)),
    "relu6": ("relu6", Apply(lambda x: F.relu6(3 * x))),
    "hardtanh": ("clip", Apply(lambda x: F.hardtanh(x, -0.5, 2.0))),
    "hardsigmoid": ("sigmoid_hard", Apply(F.hardsigmoid)),
    "hardswish": ("thresholded_relu", Apply(F.hardswish)),
    "sigmoid": ("sigmoid", Apply(torch.sigmoid)),
    "silu": ("silu", Apply(F.silu)),
    "tanh": ("tanh", Apply(torch.tanh)),
    "gelu": ("gelu", Apply(F.gelu)),
    "gelu by tanh": ("gelu", Apply(lambda x: F.gelu(x, approximate="tanh"))),
    "add": ("add", Apply(lambda x: x + torch.sigmoid(x))),
    "sub": ("sub", Apply(lambda x: torch.sigmoid(x) - x)),
    "mul": ("mul", Apply(lambda x: torch.sigmoid(x) * x * torch.arange(3.0).view(1, 3, 1, 1))),
    "real_div": ("real_div", Apply(lambda x: x / (torch.sigmoid(x) + 1))),
    "maximum": ("maximum", Apply(lambda x: torch.maximum(x, torch.sigmoid(x)))),
    "minimum": ("minimum", Apply(lambda x: torch.minimum(x, torch.tensor(0.25)))),
    "greater": ("greater", Apply(lambda x: (x > 0.3).float() * 2 + 1)),
    "pad": ("pad", Apply(lambda x: F.pad(x, (1, 2, 0, 3), value=0.5))),
    "reshape": ("reshape", Apply(lambda x: x.reshape(1, 5, -1, 3) if len(x) == 1 else x.reshape(len(x), 5, -1, 3))),
    "transpose": ("transpose", Apply(lambda x: x.permute(0, 2, 3, 1))),
    "expand_dims": ("expand_dims", Apply(lambda x: x.mean((2, 3))[:, :, None, None] + x)),
    "squeeze": ("squeeze", Apply(lambda x: x.mean((2, 3), keepdim=True).relu().squeeze(3).squeeze(2))),
    "layer_norm": ("layer_norm", Apply(lambda x: x.flatten(2).transpose(1, 2), nn.LayerNorm(SIZE, bias=False))),
    "layer_norm of two axes": ("layer_norm", Apply(itself, nn.LayerNorm((SIZE, SIZE), eps=0.1))),
    "matmul": ("matmul", Apply(lambda x: x @ torch.sigmoid(x))),
    "matmul, transposed": ("matmul", Apply(lambda x: x.flatten(2) @ torch.sigmoid(x).flatten(2).transpose(1, 2))),
    "softmax": ("softmax", Apply(lambda x: 10 * x.softmax(1))),
    "concat": ("concat", Apply(lambda x: torch.cat([x, torch.sigmoid(x)[:, 1:]], 1))),
    "concat with a constant": (
        "concat",
        Apply(lambda x: torch.cat([torch.ones(1, 1, SIZE, SIZE).expand(len(x), -1, -1, -1), x], 1)),
    ),
    "stack": ("stack", Apply(lambda x: torch.stack([x, torch.sigmoid(x)], 2))),
    "slice": ("slice_by_index", Apply(lambda x: x[:, :2, 3:, 1::2])),
    "slice from behind, one index": ("slice_by_index", Apply(lambda x: x[:, -1, -7:-2])),
    "split": ("split", Apply(lambda x: (lambda a, b: a * b.mean(2, keepdim=True))(*x.split([4, 11], 2)))),
    "split in equal parts": ("split", Apply(lambda x: (lambda a, b, c: a * b - c)(*x.chunk(3, 1)))),
    "tile": ("tile", Apply(lambda x: x.mean((2, 3), keepdim=True).relu().repeat(1, 1, 2, 3))),
    "upsample_nearest_neighbor": ("upsample_nearest_neighbor", Apply(lambda x: F.interpolate(x, scale_factor=2))),
    "upsample_bilinear": ("upsample_bilinear", Apply(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"))),
    "upsample_bilinear, corners": (
        "upsample_bilinear",
        Apply(lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)),
    ),
    "norm of vectors": ("reduce_l2_norm", Apply(lambda x: x.norm(dim=(2, 3), keepdim=True))),
    "square": ("square", Apply(itself, nn.GroupNorm(1, 3))),
    "sqrt": ("sqrt", Apply(lambda x: torch.sqrt(x.relu() + 0.1))),
}


@pytest.mark.parametrize("case", CASES)
def test_an_operation_gives_torchs_numbers(case: str, tmp_path: Path) -> None:
    name, net = CASES[case]
    program = saved(net.float(), tmp_path / "a.mlpackage")
    assert name in operations(program)
    images = random_images()
    expected = in_torch(net, images)
    found = program.run(images)["y"]
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 3e-6 * max(1.0, float(np.abs(expected).max()))
    assert np.ptp(expected) > 0.1
    alone = np.concatenate([program.run(images[i : i + 1])["y"] for i in range(3)])
    assert np.array_equal(found, alone)


def test_every_operation_was_exercised() -> None:
    assert {name for name, _ in CASES.values()} | {"cast", "quantize", "dequantize"} == set(mil_ops.OPS)


class Integers(nn.Module):
    """A convolution of int8 weights between activations on 8-bit grids, in the words of torch's converters."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        import torch.ao.quantization.fx._decomposed  # declares torch.ops.quantized_decomposed

        self.kind, self.conv = kind, nn.Conv2d(3, 8, 3, 2, 1)
        steps = self.conv.weight.detach().abs().amax((1, 2, 3)) / 127
        self.register_buffer("whole", torch.round(self.conv.weight.detach() / steps.view(-1, 1, 1, 1)).to(torch.int8))
        self.register_buffer("steps", steps)
        self.register_buffer("zeros", torch.zeros(8, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        words: Any = torch.ops.quantized_decomposed
        weight = words.dequantize_per_channel(self.whole, self.steps, self.zeros, 0, -127, 127, torch.int8)
        inner = self.on_grid((x - 127.5) / 42.5, 0.02, -7)  # -2.4..2.7, so both ends are cut
        return self.on_grid(F.conv2d(inner, weight, self.conv.bias, 2, 1), 0.013, 3)

    def on_grid(self, x: Tensor, scale: float, zero_point: int) -> Tensor:
        words: Any = torch.ops.quantized_decomposed
        low = -128 if self.kind == torch.int8 else 0
        grid = scale, zero_point + 128 + low, low, low + 255, self.kind
        return words.dequantize_per_tensor(words.quantize_per_tensor(x, *grid), *grid)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8])
def test_integers_give_torchs_numbers(kind: torch.dtype, tmp_path: Path) -> None:
    import coremltools as ct

    net, images = Integers(kind).eval(), random_images()
    image = ct.ImageType("image", (1, 3, SIZE, SIZE), color_layout=ct.colorlayout.RGB)
    with quiet(), torch.no_grad():
        exported = torch.export.export(net, (torch.zeros(1, 3, SIZE, SIZE),)).run_decompositions({})
        ct.convert(
            exported, convert_to="mlprogram", inputs=[image], outputs=[ct.TensorType("y", dtype=np.float32)],
            compute_precision=ct.precision.FLOAT32, minimum_deployment_target=ct.target.iOS17, skip_model_load=True,
        ).save(str(tmp_path / "a.mlpackage"))  # fmt: skip
        expected = net(torch.from_numpy(images).permute(0, 3, 1, 2).float()).numpy()
    program = MilProgram(tmp_path / "a.mlpackage")
    assert {"quantize", "dequantize", "conv"} <= operations(program)
    found = program.run(images)["y"]
    assert len(np.unique(found)) > 50
    assert np.mean(found != expected) < 0.002  # a sum between two steps may go either way
    assert np.abs(found - expected).max() < 0.0131


def test_one_grid_for_each_slice() -> None:
    x = torch.tensor([[0.5, 1.5, -2.5], [3.0, -1.0, 400.0]])
    steps, zeros = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 5.0])
    whole = mil_ops.quantize(x, steps, zeros, axis=0)
    assert whole.tolist() == [[0, 2, -2], [7, 5, 205]]  # ties to even: 1.5 -> 2, 0.5 -> 0, -0.5 -> 0
    assert mil_ops.dequantize(whole, steps, zeros, axis=-2).tolist() == [[0, 2, -2], [4, 0, 400]]


def halves(values: NDArray[np.floating[Any]]) -> NDArray[np.float16]:
    return values.astype(np.float32).astype(np.float16)


def test_half_precision_is_numpys_rounded_after_every_operation(tmp_path: Path) -> None:
    """An independent twin: fp16 values and elementwise arithmetic by numpy, the product's sum in float64."""
    conv = nn.Conv2d(3, 16, 1)
    net = Apply(lambda x: F.relu(x) * 1.7, conv)
    program = saved(net, tmp_path / "a.mlpackage", "FLOAT16")
    images = random_images(8)
    pixels = images.transpose(0, 3, 1, 2).astype(np.float16)
    centred = (pixels - np.float16(127.5)) * np.float16(1 / 42.5)
    weights, bias = (halves(part.detach().numpy()).astype(np.float64) for part in (conv.weight, conv.bias))
    summed = np.einsum("oc,nchw->nohw", weights[:, :, 0, 0], centred.astype(np.float64)) + bias[:, None, None]
    expected = np.maximum(halves(summed), 0) * np.float16(1.7)
    assert expected.dtype == np.float16
    found = program.run(images)["y"]
    assert np.array_equal(found, expected.astype(np.float32))
    assert np.abs(found - in_torch(net, images)).max() > 1e-4  # float32 would not have given these numbers


def test_sums_do_not_depend_on_batch_or_threads(tmp_path: Path) -> None:
    net = nn.Sequential(
        *(nn.Conv2d(3, 64, 3, 2, 1), nn.Hardswish(), nn.Conv2d(64, 64, 5, 1, 2, groups=64), nn.ReLU6()),
        *(nn.Conv2d(64, 256, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 32)),
    )
    program = saved(Apply(itself, net), tmp_path / "a.mlpackage", "FLOAT16")
    images = random_images(33)
    alone = np.concatenate([program.run(images[i : i + 1])["y"] for i in range(33)])
    for threads in (1, 2):
        assert np.array_equal(program.run(images, threads)["y"], alone)
    assert program.safe_batch(32) == 32


class Mixing(nn.Module):
    """Legal for the batch of 1 a program is saved for, wrong for more."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "sum over the batch":
            return x * 0.01 + x.sum(0, keepdim=True)
        return x.reshape(3 * SIZE, SIZE).sum(1)


def test_images_that_are_folded_into_rows_and_back_are_run_one_by_one(tmp_path: Path) -> None:
    """MobileViT's patches: the leading 1 of the second shape is the batch, the leading size of the first is not."""

    def turned(x: Tensor) -> Tensor:
        rows = x.reshape(len(x) * 3 * 5, 3, SIZE).transpose(1, 2).relu()
        return rows.reshape(len(x), 15, SIZE, -1).transpose(1, 3)

    net = Apply(turned)
    program, images = saved(net, tmp_path / "a.mlpackage"), random_images()
    assert program.safe_batch(32) == 1
    found = np.concatenate([program.run(images[i : i + 1])["y"] for i in range(3)])
    assert np.abs(found - in_torch(net, images)).max() < 3e-6


@pytest.mark.parametrize("how", ["sum over the batch", "reshape without the batch"])
def test_a_program_that_mixes_images_is_run_one_by_one(how: str, tmp_path: Path) -> None:
    assert saved(Mixing(how), tmp_path / "a.mlpackage").safe_batch(32) == 1


def test_what_the_evaluator_does_not_know_is_named(tmp_path: Path) -> None:
    for index, (function, name) in enumerate(((torch.cumsum, "cumsum"), (torch.flip, "reverse"))):
        net = Apply(lambda x, function=function: function(x, dim=1) if function is torch.cumsum else function(x, (3,)))
        with pytest.raises(MissingBackend, match=name):
            saved(net, tmp_path / f"{index}.mlpackage")


def test_each_operation_that_is_missing_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def relu_without_its_input(y: Tensor) -> Tensor:
        return y

    monkeypatch.setitem(mil_ops.OPS, "relu", relu_without_its_input)
    net = Apply(lambda x: x.cumsum(1).relu().cumsum(2).flip(3).relu() + torch.sigmoid(x))
    with pytest.raises(MissingBackend) as caught:
        saved(net, tmp_path / "a.mlpackage")
    assert caught.value.found == "cumsum, relu with x without y, reverse"


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
def test_int8_weights_are_read_back_as_they_were_stored(target: str, tmp_path: Path) -> None:
    import coremltools as ct
    from coremltools.optimize import coreml as optimize

    conv = nn.Conv2d(3, 64, 5, bias=False)
    saved(Apply(itself, conv), tmp_path / "a.mlpackage", "FLOAT32", target)
    rule = optimize.OptimizationConfig(optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=1))
    with quiet():
        model = ct.models.MLModel(str(tmp_path / "a.mlpackage"), skip_model_load=True)
        optimize.linear_quantize_weights(model, rule).save(str(tmp_path / "b.mlpackage"))
    weights = conv.weight.detach().numpy()
    scale = np.abs(weights).max((1, 2, 3), keepdims=True) / 127
    rounded = nn.Conv2d(3, 64, 5, bias=False)
    rounded.weight.data = torch.from_numpy(np.round(weights / scale) * scale)
    images = random_images()
    found = MilProgram(tmp_path / "b.mlpackage").run(images)["y"]
    expected, exact = in_torch(Apply(itself, rounded), images), in_torch(Apply(itself, conv), images)
    assert np.abs(found - expected).max() < 0.1 * np.abs(found - exact).max()


@given(
    size=st.integers(1, 12), window=st.integers(1, 5), stride=st.integers(1, 4), lower=st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_same_padding_by_its_definition(size: int, window: int, stride: int, lower: bool) -> None:
    """ceil(size / stride) outputs, padding split evenly, the odd pixel behind ("same") or in front ("same_lower")."""
    x = torch.arange(1.0, size + 1).reshape(1, 1, 1, size).expand(1, 1, size, size)
    kernel = torch.ones(1, 1, 1, window)
    kind = "same_lower" if lower else "same"
    found = mil_ops.conv(x, kernel, [1, stride], kind, [0] * 4, [1, 1], 1)[0, 0, 0]
    outputs = math.ceil(size / stride)
    missing = max((outputs - 1) * stride + window - size, 0)
    before = missing - missing // 2 if lower else missing // 2
    line = [0.0] * before + list(range(1, size + 1)) + [0.0] * (missing - before)
    assert found.tolist() == [sum(line[i * stride : i * stride + window]) for i in range(outputs)]


def test_a_gate_by_sigmoid_approximation() -> None:
    x = torch.linspace(-4, 4, 50)
    assert torch.allclose(mil_ops.gelu(x, "SIGMOID_APPROXIMATION").float(), x / (1 + torch.exp(-1.702 * x)), atol=1e-6)
