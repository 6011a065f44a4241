"""A web server for one browser on this machine: it knows the entries it was given, and nothing else."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath

TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".mjs": "text/javascript"}
TYPES |= {".wasm": "application/wasm"}
HEADERS = {  # the first two isolate the page, without which a browser gives it no threads
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
IDLE_S = 60  # a connection that says nothing for so long is dropped
Entries = dict[str, Path | memoryview]


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Nothing: a browser that hangs up in mid-sentence is told of by whoever asked it."""


class WebServer:
    """Serves `entries`, files or bytes by their absolute paths, on 127.0.0.1 until closed.

    Whatever is not a key of `entries`, which may still grow, is not there: no path is ever looked up on the disk.
    """

    def __init__(self, entries: Entries) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = IDLE_S

            def do_GET(self) -> None:
                host = f"127.0.0.1:{self.connection.getsockname()[1]}"
                found = entries.get(self.path) if self.headers["Host"] == host else None
                if found is None:
                    return self.send_error(404)
                data = memoryview(found.read_bytes()) if isinstance(found, Path) else found
                self.send_response(200)
                kind = TYPES.get(PurePosixPath(self.path).suffix, "application/octet-stream")
                for name, value in {"Content-Type": kind, "Content-Length": str(data.nbytes), **HEADERS}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Nothing: the caller reports what goes wrong."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stops listening; connections that are still open end with their idle limit."""
        self._server.shutdown()
        self._server.server_close()
