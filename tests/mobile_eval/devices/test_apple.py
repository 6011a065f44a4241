"""The Core ML device off macOS, and the Mac's script with the reference evaluator in place of Core ML.

`CoreMl`, the few lines that call macOS, was not run.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.apps import run_on_mac
from export.apps.run_on_mac import UNITS, Open, Output, Pixels, Predict
from export.artifact import ExportedModel
from export.bundle import Golden, open_bundle, write_bundle
from export.exporter import export_all
from gallery.codes import pack
from gallery.codespace import CodeSpace, Preprocessing, hash_centers
from gallery.errors import InputError, MissingBackend
from gallery.files import DESKTOP_FILES
from gallery.results import ModelResult
from mobile_eval import external_results
from mobile_eval.devices.apple import Apple
from mobile_eval.runtimes import open_model
from tests.export.factories import request_of

SIZE, BITS = 24, 16
IMAGES = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
PREPROCESSING = Preprocessing(SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
elsewhere = pytest.mark.skipif(platform.system() == "Darwin", reason="what happens where there is no Core ML")


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, BITS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return 9 * self.head(F.hardswish(self.conv(x)).mean((2, 3), keepdim=True)).flatten(1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = Tiny().eval()
    centers = np.random.default_rng(1).choice([-1, 1], (2, BITS)).astype(np.int8)
    space = CodeSpace(BITS, ("a", "b"), "t", "0" * 64, hash_centers(centers), PREPROCESSING)
    folder = tmp_path_factory.mktemp("apple")
    exported = export_all(request_of(net, "tiny", PREPROCESSING, space=space), ("coreml-fp32", "coreml-fp16"), folder)
    with torch.no_grad():
        logits = net(torch.from_numpy((IMAGES / 255 - 0.5) / 0.25).float().permute(0, 3, 1, 2)).numpy()
    write_bundle(folder / "bundle", exported, space, centers, Golden(IMAGES, pack(logits), logits))
    return folder / "bundle"


@pytest.fixture(scope="module")
def file(bundle: Path) -> ExportedModel:
    path = bundle / "query-fp16.mlpackage"
    return ExportedModel.of(path, "coreml", open_model(path).metadata)


def by_reference(path: Path, unit: str) -> Predict:
    """Core ML's stand-in: the same program, evaluated exactly; one of the units does not take it."""
    if unit == "CPU_AND_NE":
        raise RuntimeError("no Neural Engine here")
    runtime = open_model(path)

    def run(image: Pixels) -> Output:
        found = runtime.run(image[None])
        return found.codes[0], found.logits[0]

    return run


def ran(bundle: Path, out: Path, opener: Open = by_reference) -> int:
    return run_on_mac.main([str(bundle), "--out", str(out), "--samples", "4"], opener)


@elsewhere
def test_off_macos_the_reference_runs_and_nothing_is_timed(file: ExportedModel) -> None:
    with Apple() as device:
        device.push([file], IMAGES)
        output = device.run(file)
    here = open_model(file.path).run(IMAGES)
    assert np.array_equal(output.codes, here.codes)
    assert np.array_equal(output.logits, here.logits)
    assert device.name == "coreml-reference"
    row = ModelResult(
        variant="coreml-fp16", format="coreml", precision="fp16", path="x", status="ran", **output.figures
    )
    assert (row.load_ms, row.p50_ms, row.samples) == (None, None, None)


@elsewhere
@pytest.mark.parametrize("unit", UNITS)
def test_a_compute_unit_needs_a_mac(unit: str) -> None:
    with pytest.raises(MissingBackend, match="apps/run_on_mac") as caught, Apple(unit):
        pass
    assert platform.system() in caught.value.found


def test_an_unknown_unit_or_images_that_do_not_fit_are_an_error(file: ExportedModel) -> None:
    with pytest.raises(InputError, match="CPU_AND_NE"):
        Apple("TPU")
    with Apple() as device:
        with pytest.raises(InputError, match="at least one image"):
            device.push([file], IMAGES[:0])
        device.push([file], IMAGES[:, 1:])
        with pytest.raises(InputError, match="uint8 images"):
            device.run(file)


def test_the_script_checks_and_times_each_model_on_each_unit_and_its_report_is_imported(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(bundle, tmp_path / "mac.json") == 1  # one unit failed
    report = json.loads((tmp_path / "mac.json").read_text())
    assert len(report["rows"]) == 2 * len(UNITS)
    exact = next(row for row in report["rows"] if row["file"] == "query-fp32.mlpackage")
    assert (exact["bits_compared"], exact["flips_beyond_tolerance"]) == (5 * BITS, 0)
    assert exact["largest_logit_error"] < 1e-4
    assert len(exact["samples_ms"]) == 4
    assert "0 where |logit| > 0.001" in capsys.readouterr().out
    kept = {"format": "coreml", "status": "ran"}
    rows = [
        ModelResult(
            variant=one.variant, precision=one.metadata.precision, path=one.path.name, sha256=one.sha256, **kept
        )
        for one in open_bundle(bundle).files
    ]
    merged = external_results.merge_results(rows, external_results.read_results(tmp_path / "mac.json"))[2:]
    assert len(merged) == 2 * len(UNITS)
    assert {row.device for row in merged} == {"apple-cpu-only", "apple-cpu-and-gpu", "apple-cpu-and-ne", "apple-all"}
    for row in merged:
        failed = row.device == "apple-cpu-and-ne"
        assert row.status == ("failed" if failed else "ran")
        assert row.reason == ("RuntimeError: no Neural Engine here" if failed else "")
        assert (row.p50_ms is None, row.bits_compared) == ((True, None) if failed else (False, 5 * BITS))


def test_bit_flips_are_counted_and_those_of_clear_logits_apart(bundle: Path) -> None:
    _, golden = run_on_mac.read_bundle(bundle)
    near_zero = [(image, code, np.where(np.arange(BITS) < 3, 1e-4, logits)) for image, code, logits in golden]
    outputs = {image.tobytes(): (code.copy(), logits.astype(np.float32)) for image, code, logits in near_zero}
    outputs[near_zero[1][0].tobytes()][0][0] ^= 0b0001_0001  # bit 0, whose logit is near zero, and bit 4
    found = run_on_mac.compare(lambda image: outputs[image.tobytes()], near_zero)
    assert (found["bits_compared"], found["bits_flipped"], found["flips_beyond_tolerance"]) == (5 * BITS, 2, 1)


@elsewhere
def test_the_script_alone_says_that_it_needs_a_mac(bundle: Path, tmp_path: Path) -> None:
    shutil.copy(run_on_mac.__file__, tmp_path / "run_on_mac.py")
    command = [sys.executable, "run_on_mac.py", bundle]
    alone = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env={"PATH": ""})
    assert alone.returncode == 2
    assert "Core ML runs on macOS" in alone.stderr
    assert not (tmp_path / "mac.json").exists()


def test_the_script_writes_beside_the_bundle_which_stays_as_it_was(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (copy / ".DS_Store").write_bytes(b"x")
    ((copy / "query-fp16.mlpackage") / "Data" / "._com.apple.CoreML").write_bytes(b"x")
    listing = copy / "query-fp16.mlpackage" / "Manifest.json"
    listing.write_text(json.dumps(json.loads(listing.read_text())))  # what opening the package does
    monkeypatch.chdir(copy)
    assert run_on_mac.main([str(copy), "--samples", "4"], by_reference) == 1
    assert (tmp_path / "mac.json").exists()
    assert open_bundle(copy).space == open_bundle(bundle).space
    assert run_on_mac.main([str(copy), "--out", "mac.json"], by_reference) == 2
    assert "lies in the bundle" in capsys.readouterr().err
    assert run_on_mac.main([str(copy), "--out", str(tmp_path / "none" / "mac.json")], by_reference) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_the_script_passes_over_the_same_names_and_has_the_same_checksum(bundle: Path) -> None:
    assert run_on_mac.DESKTOP_FILES == DESKTOP_FILES
    for file in open_bundle(bundle).files:
        assert run_on_mac.digest(file.path) == file.sha256


@pytest.mark.parametrize("name", ["\x1b[2J.mlpackage", "../bundle", "", "/etc"])
def test_the_script_prints_no_name_that_steers_the_terminal(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    record = json.loads((copy / "manifest.json").read_text())
    record["files"] = {name: {"format": "coreml", "sha256": run_on_mac.digest(tmp_path / "nothing")}}
    (copy / "manifest.json").write_text(json.dumps(record))
    assert ran(copy, tmp_path / "mac.json") == 2
    said = "".join(capsys.readouterr())
    assert "is not what manifest.json says" in said
    assert "\x1b" not in said


@pytest.mark.parametrize("damage", ["PostScript", "another name", "deep", "a pipe"])
def test_the_script_reads_golden_images_as_png_and_by_their_own_names(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    if damage == "PostScript":
        (copy / "golden/000.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 24\n%%EOF\n")
    elif damage == "another name":
        rows = json.loads((copy / "golden.json").read_text())
        (copy / "golden.json").write_text(json.dumps([{**row, "file": "/dev/zero"} for row in rows]))
        assert len(run_on_mac.read_bundle(copy)[1]) == len(IMAGES)  # not opened
        return
    elif damage == "deep":
        (copy / "golden.json").write_text("[" * 100_000)
    else:
        (copy / "golden.json").unlink()
        os.mkfifo(copy / "golden.json")
    assert ran(copy, tmp_path / "mac.json") == 2
    assert "is no Twinhash bundle" in capsys.readouterr().err


def test_the_script_rejects_a_changed_bundle(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = shutil.copytree(bundle, tmp_path / "bundle")
    weights = next(changed.rglob("weight.bin"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert ran(changed, tmp_path / "mac.json") == 2
    assert "is not what manifest.json says" in capsys.readouterr().err
    shutil.rmtree(changed)
    assert ran(changed, tmp_path / "mac.json") == 2
    assert "is no Twinhash bundle" in capsys.readouterr().err
    assert not (tmp_path / "mac.json").exists()
