"""In Chromium, `pixelsOf` and `encode` of the bundle's TypeScript give the golden photographs' codes."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.bundle import write_bundle
from export.exporter import export_all, golden_of
from export.icc_profile import DISPLAY_P3, rgb_profile
from gallery.codes import pack, unpack
from gallery.decode import decode, to_square
from mobile_eval.devices.setup import chromium
from tests.export.factories import SIZE, Exports, request_for
from tests.export.test_apps import WEB as NPM
from tests.export.test_apps import installed
from tests.gallery.test_icc import P3, WEB, cmyk_profile, grey_profile

PAGE = """<!doctype html><script type="importmap">
{"imports": {"onnxruntime-web/wasm": "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs"}}</script>
<script type="module">
import { openOnnx } from "./onnx.js";
import { QueryEncoder, pixelsOf, toSquare } from "./queryEncoder.js";
const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
window.open_model = async (bundle, name, space) => {
  const manifest = await (await fetch(`${bundle}/manifest.json`)).text();
  const model = await (await fetch(`${bundle}/${name}`)).arrayBuffer();
  window.encoder = await QueryEncoder.open(manifest, name, model, space, openOnnx);
};
window.encode = async (path) => {
  const { size } = window.encoder.metadata;
  const pixels = await pixelsOf(await (await fetch(path)).blob(), size);
  const { code, logits } = await window.encoder.encode(pixels);
  return { code: hex(code), logits: Array.from(logits), square: hex(toSquare(pixels, size)),
           sides: [pixels.width, pixels.height] };
};
window.ready = true;
</script>"""
Encode = Callable[[str], dict[str, Any]]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site(exports: Exports, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page, the compiled TypeScript, `bundle`, and `inside`, whose file resizes itself."""
    if find_spec("playwright") is None or chromium() is None or shutil.which("node") is None:
        pytest.skip("playwright, Chromium or Node is not installed")
    student, folder = exports.student, tmp_path_factory.mktemp("site")
    few = student.images[:2], pack(student.logits[:2]), student.logits[:2]
    request = request_for(student, golden=few, dynamic_image_size=True)
    inside = export_all(request, ["onnx-fp32"], folder)
    for name, model in (("bundle", exports.files["onnx-fp32"]), ("inside", inside[0])):
        write_bundle(folder / name, [model], student.space, student.centers, golden_of(request))
    (folder / "page.html").write_text(PAGE)
    (folder / "node_modules").symlink_to(installed(pytestconfig, NPM) / "node_modules")
    for name in ("queryEncoder.ts", "onnx.ts"):
        shutil.copy(folder / "bundle" / "apps" / name, folder)
    modern = ["--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler", "--lib", "es2022,dom"]
    compiler = [
        "node",
        folder / "node_modules" / "typescript" / "bin" / "tsc",
        "--types",
        "",
        *modern,
        "onnx.ts",
    ]
    subprocess.run(compiler, cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def page(site: Path) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with sync_playwright() as playwright, playwright.chromium.launch(
            executable_path=chromium(), chromium_sandbox=False
        ) as browser:  # fmt: skip
            opened = browser.new_page()
            opened.goto(f"http://127.0.0.1:{server.server_port}/page.html")
            opened.wait_for_function("window.ready")
            yield opened
        server.shutdown()


def opened(page: Any, exports: Exports, bundle: str) -> Encode:
    page.evaluate("([b, s]) => open_model(b, 'query-fp32.onnx', s)", [bundle, exports.student.space.id])
    return lambda path: page.evaluate("path => encode(path)", path)


def test_golden_photos_give_their_codes_with_no_bit_off(site: Path, page: Any, exports: Exports) -> None:
    encode, exact = opened(page, exports, "bundle"), 0
    for row in json.loads((site / "bundle" / "golden.json").read_text()):
        found = encode(f"bundle/{row['file']}")
        square = bytes.fromhex(found["square"])
        near = np.abs(row["logits"]) < 1e-3
        differ = unpack(np.frombuffer(bytes.fromhex(found["code"] + row["code"]), np.uint8).reshape(2, -1))
        assert not (differ[0] != differ[1])[~near].any(), row["file"]
        exact += hashlib.sha256(square).hexdigest() == row["square"]
        expected = to_square(decode(site / "bundle" / row["file"]), SIZE).astype(int).ravel()
        assert np.abs(np.frombuffer(square, np.uint8) - expected).max() <= 1, row["file"]
    assert exact >= 5  # profiles are converted, and transparency laid on white, with other rounding


def test_a_file_that_resizes_inside_takes_the_whole_image(site: Path, page: Any, exports: Exports) -> None:
    encode = opened(page, exports, "inside")
    rows = [row for row in json.loads((site / "inside" / "golden.json").read_text()) if "photos" in row["file"]]
    found = np.array([encode(f"inside/{row['file']}")["logits"] for row in rows])
    expected = np.array([row["logits"] for row in rows])
    assert np.abs(found - expected).max() < 0.1
    assert ((found > 0) != (expected > 0)).mean() <= 0.01


def test_profiles_are_converted_as_chromium_does(site: Path, page: Any, exports: Exports) -> None:
    encode = opened(page, exports, "bundle")
    color = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8))
    grey, inks = color.convert("L"), color.resize((4 * SIZE, 4 * SIZE), Image.Resampling.NEAREST).convert("CMYK")
    adobe = (0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)
    files = {
        "p3.png": (color, P3), "adobe.png": (color, rgb_profile("Adobe RGB", adobe, (2.2, 1, 0, 0, 0))),
        "srgb.png": (color, WEB), "grey.png": (grey, grey_profile(1.8)), "grey.jpg": (grey, grey_profile(1.8)),
        "grey-of-rgb.png": (grey, P3), "rgb-of-grey.png": (color, grey_profile(1.8)),
        "inks.jpg": (inks, cmyk_profile()), "inks-of-rgb.jpg": (inks, P3), "damaged.png": (color, P3[:300]),
    }  # fmt: skip
    for name, (image, profile) in files.items():
        image.save(site / name, icc_profile=profile, **({"quality": 100} if name.endswith("jpg") else {}))
        square = np.frombuffer(bytes.fromhex(encode(name)["square"]), np.uint8).astype(int)
        assert np.abs(square - to_square(decode(site / name), SIZE).astype(int).ravel()).max() <= 1, name


def test_large_photos_are_reduced_to_four_times_the_input(site: Path, page: Any, exports: Exports) -> None:
    encode = opened(page, exports, "bundle")
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).resize((1200, 900), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    rough.save(site / "large.jpg", exif=exif, icc_profile=rgb_profile("Display P3", DISPLAY_P3), quality=95)
    found = encode("large.jpg")
    assert found["sides"] == [4 * SIZE, -(-4 * SIZE * 4 // 3)]
    square = np.frombuffer(bytes.fromhex(found["square"]), np.uint8).astype(int)
    assert np.abs(square - to_square(decode(site / "large.jpg"), SIZE).astype(int).ravel()).mean() < 2
