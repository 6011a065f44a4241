"""Forms for phones: a fixed batch, ONNX Runtime's own format, LiteRT without codes, and what delegates take of them."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.artifact import LOGITS_ALONE, ExportedModel
from export.bundle import Golden, open_bundle, write_bundle
from export.exporter import export_all
from export.metadata import read_metadata
from export.tensors import check_tensors_of
from export.to_ort import LEFT_OUT, OPERATORS
from gallery.codes import pack
from gallery.errors import TwinhashError
from mobile_eval.compare import FloatReference
from mobile_eval.devices.host import Host
from mobile_eval.evaluate import evaluate_on
from mobile_eval.partitions import PROVIDERS, SILENT, XNNPACK, partitions
from mobile_eval.runtimes import open_model
from tests.export.factories import BITS, CENTERS, IMAGENET, SIZE, SPACE, normalised, request_of, synthetic_images

VARIANTS = ("onnx-fp32", "onnx-w8a32", "ort-fp32", "ort-w8a32", "litert-fp32", "mediapipe-fp32", "mediapipe-w8a32")


class Small(nn.Module):
    """With weights enough for 8 bits, and a squeeze-excite gate, whose hard sigmoid NNAPI's provider lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.gate, self.wide, self.head = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 64, 3, 2, 1), nn.Conv2d(64, BITS, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise(F.hardswish(self.first(x))))
        x = F.relu(self.wide(x * F.hardsigmoid(self.gate(x.mean((2, 3), keepdim=True)))))
        return 9 * self.head(x.mean((2, 3), keepdim=True)).flatten(1)


@dataclass(frozen=True)
class Forms:
    """files by variant, in `bundle` too; images uint8 `[n, S, S, 3]`; logits: of torch."""

    files: dict[str, ExportedModel]
    bundle: Path
    images: Any
    logits: Any


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Forms:
    folder = tmp_path_factory.mktemp("forms")
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = Small().eval()
    images = synthetic_images(24, seed=5)[0]
    with torch.no_grad():
        logits = net(normalised(images)).numpy()
    made = export_all(request_of(net, "small", IMAGENET), VARIANTS, folder / "made")
    files = {one.variant: one for one in made if isinstance(one, ExportedModel)}
    assert set(files) == set(VARIANTS), made
    write_bundle(folder / "bundle", made, SPACE, CENTERS, Golden(images, pack(logits), logits))
    return Forms(files, folder / "bundle", images, logits)


def onnx_without_the_layout_of_x86(path: Path, images: Any) -> tuple[Any, Any]:
    import onnxruntime

    left_out = [name for name in LEFT_OUT if name == "NchwcTransformer"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"], disabled_optimizers=left_out)
    assert [one.shape for one in session.get_inputs()] == [[1, SIZE, SIZE, 3]]
    rows = [session.run(["codes", "logits"], {"image": image[None]}) for image in images]
    return np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows])


@pytest.mark.parametrize("precision", ["fp32", "w8a32"])
def test_ort_files_return_what_the_onnx_files_do_to_the_last_bit(forms: Forms, precision: str) -> None:
    codes, logits = onnx_without_the_layout_of_x86(forms.files[f"onnx-{precision}"].path, forms.images)
    found = open_model(forms.files[f"ort-{precision}"].path).run(forms.images)
    assert np.array_equal(found.codes, codes)
    assert np.array_equal(found.logits, logits)
    assert np.abs(logits - forms.logits).max() < (1e-4 if precision == "fp32" else 0.2)


def test_every_file_is_what_its_metadata_says(forms: Forms) -> None:
    for variant, file in forms.files.items():
        assert read_metadata(file.path) == file.metadata
        assert check_tensors_of(file.path, file.metadata) == file.metadata.precision, variant
        assert (file.metadata.layout == LOGITS_ALONE) == (file.format == "mediapipe")
    assert forms.files["ort-w8a32"].bytes < 0.6 * forms.files["ort-fp32"].bytes  # not unpacked by constant folding


def test_mediapipes_file_is_the_litert_one_without_codes(forms: Forms) -> None:
    from ai_edge_litert.interpreter import Interpreter

    both, alone = (open_model(forms.files[f"{name}-fp32"].path).run(forms.images) for name in ("litert", "mediapipe"))
    assert np.array_equal(alone.logits, both.logits)
    assert np.array_equal(alone.codes, both.codes)
    interpreter = Interpreter(str(forms.files["mediapipe-fp32"].path))
    assert interpreter.get_signature_list()["serving_default"] == {"inputs": ["image"], "outputs": ["logits"]}
    assert [one["dtype"] for one in interpreter.get_input_details()] == [np.uint8]
    assert [(one["dtype"], one["shape"].tolist()) for one in interpreter.get_output_details()] == [
        (np.float32, [1, BITS])
    ]


def test_the_bundle_lists_them_and_the_operators_that_ort_files_need(forms: Forms) -> None:
    assert {file.variant for file in open_bundle(forms.bundle).files} == set(VARIANTS)
    lines = (forms.bundle / OPERATORS).read_text().splitlines()
    said = {operator.split("{")[0] for line in lines for operator in line.split(";", 2)[2].split(",")}
    assert {"Cast", "Greater", "HardSigmoid"} <= said
    assert "/" not in "".join(lines)
    readme = (forms.bundle / "README.md").read_text()
    assert "`query-*.ort`" in readme
    assert "`query-*.mediapipe.tflite`" in readme
    assert all(file.path.name in readme for file in forms.files.values())


def test_a_bundle_without_them_does_not_speak_of_them(forms: Forms, tmp_path: Path) -> None:
    golden = Golden(forms.images, pack(forms.logits), forms.logits)
    write_bundle(tmp_path / "bundle", [forms.files["onnx-fp32"]], SPACE, CENTERS, golden)
    readme = (tmp_path / "bundle" / "README.md").read_text()
    assert "query-*" not in readme
    assert "ImageEmbedder" not in readme
    assert not (tmp_path / "bundle" / OPERATORS).exists()


def test_they_pass_the_gates_of_all_others_on_the_host(forms: Forms) -> None:
    models = open_bundle(forms.bundle).files
    reference = FloatReference(forms.images, forms.logits, SPACE)
    results = evaluate_on(Host(samples=1, partitions=True), models, reference)
    rows = {row.variant: row for row in results.rows}
    assert {row.status for row in rows.values()} == {"ran"}, rows
    for variant, row in rows.items():
        assert row.flips_beyond_tolerance == 0 or "w8a32" in variant
        assert row.bit_flip_rate is not None
        assert row.bit_flip_rate < 0.02
        assert row.partitions
    one, two = rows["mediapipe-fp32"].partitions[0], rows["litert-fp32"].partitions[0]
    assert (one.delegate, one.partitions, two.partitions) == (XNNPACK, 1, 2)
    assert rows["ort-fp32"].partitions[0].text == SILENT


def test_a_fixed_batch_is_what_lets_providers_take_operations(forms: Forms, tmp_path: Path) -> None:
    path = forms.files["onnx-fp32"].path
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, tmp_path / "free.onnx")
    fixed, free = ({row["delegate"]: row for row in partitions(one)} for one in (path, tmp_path / "free.onnx"))
    assert set(fixed) == {"NNAPI", "Core ML NeuralNetwork", "Core ML MLProgram"}
    assert all(3 * free[name]["supported"] < row["supported"] for name, row in fixed.items())  # of weights alone
    assert fixed["Core ML MLProgram"]["supported"] == fixed["Core ML MLProgram"]["operations"] - 1  # Greater
    assert 0 < fixed["NNAPI"]["supported"] < fixed["NNAPI"]["operations"]


@pytest.mark.parametrize("suffix", [".onnx", ".tflite"])
def test_of_a_file_that_no_tool_reads_the_reason_is_said(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"no model")
    (row,) = partitions(tmp_path / f"a{suffix}")
    assert row["delegate"] in (PROVIDERS, XNNPACK)
    assert row["reason"]


def test_a_damaged_ort_file_is_refused_or_is_what_it_was(forms: Forms, tmp_path: Path) -> None:
    file, rng = forms.files["ort-w8a32"], np.random.default_rng(0)
    path = Path(shutil.copy(file.path, tmp_path / "query-w8a32.ort"))
    data = file.path.read_bytes()
    places = [*range(0, 64, 2), *rng.integers(0, len(data), 150), *rng.integers(0, len(data) - 1, 10) * -1]
    for place in map(int, places):
        damaged = bytearray(data if place >= 0 else data[:-place])
        if place >= 0:
            damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with contextlib.suppress(TwinhashError):  # anything else is a crash
            assert read_metadata(path).bits == BITS
            assert check_tensors_of(path, file.metadata) in ("w8a32", "fp32")


def test_an_ort_file_may_resize_inside_as_the_onnx_file_does(
    forms: Forms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(Small().eval(), "small", IMAGENET, dynamic_image_size=True)
    made = export_all(request, ("onnx-fp32", "ort-fp32"), tmp_path)
    one, two = (open_model(file.path) for file in made if isinstance(file, ExportedModel))
    images = np.random.default_rng(6).integers(0, 256, (3, 50, 90, 3), np.uint8)
    assert np.abs(one.run(images).logits - two.run(images).logits).max() < 1e-4
    assert all(check_tensors_of(file.path, file.metadata) == "fp32" for file in made if isinstance(file, ExportedModel))
    golden = Golden(forms.images, pack(forms.logits), forms.logits)
    write_bundle(tmp_path / "bundle", made, SPACE, CENTERS, golden)
    readme = (tmp_path / "bundle" / "README.md").read_text()
    assert "resize inside" in readme
    monkeypatch.chdir(tmp_path / "bundle")
    told: dict[str, Any] = {}
    exec(readme.split("```python")[1].split("```")[0], told)  # its own snippet is fed as it says
    assert np.array_equal(told["codes"], pack(told["logits"]))
