"""Fetch an image by http(s), within limits of size and time; no redirect leads into a private network."""

from __future__ import annotations

import ipaddress
import socket
import threading
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPSConnection
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, ProxyHandler, Request, build_opener

from gallery.console import plain
from gallery.errors import InputError

MAX_BYTES, SECONDS, MOST_REDIRECTS = 64 << 20, 30.0, 3
FIX = "Check the address, or remove the row."


def is_http(source: str) -> bool:
    """Return whether a source is an address that `fetch` takes."""
    return source.lower().startswith(("http://", "https://"))


def fetch(url: str, seconds: float = SECONDS, limit: int = MAX_BYTES) -> bytes:
    """Return what is at an address; raises `InputError` for an error, more than `limit` bytes, or too long a time.

    The address itself may be in a private network, which its owner listed; a redirect may not lead there.
    """
    sockets: list[socket.socket] = []
    opener = build_opener(ProxyHandler({}), _Redirects(), _Connections(sockets))
    ended = threading.Event()
    timer = threading.Timer(seconds, _close, (sockets, ended))
    timer.daemon = True
    timer.start()
    try:
        request = Request(url, headers={"User-Agent": "twinhash", "Accept": "image/*"})
        with opener.open(request, timeout=seconds) as answer:
            data: bytes = answer.read(limit + 1)
    except (OSError, HTTPException, ValueError) as error:
        found = f"nothing within {seconds:g} s" if ended.is_set() else plain(str(error) or type(error).__name__)[:200]
        raise InputError(f"an image at {ascii(url)[:200]}", found, FIX) from error
    finally:
        timer.cancel()
    if ended.is_set() or len(data) > limit:
        found = f"nothing within {seconds:g} s" if ended.is_set() else f"more than {limit:,} bytes"
        raise InputError(f"an image at {ascii(url)[:200]}", found, FIX)
    return data


def _close(sockets: list[socket.socket], ended: threading.Event) -> None:
    """End a request whose time is over: a server that sends a byte now and then would meet every other limit."""
    ended.set()
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


class _Redirects(HTTPRedirectHandler):
    max_redirections = MOST_REDIRECTS

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise ValueError(f"a redirect to {newurl}")
        found = super().redirect_request(req, fp, code, msg, headers, newurl)
        if found is not None:
            found.is_redirect = True  # type: ignore[attr-defined]
        return found


class _Connections(HTTPHandler, HTTPSHandler):
    def __init__(self, sockets: list[socket.socket]) -> None:
        super().__init__()
        self.sockets = sockets

    def http_open(self, req: Request) -> Any:
        return self.do_open(_connection(HTTPConnection, self.sockets, req), req)

    def https_open(self, req: Request) -> Any:
        return self.do_open(_connection(HTTPSConnection, self.sockets, req), req)


def _connection(kind: type[HTTPConnection], sockets: list[socket.socket], request: Request) -> type[HTTPConnection]:
    """Return a kind of connection whose socket is noted, and after a redirect is one to a public address.

    The address is that of the open socket: a name server that answers twice differently changes nothing.
    """

    class Checked(kind):  # type: ignore[valid-type,misc]
        def connect(self) -> None:
            super().connect()
            sockets.append(self.sock)
            peer = ipaddress.ip_address(self.sock.getpeername()[0].partition("%")[0])
            if getattr(request, "is_redirect", False) and not peer.is_global:
                self.close()
                raise ValueError(f"a redirect to {peer}, which is in a private network")

    return Checked
