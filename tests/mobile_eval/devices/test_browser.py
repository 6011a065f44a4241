"""In headless Chromium the files give the codes they give here, and whatever breaks there is told, and outlived."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.artifact import ExportedModel
from export.exporter import export_all
from gallery.codes import pack
from gallery.codespace import Preprocessing
from gallery.errors import CorruptFile, DeviceLost, InputError, MissingBackend
from gallery.results import ModelResult
from mobile_eval.devices import browser, setup
from mobile_eval.devices.browser import CHUNK, PAGE, Browser
from mobile_eval.devices.setup import BROWSER_FIX, NPM_PACKAGES, run_script, set_up_browser
from mobile_eval.devices.subprocess_device import WorkerFailed
from mobile_eval.devices.web_server import WebServer
from mobile_eval.runtimes import open_model
from tests.export.factories import request_of

SIZE, BITS, TOLERANCE = 24, 16, 1e-3
FORMS = ("onnx-fp32", "litert-fp32", "onnx-fp16", "onnx-w8a32")
IMAGES = np.random.default_rng(0).integers(0, 256, (CHUNK + 3, SIZE, SIZE, 3), np.uint8)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.wide, self.head = nn.Conv2d(32, 128, 1), nn.Conv2d(128, BITS, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.wide(self.depthwise(F.hardswish(self.conv(x)))))
        return 9 * self.head(x.mean((2, 3), keepdim=True)).flatten(1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExportedModel]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = Tiny().eval()
    preprocessing = Preprocessing(SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    made = export_all(request_of(net, "tiny", preprocessing), FORMS, tmp_path_factory.mktemp("files"))
    return {one.variant: one for one in made if isinstance(one, ExportedModel)}


@pytest.fixture(scope="module")
def chromium(engines: Path, files: dict[str, ExportedModel]) -> Iterator[Browser]:
    with Browser(folder=engines, samples=3, max_seconds=5) as device:
        device.push(list(files.values()), IMAGES)
        yield device


def processes() -> dict[int, str]:
    """What was started below this process and lives, with its command line."""
    parents, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            names[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except (OSError, ValueError):
            continue
        if state != "Z":
            parents[int(entry.name)] = int(parent)
    below = {os.getpid()}
    for _ in range(8):
        below |= {child for child, parent in parents.items() if parent in below}
    return {pid: names[pid] for pid in below - {os.getpid()}}


def kill_soon(old: dict[int, str], which: Callable[[str], bool]) -> threading.Thread:
    """Kills the processes that are not `old` and have such a command line, once there are any."""

    def hunt() -> None:
        for _ in range(60):
            time.sleep(1)  # by then the page is there, too
            victims = [pid for pid, name in processes().items() if pid not in old and which(name)]
            for pid in victims:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if victims:
                return

    thread = threading.Thread(target=hunt)
    thread.start()
    return thread


@contextmanager
def altered_page(device: Browser, old: str, new: str) -> Iterator[None]:
    """Serve the device's page with one change."""
    assert device.served is not None
    page = device.served / PAGE
    source = page.resolve()
    assert old in source.read_text()
    page.unlink()
    page.write_text(source.read_text().replace(old, new))
    try:
        yield
    finally:
        page.unlink()
        page.symlink_to(source)


@pytest.mark.parametrize(("threads", "forms"), [(1, FORMS), (2, FORMS[:2])])
def test_codes_are_the_hosts(
    threads: int, forms: tuple[str, ...], engines: Path, files: dict[str, ExportedModel]
) -> None:
    with Browser(threads, folder=engines, samples=7, max_seconds=5) as device:
        device.push(list(files.values()), IMAGES)
        for form in forms:
            output, here = device.run(files[form]), open_model(files[form].path).run(IMAGES)
            differ = (output.logits > 0) != (here.logits > 0)
            assert not differ[np.abs(here.logits) > TOLERANCE].any(), form
            assert np.allclose(output.logits, here.logits, atol=0.02 if "fp16" in form else 1e-4), form
            assert np.array_equal(output.codes, pack(output.logits)), form
            format, precision = form.split("-", 1)
            row = ModelResult(
                variant=form, format=format, precision=precision, path="x", status="ran", **output.figures
            )
            assert (device.name, row.threads, row.samples) == (f"browser-wasm-{threads}t", threads, 7)
            assert None not in (row.load_ms, row.first_ms, row.p50_ms, row.p90_ms, row.p99_ms)
            assert row.conditions["isolated"] == "true"
            assert "adapter" not in row.conditions
            name = "ONNX Runtime Web 1.30.0" if format == "onnx" else "LiteRT.js 2.5.3"
            assert output.engine == f"{name} WebAssembly"


def test_webgpu_runs_on_a_software_adapter_that_is_called_one(engines: Path, files: dict[str, ExportedModel]) -> None:
    with Browser(accelerator="webgpu", software=True, folder=engines, samples=1, max_seconds=1) as device:
        device.push(list(files.values()), IMAGES[:2])
        output, here = device.run(files["litert-fp32"]), open_model(files["litert-fp32"].path).run(IMAGES[:2])
        assert np.allclose(output.logits, here.logits, atol=1e-4)
        assert (output.engine, device.name) == ("LiteRT.js 2.5.3 WebGPU", "browser-webgpu")
        assert "software adapter" in output.figures["conditions"]["adapter"]
        with pytest.raises(MissingBackend, match="shader-f16"):
            device.run(files["onnx-fp16"])
    unasked = Browser(accelerator="webgpu", folder=engines)
    try:
        unasked.prepare()
        refused = ""
    except MissingBackend as error:
        refused = error.expected
    finally:
        unasked.close()
    adapter = unasked._info["adapter"]
    assert refused == ("" if adapter and not adapter["software"] else "a WebGPU adapter")


def test_a_damaged_file_is_rejected_with_the_engines_words_and_the_next_one_runs(
    chromium: Browser, files: dict[str, ExportedModel], tmp_path: Path
) -> None:
    for form, words in (("onnx-fp32", "protobuf parsing failed"), ("litert-fp32", "Failed to load model")):
        torn = tmp_path / files[form].path.name
        torn.write_bytes(files[form].path.read_bytes()[: files[form].bytes // 2])
        bad = replace(files[form], path=torn, sha256="torn" + form)
        chromium.push([bad, files["litert-fp32"]], IMAGES)
        with pytest.raises(CorruptFile, match=words):
            chromium.run(bad)
    assert chromium.run(files["litert-fp32"]).codes.shape == (len(IMAGES), BITS // 8)


def test_what_cannot_be_run_is_rejected_before_the_browser_is_asked(
    chromium: Browser, files: dict[str, ExportedModel]
) -> None:
    with pytest.raises(MissingBackend, match="in a browser"):
        chromium.run(replace(files["onnx-fp32"], format="coreml"))
    with pytest.raises(InputError, match="at least one image"):
        chromium.push([], IMAGES[:0])
    with pytest.raises(InputError, match=str(browser.MAX_BYTES)):
        chromium.push([replace(files["onnx-fp32"], bytes=browser.MAX_BYTES + 1)], IMAGES)
    chromium.push([], IMAGES[:, 1:])
    with pytest.raises(InputError, match="uint8 images"):
        chromium.run(files["onnx-fp32"])
    chromium.push(list(files.values()), IMAGES)


@pytest.mark.parametrize("change", [("rows.push(", "if (start) rows.push("), ("[codes, logits].map", "[codes].map")])
def test_answers_of_another_shape_are_rejected(
    change: tuple[str, str], chromium: Browser, files: dict[str, ExportedModel]
) -> None:
    with altered_page(chromium, *change), pytest.raises(CorruptFile, match="codes of 2 bytes"):
        chromium.run(files["litert-fp32"])


def test_an_engine_that_never_answers_costs_only_its_file(engines: Path, files: dict[str, ExportedModel]) -> None:
    with Browser(folder=engines, samples=1, max_seconds=0.5) as device:
        device.limit_s = 3
        device.push(list(files.values()), IMAGES)
        endless = altered_page(device, "async time(", "async time() { for (;;); }, async x(")
        with endless, pytest.raises(WorkerFailed, match="an answer within 4 s"):
            device.run(files["litert-fp32"])
        assert len(device.run(files["litert-fp32"]).codes) == len(IMAGES)


def test_a_page_that_is_killed_costs_only_its_file(engines: Path, files: dict[str, ExportedModel]) -> None:
    old = processes()
    with Browser(folder=engines, samples=10**9, max_seconds=60) as device:
        device.push(list(files.values()), IMAGES)
        hunter = kill_soon(old, lambda name: "--type=renderer" in name)
        with pytest.raises(WorkerFailed, match=r"crashed|detached"):
            device.run(files["litert-fp32"])
        hunter.join()
        device.samples = 1
        assert len(device.run(files["litert-fp32"]).codes) == len(IMAGES)


@pytest.mark.parametrize(
    "which",
    [lambda name: "/chromium" in name and "--type=" not in name, lambda name: "playwright/driver" in name],
    ids=["chromium", "driver"],
)
def test_a_browser_that_is_killed_is_lost_and_leaves_nothing_behind(
    which: Callable[[str], bool], engines: Path, files: dict[str, ExportedModel]
) -> None:
    old = processes()
    with Browser(folder=engines, samples=10**9, max_seconds=60) as device:
        device.push(list(files.values()), IMAGES)
        hunter = kill_soon(old, which)
        for _ in range(2):
            with pytest.raises(DeviceLost):
                device.run(files["litert-fp32"])
        hunter.join()
    device.close()
    deadline = time.monotonic() + 20
    while (left := processes().keys() - old.keys()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, processes()


def test_closing_ends_what_is_under_way(engines: Path, files: dict[str, ExportedModel]) -> None:
    with Browser(folder=engines, samples=10**9, max_seconds=120) as device, ThreadPoolExecutor(1) as pool:
        device.push(list(files.values()), IMAGES)
        under_way = pool.submit(device.run, files["onnx-fp32"])
        time.sleep(3)
        device.close()
        with pytest.raises(DeviceLost):
            under_way.result(timeout=20)
        with pytest.raises(DeviceLost, match="a running browser"):
            device.run(files["onnx-fp32"])


def test_a_missing_or_stale_folder_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINHASH_BROWSER", str(tmp_path / "nowhere"))
    with pytest.raises(MissingBackend, match="nowhere") as caught, Browser():
        pass
    assert caught.value.fix == BROWSER_FIX
    for name in NPM_PACKAGES:
        (tmp_path / "node_modules" / name).mkdir(parents=True)
        (tmp_path / "node_modules" / name / "package.json").write_text('{"version": "0.0.1"}')
    with pytest.raises(MissingBackend, match=NPM_PACKAGES["onnxruntime-web"]), Browser(folder=tmp_path):
        pass


def test_setup_is_done_once(engines: Path) -> None:
    before = engines.stat().st_ino
    assert set_up_browser(engines) == engines
    assert engines.stat().st_ino == before


def test_setup_leaves_a_folder_of_somebody_else_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    (tmp_path / "package.json").write_text('{"name": "my-app"}')
    with pytest.raises(InputError, match="Name another folder"):
        set_up_browser(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["package.json", "thesis.txt"]


def test_a_step_that_fails_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = {"chromium": "exit 0", "npm": "echo half > node_modules; echo E403 the registry says no; exit 1"}
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(setup, "find_spec", lambda name: name)  # Playwright is not the step that fails here
    with pytest.raises(
        MissingBackend,
        match=r"npm install onnxruntime-web@\S+ @litertjs/core@\S+ esbuild@\S+ to succeed; found E403 the registry",
    ):
        set_up_browser(tmp_path / "engines")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chromium", "npm"]


def test_a_step_that_takes_too_long_is_ended_with_all_it_started(tmp_path: Path) -> None:
    script = tmp_path / "sleep.sh"
    script.write_text('echo "== a long sleep"; sleep 600 & echo $! > "$1"; wait')
    with pytest.raises(MissingBackend, match=r"a long sleep to succeed; found no end within 0\.5 s"):
        run_script(script, [tmp_path / "pid"], limit_s=0.5)
    with pytest.raises(MissingBackend, match="No such file"):
        run_script(tmp_path / "nothing", [])
    assert int((tmp_path / "pid").read_text()) not in processes()


def test_the_server_serves_its_folder_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "served"
    (folder / "npm").mkdir(parents=True)
    (folder / "npm/a.mjs").write_text("export {}")
    (folder / "image").write_bytes(IMAGES[:2].tobytes())
    (tmp_path / "secret").write_text("x")
    (folder / "linked").symlink_to(tmp_path / "secret")
    server = WebServer(folder)
    try:
        status, headers, body = got(server, "/npm/a.mjs")
        assert (status, headers["Content-Type"], body) == (200, "text/javascript", b"export {}")
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert got(server, "/image")[2] == IMAGES[:2].tobytes()
        assert got(server, "/image")[1]["Content-Type"] == "application/octet-stream"
        assert got(server, "/linked")[2] == b"x"
        outside = (
            f"/{tmp_path}/secret",
            "//secret",
            "/..%2fsecret",
            "/%2e%2e%2fsecret",
            f"/npm/../../{'../' * 9}etc/passwd",
        )
        folders = ("/", "/npm", "/npm/", "/npm/..", "/image/", "/npm/a.mjs/")
        for path in ("/../secret", "/npm/../../secret", "/npm/%2e%2e/%2e%2e/secret", *outside, *folders, "/a%00b"):
            assert got(server, path)[0] == 404, path
        for host in ("localhost", "127.0.0.1", "LOCALHOST:80", "localhost:9999"):  # port 80, and one forwarded
            assert got(server, "/npm/a.mjs", host=host)[0] == 200, host
        port = server.server_port
        for host in (
            "twin.example",
            f"twin.example:{port}",
            f"localhost.twin.example:{port}",
            "localhost:80:80",
            "x@localhost",
        ):
            assert got(server, "/npm/a.mjs", host=host)[0] == 404, host
        for method in ("HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
            assert got(server, "/npm/a.mjs", method=method)[0] == 501, method
    finally:
        server.close()
    with pytest.raises(ConnectionRefusedError):
        got(server, "/npm/a.mjs")


def got(server: WebServer, path: str, host: str = "", method: str = "GET") -> tuple[int, Message, bytes]:
    address = server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request(method, path, headers={"Host": host or address})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def test_each_push_replaces_the_models_and_images_of_the_last(
    chromium: Browser, files: dict[str, ExportedModel]
) -> None:
    assert chromium.served is not None
    chromium.push([files["onnx-fp32"]], IMAGES[:1])
    served = chromium.served
    assert [path.name for path in (served / "models").iterdir()] == [files["onnx-fp32"].sha256]
    assert [path.name for path in (served / "images").iterdir()] == ["0"]
    chromium.push(list(files.values()), IMAGES)
    assert len(list((served / "models").iterdir())) == len(files)
    assert {path.name for path in (served / "images").iterdir()} == {"0", str(CHUNK)}
