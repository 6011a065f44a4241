"""The demo page, in a real Chromium: it finds what the gallery finds, says what is wrong, and asks no other host."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from gallery.database import code_array
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError, MissingBackend
from gallery.exports import export_gallery
from gallery.files import STARTED
from gallery.index import open_gallery
from gallery.onnx_student import OnnxStudent
from gallery.site import SiteOptions
from gallery.store import GalleryStore
from mobile_eval.demo import PAGE, _choose_model, write_demo
from mobile_eval.devices.setup import DEMO_FIX, chromium
from mobile_eval.devices.web_server import WebServer
from tests.conftest import ENVIRONMENT, ROOT
from tests.gallery.galleries import SPACE, centers_of

if TYPE_CHECKING:
    from tests.mobile_eval.bundles import Call, Good

COUNT, SIZE = 20, (91, 70)  # images: none is larger than four times the input, so nothing is reduced
HOSTILE = "<img src=x onerror=document.title='run'>.png"
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
DONE = "#status.bad, #status:has-text('results')"
GIVE = """([kind, data]) => {
  const transfer = new DataTransfer(), file = new File([Uint8Array.from(data)], "a.png", { type: "image/png" });
  transfer.items.add(file);
  const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
    : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true });
  document.body.dispatchEvent(event);
}"""


def blocks(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)


def rotated(image: Image.Image) -> bytes:
    """A JPEG that EXIF turns upright."""
    exif, data = Image.Exif(), io.BytesIO()
    exif[274] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(data, "JPEG", quality=95, exif=exif)
    return data.getvalue()


@pytest.fixture(scope="module")
def shop(good: Good, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `gallery`, of images hashed by the bundle's student, which `images` has but for the last."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "images").mkdir()
    student, index = OnnxStudent(good.folder), open_gallery(good.gallery)
    paths = [folder / "images" / f"{number:02}.png" for number in range(COUNT)]
    for number, path in enumerate(paths):
        blocks(number).save(path)
    ids = [HOSTILE, *(f"{number:02}.png" for number in range(1, COUNT))]
    codes = np.concatenate([student.encode(path) for path in paths])
    paths[-1].unlink()
    store = GalleryStore(folder / "gallery", create=True)
    store.add_space(index.space, index.centers)
    labels = pa.array([[index.space.classes[number % 4]] for number in range(COUNT)])
    store.put(
        index.space.id, pa.table({"id": ids, "code": code_array(codes), "source": [*map(str, paths)], "labels": labels})
    )
    store.publish(index.space.id)
    return folder


@pytest.fixture(scope="module")
def demo(good: Good, shop: Path, engines: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWINHASH_BROWSER", str(engines))
        write_demo(good.folder, str(shop / "gallery"), shop / "demo")
    return shop / "demo"


class Shown:
    """A page of the demo. asked: the addresses of its requests; problems: its console's errors and warnings"""

    def __init__(self, browser: Any, url: str) -> None:
        self.page, self.url = browser.new_page(), url
        self.asked: list[str] = []
        self.problems: list[str] = []
        self.page.set_default_timeout(200_000)  # the machine may be shared
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))

    def open(self) -> None:
        self.page.goto(self.url)
        self.page.wait_for_selector("#file:enabled, #status.bad", state="attached")

    def upload(self, data: bytes) -> str:
        self.page.set_input_files("#file", {"name": "photo", "mimeType": "", "buffer": data})
        return self.status()

    def status(self) -> str:
        self.page.wait_for_selector(DONE)
        return str(self.page.inner_text("#status"))

    def wait(self, expression: str) -> None:
        """Wait until an expression is true; the page's policy lets it evaluate none by itself."""
        end = time.monotonic() + 200
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, expression
            self.page.wait_for_timeout(50)

    def results(self) -> list[tuple[str, int]]:
        rows = self.page.locator("#results li .about").all_inner_texts()
        return [(row.split("\n")[0], int(row.split("\n")[1].split()[1])) for row in rows]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if find_spec("playwright") is None or chromium() is None:
        pytest.skip("playwright or chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, playwright.chromium.launch(
        executable_path=chromium(), chromium_sandbox=False, args=CAMERA
    ) as launched:  # fmt: skip
        yield launched


@pytest.fixture(scope="module")
def url(demo: Path) -> Iterator[str]:
    server = WebServer(demo)
    yield server.url.replace("127.0.0.1", "localhost")
    server.close()


@pytest.fixture
def shown(browser: Any, url: str) -> Iterator[Shown]:
    found = Shown(browser, url)
    yield found
    found.page.close()


def test_an_image_finds_in_the_browser_what_it_finds_here(shown: Shown, good: Good, shop: Path) -> None:
    student, index = OnnxStudent(good.folder), open_gallery(shop / "gallery")
    shown.open()
    png = io.BytesIO()
    blocks(3).save(png, "PNG")
    for give, data in (("file", rotated(blocks(99))), ("drop", png.getvalue()), ("paste", rotated(blocks(5)))):
        if give == "file":
            shown.upload(data)
        else:
            shown.page.evaluate(GIVE, [give, list(data)])
        assert shown.status() == "10 results, nearest first."
        code = student.encode(data)
        assert shown.page.inner_text("#code") == code.tobytes().hex()
        wanted = index.search(code, 10)
        assert shown.results() == list(zip(wanted.ids[0], wanted.distances[0].tolist(), strict=True))
    assert re.fullmatch(
        r"\d+ ms to read the image, \d+ ms for the code, \d+ ms to search", shown.page.inner_text("#time")
    )
    images = "[...document.querySelectorAll('#results img')].every((one) => one.complete && one.naturalWidth === 91)"
    shown.wait(images)
    missing = [id for id, _ in shown.results()].count(f"{COUNT - 1}.png")
    assert shown.page.locator("#results .none").count() == missing
    for width in (390, 1280):
        shown.page.set_viewport_size({"width": width, "height": 800})
        assert shown.page.evaluate("document.documentElement.scrollWidth") == width
    assert shown.page.title() == "Search by image - Twinhash"
    assert shown.problems == []
    assert {one.partition("localhost:")[0] for one in shown.asked if not one.startswith("blob:")} == {"http://"}


def test_a_photo_of_the_camera_is_searched_by(shown: Shown) -> None:
    shown.open()
    shown.page.click("#camera")
    shown.wait("document.querySelector('#video').videoWidth > 0")
    shown.page.click("#close")
    assert shown.page.is_hidden("#live")
    shown.page.click("#camera")
    shown.wait("document.querySelector('#video').videoWidth > 0")
    shown.page.click("#take")
    assert shown.status() == "10 results, nearest first."
    assert re.fullmatch("[0-9a-f]{4}", shown.page.inner_text("#code"))
    assert shown.page.is_hidden("#live")
    assert shown.problems == []


def test_what_is_no_image_is_refused_in_words_that_help(shown: Shown) -> None:
    shown.open()
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    for data, said in (
        (b"no image", "reads no image"),
        (heic, "HEIC"),
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n", "no image"),
    ):
        assert said in shown.upload(data)
        assert shown.results() == []
    large = io.BytesIO()
    Image.linear_gradient("L").resize((6000, 4000)).save(large, "JPEG")
    assert shown.upload(large.getvalue()) == "10 results, nearest first."
    shown.page.evaluate("document.body.dispatchEvent(new ClipboardEvent('paste', { bubbles: true }))")
    assert "No file was pasted" in shown.status()


def test_a_failure_after_the_decoding_says_what_failed(shown: Shown) -> None:
    def without_canvas(route: Any) -> None:
        found = route.fetch()  # with its headers, which an isolated page asks of its workers too
        route.fulfill(response=found, body="OffscreenCanvas.prototype.getContext = () => null;" + found.text())

    shown.page.route("**/onnxWorker.js", without_canvas)
    shown.open()
    png = io.BytesIO()
    blocks(3).save(png, "PNG")
    assert shown.upload(png.getvalue()) == "no 2D canvas here"


def answer(body: str, route: Any) -> None:
    route.fulfill(body=body)


def test_a_page_that_cannot_work_says_why(browser: Any, url: str) -> None:
    entry = '{"files": {"query-fp32.onnx": {"sha256": "0", "bytes": 99999999, "metadata": {}}}}'
    cases = [("delete self.OffscreenCanvas", "", "", "lacks OffscreenCanvas"),
             ("", "**/codes.bin", "12", "Download the file again"),
             ("", "**/manifest.json", entry, "SHA-256")]  # fmt: skip
    for script, route, body, said in cases:
        shown = Shown(browser, url)
        if script:
            shown.page.add_init_script(script)
        else:
            shown.page.route(route, partial(answer, body))
        shown.open()
        assert said in shown.status()
        assert shown.page.is_disabled("#file")
        shown.page.close()
    shown = Shown(browser, url)
    shown.page.route("**/items.json", lambda route: route.fulfill(status=404))
    shown.open()
    assert "gallery/items.json; found HTTP status 404" in shown.status()
    shown.page.close()


def test_nothing_is_inline_and_all_is_there(demo: Path) -> None:
    page = (demo / "index.html").read_text()
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=|javascript:", page)
    assert "default-src 'none'" in page
    for name in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert (demo / name).is_file()
    assert {path.name for path in (demo / "model").iterdir()} == {"manifest.json", "query-fp32.onnx"}


def test_the_page_type_checks_with_the_package(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    from tests.export.test_apps import KIT, WEB, installed

    if shutil.which("node") is None:
        pytest.skip("Node is not installed")
    (tmp_path / "node_modules").symlink_to(packages := installed(pytestconfig, WEB) / "node_modules")
    shutil.copy(PAGE / "demo.ts", tmp_path)
    shutil.copytree(KIT / "src", tmp_path / "kit")
    strict = ["--strict", "--noUnusedLocals", "--noUnusedParameters", "--noImplicitReturns", "--types", "", "--noEmit"]
    modern = [
        "--target",
        "es2022",
        "--module",
        "esnext",
        "--moduleResolution",
        "bundler",
        "--lib",
        "es2022,dom,dom.iterable",
    ]
    command: list[str | Path] = ["node", packages / "typescript" / "bin" / "tsc", *strict, *modern, "demo.ts"]
    check = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout


def test_an_export_is_taken_as_it_is_and_checked(
    good: Good, shop: Path, demo: Path, engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINHASH_BROWSER", str(engines))
    site, out = tmp_path / "site", tmp_path / "demo"
    export_gallery(open_gallery(shop / "gallery"), site, "site", SiteOptions(None, 7))
    write_demo(good.folder, str(site), out)
    write_demo(good.folder, str(site), out)  # which replaces it
    assert (out / "gallery" / "codes.bin").stat().st_size == 14
    with (site / "codes.bin").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(CorruptFile, match=r"codes\.bin has another checksum"):
        write_demo(good.folder, str(site), out)
    description = (site / "gallery.json").read_text()
    (site / "codes.bin").write_bytes((out / "gallery" / "codes.bin").read_bytes())
    (site / "gallery.json").write_text(re.sub(r'"code_space": "\w+"', '"code_space": "\\\\u001b"', description))
    with pytest.raises(CorruptFile, match="another code space than"):
        write_demo(good.folder, str(site), out)
    other = GalleryStore(tmp_path / "other", create=True)
    other.add_space(SPACE, centers_of(64))
    other.put(SPACE.id, pa.table({"id": ["a"], "code": code_array(np.zeros((1, 8), np.uint8))}))
    other.publish(SPACE.id)
    export_gallery(open_gallery(tmp_path / "other"), tmp_path / "others", "site", SiteOptions(None))
    with pytest.raises(CodeSpaceMismatch, match=SPACE.id):
        write_demo(good.folder, str(tmp_path / "others"), out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    with pytest.raises(InputError, match="a demo to replace"):
        write_demo(good.folder, str(site), tmp_path / "mine")
    monkeypatch.setenv("TWINHASH_BROWSER", str(tmp_path / "nowhere"))
    with pytest.raises(MissingBackend, match=r"esbuild .*nowhere") as caught:
        write_demo(good.folder, str(site), tmp_path / "new")
    assert caught.value.fix == DEMO_FIX
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "stray", ["CNAME", ".git/config", "gallery/photo.png", "gallery/thumbs/00/x.jpg", "model/old.onnx", "a\x1b"]
)
def test_what_was_added_to_a_demo_is_never_deleted(
    good: Good, demo: Path, engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stray: str
) -> None:
    monkeypatch.setenv("TWINHASH_BROWSER", str(engines))
    out = Path(shutil.copytree(demo, tmp_path / "public"))
    (out / stray).parent.mkdir(parents=True, exist_ok=True)
    (out / stray).write_text("mine")
    with pytest.raises(InputError, match=re.escape(ascii(stray.removesuffix("/config"))[:-1])) as caught:
        write_demo(good.folder, str(demo / "gallery"), out)
    assert str(caught.value).isprintable()
    assert (out / stray).read_text() == "mine"


def test_only_what_is_exported_is_published_and_what_a_killed_run_left_is_removed(
    good: Good, demo: Path, engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINHASH_BROWSER", str(engines))
    site = Path(shutil.copytree(demo / "gallery", tmp_path / "site"))
    (site / "key.pem").write_text("mine")
    left, out = tmp_path / f".public.{os.getpid()}.abcdefgh.partial", tmp_path / "public"
    left.mkdir()
    os.utime(left, (STARTED - 1, STARTED - 1))
    write_demo(good.folder, str(site), out)
    (out / ".DS_Store").write_bytes(b"x")
    (out / "gallery" / "._thumbs").write_bytes(b"x")
    write_demo(good.folder, str(site), out)  # desktop software's files are nobody's
    assert not left.exists()
    assert {p.relative_to(out) for p in out.rglob("*")} == {p.relative_to(demo) for p in demo.rglob("*")}


def test_an_onnx_student_is_asked_for_by_a_command_that_works(
    good: Good, engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINHASH_BROWSER", str(engines))
    manifest = replace(good.manifest, files=())
    with pytest.raises(InputError, match=r"export/run\.py RUN --formats litert --precisions w8a32"):
        _choose_model(manifest)


def test_a_bundle_needs_a_gallery(good: Good, call: Call) -> None:
    code, said = call("demo", good.folder)
    assert (code, "--gallery with a bundle" in said) == (2, True), said


def test_a_runs_own_gallery_is_searched(
    run: Path, engines: Path, browser: Any, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINHASH_BROWSER", str(engines))
    code, said = call("demo", run, "--no-serve")
    assert code == 0, said
    assert f"The demo is in {run / 'demo'}" in said
    index, photo = open_gallery(run / "gallery"), next((run.parents[1] / "in" / "bag").iterdir())
    server = WebServer(run / "demo")
    shown = Shown(browser, server.url)
    shown.open()
    assert shown.upload(photo.read_bytes()) == "10 results, nearest first."
    query = OnnxStudent(run / "bundle").encode(photo)
    assert shown.page.inner_text("#code") == query.tobytes().hex()
    wanted = index.search(query, 10)
    assert shown.results() == list(zip(wanted.ids[0], wanted.distances[0].tolist(), strict=True))
    assert shown.page.locator("#results small").count() == 10  # labels
    shown.wait("[...document.querySelectorAll('#results img')].filter((one) => one.naturalWidth).length === 10")
    assert f"{len(index)} items, codes of 16 bits; model query-fp32.onnx" in shown.page.inner_text("#about")
    assert shown.problems == []
    shown.page.close()
    server.close()


def test_the_command_serves_until_it_is_stopped(good: Good, demo: Path, engines: Path, tmp_path: Path) -> None:
    words: list[str | Path] = [
        "demo",
        good.folder,
        "--gallery",
        demo / "gallery",
        "--out",
        tmp_path / "demo",
        "--port",
        "0",
    ]
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "mobile_eval/run.py", *words], cwd=ROOT, stderr=stream,
            env={**ENVIRONMENT, "TWINHASH_BROWSER": str(engines)},
        )  # fmt: skip
    try:
        end = time.monotonic() + 300
        while not (found := re.search(r"at (http://localhost:\d+/)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end
            time.sleep(0.1)
        with urlopen(found[1].replace("localhost", "127.0.0.1")) as answer:
            assert answer.read() == (demo / "index.html").read_bytes()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()
    assert f"Stopped. The demo is in {tmp_path / 'demo'}." in log.read_text()
    assert "No results" not in log.read_text()
