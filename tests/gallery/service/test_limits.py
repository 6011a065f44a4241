"""What is too large, too slow, or from someone unknown is refused, and the service goes on."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gallery.errors import InputError
from gallery.service.command import ServeCommand, listen, serve
from tests.conftest import ENVIRONMENT, ROOT
from tests.gallery.service.conftest import KEY, Items, Running, check_error, serving

IMPATIENT = "import gallery.service.security, gallery.service.server\n" + (
    "gallery.service.security.BODY_S = gallery.service.server.HEADERS_S = 1"
)
JSON = b"Content-Type: application/json\r\n"


@pytest.fixture(scope="module")
def guarded(items: Items, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service with two keys and little patience."""
    folder = tmp_path_factory.mktemp("guarded")
    items.publish(folder / "g")
    with serving(
        folder, folder / "g", env={"TWINHASH_API_KEYS": f"{KEY}, another-key-of-this"}, patch=IMPATIENT
    ) as one:
        one.client.headers["x-api-key"] = KEY
        one.wait(lambda said: said.get("status") == "ready")
        yield one


def talk(running: Running, *parts: bytes, wait_s: float = 0.0) -> bytes:
    """Send parts over a socket, with a pause between, and return what comes back until the other side closes."""
    host, port = running.url.removeprefix("http://").split(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(wait_s)
            while more := connection.recv(65536):
                received += more
        except ConnectionError:
            pass
    return received


def test_keys(guarded: Running, items: Items) -> None:
    body = items.ask(items.codes[:1])
    for headers in ({"x-api-key": ""}, {"x-api-key": KEY[:-1]}, {"x-api-key": KEY + "x"}, {"x-api-key": "\xe9" * 20}):
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        error = check_error(guarded.post("/search", body, headers=encoded), 401)
        assert KEY not in str(error)
    for path in ("/codespace", "/metrics", "/items/a", "/thumbnails/a", "/nothing"):
        check_error(guarded.client.get(path, headers={"x-api-key": "wrong"}), 401)
    for path in ("/", "/healthz", "/readyz", "/docs", "/openapi.json"):
        assert guarded.client.get(path, headers={"x-api-key": "wrong"}).status_code == 200
    assert guarded.post("/search", body, headers={"x-api-key": "another-key-of-this"}).status_code == 200
    bearer = {"x-api-key": "", "authorization": f"Bearer {KEY}"}
    assert guarded.post("/search", body, headers=bearer).status_code == 200
    assert KEY not in guarded.log


def test_without_keys_it_answers_to_the_names_of_this_machine_alone(service: Running) -> None:
    assert service.client.get("/codespace", headers={"host": "localhost:80"}).status_code == 200
    assert (
        check_error(service.client.get("/codespace", headers={"host": "evil.example"}), 403)["error"]
        == "forbidden_host"
    )


def test_ten_thousand_codes_are_refused(service: Running, items: Items) -> None:
    body = items.ask(items.codes[:1])
    error = check_error(service.post("/search", body | {"codes": body["codes"] * 10_000}), 422)
    assert error["error"] == "bad_code"
    assert "256" in error["expected"]
    check_error(service.post("/search", body | {"codes": body["codes"] * 100_000}), 413)
    check_error(service.post("/search", body | {"k": 1001}), 422)
    check_error(service.post("/search", body | {"codes": ["00" * 4096]}), 422)
    check_error(service.post("/search", items.ask(items.codes[:1], where={"price": {"in": [1] * 2000}})), 400)
    assert service.post("/search", body).status_code == 200


def test_a_body_is_bounded_before_it_is_read(guarded: Running) -> None:
    head = b"POST /search HTTP/1.1\r\nHost: x\r\nX-API-Key: " + KEY.encode() + b"\r\n" + JSON
    assert b" 413 " in talk(guarded, head + b"Content-Length: 99999999999\r\n\r\n").splitlines()[0]
    assert b" 413 " in talk(
        guarded, head + b"Transfer-Encoding: chunked\r\n\r\n", *[b"8000\r\n" + b" " * 0x8000 + b"\r\n"] * 9
    )
    assert b" 413 " in talk(guarded, head.replace(b"/search", b"/search/like") + b"Content-Length: 300000\r\n\r\n")


def test_what_is_no_http_is_refused(guarded: Running) -> None:
    good = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
    for request in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
                    good + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", b"GET \xff HTTP/1.1\r\n\r\n",
                    good + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n"):  # fmt: skip
        answer = talk(guarded, request)
        assert answer.startswith(b"HTTP/1.1 400"), (request, answer)
        assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"error", "expected", "found", "fix"}


def test_headers_are_bounded(guarded: Running) -> None:
    endless = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20_000
    assert talk(guarded, endless, b"x" * 20_000, b"x" * 20_000, wait_s=0.1).startswith(b"HTTP/1.1 431")


def test_slow_clients_are_ended(guarded: Running) -> None:
    start = time.monotonic()
    head = b"POST /search HTTP/1.1\r\nHost: x\r\nX-API-Key: " + KEY.encode() + b"\r\n" + JSON
    assert b" 408 " in talk(guarded, head + b"Content-Length: 100\r\n\r\n{").splitlines()[0]
    assert talk(guarded, b"GET /heal").startswith(b"HTTP/1.1 431")
    assert talk(guarded, b"").startswith(b"HTTP/1.1 431")
    drops = [b"GET / HTTP/1.1\r\n", *[b"X: y\r\n"] * 50]
    assert talk(guarded, *drops, wait_s=0.1) in (b"", talk(guarded, b"GET /heal"))
    blanks = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", *[b"\r\n"] * 40
    talk(guarded, *blanks, wait_s=0.1)
    assert time.monotonic() - start < 60  # none of them holds a connection


def test_a_truncated_body_harms_nobody(guarded: Running, items: Items) -> None:
    host, port = guarded.url.removeprefix("http://").split(":")
    head = b"POST /search HTTP/1.1\r\nHost: x\r\nX-API-Key: " + KEY.encode() + b"\r\n" + JSON
    for _ in range(20):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head + b"Content-Length: 1000\r\n\r\n{")
    assert guarded.post("/search", items.ask(items.codes[:1])).status_code == 200


def test_pipelined_requests_are_answered_in_order(guarded: Running) -> None:
    one = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    assert talk(guarded, one * 30 + one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")).count(b"alive") == 31


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_being_answered_when_it_stops_is_answered(items: Items, tmp_path: Path, workers: int) -> None:
    items.publish(tmp_path / "g")
    with serving(tmp_path, tmp_path / "g", "--workers", workers) as service:
        body, statuses = items.ask(items.codes[:256], k=1000, columns=["price", "since"]), []
        ask = threading.Thread(target=lambda: statuses.append(service.post("/search", body).status_code))
        ask.start()
        time.sleep(0.2)
        service.process.send_signal(signal.SIGTERM)
        ask.join(30)
        assert statuses == [200]
        assert service.process.wait(30) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("flags", "environment", "text"),
    [
        (["--host", "0.0.0.0"], {}, "--behind-proxy"),
        ([], {"TWINHASH_API_KEYS": "short"}, "openssl rand"),
        (["--port", "70000"], {}, "65535"),
        (["--images", "/nothing/there"], {}, "--images"),
        (["--bundle", "/nothing/there"], {}, "bundle"),
        (["--host", "no.such.host.invalid", "--behind-proxy"], {}, "--host"),
    ],
)
def test_what_cannot_be_served_is_said(
    items: Items, tmp_path: Path, flags: list[str], environment: dict[str, str], text: str
) -> None:
    items.publish(tmp_path / "g")
    command = [sys.executable, "gallery/run.py", "serve", str(tmp_path / "g"), *flags]
    variables = {**ENVIRONMENT, **environment}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_a_gallery_without_a_published_version_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none at"):
        serve(ServeCommand(gallery=str(tmp_path / "none")))
    with listen("127.0.0.1", 0) as taken, pytest.raises(InputError, match="Choose another --port"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_torch_is_not_imported() -> None:
    code = "import sys; import gallery.service.app, gallery.service.command, lancedb, onnxruntime; " + (
        "print([name for name in ('torch', 'timm', 'distill', 'export') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
