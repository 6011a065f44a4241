"""Every engine opens a model with metadata, returns the student's codes for any number of images, and rejects junk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from export.artifact import KEY, ExportedModel, ModelMetadata
from export.exporter import export_all
from export.metadata import SPEC, read_metadata
from gallery.codes import pack
from gallery.codespace import Preprocessing
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError, MissingBackend
from mobile_eval.runtimes import Runtime, open_model
from tests.export.factories import SPACE, request_of

SIZE, BITS = 24, 16
FORMS = ("onnx-fp32", "litert-fp32", "coreml-fp16")
SUFFIXES = {"onnx": ".onnx", "litert": ".tflite", "coreml": ".mlpackage"}


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.head = nn.Conv2d(16, BITS, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise(F.hardswish(self.conv(x))))
        return 9 * self.head(x.mean((2, 3), keepdim=True)).flatten(1)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Tiny().eval()


@pytest.fixture(scope="module")
def files(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    preprocessing = Preprocessing(SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    made = export_all(request_of(net, "tiny", preprocessing), FORMS, tmp_path_factory.mktemp("files"))
    return {one.variant.split("-")[0]: one.path for one in made if isinstance(one, ExportedModel)}


@pytest.fixture(scope="module", params=SUFFIXES)
def path(request: pytest.FixtureRequest, files: dict[str, Path]) -> Path:
    return files[request.param]


@pytest.fixture(scope="module")
def runtime(path: Path) -> Runtime:
    return open_model(path)


def random_images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def torch_logits(net: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.no_grad():
        found: NDArray[np.float32] = net(
            torch.from_numpy((images / 255 - 0.5) / 0.25).float().permute(0, 3, 1, 2)
        ).numpy()
    return found


@pytest.mark.parametrize("count", [0, 1, 2, 8, 9, 33, 70])
def test_any_number_of_images(runtime: Runtime, net: nn.Module, count: int) -> None:
    images = random_images(count, seed=count)
    found = runtime.run(images)
    assert found.codes.shape == (count, BITS // 8)
    assert found.logits.shape == (count, BITS)
    assert (found.codes.dtype, found.logits.dtype) == (np.uint8, np.float32)
    assert np.array_equal(found.codes, pack(found.logits))
    assert np.array_equal(runtime.encode(images), found.codes)
    if count:
        expected = torch_logits(net, images)
        assert np.abs(found.logits - expected).max() < 5e-3 * np.abs(expected).max()
        sure = np.abs(expected) > 0.02
        assert sure.mean() > 0.8
        assert np.array_equal((found.logits > 0)[sure], (expected > 0)[sure])


def test_an_image_gives_the_same_code_in_any_batch(runtime: Runtime) -> None:
    images = random_images(40)
    together = runtime.run(images)
    alone = [runtime.run(images[i : i + 1]) for i in range(40)]
    assert np.array_equal(together.codes, np.concatenate([one.codes for one in alone]))
    assert np.abs(together.logits - np.concatenate([one.logits for one in alone])).max() < 1e-5
    assert np.array_equal(runtime.run(images[::-1]).codes, together.codes[::-1])


def test_what_is_returned_is_not_overwritten_by_the_next_run(runtime: Runtime) -> None:
    first = runtime.run(random_images(1, seed=1))
    kept = first.codes.copy(), first.logits.copy()
    runtime.run(random_images(1, seed=2))
    assert np.array_equal(first.codes, kept[0])
    assert np.array_equal(first.logits, kept[1])


def test_memory_mapped_and_strided_images(runtime: Runtime, tmp_path: Path) -> None:
    images = random_images(6)
    np.save(tmp_path / "images.npy", images)
    expected = runtime.encode(images)
    assert np.array_equal(runtime.encode(np.load(tmp_path / "images.npy", mmap_mode="r")), expected)
    assert np.array_equal(runtime.encode(images[::2]), expected[::2])
    padded = np.zeros((6, SIZE + 4, SIZE + 4, 3), np.uint8)
    padded[:, 2:-2, 2:-2] = images
    assert np.array_equal(runtime.encode(padded[:, 2:-2, 2:-2]), expected)


def test_threads_change_nothing(path: Path, runtime: Runtime) -> None:
    images = random_images(5)
    before = torch.get_num_threads()
    two = open_model(str(path), threads=2).run(images)
    assert torch.get_num_threads() == before
    assert np.array_equal(two.codes, runtime.encode(images))


def test_metadata_and_engine_name(path: Path, runtime: Runtime) -> None:
    assert runtime.metadata.code_space == SPACE.id
    assert (runtime.metadata.bits, runtime.metadata.size, runtime.metadata.student) == (BITS, SIZE, "tiny")
    engine = {".onnx": "ONNX Runtime 1.", ".tflite": "LiteRT 2.", ".mlpackage": "Core ML"}[path.suffix]
    assert runtime.engine.startswith(engine)
    assert runtime.timed == (path.suffix != ".mlpackage" or sys.platform == "darwin")


WRONG: dict[str, tuple[NDArray[np.generic], str]] = {
    "one image": (random_images(1)[0], r"images\[None\]"),
    "floats": (random_images(1).astype(np.float32) / 255, "normalises"),
    "channels first": (random_images(1).transpose(0, 3, 1, 2), "transpose"),
    "another size": (np.zeros((1, SIZE + 1, SIZE, 3), np.uint8), "Resize"),
    "alpha": (np.zeros((1, SIZE, SIZE, 4), np.uint8), "Resize"),
    "int8": (random_images(1).astype(np.int8), "normalises"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_images_of_another_shape_or_type_are_rejected_with_the_fix(runtime: Runtime, wrong: str) -> None:
    images, fix = WRONG[wrong]
    with pytest.raises(InputError, match=fix):
        runtime.run(images)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["model.pt", "model", "model.onnx.bak", "model.ONNX"])
def test_other_files_are_rejected(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"\.mlpackage"):
        open_model(tmp_path / name)


@pytest.mark.parametrize("suffix", SUFFIXES.values())
def test_a_missing_file_is_rejected(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(InputError, match="nothing at"):
        open_model(tmp_path / f"model{suffix}")


JUNK = {
    "empty": b"",
    "zeros": bytes(5000),
    "text": b"not a model" * 99,
    "png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9,
}


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("suffix", SUFFIXES.values())
def test_junk_is_a_corrupt_file(tmp_path: Path, suffix: str, junk: str) -> None:
    (tmp_path / f"model{suffix}").write_bytes(JUNK[junk])
    with pytest.raises((CorruptFile, CodeSpaceMismatch), match="model"):
        open_model(tmp_path / f"model{suffix}")
    if junk == "empty":
        (tmp_path / "folder" / f"model{suffix}").mkdir(parents=True)
        with pytest.raises(CorruptFile):
            open_model(tmp_path / f"folder/model{suffix}")


@pytest.mark.parametrize("format", ["onnx", "litert"])
def test_a_truncated_file_is_corrupt(files: dict[str, Path], tmp_path: Path, format: str) -> None:
    data = files[format].read_bytes()
    for share in (0.01, 0.3, 0.7, 0.99):
        part = tmp_path / f"part{SUFFIXES[format]}"
        part.write_bytes(data[: int(share * len(data))])
        with pytest.raises((CorruptFile, CodeSpaceMismatch)):
            open_model(part)


@pytest.mark.parametrize("format", SUFFIXES)
def test_reading_metadata_survives_any_flipped_bytes(files: dict[str, Path], tmp_path: Path, format: str) -> None:
    path = Path(
        (shutil.copytree if files[format].is_dir() else shutil.copy)(files[format], tmp_path / files[format].name)
    )
    part = path / SPEC if path.is_dir() else path
    data, rng, refused = part.read_bytes(), np.random.default_rng(0), 0
    for _ in range(150):
        damaged = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(0, min(len(data), 3000), 4)
        damaged[places] ^= rng.integers(1, 256, 4).astype(np.uint8)
        part.write_bytes(damaged.tobytes())
        try:
            assert isinstance(read_metadata(path), ModelMetadata)
        except (CorruptFile, CodeSpaceMismatch):
            refused += 1
    assert refused > 0


PACKAGE_DAMAGE: dict[str, Callable[[Path], object]] = {
    "no manifest": lambda p: (p / "Manifest.json").unlink(),
    "half a manifest": lambda p: (p / "Manifest.json").write_text((p / "Manifest.json").read_text()[:50]),
    "a manifest that leads elsewhere": lambda p: (p / "Manifest.json").write_text(
        (p / "Manifest.json").read_text().replace("com.apple.CoreML/model.mlmodel", "../../../model.mlmodel")
    ),
    "no program": lambda p: (p / "Data/com.apple.CoreML/model.mlmodel").unlink(),
    "half a program": lambda p: halve(p / "Data/com.apple.CoreML/model.mlmodel"),
    "an empty program": lambda p: (p / "Data/com.apple.CoreML/model.mlmodel").write_bytes(b""),
    "no weights": lambda p: (p / "Data/com.apple.CoreML/weights/weight.bin").unlink(),
    "half the weights": lambda p: halve(p / "Data/com.apple.CoreML/weights/weight.bin"),
}


def halve(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("damage", PACKAGE_DAMAGE)
def test_a_damaged_package_is_corrupt(files: dict[str, Path], tmp_path: Path, damage: str) -> None:
    package = Path(shutil.copytree(files["coreml"], tmp_path / "a.mlpackage"))
    open_model(package)
    PACKAGE_DAMAGE[damage](package)
    with pytest.raises((CorruptFile, CodeSpaceMismatch), match=r"a\.mlpackage"):
        open_model(package)


def with_metadata(path: Path, folder: Path, text: str | None) -> Path:
    """A copy of an ONNX file with other metadata, or none."""
    import onnx

    model = onnx.load(path)
    del model.metadata_props[:]
    if text is not None:
        onnx.helper.set_model_props(model, {KEY: text})
    onnx.save(model, folder / "other.onnx")
    return folder / "other.onnx"


def test_a_file_without_metadata_is_rejected_in_every_format(files: dict[str, Path], tmp_path: Path) -> None:
    from coremltools.proto import Model_pb2

    lite = tmp_path / "a.tflite"
    lite.write_bytes(files["litert"].read_bytes().replace(KEY.encode(), b"twinhash.metadaty"))
    package = Path(shutil.copytree(files["coreml"], tmp_path / "a.mlpackage"))
    spec = Model_pb2.Model()
    spec.ParseFromString((package / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
    spec.description.metadata.userDefined.clear()
    (package / "Data/com.apple.CoreML/model.mlmodel").write_bytes(spec.SerializeToString())
    for path in (lite, package, with_metadata(files["onnx"], tmp_path, None)):
        with pytest.raises(CodeSpaceMismatch, match="metadata"):
            open_model(path)


@pytest.mark.parametrize("change", [{"size": 48}, {"bits": 32}])
def test_metadata_of_another_graph_is_rejected(files: dict[str, Path], tmp_path: Path, change: dict[str, int]) -> None:
    fields = json.loads(open_model(files["onnx"]).metadata.to_json()) | change
    with pytest.raises(CorruptFile, match="shapes"):
        open_model(with_metadata(files["onnx"], tmp_path, ModelMetadata(**fields).to_json()))


@pytest.mark.parametrize("text", ["{", "[]", '"x"', '{"bits": 64}', '{"unknown": 1}'])
def test_unreadable_metadata_is_corrupt(files: dict[str, Path], tmp_path: Path, text: str) -> None:
    with pytest.raises(CorruptFile):
        open_model(with_metadata(files["onnx"], tmp_path, text))


@pytest.mark.parametrize("format", SUFFIXES)
def test_a_missing_engine_says_what_to_install(files: dict[str, Path], format: str) -> None:
    """In a process of its own, where the engine's package cannot be imported."""
    package = {"onnx": "onnxruntime", "litert": "ai_edge_litert", "coreml": "coremltools"}[format]
    code = (
        "import sys; sys.modules[sys.argv[1]] = None\n"
        "from gallery.errors import MissingBackend\n"
        "from mobile_eval.runtimes import open_model\n"
        "try: open_model(sys.argv[2])\n"
        "except MissingBackend as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, package, str(files[format])], text=True, capture_output=True,
                          cwd=Path(__file__).parents[2])  # fmt: skip
    fixes = f"pip install {package.replace('_', '-')}", "pip install -e '.["  # of a copy that is not installed, or is
    assert any(fix in done.stdout for fix in fixes), done.stderr
    assert MissingBackend.__name__ not in done.stderr


@pytest.mark.parametrize("format", ["onnx", "litert"])
def test_no_torch_is_needed(files: dict[str, Path], format: str) -> None:
    code = (
        "import sys, numpy\n"
        "from mobile_eval.runtimes import open_model\n"
        f"print(open_model(sys.argv[1]).encode(numpy.zeros((2, {SIZE}, {SIZE}, 3), 'uint8')).shape)\n"
        "assert not {'torch', 'tensorflow', 'coremltools'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(files[format])], text=True, capture_output=True,
                          cwd=Path(__file__).parents[2])  # fmt: skip
    assert done.stdout == "(2, 2)\n", done.stderr
    assert done.stderr == ""


def test_an_old_boards_tflite_runtime_gives_the_same_codes(files: dict[str, Path], tmp_path: Path) -> None:
    """tflite_runtime 2.14 needs numpy 1, so it lives in an environment of its own; the variable names its python."""
    python = os.environ.get("TWINHASH_TFLITE_PYTHON")
    if not python:
        pytest.skip("TWINHASH_TFLITE_PYTHON names no python that has tflite_runtime")
    np.save(tmp_path / "images.npy", random_images(6))
    code = (
        "import sys, numpy\n"
        "from mobile_eval.runtimes import open_model\n"
        "runtime = open_model(sys.argv[1])\n"
        "print(runtime.engine, runtime.metadata.precision, runtime.encode(numpy.load(sys.argv[2])).tobytes().hex())"
    )
    done = subprocess.run([python, "-c", code, str(files["litert"]), str(tmp_path / "images.npy")], text=True,
                          capture_output=True, cwd=Path(__file__).parents[2])  # fmt: skip
    expected = open_model(files["litert"]).encode(random_images(6)).tobytes().hex()
    assert done.stdout.startswith("TensorFlow Lite 2."), done.stderr
    assert done.stdout.split()[-2:] == ["fp32", expected]
