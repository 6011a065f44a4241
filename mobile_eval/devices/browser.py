"""Headless Chromium with ONNX Runtime Web and LiteRT.js, by WebAssembly or WebGPU.

The models run in `browser.html`, served to this one browser by `WebServer`; Playwright drives it.  Its latency is that
of a browser on this machine, no phone's; its bits are those of every browser that runs the same WebAssembly.
"""

import base64
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from export.artifact import ExportedModel
from gallery.codes import Codes
from gallery.console import track
from gallery.errors import CorruptFile, DeviceLost, InputError, MissingBackend, TwinhashError
from mobile_eval import latency
from mobile_eval.devices.base import Device, DeviceOutput
from mobile_eval.devices.setup import BROWSER_FIX, NPM_PACKAGES, chromium, default_folder, engines_installed
from mobile_eval.devices.subprocess_device import WorkerFailed
from mobile_eval.devices.web_server import WebServer
from mobile_eval.runtimes.base import Images, check_images
from mobile_eval.system_info import cpu_name

ENGINES = {"onnx": ("ONNX Runtime Web", "onnxruntime-web"), "litert": ("LiteRT.js", "@litertjs/core")}
OFFLINE = ["--no-first-run", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
OFFLINE += ["--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # it reaches only our server
GPU, SOFTWARE_GPU = ["--enable-unsafe-webgpu", "--enable-features=Vulkan"], ["--use-webgpu-adapter=swiftshader"]
PAGE, ANSWERED = "page.html", "twinhash: answered"
CHUNK, START_S = 32, 60.0  # images a call, seconds until a page is there
MAX_BYTES = 1 << 30  # a browser's largest array holds little more
Accelerator = Literal["wasm", "webgpu"]


class Browser(Device):
    """One headless Chromium, and a page of its own for each model.

    Playwright works in a thread of its own: it takes no second browser, and no event loop, in the thread it is in.

    threads:     of WebAssembly; a second one needs shared memory, which the page is isolated for
    accelerator: "wasm", or "webgpu" where Chromium finds an adapter; software: the one that runs on the CPU
    folder:      of the engines; samples, max_seconds: of the timing; limit_s: longest wait for `CHUNK` images
    """

    formats = tuple(ENGINES)
    limit_s = 300.0

    def __init__(
        self, threads: int = 1, accelerator: Accelerator = "wasm", software: bool = False, folder: Path | None = None,
        samples: int = latency.SAMPLES, max_seconds: float = latency.MAX_SECONDS,
    ) -> None:  # fmt: skip
        self.name = "browser-webgpu" if accelerator == "webgpu" else f"browser-wasm-{threads}t"
        self.threads, self.accelerator, self.software = threads, accelerator, software
        self.engines, self.samples, self.max_seconds = folder or default_folder("browser"), samples, max_seconds
        self.served: Path | None = None  # the folder that the browser sees
        self._started = ExitStack()  # ends what was started
        self._closing, self._thread = Event(), ThreadPoolExecutor(1, self.name)
        self._browser: Any = None
        self._info: dict[str, Any] = {}

    def prepare(self) -> None:
        """Start the server and the browser; `MissingBackend` when a part, or the WebGPU adapter, is missing."""
        self._closing.clear()
        self._thread.submit(self._prepare).result()

    def push(self, models: Sequence[ExportedModel], images: Images) -> None:
        """Offer models and images to the browser, the images as raw chunks of `CHUNK`."""
        super().push(models, images)
        if self.served is None:
            raise DeviceLost("a running browser", "none", "Prepare the device first.")
        for name in ("models", "images"):
            shutil.rmtree(self.served / name, ignore_errors=True)
            (self.served / name).mkdir()
        for model in models:
            if model.bytes > MAX_BYTES:
                raise InputError(f"{model.path.name} of at most {MAX_BYTES} bytes", str(model.bytes), "Leave it out.")
            if model.format in ENGINES:
                (self.served / "models" / model.sha256).unlink(missing_ok=True)  # of a file with the same bytes
                (self.served / "models" / model.sha256).symlink_to(model.path.resolve())
        for start in range(0, len(images), CHUNK):
            (self.served / f"images/{start}").write_bytes(images[start : start + CHUNK].tobytes())

    def run(self, model: ExportedModel) -> DeviceOutput:
        """Raises `CorruptFile` or `WorkerFailed` with the engine's message, `DeviceLost` when the browser is gone.

        The time to load includes that of the engine itself, which a page starts with its first model.
        """
        if model.format not in ENGINES:
            raise MissingBackend(f"an engine for {model.path.name} in a browser", "none", "Run it elsewhere.")
        check_images(self.images, model.metadata)
        return self._thread.submit(self._run, model).result()

    def close(self) -> None:
        """End the browser, Playwright's driver and the server, whatever state they are in."""
        self._closing.set()
        with suppress(Exception):  # of parts that are gone already
            self._thread.submit(self._started.close).result()
        self._browser = self.served = None

    def _prepare(self) -> None:
        program = chromium()
        if not engines_installed(self.engines) or program is None or find_spec("playwright") is None:
            parts = ", ".join(f"{name} {release}" for name, release in NPM_PACKAGES.items())
            found = f"not all of them (engines: {self.engines})"
            raise MissingBackend(f"Chromium, Playwright, {parts}", found, BROWSER_FIX)
        self.served = Path(self._started.enter_context(TemporaryDirectory(prefix="twinhash-")))
        (self.served / PAGE).symlink_to(Path(__file__).with_suffix(".html"))
        (self.served / "npm").symlink_to(self.engines.resolve() / "node_modules")
        self._server = WebServer(self.served)
        self._started.callback(self._server.close)
        self._launch(program)
        with self._page(START_S) as page:
            self._info = self._ask(page, "info", limit_s=START_S)
        adapter = self._info["adapter"]
        if self.accelerator == "webgpu" and (adapter is None or adapter["software"] > self.software):
            found = "none" if adapter is None else f"only {adapter['name']}, a software adapter,"
            fix = "Use a machine with a GPU that Chromium supports, or leave out browser-webgpu."
            raise MissingBackend("a WebGPU adapter", f"{found} in Chromium {self._browser.version} here", fix)
        if self.accelerator == "wasm" and self.threads > 1 and not self._info["isolated"]:
            raise MissingBackend("an isolated page, for threads", "one without", "Use Chromium or Chrome, 92 or later.")

    def _launch(self, program: str) -> None:
        from playwright.sync_api import Error, sync_playwright

        flags = OFFLINE + GPU * (self.accelerator == "webgpu") + SOFTWARE_GPU * self.software
        try:
            playwright = sync_playwright().start()
            self._started.callback(playwright.stop)
            self._browser = playwright.chromium.launch(
                executable_path=program, args=flags, chromium_sandbox=os.geteuid() != 0, timeout=1000 * START_S
            )  # Chromium's sandbox does not work for root
            self._started.callback(self._browser.close)
        except Error as error:
            fix = f"Try: {program} --headless --version"
            raise MissingBackend("Chromium to start", _first_line(error), fix) from error

    def _run(self, model: ExportedModel) -> DeviceOutput:
        info, adapter = self._info, self._info["adapter"] or {}
        if (self.accelerator, model.variant) == ("webgpu", "onnx-fp16") and not adapter["f16"]:
            raise MissingBackend("shader-f16, which this file needs", f"{adapter['name']} without", "Use another GPU.")
        with self._page(self.limit_s) as page:
            given = [model.format, f"/models/{model.sha256}", model.metadata.size, self.threads, self.accelerator]
            opened = self._ask(page, "open", *given, failure=CorruptFile)
            timing = [latency.WARM_UPS, self.samples, self.max_seconds]
            timed = self._ask(page, "time", "/images/0", *timing, limit_s=self.limit_s + 2 * self.max_seconds)
            starts = range(0, len(self.images), CHUNK)
            tracked = track(starts, f"{self.name} {model.variant}", len(starts))
            rows = [row for start in tracked for row in self._ask(page, "run", f"/images/{start}")]
        name, package = ENGINES[model.format]
        engine = f"{name} {NPM_PACKAGES[package]} {'WebGPU' if self.accelerator == 'webgpu' else 'WebAssembly'}"
        conditions = {"browser": f"Chromium {self._browser.version}", "user agent": info["userAgent"]}
        conditions |= {"isolated": str(info["isolated"]).lower(), "cores": str(info["cores"]), "processor": cpu_name()}
        if self.accelerator == "webgpu":
            conditions["adapter"] = adapter["name"] + " (software adapter)" * adapter["software"]
        figures = {"load_ms": opened["load"], "threads": opened["threads"], "conditions": conditions}
        figures |= vars(latency.Latency.of(timed["first"], timed["taken"]))
        return DeviceOutput(*self._parse(rows, model), engine, figures)

    @contextmanager
    def _page(self, limit_s: float) -> Iterator[Any]:
        """Open a fresh page, closed at the end: the engine of a model that failed cannot harm the next."""
        from playwright.sync_api import Error

        if self._browser is None:
            raise DeviceLost("a running browser", "none", "Prepare the device first.")
        try:
            page = self._browser.new_page()
            try:
                page.goto(f"{self._server.url}/{PAGE}", timeout=1000 * limit_s)
                page.wait_for_function("!!window.ask", timeout=1000 * limit_s)
                yield page
            finally:
                with suppress(Exception):  # it may be gone already
                    page.close()
        except Error as error:
            if self._browser is not None and self._browser.is_connected() and "closed" not in str(error):
                found, fix = _first_line(error), "See whether memory ran out."
                raise WorkerFailed(f"a page that lives in {self.name}", found, fix) from error
            self._browser, fix = None, "Start again; see whether memory ran out."
            raise DeviceLost(f"{self.name} to stay", _first_line(error), fix) from error

    def _ask(
        self, page: Any, name: str, *given: Any, limit_s: float = 0, failure: type[TwinhashError] = WorkerFailed
    ) -> Any:
        """Call a function of the page and return its result; raises `failure` with its error.

        A page that computes hears nothing, not even the end of a time limit: so the call returns at once, and what is
        awaited is its line on the console.
        """
        from playwright.sync_api import TimeoutError

        answered: list[Any] = []
        page.on("console", lambda message: answered.extend([message] * (message.text == ANSWERED)))
        end = time.monotonic() + (limit_s := limit_s or self.limit_s)
        page.evaluate("([name, given]) => window.ask(name, given)", [name, given])
        while not answered:
            if self._closing.is_set():
                raise DeviceLost(f"{self.name} to stay", "it was closed meanwhile", "Start again.")
            if time.monotonic() > end:
                raise WorkerFailed(f"an answer within {limit_s:g} s", "none", "Leave the file out here.")
            with suppress(TimeoutError):
                page.wait_for_event("console", timeout=1000)
        answer = page.evaluate("window.answer")
        if "error" in answer:
            message = " ".join(answer["error"].split())[:500]
            raise failure(f"a file that {self.name} can {name}", message, "Export it again, or leave it out.")
        return answer["value"]

    def _parse(self, rows: Sequence[str], model: ExportedModel) -> tuple[Codes, NDArray[np.float32]]:
        """Return codes uint8 `[n, bits/8]` and logits float32 `[n, bits]` of the page's rows, one for each image."""
        count, width = len(self.images), model.metadata.bits // 8
        try:
            data = [base64.b64decode(row, validate=True) for row in rows]
            if len(data) != count or {len(row) for row in data} - {33 * width}:  # 1 byte of code, 8 * 4 of logits
                raise ValueError(f"{len(data)} rows of {sorted({len(row) for row in data})} bytes")
        except (ValueError, TypeError) as error:
            expected = f"{count} codes of {width} bytes with their logits from {model.path.name}"
            raise CorruptFile(expected, str(error), "Export it again.") from error
        table = np.frombuffer(b"".join(data), np.uint8).reshape(count, 33 * width)
        return table[:, :width].copy(), table[:, width:].copy().view("<f4")


def _first_line(error: Exception) -> str:
    return " ".join(str(error).splitlines()[0].split())[:500]
