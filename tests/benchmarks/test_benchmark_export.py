"""The student cut out of its shipped file: the same logits for the pixels that the front of the file makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import bare
from benchmarks.export import everywhere
from export.exporter import export_all
from export.fake_quant import layers, simulated
from gallery.codespace import Preprocessing

IMAGENET = Preprocessing(16, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FORMS = "onnx-fp32", "onnx-fp16", "onnx-int8-weights", "litert-fp32", "litert-int8-weights"


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Conv2d(3, 24, 3, 2, 1), nn.Hardswish(), nn.Conv2d(24, 160, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(*body, nn.Conv2d(160, 16, 1), nn.Flatten()).eval()


@pytest.fixture(scope="module")
def folder(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("shipped")
    export_all(net, IMAGENET, "0" * 16, "tiny", FORMS, made)
    return made


@pytest.mark.parametrize("form", FORMS)
def test_what_is_cut_out_is_the_student(form: str, folder: Path, tmp_path: Path) -> None:
    format, _, precision = form.partition("-")
    path = folder / f"query-{precision}{'.onnx' if format == 'onnx' else '.tflite'}"
    picture = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3)).astype(np.uint8)
    cut = bare._cut_onnx if format == "onnx" else bare._cut_litert
    shipped = run(path, picture)
    alone = run(cut(path, tmp_path / path.name), front(path, picture))
    np.testing.assert_allclose(alone, shipped, rtol=1e-3, atol=2e-3 if precision == "fp16" else 1e-5)


def front(path: Path, picture: np.ndarray) -> np.ndarray:
    """What the student alone takes: ONNX's has the scale in its weights where they are float, LiteRT's has not."""
    centered = picture.astype(np.float32) - 255 * np.array(IMAGENET.mean, np.float32)
    if path.suffix == ".onnx":
        return centered.transpose(0, 3, 1, 2)
    return centered / (255 * np.array(IMAGENET.std, np.float32))


def run(path: Path, fed: np.ndarray) -> np.ndarray:
    """The logits of a file for one input."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        takes = session.get_inputs()[0]
        kind = {"tensor(uint8)": np.uint8, "tensor(float16)": np.float16}.get(takes.type, np.float32)
        found: np.ndarray = session.run(["logits"], {takes.name: fed.astype(kind)})[0]
        return found
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], fed)
    interpreter.invoke()
    logits = next(tensor for tensor in interpreter.get_output_details() if tensor["dtype"] is np.float32)
    result: np.ndarray = interpreter.get_tensor(logits["index"])
    return result


def test_a_pair_is_a_ratio_of_both(folder: Path, tmp_path: Path) -> None:
    pair = bare.compare(folder / "query-fp32.onnx", tmp_path, pairs=20)
    assert pair.latency > 0
    shipped, alone = folder / "query-fp32.onnx", tmp_path / "bare-query-fp32.onnx"
    assert pair.bytes == shipped.stat().st_size / alone.stat().st_size


def test_everywhere_is_every_layer_that_can_be(net: nn.Module) -> None:
    made = simulated(net)
    for layer in layers(made).values():
        layer.mode = "observe"
    made(torch.rand(2, 3, 16, 16))
    modes = {name: layer.mode for name, layer in layers(everywhere(made)).items()}
    assert modes == {"0": "int8", "2": "int8", "5": "weights"}
