"""Services in processes of their own, as `serve` starts them, and galleries for them."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from gallery.codes import Codes, hamming, pack
from gallery.codespace import CodeSpace, Preprocessing, hash_centers
from gallery.database import code_array
from gallery.store import GalleryStore
from tests.conftest import ENVIRONMENT, ROOT

MISSING = [name for name in ("fastapi", "uvicorn", "uvloop", "httptools", "multipart", "prometheus_client", "httpx")
           if find_spec(name) is None]  # fmt: skip
SCRIPT = """
import runpy
import sys
{patch}
sys.argv[0] = "gallery/run.py"
runpy.run_path("gallery/run.py", run_name="__main__")
"""
COLUMNS = pa.schema([("price", pa.float64()), ("brand", pa.string()), ("stock", pa.int64()), ("new", pa.bool_()),
                     ("since", pa.timestamp("s"))])  # fmt: skip
KEY = "a-key-of-this-test"


@pytest.fixture(scope="session", autouse=True)
def needs_the_extra() -> None:
    """Skip what cannot run, by name."""
    if MISSING:
        pytest.skip(f"the extra serve, or httpx, is not installed: no {', '.join(MISSING)}")


class Running:
    """A service that runs: its address, its process, and what it logged."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
        import httpx

        self.url, self.process, self._log = url, process, log
        self.client = httpx.Client(base_url=url, timeout=60)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def post(self, path: str, body: Any = None, **options: Any) -> Any:
        return self.client.post(path, json=body, **options) if body is not None else self.client.post(path, **options)

    def wait(self, ready: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return what /readyz says once it is as wanted."""
        deadline = time.monotonic() + 60
        while True:
            said: dict[str, Any] = self.client.get("/readyz").json()
            if ready(said):
                return said
            assert time.monotonic() < deadline, (said, self.log)
            time.sleep(0.05)


@contextmanager
def serving(folder: Path, *flags: object, env: dict[str, str] | None = None, patch: str = "") -> Iterator[Running]:
    """Start a service on a free port; it must have logged no traceback in the end."""
    log = folder / f"serve-{time.monotonic_ns()}.log"
    command = [
        sys.executable,
        "-c",
        SCRIPT.format(patch=patch),
        "serve",
        *map(str, flags),
        "--port",
        "0",
        "--poll",
        "0.2",
    ]
    environment = {**ENVIRONMENT, "TWINHASH_API_KEYS": "", **(env or {})}
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stream, stderr=stream)
    try:
        running = Running(_address(process, log), process, log)
        with running.client:
            if not (env or {}).get("TWINHASH_API_KEYS"):
                running.wait(lambda said: said.get("status") == "ready" or "damaged" in str(said))
            yield running
            assert "Traceback" not in running.log
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        process.wait(40)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 60
    while not (found := re.search(r"at (http://\S+)", log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return found[1]


class Items:
    """Items of a code space whose codes lie around its centers, many of them equal."""

    def __init__(self, bits: int = 64, count: int = 500, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.centers: NDArray[np.int8] = np.where(rng.random((7, bits)) < 0.5, -1, 1).astype(np.int8)
        classes = tuple(f"class {i}" for i in range(7))
        preprocessing = Preprocessing(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.space = CodeSpace(bits, classes, f"t{seed}", "0" * 64, hash_centers(self.centers), preprocessing)
        own = rng.integers(0, 7, count)
        self.codes: Codes = pack((self.centers[own] > 0) ^ (rng.random((count, bits)) < 0.03))
        self.ids = sorted(f"{i % 10}/\u00fc {i}%.png" for i in range(count))
        self.table = pa.table({
            "id": self.ids, "code": code_array(self.codes),
            "labels": pa.array([[classes[i]] if i else None for i in own], pa.list_(pa.string())),
            "price": rng.random(count) * 100, "brand": [None if i % 9 == 0 else "abc"[i % 3] for i in range(count)],
            "stock": rng.integers(0, 50, count), "new": rng.random(count) < 0.5,
            "since": pa.array(rng.integers(0, 2_000_000_000, count), pa.timestamp("s")),
        })  # fmt: skip

    def publish(self, folder: Path) -> int:
        """Write and publish them, and return the version."""
        store = GalleryStore(folder, create=True)
        store.add_space(self.space, self.centers, COLUMNS)
        store.put(self.space.id, self.table)
        return store.publish(self.space.id).version

    def nearest(self, code: Codes, k: int, kept: NDArray[np.bool_] | None = None) -> list[tuple[str, int]]:
        """The k nearest of those kept by (distance, id), by comparing all."""
        distances = hamming(code[None], self.codes)[0]
        rows = [row for row in range(len(self.ids)) if kept is None or kept[row]]
        rows.sort(key=lambda row: (distances[row], self.ids[row].encode()))
        return [(self.ids[row], int(distances[row])) for row in rows[:k]]

    def ask(self, codes: Codes, **options: Any) -> dict[str, Any]:
        """The body of a search."""
        return {"code_space": self.space.id, "codes": [code.tobytes().hex() for code in codes], **options}


def pairs(results: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Ids and distances of results."""
    return [(one["id"], one["distance"]) for one in results]


def check_error(answer: Any, *statuses: int) -> dict[str, str]:
    """An answer that is an error of these statuses has the one form of all errors."""
    assert answer.status_code in statuses, (answer.status_code, answer.text)
    error: dict[str, str] = answer.json()
    assert set(error) == {"error", "expected", "found", "fix"}
    assert all(isinstance(text, str) and text for text in error.values()), error
    assert all(text.isprintable() for text in error.values())
    return error


@pytest.fixture(scope="module")
def items() -> Items:
    """500 items of 64 bits."""
    return Items()


@pytest.fixture(scope="module")
def service(items: Items, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service of these items."""
    folder = tmp_path_factory.mktemp("service")
    items.publish(folder / "gallery")
    with serving(folder, folder / "gallery") as running:
        yield running
