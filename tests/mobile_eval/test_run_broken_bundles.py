"""Five ways in which a bundle that was good goes wrong, each caught by the command that CI runs, with the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from export.bundle import open_bundle
from gallery import codespace
from gallery.codes import pack
from gallery.codespace import CENTERS, FILE, CodeSpace, Preprocessing, hash_centers
from gallery.index import create_gallery
from gallery.results import load
from tests.gallery.galleries import named, numbered
from tests.mobile_eval.bundles import BITS, GOLDEN, SEEN, SPACE, Call, Good, bundle_of, in_bgr, refit
from tests.mobile_eval.bundles import CENTERS as HASH_CENTERS

ONNX = "query-fp32.onnx"


@pytest.fixture
def bundle(good: Good, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(good.folder, tmp_path / "bundle"))


def flip_a_byte(path: Path) -> None:
    """The top bit of the exponent of the largest weight of the layer that gives the bits."""
    data = bytearray(path.read_bytes())
    tensors = onnx.load(path).graph.initializer
    (head,) = [t for t in tensors if list(t.dims)[:2] == [BITS, 16] and len(t.dims) == 4]
    place = data.find(head.raw_data) + 4 * int(np.abs(np.frombuffer(head.raw_data, "<f4")).argmax()) + 3
    data[place] ^= 0x40
    path.write_bytes(data)


def test_the_good_one_passes(good: Good, tmp_path: Path, call: Call) -> None:
    code, said = call("evaluate", good.folder, "--gallery", good.gallery, "--num-runs", 2, "--out", tmp_path / "out")
    assert code == 0, said


def test_a_flipped_weight_byte_is_found_by_its_checksum(bundle: Path, call: Call) -> None:
    flip_a_byte(bundle / ONNX)
    code, said = call("evaluate", bundle, "--num-runs", 2)
    assert code == 2
    assert f"{ONNX} of " in said
    assert "sha256" in said
    assert not (bundle.parent / "evaluation").exists()


def test_a_flipped_weight_byte_that_the_manifest_vouches_for_is_found_by_running_it(bundle: Path, call: Call) -> None:
    flip_a_byte(bundle / ONNX)
    refit(bundle, ONNX)
    open_bundle(bundle)  # its manifest agrees with its files
    code, said = call("evaluate", bundle, "--num-runs", 2)
    assert code == 1, said
    junit = ElementTree.parse(bundle.parent / "evaluation" / "junit.xml")
    tags = {case.get("name"): [part.tag for part in case] for case in junit.iter("testcase")}
    assert tags == {"onnx-fp32": ["failure"], "onnx-fp16": []}
    (failure,) = junit.iter("failure")
    assert "host onnx-fp32: bit flip rate" in (failure.text or "")
    assert "bit flips beyond" in (failure.text or "")


def test_a_stale_gallery_is_an_error_by_name(good: Good, bundle: Path, tmp_path: Path, call: Call) -> None:
    stale = CodeSpace(BITS, SPACE.classes, "t", "1" * 64, SPACE.centers_sha256, SEEN)  # of an earlier teacher
    labels = named(good.labels, SPACE.classes)
    create_gallery(tmp_path / "old", stale, HASH_CENTERS, pack(good.logits), numbered(len(labels)), labels)
    code, said = call("evaluate", bundle, "--gallery", tmp_path / "old")
    assert code == 2
    assert stale.id in said
    assert SPACE.id in said
    assert "stale" in said


def gate_failures(folder: Path, call: Call) -> tuple[int, list[str]]:
    code, _ = call("evaluate", folder / "bundle", "--num-runs", 2)
    junit = ElementTree.parse(folder / "evaluation" / "junit.xml")
    return code, [failure.get("message", "") for failure in junit.iter("failure")]


def test_the_other_colour_order_fails(good: Good, tmp_path: Path, call: Call) -> None:
    """The metadata says RGB, and the file wants BGR."""
    seen = Preprocessing(SEEN.size, SEEN.mean[::-1], SEEN.std[::-1])
    golden = good.pixels[:GOLDEN], good.logits[:GOLDEN]
    manifest = bundle_of(in_bgr(good.net), seen, ("onnx-fp32",), tmp_path, *golden)
    assert manifest.files[0].metadata.colour_order == "RGB"
    code, failures = gate_failures(tmp_path, call)
    assert code == 1
    assert failures[0].startswith("host onnx-fp32: bit flip")


def test_another_mean_and_std_fail(good: Good, tmp_path: Path, call: Call) -> None:
    seen = Preprocessing(SEEN.size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    bundle_of(good.net, seen, ("onnx-fp32",), tmp_path, good.pixels[:GOLDEN], good.logits[:GOLDEN])
    code, failures = gate_failures(tmp_path, call)
    assert code == 1
    assert failures[0].startswith("host onnx-fp32: bit flip")


@pytest.mark.parametrize("vouched", ["by nothing", "by the manifest", "by the code space too"])
def test_permuted_centers_are_errors(bundle: Path, call: Call, vouched: str) -> None:
    space, centers = codespace.load(bundle)
    permuted = centers[[1, 0, 2, 3]]
    np.save(bundle / CENTERS, permuted)
    if vouched != "by nothing":
        refit(bundle, CENTERS)
    if vouched == "by the code space too":
        other = CodeSpace(BITS, space.classes, "t", "0" * 64, hash_centers(permuted), SEEN)
        codespace.save(bundle, other, permuted)
        refit(bundle, CENTERS, FILE)
    code, said = call("evaluate", bundle)
    assert code == 2
    assert {"by nothing": CENTERS, "by the manifest": "centers", "by the code space too": "code space"}[vouched] in said


def test_what_verify_fails_fails_here_too(good: Good, bundle: Path, call: Call, module: Any) -> None:
    """One bit flip of an fp16 file, far from zero: fewer than the gate allows, more than the golden codes do."""
    rows = json.loads((bundle / "golden.json").read_text())
    place = int(np.abs(rows[0]["logits"]).argmax())
    rows[0]["logits"][place] *= -1
    rows[0]["code"] = pack(np.array(rows[0]["logits"])).tobytes().hex()
    (bundle / "golden.json").write_text(json.dumps(rows))
    refit(bundle, "golden.json")
    code, _ = call("evaluate", bundle, "--num-runs", 2, "--thresholds.max-fp32-bit-flips", 9)
    junit = ElementTree.parse(bundle.parent / "evaluation" / "junit.xml")
    assert code == 1
    found = [failure.get("message", "") for failure in junit.iter("failure")]
    assert sum("golden codes: 1 bit flips" in message for message in found) == 2


def test_a_file_that_is_quantized_in_name_alone_is_judged_as_the_float_file_it_is(
    good: Good, tmp_path: Path, call: Call
) -> None:
    bundle_of(good.net, SEEN, ("onnx-w8a32",), tmp_path, good.pixels[:GOLDEN], good.logits[:GOLDEN])
    assert [file.precision for file in open_bundle(tmp_path / "bundle").files] == ["fp32"]  # its layers are too small
    assert call("evaluate", tmp_path / "bundle", "--num-runs", 2)[0] == 0
    (row,) = load(tmp_path / "evaluation" / "results.json").models
    assert (row.variant, row.precision) == ("onnx-w8a32", "fp32")
