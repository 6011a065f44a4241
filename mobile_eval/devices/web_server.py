"""A static web server for browsers on this machine, with the headers that give its pages threads."""

import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HEADERS = {  # the first two isolate the page, without which a browser gives it no threads
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class _Handler(SimpleHTTPRequestHandler):
    timeout = 60  # seconds without a word until a connection is dropped
    extensions_map = {  # noqa: RUF012 - declared so by the base class
        ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".mjs": "text/javascript",
        ".css": "text/css", ".json": "application/json", ".jpg": "image/jpeg", ".svg": "image/svg+xml",
        ".wasm": "application/wasm", "": "application/octet-stream",
    }  # fmt: skip

    def send_head(self) -> Any:
        """Serve files, at / index.html, and only to who asks for this machine: no other site's name may lead here.

        The port is not compared: a browser leaves out 80, and one that is forwarded has another number.
        """
        ours = re.fullmatch(r"(127\.0\.0\.1|localhost)(:\d+)?", self.headers["Host"] or "", re.IGNORECASE)
        if self.path == "/":
            self.path = "/index.html"
        found = ours and Path(self.translate_path(self.path)).is_file()
        return super().send_head() if found else self.send_error(404)

    def do_HEAD(self) -> None:
        self.send_error(501)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing: the caller reports what goes wrong."""


class WebServer(ThreadingHTTPServer):
    """Serves the files of a folder, and those that its links lead to, on 127.0.0.1 until closed.

    port: 0 takes a free one; raises `OSError` for one that is taken
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), partial(_Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop listening; connections that are still open end with their idle limit."""
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Nothing: a browser that hangs up is reported by who asked it."""
