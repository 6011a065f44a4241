"""The npm package, packed and installed into a fresh project: from a photo to the top ten in Chromium, and in Node."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from export.bundle import write_bundle
from export.exporter import golden_of
from gallery.codes import pack
from gallery.database import code_array
from gallery.decode import decode, to_square
from gallery.exports import export_gallery
from gallery.index import open_gallery
from gallery.store import GalleryStore
from mobile_eval.demo import write_demo
from mobile_eval.devices.setup import NPM_PACKAGES, chromium
from mobile_eval.devices.web_server import WebServer
from mobile_eval.runtimes import open_model
from tests.export.factories import SIZE, Exports, request_for
from tests.export.test_apps import KIT, WEB, installed

MOST_BYTES = {"litert": 12_000_000, "onnx": 20_000_000}  # that a page fetches from an empty cache to its first result
MOST_LINES = 15
OLD_BROWSER = """
const { instantiate } = WebAssembly;
WebAssembly.instantiate = async (source, ...more) => {
  if (source.length < 1000) throw new WebAssembly.CompileError("an instruction that is not known");
  return instantiate(source, ...more);
};
"""
README = (KIT / "README.md").read_text("utf-8")
PAGE = re.search(r"```html\n(.*?)```", README, re.DOTALL)
NODE = """
import { readFileSync } from "node:fs";
import { Gallery, QueryEncoder } from "twinhash-query";
import { openOnnx } from "twinhash-query/onnx";
const read = (name) => new Uint8Array(readFileSync(name));
const gallery = await Gallery.read(async (name) => read(`gallery/${name}`));
const manifest = readFileSync("onnx/manifest.json", "utf8"), model = read("onnx/query-fp32.onnx").buffer;
const encoder = await QueryEncoder.open(manifest, "query-fp32.onnx", model, gallery.codeSpace, openOnnx);
for (const { file, width, height } of JSON.parse(readFileSync("pixels.json", "utf8"))) {
  const { code } = await encoder.encode({ data: read(file), width, height });
  console.log(Buffer.from(code).toString("hex"), JSON.stringify(gallery.nearest(code, 3)));
}
"""
TYPED = """
import { checkGolden, ImageSearch, type Result } from "twinhash-query";
import { openOnnx } from "twinhash-query/onnx";
export async function ids(photo: Blob): Promise<string[]> {
  const search = await ImageSearch.open("bundle/", "gallery/", "query-fp32.onnx");
  const results: Result[] = await search.nearest(photo);
  if ((await checkGolden(search.encoder, "bundle/")).some(({ wrong }) => wrong)) throw new Error(typeof openOnnx);
  // @ts-expect-error: a result has no such field
  results[0].score;
  return results.map(({ id }) => id);
}
"""


@dataclass(frozen=True)
class Project:
    """A folder with the installed package, `bundle` (LiteRT and ONNX), `onnx` (ONNX alone), `gallery` and pages."""

    folder: Path
    exports: Exports
    gallery: Path

    def expected(self, photo: bytes, variant: str) -> tuple[str, list[str]]:
        """Code and ids of the nearest ten, by Python."""
        model = open_model(self.exports.files[variant].path)
        codes = model.run(to_square(decode(photo), SIZE)[None]).codes
        return codes.tobytes().hex(), list(open_gallery(self.gallery).search(codes, 10).ids[0])


@pytest.fixture(scope="module")
def project(exports: Exports, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Project:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node or npm is not installed")
    source, folder = tmp_path_factory.mktemp("kit"), tmp_path_factory.mktemp("project")
    shutil.copytree(KIT, source, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules", "dist"))
    (source / "node_modules").symlink_to(installed(pytestconfig, WEB) / "node_modules")
    npm(source, "pack", "--pack-destination", str(folder))
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    npm(folder, "install", "--offline", "--no-audit", "--no-fund", *(path.name for path in folder.glob("*.tgz")))
    student = exports.student
    few = student.images[:2], pack(student.logits[:2]), student.logits[:2]
    golden = golden_of(request_for(student, golden=few))
    for name, formats in (("bundle", ("litert", "onnx")), ("onnx", ("onnx",))):
        models = [exports.files[f"{one}-{precision}"] for one in formats for precision in ("fp32", "w8a32")]
        write_bundle(folder / name, models, student.space, student.centers, golden)
    assert PAGE
    (folder / "index.html").write_text(PAGE[1])
    (folder / "onnx.html").write_text(PAGE[1].replace('"bundle/"', '"onnx/"'))
    return Project(folder, exports, write_gallery(folder, exports))


def write_gallery(folder: Path, exports: Exports) -> Path:
    """Write `store`, of the student's own images and codes, and its export `gallery`."""
    student, store = exports.student, GalleryStore(folder / "store", create=True)
    (folder / "images").mkdir()
    paths = [folder / "images" / f"{number:02}.png" for number in range(len(student.images))]
    for path, image in zip(paths, student.images, strict=True):
        Image.fromarray(image).save(path)
    store.add_space(student.space, student.centers)
    labels = pa.array([[student.space.classes[number % 8]] for number in range(len(paths))])
    columns = {"id": [path.name for path in paths], "code": code_array(pack(student.logits))}
    store.put(student.space.id, pa.table({**columns, "source": [*map(str, paths)], "labels": labels}))
    store.publish(student.space.id)
    export_gallery(open_gallery(folder / "store"), folder / "gallery", "site")
    return folder / "store"


def npm(folder: Path, *words: str) -> None:
    done = subprocess.run(["npm", *words], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if find_spec("playwright") is None or chromium() is None:
        pytest.skip("playwright or chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, playwright.chromium.launch(
        executable_path=chromium(), chromium_sandbox=False
    ) as launched:  # fmt: skip
        yield launched


@pytest.fixture(scope="module")
def url(project: Project) -> Iterator[str]:
    server = WebServer(project.folder)
    yield server.url
    server.close()


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    """A browser of its own, with an empty cache."""
    found = browser.new_context()
    found.set_default_timeout(200_000)  # the machine may be shared
    yield found
    found.close()


@pytest.fixture
def page(context: Any, url: str) -> Any:
    """A page with the package as `kit`."""
    found = context.new_page()
    found.goto(f"{url}/images/00.png")
    found.evaluate("""async () => {
        window.kit = await import("/node_modules/twinhash-query/dist/index.js");
        window.hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
        window.openEncoder = async (name) =>
          kit.EncoderWorker.open("/bundle/", (await kit.Gallery.open("/gallery")).codeSpace, name);
        window.failure = async (act) => { try { await act(); return ""; } catch (error) { return error.message; } };
    }""")
    return found


def photo(number: int, exports: Exports) -> bytes:
    """A JPEG that EXIF turns upright, no larger than four times the input: nothing is reduced."""
    image = Image.fromarray(exports.student.images[number]).resize((3 * SIZE, 4 * SIZE), Image.Resampling.BICUBIC)
    exif, data = Image.Exif(), io.BytesIO()
    exif[274] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(data, "JPEG", quality=95, exif=exif)
    return data.getvalue()


def test_what_is_packed_is_what_the_readme_says() -> None:
    package = json.loads((KIT / "package.json").read_text())
    assert package["devDependencies"] == {**NPM_PACKAGES, "typescript": WEB["typescript"]}
    assert not {"dependencies", "peerDependencies"} & package.keys()
    assert PAGE
    assert len(PAGE[1].splitlines()) <= MOST_LINES
    assert f"twinhash-query-{package['version']}.tgz" in README
    assert PAGE[1] in (Path(__file__).parents[2] / "README.md").read_text("utf-8")


@pytest.mark.parametrize(("engine", "name"), [("litert", "index.html"), ("onnx", "onnx.html")])
def test_the_readmes_page_finds_what_python_finds(
    project: Project, context: Any, url: str, engine: str, name: str
) -> None:
    fetched: dict[str, int] = {}
    problems: list[str] = []

    def note(response: Any) -> None:
        fetched[response.url] = int(response.headers.get("content-length", 0))

    context.on("response", note)
    page = context.new_page()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"{url}/{name}")
    page.wait_for_load_state("networkidle")
    data = photo(7, project.exports)
    code, ids = project.expected(data, f"{engine}-w8a32")
    page.set_input_files("input", {"name": "photo", "mimeType": "image/jpeg", "buffer": data})
    page.wait_for_selector("li")
    shown = page.locator("li").all_inner_texts()
    assert [text.split(",")[0].strip() for text in shown] == ids, code
    page.wait_for_load_state("networkidle")
    assert page.evaluate("[...document.images].every((one) => one.complete && one.naturalWidth === 32)")
    assert problems == []
    assert all(address.startswith((url, "data:")) for address in fetched)
    names = [address.rpartition("/")[2] for address in fetched]
    assert [one for one in names if one.startswith("query-")] == [
        f"query-w8a32.{'tflite' * (engine == 'litert') or engine}"
    ]
    assert sum(one.endswith(".wasm") for one in names) == 1
    assert sum(fetched.values()) <= MOST_BYTES[engine], fetched


@pytest.mark.parametrize(
    ("name", "old"), [("query-fp32.tflite", False), ("query-fp32.tflite", True), ("query-fp32.onnx", False)]
)
def test_golden_photographs_have_no_wrong_bit(project: Project, page: Any, name: str, old: bool) -> None:
    """old: a browser without relaxed SIMD, for which LiteRT.js has files of their own."""
    asked: list[str] = []
    page.on("response", lambda response: asked.append(response.url.rpartition("/")[2]))

    def make_old(route: Any) -> None:
        found = route.fetch()  # with its headers, which an isolated page asks of its workers too
        route.fulfill(response=found, body=OLD_BROWSER * old + found.text())

    page.route("**/litertWorker.js", make_old)
    rows = page.evaluate("""async (name) => {
        return kit.checkGolden(await openEncoder(name), "/bundle/");
    }""", name)  # fmt: skip
    golden = json.loads((project.folder / "bundle" / "golden.json").read_text())
    assert [row["file"] for row in rows] == [row["file"] for row in golden]
    assert sum("photos/" in row["file"] for row in rows) == 8
    assert [row for row in rows if row["wrong"]] == []
    assert ("litert_wasm_compat_internal.wasm" in asked) == old


def test_a_wrong_pipeline_fails_the_golden_photographs(page: Any) -> None:
    """A canvas makes the square by a filter of its own, and ignores the proportions."""
    rows = page.evaluate("""async (size) => {
        const encoder = await openEncoder("query-fp32.onnx");
        const wrong = { encode: async (image) => {
          const context = new OffscreenCanvas(size, size).getContext("2d");
          context.drawImage(await createImageBitmap(image), 0, 0, size, size);
          return encoder.encode(context.getImageData(0, 0, size, size));
        } };
        return kit.checkGolden(wrong, "/bundle/");
    }""", SIZE)  # fmt: skip
    assert sum(row["wrong"] for row in rows) > 20
    assert all(row["wrong"] == 0 for row in rows if "photos/" not in row["file"])


def test_many_images_at_once_are_answered_one_by_one(project: Project, page: Any) -> None:
    photos = [photo(number, project.exports) for number in range(4)]
    found = page.evaluate("""async (photos) => {
        const encoder = await openEncoder();
        const asked = photos.map((data) => encoder.encode(new Blob([Uint8Array.from(data)])));
        const failed = failure(() => encoder.encode(new Blob(["no image"])));
        const answers = await Promise.all(asked), refused = await failed;
        const late = failure(() => encoder.encode(new Blob([Uint8Array.from(photos[0])])));
        encoder.close();
        return { codes: answers.map(({ code }) => hex(code)), failed: refused, late: await late,
                 closed: await failure(() => encoder.encode(new Blob([]))), metadata: encoder.metadata };
    }""", [list(data) for data in photos])  # fmt: skip
    assert found["codes"] == [project.expected(data, "litert-w8a32")[0] for data in photos]
    assert "choose a JPEG, PNG or WebP" in found["failed"]
    assert found["late"] == found["closed"] == "the encoder was closed"
    assert found["metadata"]["code_space"] == project.exports.student.space.id


def test_what_does_not_fit_is_refused(project: Project, page: Any) -> None:
    for name in ("damaged", "short", "foreign"):
        shutil.copytree(project.folder / "gallery", project.folder / name)
    codes = (project.folder / "damaged" / "codes.bin").read_bytes()
    (project.folder / "damaged" / "codes.bin").write_bytes(bytes([codes[0] ^ 1]) + codes[1:])
    about = json.loads((project.folder / "short" / "gallery.json").read_text())
    (project.folder / "short" / "gallery.json").write_text(json.dumps({**about, "items": about["items"] - 1}))
    (project.folder / "foreign" / "gallery.json").write_text(json.dumps({**about, "code_space": "f" * 16}))
    shutil.copytree(project.folder / "bundle", project.folder / "other")
    shutil.copyfile(project.folder / "bundle" / "query-fp32.onnx", project.folder / "other" / "query-w8a32.onnx")
    for bundle, gallery, model, said in (
        ("bundle", "damaged", None, "Download the file again"),
        ("bundle", "short", None, "export it again"),
        ("bundle", "foreign", None, f"{'f' * 16}: ship the gallery's model"),
        ("bundle", "nowhere", None, "HTTP status 404"),
        ("bundle", "gallery", "query-w8a32.mlpackage", "no model query-w8a32.mlpackage"),
        ("other", "gallery", "query-w8a32.onnx", "at most"),
    ):
        arguments = [f"/{bundle}/", f"/{gallery}/", model]
        found = page.evaluate("([b, g, m]) => failure(() => kit.ImageSearch.open(b, g, m ?? undefined))", arguments)
        assert said in found, (bundle, gallery, found)
    assert "8 bits, codes of 64" in page.evaluate("""async () => {
        const gallery = await kit.Gallery.open("/gallery");
        return failure(() => gallery.nearest(new Uint8Array(1)));
    }""")  # fmt: skip


def test_the_demo_takes_litert_where_the_bundle_has_it(
    project: Project, context: Any, pytestconfig: pytest.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINHASH_BROWSER", str(installed(pytestconfig, WEB)))
    write_demo(project.folder / "bundle", str(project.folder / "gallery"), tmp_path / "demo")
    assert {path.name for path in (tmp_path / "demo" / "model").iterdir()} == {"manifest.json", "query-w8a32.tflite"}
    assert not list((tmp_path / "demo" / "kit").glob("o*"))  # nothing of ONNX Runtime
    server, page = WebServer(tmp_path / "demo"), context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.extend([message.text] * (message.type == "error")))
    page.goto(server.url)
    page.wait_for_selector("#file:enabled, #status.bad", state="attached")
    data = photo(5, project.exports)
    code, ids = project.expected(data, "litert-w8a32")
    page.set_input_files("#file", {"name": "photo", "mimeType": "image/jpeg", "buffer": data})
    page.wait_for_selector("#status.bad, #status:has-text('results')")
    assert page.inner_text("#status") == "10 results, nearest first."
    assert page.inner_text("#code") == code
    assert page.locator("#results .id").all_inner_texts() == ids
    assert problems == []
    server.close()


def test_node_gives_the_codes_of_pixels(project: Project) -> None:
    rows, folder = [], project.folder
    golden = json.loads((folder / "onnx" / "golden.json").read_text())
    for number, row in enumerate(golden):
        pixels = np.asarray(decode(folder / "onnx" / row["file"]).convert("RGBA"))
        (folder / f"{number}.rgba").write_bytes(pixels.tobytes())
        rows.append({"file": f"{number}.rgba", "width": pixels.shape[1], "height": pixels.shape[0]})
    (folder / "pixels.json").write_text(json.dumps(rows))
    (folder / "node.mjs").write_text(NODE)
    done = subprocess.run(["node", "node.mjs"], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert [code for code, _ in lines] == [row["code"] for row in golden]
    index = open_gallery(project.gallery)
    for code, results in lines:
        wanted = index.search(np.frombuffer(bytes.fromhex(code), np.uint8)[None], 3)
        found = [(one["id"], one["distance"]) for one in json.loads(results)]
        assert found == list(zip(wanted.ids[0], wanted.distances[0].tolist(), strict=True))


@pytest.mark.parametrize("resolution", ["nodenext", "bundler"])
def test_its_types_are_there(project: Project, pytestconfig: pytest.Config, resolution: str) -> None:
    (project.folder / "typed.ts").write_text(TYPED)
    compiler = installed(pytestconfig, WEB) / "node_modules" / "typescript" / "bin" / "tsc"
    module = "nodenext" if resolution == "nodenext" else "esnext"
    options = ["--strict", "--noEmit", "--types", "", "--target", "es2022", "--lib", "es2022,dom"]
    options += ["--module", module, "--moduleResolution", resolution]
    check = subprocess.run(["node", compiler, *options, "typed.ts"], cwd=project.folder, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout
