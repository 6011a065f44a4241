"""Searches by image with a run's own student, thumbnails, and the page for people."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from gallery.codes import hamming
from gallery.database import code_array
from gallery.errors import CorruptFile, InputError
from gallery.index import open_gallery
from gallery.onnx_student import OnnxStudent
from gallery.store import GalleryStore
from mobile_eval.devices.setup import chromium
from tests.gallery.service.conftest import Items, Running, check_error, pairs, serving


@pytest.fixture(scope="module")
def shown(made: Path, run: Path) -> Iterator[Running]:
    """A service of the run's gallery, whose sources are the images of `made`, and others that must not be shown."""
    index = open_gallery(run / "gallery")
    store = GalleryStore(run / "gallery")
    files = sorted((made / "in").rglob("*.png"))
    secret = made / "secret.png"
    Image.new("RGB", (64, 64), "red").save(secret)
    (made / "in" / "link.png").symlink_to(secret)
    (made / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    sources = [str(path) for path in files] + [
        str(secret), "../secret.png", str(made / "in" / "link.png"), str(made / "in" / "broken.png"), "/etc/passwd",
        "/dev/zero", "file:///etc/passwd", "s3://bucket/a.png", "a\0b", "", files[0].as_uri(),
    ]  # fmt: skip
    ids = [f"shown {i}/\u00fc.png" for i in range(len(sources))]
    student = OnnxStudent(run)
    codes = np.concatenate([student.encode(files[i % len(files)]) for i in range(len(sources))])
    store.put(index.space.id, pa.table({"id": ids, "code": code_array(codes), "source": sources}))
    store.publish(index.space.id)
    with serving(made, run, "--images", made / "in") as running:
        yield running


def upload(service: Running, data: bytes, **form: str) -> Any:
    return service.post("/search/image", files={"image": ("a.png", data, "image/png")}, data=form)


def test_an_image_is_searched_by_the_bundles_student(shown: Running, made: Path, run: Path) -> None:
    index, student = open_gallery(run / "gallery"), OnnxStudent(run / "bundle")
    for path in sorted((made / "in").rglob("[0-9]*.png"))[::20]:
        answer = upload(shown, path.read_bytes(), options='{"k": 15}')
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert (found["code_space"], found["version"]) == (index.space.id, index.version)
        distances = hamming(student.encode(path), index.codes)[0]
        rows = sorted(range(len(index)), key=lambda row: (distances[row], index.ids[row].as_py().encode()))[:15]
        assert pairs(found["results"][0]) == [(index.ids[row].as_py(), int(distances[row])) for row in rows]
    current = shown.client.get("/codespace").json()["current"]
    assert current["image_search"]


def test_what_is_no_image_is_refused_with_the_decoders_reason(shown: Running) -> None:
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    strip = io.BytesIO()
    Image.new("L", (9000, 1)).save(strip, "PNG")
    for data, reason in ((b"no image", "not an image"), (bomb.getvalue(), "decompression bomb"), (b"", "empty"),
                         (strip.getvalue(), "strip"), (b"\x89PNG\r\n\x1a\n" + b"\0" * 99, "")):  # fmt: skip
        error = check_error(upload(shown, data), 422)
        assert error["error"] == "not_an_image"
        assert reason in error["found"]
    assert check_error(upload(shown, b"x" * (9 << 20)), 413)["error"] == "too_large"
    check_error(shown.post("/search/image", files={"other": b"x"}), 422)
    check_error(upload(shown, b"x", options="{"), 400)
    check_error(upload(shown, b"x", options='{"k": 0}'), 422)
    check_error(upload(shown, b"x", options='{"where": {"no": 1}}', code_space="x"), 422)
    form = {"content-type": "multipart/form-data; boundary=x"}
    for body in (b"", b"--x", b"--x\r\n\r\n", b"--x\r\nContent-Disposition: form-data; name=image\r\n\r\n" + b"a" * 99):
        check_error(shown.client.post("/search/image", content=body, headers=form), 400, 422)
    check_error(
        shown.client.post("/search/image", content=b"", headers={"content-type": "multipart/form-data"}), 400, 422
    )


def test_more_images_than_can_be_encoded_are_refused_at_once(shown: Running) -> None:
    large = io.BytesIO()
    Image.effect_noise((3000, 2000), 60).save(large, "JPEG")
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(upload(shown, large.getvalue()))) for _ in range(80)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} <= {200, 503, 504}
    assert any(answer.status_code == 200 for answer in answers)
    for answer in answers:
        if answer.status_code == 503:
            assert check_error(answer, 503)["error"] == "busy"
            assert answer.headers["retry-after"] == "1"
    assert upload(shown, large.getvalue()).status_code == 200


def test_thumbnails_are_of_images_in_the_folder_alone(shown: Running, made: Path) -> None:
    ids = [quote(f"shown {i}/\u00fc.png", safe="") for i in range(91)]
    answers = [shown.client.get(f"/thumbnails/{id}") for id in ids]
    files = sorted((made / "in").rglob("[0-9]*.png"))
    for i in (*range(80), 90):
        assert answers[i].headers["content-type"] == "image/jpeg"
        image = Image.open(io.BytesIO(answers[i].content))
        original = Image.open(files[i % 90]).convert("RGB")
        assert image.size == original.size
        assert np.abs(np.asarray(image, int) - np.asarray(original, int)).mean() < 12
    for answer in answers[80:90]:
        assert check_error(answer, 404)["error"] == "no_thumbnail"
        assert str(made) not in answer.text


def test_a_service_without_a_bundle_says_so(service: Running, items: Items) -> None:
    error = check_error(upload(service, b"x"), 501)
    assert "--bundle" in error["fix"]
    check_error(service.client.get(f"/thumbnails/{quote(items.ids[0], safe='')}"), 404)


def test_a_damaged_bundle_is_not_opened(run: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run / "bundle", tmp_path / "bundle")
    model = tmp_path / "bundle" / "query-fp32.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\1")
    with pytest.raises(CorruptFile, match="restore it"):
        OnnxStudent(tmp_path / "bundle")
    model.unlink()
    with pytest.raises(InputError):
        OnnxStudent(tmp_path / "bundle")
    with pytest.raises(InputError):
        OnnxStudent(tmp_path)


@pytest.mark.skipif(find_spec("playwright") is None, reason="playwright is not installed")
@pytest.mark.skipif(chromium() is None, reason="chromium is not installed")
def test_the_page_searches_by_image_and_by_item(shown: Running, made: Path) -> None:
    from playwright.sync_api import sync_playwright

    image, asked, problems = next((made / "in").rglob("[0-9]*.png")), set(), []
    with sync_playwright() as playwright, playwright.chromium.launch(
        executable_path=chromium(), chromium_sandbox=False
    ) as browser:  # fmt: skip
        page = browser.new_page()
        page.on("request", lambda request: asked.add(request.url))
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(shown.url)
        page.set_input_files("#file", image)
        page.wait_for_selector("#results li img")
        assert page.locator("#results li").count() == 12
        assert "12 results" in page.inner_text("#status")
        for width, scheme in ((390, "light"), (1280, "light"), (390, "dark"), (1280, "dark")):
            page.set_viewport_size({"width": width, "height": 800})
            page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            assert page.evaluate("document.documentElement.scrollWidth") == width
        first = page.locator("#results li .id").first.inner_text()
        page.locator("#results li button").first.focus()
        page.keyboard.press("Enter")
        page.locator("#status", has_text="results").wait_for()
        assert page.input_value("#id") == first
        page.fill("#id", "<img src=x onerror=alert(1)>")
        page.keyboard.press("Enter")
        page.wait_for_selector("#status.bad")
        assert "none with the id" in page.inner_text("#status")
        names = page.evaluate("[...document.querySelectorAll('input, select')].every((one) => one.labels.length === 1)")
        assert names
    assert {url.partition(shown.url)[0] for url in asked if not url.startswith("blob:")} == {""}
    assert [text for text in problems if "404" not in text] == []
