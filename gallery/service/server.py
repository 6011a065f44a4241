"""uvicorn with an end to slow connections, and one exit for all its processes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import tempfile
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.supervisors import Multiprocess

from gallery.command_line import STOPPING, Stopped
from gallery.console import log
from gallery.service.errors import ServiceError

STOP_S = 15  # for requests that are being answered
IDLE_S = 30  # for the next request of a connection, and to read the last answer
HEADERS_S, MAX_HEADERS = 10, 32 << 10  # bytes


def run(create: Callable[[], Any], listening: socket.socket, workers: int) -> None:
    """Serve what `create` builds in each process, until a signal, which is raised as `Stopped`."""
    config = uvicorn.Config(
        create, factory=True, workers=workers, http=Connection, loop="uvloop", ws="none", log_config=None,
        access_log=False, proxy_headers=False, server_header=False, timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=STOP_S,
    )  # fmt: skip
    if workers == 1:
        server = uvicorn.Server(config)
        server.run([listening])
        if not server.started:
            raise RuntimeError("the service could not start")
        return
    with tempfile.TemporaryDirectory(prefix="twinhash-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        processes = Processes(config, [listening])
        processes.run()
    if not processes.stopped_by:
        raise RuntimeError("a process of the service could not start")
    raise Stopped(processes.stopped_by)


def log_errors() -> None:
    """Have uvicorn's errors in the log, where nothing that a client sent can steer a terminal."""
    logger = logging.getLogger("uvicorn")
    logger.handlers, logger.propagate = log.handlers, False
    logger.setLevel(logging.ERROR)  # its warnings are of every client that speaks no HTTP


class Processes(Multiprocess):
    """Processes that all end with the first signal that asks for it."""

    stopped_by = 0

    def handle_signals(self) -> None:
        """Note the signal, and end."""
        for number in self.signal_queue:
            if number in STOPPING:
                self.stopped_by = number
                self.should_exit.set()
        self.signal_queue.clear()


class Connection(HttpToolsProtocol):
    """uvicorn's connection, which ends one whose headers take too long or are too many, or that reads no answer."""

    _timer: asyncio.TimerHandle | None = None
    _size = 0

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes before the end of the headers."""
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._wait()
        super().data_received(data)
        if self._timer is not None:
            self._size += len(data)
            if self._size > MAX_HEADERS:
                self._refuse()

    def on_headers_complete(self) -> None:
        """Begin the answer."""
        self._wait_no_more()
        super().on_headers_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, and one whose client has not read the last answer."""
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the form of all errors."""
        self._refuse(400, "bad_http", "a request by HTTP/1.1")

    def _wait(self) -> None:
        self._timer, self._size = self.loop.call_later(HEADERS_S, self._refuse), 0

    def _wait_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int = 431, error: str = "bad_headers", expected: str = "") -> None:
        expected = expected or f"headers of at most {MAX_HEADERS:,} bytes within {HEADERS_S} s"
        body = bytes(ServiceError(status, error, (expected, "another", "Change the client.")).response().body)
        head = f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self._wait_no_more()
        if not self.transport.is_closing():
            self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
            self.transport.close()
