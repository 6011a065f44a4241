"""What a request passes before it is parsed: keys, sizes, times; and pools that refuse what they cannot do in time."""

from __future__ import annotations

import asyncio
import hmac
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gallery.errors import InputError
from gallery.service import metrics
from gallery.service.errors import ServiceError

KEYS, MIN_KEY = "TWINHASH_API_KEYS", 16
MAX_JSON, MAX_IMAGE, MAX_FORM = 256 << 10, 8 << 20, 64 << 10  # bytes of a body; of a form beside its image
MAX_BUFFERED = 256 << 20  # bytes of all bodies at a time
BODY_S, REQUEST_S, WORK_S = 10, 30, 10
OPEN = {"/", "/healthz", "/readyz", "/docs", "/openapi.json"}  # without a key
TRUSTED = "twinhash.trusted"  # in the scope: whether the client may read what is said of the store
IMAGE_ROUTE = "/search/image"
LOOPBACK = {"127.0.0.1", "::1", "localhost"}
T = TypeVar("T")


def read_keys() -> list[bytes]:
    """Return the keys in the environment, separated by commas or blanks; `InputError` for a short one."""
    keys = [key.encode() for key in re.split(r"[\s,]+", os.environ.get(KEYS, "")) if key]
    if short := [len(key) for key in keys if len(key) < MIN_KEY]:
        fix = "Make one: openssl rand -hex 16."
        raise InputError(f"keys of at least {MIN_KEY} characters in {KEYS}", f"one of {short[0]}", fix)
    return keys


def check_binding(host: str, behind_proxy: bool) -> None:
    """Raise `InputError` where anyone on the network could ask without a key."""
    if host not in LOOPBACK and not read_keys() and not behind_proxy:
        fix = f"Set {KEYS}, bind to 127.0.0.1, or have a proxy check who asks and add --behind-proxy."
        raise InputError(f"keys in {KEYS} to listen on {host!a}", "none", fix)


class Guard:
    """Middleware: lets in what has a key and a bounded body, reads that body in bounded time, and counts the answers.

    hosts: names by which the service may be asked; empty for any.  Without keys they keep web pages that resolve their
    own name to this machine from asking.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[bytes], hosts: set[str]) -> None:
        self._app, self._keys, self._hosts, self._buffered = app, keys, hosts, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        start, status = time.perf_counter(), 0

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
                if status in (408, 413):  # the rest of the body is not read
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            async with asyncio.timeout(REQUEST_S):
                await self._answer(scope, receive, send_and_note)
        except TimeoutError:
            if status:
                raise
            await _late(504, REQUEST_S).response()(scope, receive, send_and_note)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            metrics.REQUESTS.labels(route, status or 500).inc()
            metrics.REQUEST_SECONDS.labels(route).observe(time.perf_counter() - start)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, held = dict(scope["headers"]), 0
        try:
            scope[TRUSTED] = self._admit(scope["path"], headers)
            if scope["method"] == "POST":
                limit = _limit(scope["path"], headers)
                if self._buffered + limit > MAX_BUFFERED:
                    raise busy("memory for the request's body")
                held = limit
                self._buffered += held
                receive = await _read(receive, limit)
            await self._app(scope, receive, send)
        except ServiceError as error:
            await error.response()(scope, receive, send)
        finally:
            self._buffered -= held

    def _admit(self, path: str, headers: dict[bytes, bytes]) -> bool:
        """Return whether a request has a key, where there are any; raises `ServiceError` for what needs one."""
        host = re.sub(r":\d*$", "", headers.get(b"host", b"").decode("latin-1")).strip("[]")
        if self._hosts and host not in self._hosts:
            fix = f"Ask for 127.0.0.1, or start the service with {KEYS} or --behind-proxy."
            raise ServiceError(403, "forbidden_host", ("a request to this machine by its own name", ascii(host), fix))
        if not self._keys:
            return True
        given = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        known = sum([hmac.compare_digest(given, key) for key in self._keys]) > 0  # all are compared
        if not known and path not in OPEN:
            found = "another key" if given else "none"
            fix = "Send the header Authorization: Bearer KEY, or X-API-Key: KEY."
            raise ServiceError(401, "unauthorized", ("a key of this service", found, fix))
        return known


def _limit(path: str, headers: dict[bytes, bytes]) -> int:
    """Return how many bytes the body of a request may have; raises `ServiceError` for a longer one, or another type."""
    image = path == IMAGE_ROUTE
    limit, wanted = (MAX_IMAGE + MAX_FORM, b"multipart/form-data") if image else (MAX_JSON, b"application/json")
    found = headers.get(b"content-type", b"none").partition(b";")[0].strip().lower()
    if found != wanted:
        texts = f"a body of {wanted.decode()}", ascii(found.decode("latin-1")), "Change Content-Type; see /docs."
        raise ServiceError(415, "unsupported_type", texts)
    if (length := headers.get(b"content-length")) is None:
        return limit
    if int(length) > limit:  # digits: the parser has seen to that
        raise _too_large(limit, f"{int(length):,}")
    return int(length)


async def _read(receive: Receive, limit: int) -> Receive:
    """Read a body, and return what gives it as one message."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            more = True
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > limit:
                    raise _too_large(limit, "more")
    except TimeoutError:
        raise _late(408, BODY_S) from None
    messages = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _too_large(limit: int, found: str) -> ServiceError:
    return ServiceError(413, "too_large", (f"a body of at most {limit:,} bytes", found, "Send less at a time."))


def _late(status: int, seconds: int) -> ServiceError:
    fix = "Send less at a time, or try again."
    return ServiceError(status, "timeout", (f"a request that is done within {seconds} s", "one that is not", fix))


def busy(what: str) -> ServiceError:
    """Build the error for what cannot be begun in time."""
    return ServiceError(503, "busy", (f"{what} to be free", "too many requests at a time", "Try again."), retry_s=1)


class Pool:
    """Threads with a queue of bounded length; what is not done within `WORK_S` is given up."""

    def __init__(self, threads: int, queue: int) -> None:
        self._executor = ThreadPoolExecutor(threads)
        self._free = threading.Semaphore(threads + queue)

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Return what `work` does; raises `ServiceError`, 503 where the queue is full and 504 for what takes too long.

        A thread cannot be stopped: it ends what it has begun, and takes its place in the queue until then.
        """
        if not self._free.acquire(blocking=False):
            raise busy("a thread for this work")
        future = self._executor.submit(work, *arguments)
        future.add_done_callback(lambda _: self._free.release())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), WORK_S)
        except TimeoutError:
            raise _late(504, WORK_S) from None
