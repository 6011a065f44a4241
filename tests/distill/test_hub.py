"""The model hub, as its real client meets it: a server here that speaks its protocol, and whatever can go wrong."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from safetensors.torch import save

from distill.models.hash_net import build

ROOT, COMMIT = Path(__file__).resolve().parents[2], "0123456789abcdef0123456789abcdef01234567"
SOUND, MOVED = "mobilenetv3_small_100", "mobilenetv3_small_075"
WRONG = {
    "mobilenetv3_small_050": (404, "RepoNotFound", "HTTP 404, not there"),
    "mobilenetv3_large_100": (401, "", "HTTP 401, private, renamed"),
    "mobilenetv2_100": (403, "GatedRepo", "HTTP 403, gated"),
    "mobilenetv2_050": (404, "EntryNotFound", "HTTP 404, not there"),
    "resnet18": (501, "", "HTTP 501, a fault of the server"),
    "resnet26": (407, "", "HTTP 407, the proxy asks for a login"),
    "resnet34": (451, "", "HTTP 451, refused"),
    "resnet10t": (200, "short", "looking elsewhere"),
    "resnet14t": (200, "other bytes", "damaged, and removed"),
}
FIND = """
import json, logging, sys
from distill.models import pretrained
from gallery.console import show_log
show_log()
found = [pretrained.find_pretrained(name) for name in sys.argv[1:]]
print(json.dumps([[str(one.path), one.source] for one in found]))
"""


@dataclass
class Hub:
    """A server; asked: the requests that it got."""

    data: bytes
    port: int = 0
    asked: list[str] = field(default_factory=list)


def answer(hub: Hub, path: str) -> tuple[int, dict[str, str], bytes]:
    """The answer to a request for a file of a repository, or of the store that it leads to."""
    name = path.split("/")[2].split(".")[0] if path.startswith("/timm/") else ""
    digest, data = hashlib.sha256(hub.data).hexdigest(), hub.data
    if path == "/store":
        return 200, {"Content-Length": str(len(data))}, data
    if name == MOVED:
        return 307, {"Location": path.replace(MOVED, SOUND)}, b""
    status, code, _ = WRONG.get(name, (200, "", ""))
    headers = {"X-Repo-Commit": COMMIT, **({"X-Error-Code": code} if status >= 400 and code else {})}
    if status >= 400:
        return status, {**headers, "Content-Length": "0"}, b""
    if name == SOUND:  # large files come from a store of their own
        linked = {
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(data)),
            "Location": f"http://localhost:{hub.port}/store",
        }
        return 302, {**headers, **linked, "Content-Length": "0"}, b""
    if code == "other bytes":
        data = data[:-1] + bytes([data[-1] ^ 1])
    length = str(len(data))
    return 200, {**headers, "ETag": f'"{digest}"', "Content-Length": length}, data[:1000] if code == "short" else data


@pytest.fixture(scope="module")
def weights() -> bytes:
    state = build(SOUND, 32, 16, seed=9).backbone.state_dict()
    return save({name: value.contiguous() for name, value in state.items()})


@pytest.fixture
def hub(weights: bytes) -> Iterator[Hub]:
    made = Hub(weights)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)  # a proxy gets the whole address
            made.asked.append(f"{self.command} {self.path}")
            status, headers, data = answer(made, url.path)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)
            self.close_connection = True

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


def find(cache: Path, *names: str, **environment: str) -> tuple[list[tuple[str, str]], str]:
    """What `find_pretrained` finds for each name in a process of its own, and what it says."""
    unset = ("TWINHASH_WEIGHTS", "HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "NO_PROXY",
             "no_proxy", "ALL_PROXY", "all_proxy")  # fmt: skip
    inherited = {key: value for key, value in os.environ.items() if key not in unset}
    variables = {**inherited, "HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    done = subprocess.run([sys.executable, "-c", FIND, *names], cwd=ROOT, env=variables, capture_output=True, text=True,
                          timeout=240)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_a_download_is_named_by_its_commit_and_checksum_and_found_again(hub: Hub, tmp_path: Path) -> None:
    endpoint, digest = f"http://127.0.0.1:{hub.port}", hashlib.sha256(hub.data).hexdigest()
    [(path, source), moved, again], said = find(tmp_path, SOUND, MOVED, SOUND, HF_ENDPOINT=endpoint)
    assert Path(path).read_bytes() == Path(moved[0]).read_bytes() == hub.data
    assert source == f"timm/mobilenetv3_small_100.lamb_in1k on the hub, commit {COMMIT}, sha256 {digest}"
    assert source in said
    assert again == [path, source]
    assert len([line for line in hub.asked if line == "GET /store"]) == 2
    assert find(tmp_path, SOUND, HF_HUB_OFFLINE="1")[0] == [[path, source]]
    Path(path).resolve().write_bytes(hub.data[:-1])
    found, said = find(tmp_path, SOUND, HF_HUB_OFFLINE="1")
    assert "damaged, and removed" in said
    assert found[0][0] == "None"


def test_what_the_hub_refuses_or_breaks_is_one_line_and_the_next_source(hub: Hub, tmp_path: Path) -> None:
    found, said = find(tmp_path, *WRONG, SOUND, HF_ENDPOINT=f"http://127.0.0.1:{hub.port}")
    assert [path for path, _ in found[:-1]] == ["None"] * len(WRONG)
    assert Path(found[-1][0]).read_bytes() == hub.data
    for name, (_, _, reason) in WRONG.items():
        lines = [line for line in said.splitlines() if f"timm/{name}." in line and reason in line]
        assert len(lines) == 1, said
    assert "Traceback" not in said


def test_a_proxy_that_alone_knows_the_hub_is_used(hub: Hub, tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{hub.port}"
    [(path, _)], _ = find(tmp_path, SOUND, HF_ENDPOINT="http://hub.invalid", HTTP_PROXY=address, NO_PROXY="")
    assert Path(path).read_bytes() == hub.data
    assert any(line.startswith("HEAD http://hub.invalid/timm/") for line in hub.asked)


def test_a_hub_out_of_reach_costs_seconds_and_is_said_once(tmp_path: Path) -> None:
    start = time.monotonic()
    found, said = find(tmp_path, SOUND, "resnet18", "mobilenetv2_100", HF_ENDPOINT="http://no-such-host.invalid")
    assert [path for path, _ in found] == ["None"] * 3
    assert said.count("cannot be had") == 1
    assert time.monotonic() - start < 60
