"""Golden photographs show every wrong way into the model, and pass the right one to the last bit."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distill.models.hash_net import build
from distill.models.pretrained import find_pretrained, load_pretrained
from export.apps import run_on_mac
from export.bundle import open_bundle, read_golden, write_bundle
from export.exporter import golden_of
from export.golden import PHOTOS, SQUARES, Golden
from export.golden_photos import FACTOR, LARGEST, MAX_BYTES, SIDES, draw_photos
from export.quantize import Pixels, logits, normalize, quantize
from export.query_model import inference_copy
from gallery.codes import pack, unpack
from gallery.codespace import RULE, Preprocessing
from gallery.decode import decode, to_square
from gallery.errors import CorruptFile
from gallery.files import write_json
from mobile_eval.golden import OK, compare_golden
from mobile_eval.runtimes import ModelOutput
from tests.export.app_pipelines import FILTERS, WRONG, pipeline_of, reduced
from tests.export.factories import IMAGENET, SIZE, Exports, request_for, request_of
from tests.mobile_eval.bundles import refit


@pytest.fixture(scope="module")
def golden(exports: Exports) -> Golden:
    student = exports.student
    few = student.images[:2], pack(student.logits[:2]), student.logits[:2]
    return golden_of(request_for(student, golden=few))


@pytest.fixture(scope="module")
def bundle(exports: Exports, golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    student, folder = exports.student, tmp_path_factory.mktemp("photos") / "bundle"
    files = [exports.files["onnx-fp32"], exports.files["coreml-w8a32"]]
    write_bundle(folder, files, student.space, student.centers, golden)
    return folder


def judged(net: Any, seen: Preprocessing, golden: Golden, name: str) -> tuple[str, str]:
    """What `verify` would say of an app that feeds a float network's file with a pipeline's squares."""
    squares = np.stack([pipeline_of(name)(data, seen.size) for data in golden.photos.values()])
    found = logits(net, normalize(squares, seen)).numpy()
    last = slice(len(golden.images) - len(golden.photos), None)
    part = Golden(golden.images[last], golden.codes[last], golden.logits[last])
    return compare_golden("fp32", ModelOutput(pack(found), found), part)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_pipeline_fails(exports: Exports, golden: Golden, name: str) -> None:
    try:
        pipeline_of(name)
    except ImportError as missing:
        pytest.skip(str(missing))
    status, why = judged(exports.student.net, IMAGENET, golden, name)
    assert status != OK, why


@pytest.fixture(scope="module")
def rounded(exports: Exports) -> torch.nn.Module:
    """The student with 8-bit weights, as w8a32 files store them."""
    net, images = inference_copy(exports.student.net, SIZE), exports.student.images
    return quantize(net, IMAGENET, images[::2], images[1::2], activations=False).stored


def apart(net: Any, golden: Golden, squares: Pixels) -> float:
    """How far an app's squares are from the bundle's by one model's logits, as the bundle's README says it."""
    right = golden.images[-len(golden.photos) :]
    found, said = (logits(net, normalize(images, IMAGENET)).numpy() for images in (squares, right))
    everything = logits(net, normalize(golden.images, IMAGENET)).numpy()
    return float(np.sqrt(np.square(found - said).mean(axis=1)).max() / np.sqrt(np.square(everything).mean()))


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_pipeline_is_seen_through_8_bit_weights(rounded: torch.nn.Module, golden: Golden, name: str) -> None:
    try:
        pipeline = pipeline_of(name)
    except ImportError as missing:
        pytest.skip(str(missing))
    squares = np.stack([pipeline(data, SIZE) for data in golden.photos.values()])
    assert apart(rounded, golden, squares) > 1 / 20


def test_a_decoder_that_differs_by_one_passes_through_8_bit_weights(rounded: torch.nn.Module, golden: Golden) -> None:
    right = golden.images[-len(golden.photos) :].astype(int)
    noise = np.random.default_rng(0).choice([-1, 0, 1], right.shape, p=[0.05, 0.9, 0.05])
    assert apart(rounded, golden, (right + noise).clip(0, 255).astype(np.uint8)) < 1 / 20
    assert apart(rounded, golden, right.astype(np.uint8)) == 0


def test_a_bundle_has_the_squares_of_its_photographs(bundle: Path, golden: Golden, tmp_path: Path) -> None:
    for name, square in zip(golden.photos, golden.images[-len(golden.photos) :], strict=True):
        with Image.open(bundle / SQUARES / f"{Path(name).stem}.png") as image:
            assert np.array_equal(np.asarray(image), square)
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    shutil.copy(copy / SQUARES / "grey.png", copy / SQUARES / "cmyk.png")
    refit(copy, f"{SQUARES}cmyk.png")
    with pytest.raises(CorruptFile, match=r"cmyk\.png, which is not the square of golden/photos/cmyk\.jpg"):
        read_golden(copy, open_bundle(copy))


@pytest.mark.parametrize("name", [name for name in FILTERS if not name.startswith("Pillow")])
def test_without_its_library_a_pipeline_is_named_before_it_runs(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for library in ("skia", "cv2"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r"skia|cv2"):
        pipeline_of(name)


@pytest.mark.parametrize("size", [128])
def test_wrong_pipelines_fail_with_real_weights(size: int) -> None:
    """A pretrained backbone under a random hash head."""
    if not os.environ.get("TWINHASH_WEIGHTS"):
        pytest.skip("TWINHASH_WEIGHTS is not set")
    seen, name = Preprocessing(size, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), "tf_mobilenetv3_small_100"
    net = build(name, size, 64, seed=0)
    load_pretrained(net.backbone, find_pretrained(name))
    none = np.empty((0, size, size, 3), np.uint8), np.empty((0, 8), np.uint8), np.empty((0, 64), np.float32)
    golden = golden_of(request_of(net, name, seen, golden=none))
    for wrong in WRONG:
        try:
            status, why = judged(net, seen, golden, wrong)
        except ImportError:
            continue
        assert status != OK, f"{wrong}: {why}"


def test_the_rule_passes_with_no_bit_off(exports: Exports, bundle: Path, golden: Golden) -> None:
    found = read_golden(bundle, open_bundle(bundle))
    assert found.photos == golden.photos
    assert np.array_equal(found.images, golden.images)
    assert np.array_equal(found.logits, golden.logits)
    rows = json.loads((bundle / "golden.json").read_text())
    for row, image in zip(rows, golden.images, strict=True):
        square = to_square(decode((bundle / row["file"]).read_bytes()), SIZE)
        assert np.array_equal(square, image)
        assert hashlib.sha256(square.tobytes()).hexdigest() == row["square"]
        own = logits(exports.student.net, normalize(square[None], IMAGENET)).numpy()
        assert pack(own).tobytes().hex() == row["code"]


def test_the_mac_script_sees_the_same_squares(bundle: Path, golden: Golden) -> None:
    _, read = run_on_mac.read_bundle(bundle)
    assert np.array_equal(np.stack([image for image, _, _ in read]), golden.images)
    assert np.array_equal(np.stack([code for _, code, _ in read]), golden.codes)


@pytest.mark.parametrize("size", [24, 32, 100, 224])
def test_they_are_what_they_are_named_after(size: int) -> None:
    photos = draw_photos(size)
    assert list(photos) == list(SIDES)
    assert sum(map(len, photos.values())) <= MAX_BYTES
    images = {name: Image.open(BytesIO(data)) for name, data in photos.items()}
    for name, image in images.items():
        assert min(image.size) == FACTOR * size, "or a decoder that reduces as the rule allows would give other pixels"
        assert max(image.size) >= 1.19 * min(image.size)
        assert decode(photos[name]).size != (size, size)
    assert [images[name].getexif()[0x0112] for name in ("exif-6.jpg", "exif-3.jpg")] == [6, 3]
    assert [images[name].mode for name in ("grey.jpg", "cmyk.jpg", "alpha.png")] == ["L", "CMYK", "RGBA"]
    described = [name for name, image in images.items() if image.info.get("icc_profile")]
    assert described == ["exif-6.jpg", "display-p3.jpg", "panorama.jpg"]
    for data in photos.values():
        assert np.array_equal(reduced(data, size), to_square(decode(data), size))
    assert draw_photos(size) == photos


def test_those_of_large_inputs_are_bounded() -> None:
    assert max(min(Image.open(BytesIO(data)).size) for data in draw_photos(600).values()) == LARGEST


DAMAGE = {
    "another photo": lambda b: (b / PHOTOS / "grey.jpg").write_bytes((b / PHOTOS / "cmyk.jpg").read_bytes()),
    "no photo": lambda b: (b / PHOTOS / "grey.jpg").write_bytes(b"rubbish"),
    "half a photo": lambda b: (b / PHOTOS / "grey.jpg").write_bytes((b / PHOTOS / "grey.jpg").read_bytes()[:3000]),
    "a large photo": lambda b: Image.new("L", (5000, 40)).save(b / PHOTOS / "grey.jpg"),
    "a GIF": lambda b: Image.new("L", (200, 200)).save(b / PHOTOS / "grey.jpg", "GIF"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_photos_that_give_other_squares_are_corrupt(bundle: Path, tmp_path: Path, damage: str) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    DAMAGE[damage](copy)
    refit(copy, f"{PHOTOS}grey.jpg")
    with pytest.raises(CorruptFile, match="golden"):
        read_golden(copy, open_bundle(copy))


def test_the_mac_script_has_pillow_installed_for_photos_alone(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    photo = (copy / PHOTOS / "grey.jpg").read_bytes()
    (copy / PHOTOS / "grey.jpg").write_bytes((copy / PHOTOS / "cmyk.jpg").read_bytes())
    with pytest.raises(ValueError, match=r"grey\.jpg gives another square here .* pip install pillow"):
        run_on_mac.read_bundle(copy)
    (copy / PHOTOS / "grey.jpg").write_bytes(photo)
    shutil.copy(copy / "golden/001.png", copy / "golden/000.png")
    with pytest.raises(ValueError, match=r"golden/000\.png gives another square .* the file was changed: restore it$"):
        run_on_mac.read_bundle(copy)


@pytest.mark.parametrize("rule", [1, None, "\x1b"])
def test_the_mac_script_follows_one_rule(bundle: Path, tmp_path: Path, rule: object) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    record = json.loads((copy / "manifest.json").read_text())
    record["files"]["query-w8a32.mlpackage"]["metadata"]["rule"] = rule
    write_json(copy / "manifest.json", record)
    with pytest.raises(ValueError, match=r"wants rule .*, this script does 2") as caught:
        run_on_mac.read_bundle(copy)
    assert str(caught.value).isprintable()
    assert run_on_mac.RULE == RULE


NAMES = ["../../etc/passwd", "golden/photos/../000.png", "golden/photos/A.jpg", "\x1b[2J", 5, None]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_rows_are_never_paths(bundle: Path, tmp_path: Path, name: object) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    rows = json.loads((copy / "golden.json").read_text())
    rows[-1]["file"] = name
    write_json(copy / "golden.json", rows)
    refit(copy, "golden.json")
    with pytest.raises(CorruptFile) as caught:
        read_golden(copy, open_bundle(copy))
    assert str(caught.value).isprintable()


def test_unlisted_photos_and_deeper_folders_are_refused(bundle: Path, tmp_path: Path) -> None:
    for number, stray in enumerate(("golden/photos/more.jpg", "golden/photos/deep/x.jpg", "golden/other/x.jpg")):
        copy = Path(shutil.copytree(bundle, tmp_path / str(number)))
        (copy / stray).parent.mkdir(exist_ok=True)
        (copy / stray).write_bytes(b"x")
        with pytest.raises(CorruptFile, match="nothing but the listed files"):
            open_bundle(copy)


def test_their_codes_differ(golden: Golden) -> None:
    codes = golden.codes[-len(SIDES) :]
    assert len(np.unique(codes, axis=0)) > len(SIDES) / 2
    assert 0.05 < unpack(codes).mean() < 0.95
