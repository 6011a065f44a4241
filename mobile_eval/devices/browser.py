"""A browser as the place: headless Chromium with ONNX Runtime Web and LiteRT.js, by WebAssembly or WebGPU.

The files run in `browser.html`, served to this one browser by `site`; Playwright drives it.  Its milliseconds are
those of a browser on this machine, no phone's; its bits are those of every browser that runs the same WebAssembly.
"""

from __future__ import annotations

import base64
import binascii
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from export.artifact import ExportedModel
from gallery.codes import Codes
from gallery.console import track
from gallery.errors import CorruptFile, DeviceLost, InputError, MissingBackend, TwinhashError
from mobile_eval import latency
from mobile_eval.devices.base import Device, DeviceOutput, Pixels
from mobile_eval.devices.browser_setup import PACKAGES, SET_UP, chromium, home, installed, served
from mobile_eval.devices.subprocess_device import WorkerFailed
from mobile_eval.devices.web_server import Entries, WebServer
from mobile_eval.runtimes.base import check_images
from mobile_eval.system_info import cpu_name

ENGINES = {"onnx": ("ONNX Runtime Web", "onnxruntime-web"), "litert": ("LiteRT.js", "@litertjs/core")}
QUIET = ["--no-first-run", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
QUIET += ["--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]  # it reaches nothing but us
GPU = ["--enable-unsafe-webgpu", "--enable-features=Vulkan"]
SOFTWARE_GPU = ["--use-webgpu-adapter=swiftshader"]
PAGE, ANSWERED = "/page.html", "twinhash: answered"
CHUNK = 32  # pictures a step
MAX_BYTES = 1 << 30  # a browser's largest array holds little more
START_S, STEP_S = 60.0, 300.0
Accelerator = Literal["wasm", "webgpu"]
ExportFailure = CorruptFile | WorkerFailed


class Browser(Device):
    """One headless Chromium, and a page of its own for each file.

    Playwright works in a thread of its own: it takes no second browser, and no event loop, in the thread it is in.

    threads:     of WebAssembly; a second one needs shared memory, which the page is isolated for
    accelerator: "wasm", or "webgpu" where Chromium finds an adapter; software: the one that runs on the CPU
    samples, max_seconds: of the timing, as in `latency.measure`; limit_s: longest wait for 32 pictures
    """

    formats = tuple(ENGINES)

    def __init__(
        self, threads: int = 1, accelerator: Accelerator = "wasm", software: bool = False, folder: Path | None = None,
        samples: int = latency.SAMPLES, max_seconds: float = latency.MAX_SECONDS, limit_s: float = STEP_S,
    ) -> None:  # fmt: skip
        self.name = "browser-webgpu" if accelerator == "webgpu" else f"browser-wasm-{threads}t"
        self.threads, self.accelerator, self.software = threads, accelerator, software
        self.folder, self.samples, self.max_seconds, self.limit_s = home(folder), samples, max_seconds, limit_s
        self._entries: Entries = {PAGE: Path(__file__).with_suffix(".html")}
        self._parts: list[Callable[[], None]] = []  # how what was started ends
        self._closing = Event()
        self._thread = ThreadPoolExecutor(1, self.name)
        self._browser: Any = None
        self._place: dict[str, Any] = {}
        self._pictures: Pixels = np.empty((0, 0, 0, 3), np.uint8)

    def prepare(self) -> None:
        """Starts the server and the browser; `MissingBackend` when a part, or the WebGPU adapter, is missing."""
        self._closing.clear()
        self._thread.submit(self._prepare).result()

    def _prepare(self) -> None:
        self._start()
        with self._page(START_S) as page:
            self._place = self._ask(page, "place", limit_s=START_S)
        adapter = self._place["adapter"]
        if self.accelerator == "webgpu" and (adapter is None or adapter["software"] > self.software):
            found = "none" if adapter is None else f"only {adapter['name']}, a software adapter,"
            fix = "Use a machine with a GPU that Chromium supports, or leave out browser-webgpu."
            raise MissingBackend("a WebGPU adapter", f"{found} in Chromium {self._browser.version} here", fix)
        if self.accelerator == "wasm" and self.threads > 1 and not self._place["isolated"]:
            raise MissingBackend("an isolated page, for threads", "one without", "Use Chromium or Chrome, 92 or later.")

    def push(self, files: Sequence[ExportedModel], pictures: Pixels) -> None:
        """Offers files and pictures to the browser, the pictures as binary chunks of `CHUNK`."""
        if not len(pictures):
            raise InputError("a picture at least", "none", "Give queries.")
        for file in files:
            if file.bytes > MAX_BYTES:
                raise InputError(f"{file.path.name} of at most {MAX_BYTES} bytes", str(file.bytes), "Leave it out.")
        self._entries |= {f"/model/{file.sha256}": file.path for file in files if file.format in ENGINES}
        self._pictures = np.ascontiguousarray(pictures)
        for stale in [path for path in self._entries if path.startswith("/pictures/")]:
            del self._entries[stale]
        for start in range(0, len(pictures), CHUNK):
            self._entries[f"/pictures/{start}"] = self._pictures[start : start + CHUNK].reshape(-1).data

    def run(self, file: ExportedModel) -> DeviceOutput:
        """Raises `CorruptFile` or `WorkerFailed` with the engine's message, `DeviceLost` when the browser is gone.

        The time to load includes that of the engine itself, which a page starts with its first file.
        """
        if file.format not in ENGINES:
            raise MissingBackend(f"an engine for {file.path.name} in a browser", "none", "Run it elsewhere.")
        check_images(self._pictures, file.card)
        return self._thread.submit(self._run, file).result()

    def _run(self, file: ExportedModel) -> DeviceOutput:
        adapter = self._place["adapter"] or {}
        if (self.accelerator, file.form) == ("webgpu", "onnx-fp16") and not adapter["f16"]:
            raise MissingBackend("shader-f16, which this file needs", f"{adapter['name']} without", "Use another GPU.")
        with self._page(self.limit_s) as page:
            given = [file.format, f"/model/{file.sha256}", file.card.size, self.threads, self.accelerator]
            opened = self._ask(page, "open", *given, refused=CorruptFile)
            wait = self.limit_s + 2 * self.max_seconds
            timing = [latency.WARM_UPS, self.samples, self.max_seconds]
            timed = self._ask(page, "time", "/pictures/0", *timing, limit_s=wait)
            starts = range(0, len(self._pictures), CHUNK)
            tracked = track(starts, f"{self.name} {file.form}", len(starts))
            rows = [row for start in tracked for row in self._ask(page, "run", f"/pictures/{start}")]
        name, package = ENGINES[file.format]
        engine = f"{name} {PACKAGES[package]} {'WebGPU' if self.accelerator == 'webgpu' else 'WebAssembly'}"
        taken = latency.Latency.of(timed["first"], timed["taken"])
        figures = {"device": self.name, "load_ms": opened["load"], "threads": opened["threads"], **vars(taken)}
        return DeviceOutput(*self._numbers(rows, file), engine, figures | {"conditions": self._conditions()})

    def close(self) -> None:
        """Ends the browser, Playwright's driver and the server, whatever state they are in."""
        self._closing.set()
        if self._parts:
            self._thread.submit(self._end).result()

    def _end(self) -> None:
        self._browser = None
        while self._parts:
            _quietly(self._parts.pop())

    def _start(self) -> None:
        program = chromium()
        if not installed(self.folder) or program is None or find_spec("playwright") is None:
            parts = f"Chromium, Playwright, and {' and '.join(f'{n} {v}' for n, v in PACKAGES.items())}"
            raise MissingBackend(parts, f"not all of them (engines: {self.folder})", SET_UP)
        from playwright.sync_api import Error, sync_playwright

        self._entries |= served(self.folder)
        self._site = WebServer(self._entries)
        self._parts.append(self._site.close)
        flags = [*QUIET, *([*GPU, *(SOFTWARE_GPU if self.software else [])] if self.accelerator == "webgpu" else [])]
        try:
            playwright = sync_playwright().start()
            self._parts.append(playwright.stop)
            self._browser = playwright.chromium.launch(
                executable_path=program, args=flags, chromium_sandbox=os.geteuid() != 0, timeout=1000 * START_S
            )  # Chromium's sandbox refuses to work for root
            self._parts.append(self._browser.close)
        except Error as error:
            raise MissingBackend("Chromium to start", _said(error), f"Try: {program} --headless --version") from error

    @contextmanager
    def _page(self, limit_s: float) -> Iterator[Any]:
        """A fresh page, closed in the end; the engine of a file that broke cannot harm the next."""
        from playwright.sync_api import Error

        if self._browser is None:
            raise DeviceLost("a running browser", "none", "Prepare the device first.")
        with ExitStack() as stack:
            try:
                page = self._browser.new_page()
                stack.callback(_quietly, page.close)
                page.goto(self._site.url + PAGE, timeout=1000 * limit_s)
                page.wait_for_function("!!window.ask", timeout=1000 * limit_s)
            except Error as error:
                raise self._lost(error) from error
            yield page

    def _ask(
        self, page: Any, name: str, *given: Any, limit_s: float = 0, refused: type[ExportFailure] = WorkerFailed
    ) -> Any:
        """What the page answers.

        A page that computes hears nothing, not even the end of a time limit: so it is asked in a call that returns at
        once, and what is awaited is its line on the console.
        """
        from playwright.sync_api import Error

        limit_s = limit_s or self.limit_s
        end, heard = time.monotonic() + limit_s, _Heard()
        try:
            page.on("console", heard)
            page.evaluate("([name, given]) => window.ask(name, given)", [name, list(given)])
            while not heard.wait(page):
                if self._closing.is_set():
                    raise DeviceLost(f"{self.name} to stay", "it was closed meanwhile", "Start again.")
                if time.monotonic() > end:
                    raise WorkerFailed(f"an answer within {limit_s:g} s", "none", "Leave the file out here.")
            answer = page.evaluate("window.answer")
        except Error as error:
            raise self._lost(error) from error
        if "error" in answer:
            message = " ".join(answer["error"].split())[:500]
            raise refused(f"a file that {self.name} can {name}", message, "Export it again, or leave it out.")
        return answer["value"]

    def _lost(self, error: Exception) -> TwinhashError:
        """The error for what Playwright raised: the whole browser is gone, or only this page broke."""
        if self._browser is not None and self._browser.is_connected() and "closed" not in str(error):
            return WorkerFailed(f"a page that lives in {self.name}", _said(error), "See whether memory ran out.")
        self._browser = None
        return DeviceLost(f"{self.name} to stay", _said(error), "Start again; see whether memory ran out.")

    def _numbers(self, rows: Sequence[str], file: ExportedModel) -> tuple[Codes, NDArray[np.float32]]:
        """Codes uint8 `[n, bits/8]` and logits float32 `[n, bits]` of the page's rows, one a picture."""
        count, width = len(self._pictures), file.card.bits // 8
        try:
            data = [base64.b64decode(row, validate=True) for row in rows]
            if len(data) != count or {len(row) for row in data} - {33 * width}:  # 1 byte of code, 8 * 4 of logits
                raise ValueError(f"{len(data)} rows of {sorted({len(row) for row in data})} bytes")
        except (binascii.Error, ValueError, TypeError) as error:
            found = f"{count} codes of {width} bytes with their logits from {file.path.name}"
            raise CorruptFile(found, str(error), "Export it again.") from error
        table = np.frombuffer(b"".join(data), np.uint8).reshape(count, 33 * width)
        return table[:, :width].copy(), table[:, width:].copy().view("<f4")

    def _conditions(self) -> dict[str, str]:
        place, adapter = self._place, self._place["adapter"]
        found = {
            "browser": f"Chromium {self._browser.version}",
            "user agent": place["userAgent"],
            "isolated": str(place["isolated"]).lower(),
            "cores": str(place["cores"]),
            "processor": cpu_name(),
        }
        if self.accelerator == "webgpu":
            found["adapter"] = adapter["name"] + (" (software adapter)" if adapter["software"] else "")
        return found


class _Heard:
    """Listens to a page's console for the line that says there is an answer."""

    def __init__(self) -> None:
        self._answered = False

    def __call__(self, message: Any) -> bool:
        self._answered |= message.text == ANSWERED
        return self._answered

    def wait(self, page: Any) -> bool:
        """Whether there is an answer, after a second at most; raises Playwright's error when the page is gone."""
        from playwright.sync_api import TimeoutError

        with suppress(TimeoutError):
            if not self._answered:
                page.wait_for_event("console", predicate=self, timeout=1000)
        return self._answered


def _quietly(end: Callable[[], None]) -> None:
    """Ends a part that may be gone already, and then says so with one error or another, which concerns nobody."""
    with suppress(Exception):
        end()


def _said(error: Exception) -> str:
    return " ".join(str(error).splitlines()[0].split())[:500]
