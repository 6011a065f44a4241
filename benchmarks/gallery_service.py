"""The service under load: requests a second, latency and CPU time, and the change to a newly published version."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gallery_index import CodeSet
from benchmarks.trial import table
from gallery.codes import Codes
from gallery.codespace import CodeSpace, Preprocessing, hash_centers
from gallery.console import log
from gallery.database import code_array
from gallery.errors import MissingBackend
from gallery.record import Record
from gallery.store import GalleryStore

K, CONNECTIONS, SECONDS, SWAP_SECONDS, CHANGED = 10, (1, 8, 32), 10, 20, 10_000
KEY, ROOT, START_S = "0123456789abcdef", Path(__file__).parents[1], 120
WRK = """
local bodies, i = {}, 0
for line in io.lines("BODIES") do bodies[#bodies + 1] = line end
local headers = {["Content-Type"] = "application/json", ["X-API-Key"] = "KEY"}
request = function() i = i % #bodies + 1; return wrk.format("POST", "/search", headers, bodies[i]) end
done = function(summary, latency)
  local bad = summary.errors
  io.write(string.format("\\nFOUND %d %d %d %d %d %d\\n", summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(99), latency.max, bad.status + bad.connect + bad.read + bad.write + bad.timeout))
end
"""
NOTE = """`wrk` asks one process for the {k} nearest of single codes, with a key, over one machine's loopback; the \
gallery has {items:,} codes. CPU: of the server, a request. "While a version is published": {changed:,} items are \
removed and as many added meanwhile. The machine was shared (load {load}), and `wrk` ran on it as well."""


class ServiceFigures(Record):
    """One load on the service; without requests, `reason` says why.

    failed: answers other than 200, and connections lost; swap_s: from the commit to the first answer of the new version
    """

    codes: str
    items: int
    reason: str = ""
    connections: int = 0
    requests: int = 0
    per_second: float = 0
    p50_ms: float = 0
    p99_ms: float = 0
    worst_ms: float = 0
    failed: int = 0
    cpu_ms: float = 0
    memory_mb: float = 0
    swap_s: float | None = None
    load: float = 0


def measure(data: CodeSet, folder: Path) -> Iterator[ServiceFigures]:
    """Serve codes from a gallery in `folder`, which is deleted, under several loads and a swap."""
    figures = ServiceFigures(codes=data.name, items=len(data.codes))
    try:
        store, space = publish(folder, data.codes, data.centers)
        bodies = [json.dumps({"code_space": space, "codes": [code.tobytes().hex()], "k": K}) for code in data.queries]
        (folder / "bodies").write_text("\n".join(bodies))
        (folder / "wrk.lua").write_text(WRK.replace("BODIES", str(folder / "bodies")).replace("KEY", KEY))
        with serving(folder) as (process, url):
            for connections in CONNECTIONS:
                yield asked(figures, process.pid, url, connections, folder)
            yield asked(figures, process.pid, url, CONNECTIONS[1], folder, lambda: swap(store, space, url))
    except (FileNotFoundError, MissingBackend) as error:
        yield figures.model_copy(update={"reason": f"not installed: {getattr(error, 'filename', None) or error}"})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, codes: Codes, centers: NDArray[np.int8]) -> tuple[GalleryStore, str]:
    """Write codes to a gallery, and return it and its code space."""
    if shutil.which("wrk") is None:
        raise MissingBackend("the load generator wrk", "wrk", "Install it: apt-get install wrk")
    classes, bits = centers.shape
    preprocessing = Preprocessing(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    names = tuple(map(str, range(classes)))
    space = CodeSpace(bits, names, "benchmark", "0" * 64, hash_centers(centers), preprocessing)
    folder.mkdir(parents=True, exist_ok=True)
    store = GalleryStore(folder / "gallery", create=True)
    store.add_space(space, centers)
    store.put(space.id, rows("item", codes))
    store.publish(space.id)
    return store, space.id


def rows(prefix: str, codes: Codes) -> Any:
    """Return codes as rows of a gallery."""
    import pyarrow as pa

    return pa.table({"id": [f"{prefix}-{i:08}" for i in range(len(codes))], "code": code_array(codes)})


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start the service; yield its process and address once it answers."""
    path = folder / "serve.log"
    command = [sys.executable, "gallery/run.py", "serve", str(folder / "gallery"), "--port", "0"]
    with path.open("wb") as stream:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "TWINHASH_API_KEYS": KEY}, stderr=stream)
    try:
        deadline = time.monotonic() + START_S
        while not (found := re.search(r"at (http://\S+)(?s:.*)answering version", path.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                raise MissingBackend("the service to answer", path.read_text()[-300:], "See its log.")
            time.sleep(0.1)
        yield process, found[1]
    finally:
        process.terminate()
        process.wait(START_S)


def asked(
    figures: ServiceFigures,
    pid: int,
    url: str,
    connections: int,
    folder: Path,
    meanwhile: Callable[[], float] | None = None,
) -> ServiceFigures:
    """Ask for some seconds, and return what it took; meanwhile: returns seconds, too."""
    seconds, before = SWAP_SECONDS if meanwhile else SECONDS, cpu_seconds(pid)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(folder / "wrk.lua"), url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    swap_s = round(meanwhile(), 1) if meanwhile else None
    text = process.communicate(timeout=START_S)[0]
    numbers = map(int, re.findall(r"FOUND (.*)", text)[0].split())
    requests, duration, p50, p99, worst, failed = numbers
    spent = cpu_seconds(pid) - before
    found = figures.model_copy(update={
        "connections": connections, "requests": requests, "per_second": round(requests / duration * 1e6),
        "p50_ms": round(p50 / 1000, 2), "p99_ms": round(p99 / 1000, 2), "worst_ms": round(worst / 1000, 1),
        "failed": failed, "cpu_ms": round(spent / requests * 1000, 3), "memory_mb": resident_mb(pid), "swap_s": swap_s,
        "load": round(os.getloadavg()[0], 1),
    })  # fmt: skip
    log.info("  %s", found)
    return found


def swap(store: GalleryStore, space: str, url: str) -> float:
    """Remove and add items, publish, and return the seconds until the service answers from the new version."""
    codes = np.random.default_rng(0).integers(
        0, 256, (CHANGED, store.open_table(space).schema.field("code").type.list_size)
    )
    store.remove(space, [f"item-{i:08}" for i in range(CHANGED)])
    store.put(space, rows("new", codes.astype(np.uint8)))
    version, start = store.publish(space).version, time.monotonic()
    while time.monotonic() - start < START_S:
        with urllib.request.urlopen(f"{url}/readyz") as answer:
            if json.load(answer)["version"] == version:
                break
        time.sleep(0.05)
    return time.monotonic() - start


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process in 10**6 bytes."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return round(int(found[1]) * 1024 / 1e6) if found else 0


def text(figures: Sequence[ServiceFigures]) -> str:
    """Return the table of the loads, in Markdown."""
    ran = [one for one in figures if one.requests]
    if not ran:
        return "".join(f"Not measured: {one.reason}.\n" for one in figures)
    head = ("load", "requests/s", "p50 ms", "p99 ms", "worst ms", "not 200", "CPU ms", "memory MB")
    lines = [(named(one), f"{one.per_second:,.0f}", one.p50_ms, one.p99_ms, one.worst_ms, one.failed, one.cpu_ms,
              f"{one.memory_mb:.0f}") for one in ran]  # fmt: skip
    loads = [one.load for one in ran]
    note = NOTE.format(k=K, items=ran[0].items, changed=CHANGED, load=f"{min(loads):.0f} to {max(loads):.0f}")
    return note + "\n\n" + table(head, lines)


def named(one: ServiceFigures) -> str:
    """Return the name of a load."""
    name = f"{one.connections} connection" + "s" * (one.connections > 1)
    return f"{name}, while a version is published (answered after {one.swap_s} s)" if one.swap_s else name
