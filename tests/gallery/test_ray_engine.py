"""The engine on Ray Data, on this machine: the rows of one process, whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gallery import codespace
from gallery.batch_encoder import EncodeJob
from gallery.errors import InputError, MissingBackend
from gallery.index import open_gallery
from gallery.ingest import IngestCounts, IngestOptions, ingest
from gallery.maintenance import list_failures, publish_changes
from gallery.ray_engine import FAILED, _error_from, _Worker
from gallery.sources.listing import SourceOptions, list_source
from gallery.store import GalleryStore
from tests.gallery.test_ingest import CENTERS, SPACE, contents, expected, project, write

ROOT, COUNT = Path(__file__).parents[2], 200
WORKER = """
import sys
from tests.gallery.test_ray_engine import add
add(sys.argv[1], sys.argv[2])
"""
needs_ray = pytest.mark.skipif("not __import__('importlib.util').util.find_spec('ray')", reason="ray is not installed")


def slow_teacher() -> Callable[[np.ndarray], np.ndarray]:
    def encode(pixels: np.ndarray) -> np.ndarray:
        time.sleep(0.5)
        return project(pixels)

    return encode


def broken_teacher() -> Callable[[np.ndarray], np.ndarray]:
    raise InputError("sound weights", "others", "Restore them.")


def add(uri: str, source: str, load: Callable[[], Any] = slow_teacher) -> IngestCounts:
    from gallery.console import show_log

    show_log()
    store = GalleryStore(uri, create=True)
    store.add_space(SPACE, CENTERS)
    options = IngestOptions(
        commit_rows=20, engine="ray", slice_rows=160, after_slice=partial(publish_changes, store, SPACE.id)
    )
    counts = ingest(store, SPACE, list_source(source, SourceOptions()), options, load)
    publish_changes(store, SPACE.id)
    return counts


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(COUNT):
        write(tmp_path / "in" / f"{number:03}.png", number)
    return tmp_path / "in"


def start(uri: Path, images: Path) -> subprocess.Popen[str]:
    """Start a driver, and return when its first commit is there."""
    driver = subprocess.Popen([sys.executable, "-c", WORKER, uri, images], cwd=ROOT, text=True, stderr=subprocess.PIPE)
    assert driver.stderr is not None
    next(line for line in driver.stderr if ": 20 encoded" in line)
    return driver


def descendants(pid: int) -> dict[int, str]:
    """The processes below one, with their command lines."""
    parents, lines = dict[int, int](), dict[int, str]()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            lines[int(folder.name)] = (folder / "cmdline").read_text()
        except (OSError, ValueError):  # it has ended
            continue
    found, last = set[int](), {pid}
    while last:
        last = {child for child, parent in parents.items() if parent in last}
        found |= last
    return {child: lines.get(child, "") for child in found}


def workers(pid: int) -> list[int]:
    """The processes of Ray below one that encode."""
    return [child for child, line in descendants(pid).items() if line.startswith("ray::") and "_Worker" in line]


@needs_ray
def test_what_is_killed_costs_no_row(images: Path, tmp_path: Path) -> None:
    (images / "zzz.png").write_bytes(b"rubbish")
    driver = start(tmp_path / "g", images)
    assert driver.stderr is not None
    first, *others = workers(driver.pid)
    os.kill(first, signal.SIGKILL)
    said = list(takewhile(lambda line: ": 120 encoded" not in line, driver.stderr))
    assert all(line.startswith("  ") for line in said), "nothing of Ray's"
    others = workers(driver.pid)
    assert first not in others
    driver.kill()
    driver.communicate()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in others) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in others)
    done = add(str(tmp_path / "g"), str(images))
    assert done.same >= 100
    assert done.same + done.encoded == COUNT
    (images / "zzz.png").unlink()
    assert contents(str(tmp_path / "g")) == expected(images)
    store = GalleryStore(tmp_path / "g")
    assert store.verify(SPACE.id).problem == ""
    assert [row["id"] for row in list_failures(store, SPACE.id)] == ["zzz.png"]


@needs_ray
def test_the_command_gives_the_codes_of_one_process(run: Path, made: Path, tmp_path: Path) -> None:
    def command(name: str, *words: str) -> Any:
        line = [sys.executable, "gallery/run.py", "add", tmp_path / name, made / "in", "--run", run, "--json", *words]
        done = subprocess.run(line, cwd=ROOT, text=True, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)[0]

    assert command("local")["encoded"] == command("ray", "--engine", "ray")["encoded"] == 80
    space, _ = codespace.load(run)
    local, ray = (open_gallery(tmp_path / name, space) for name in ("local", "ray"))
    assert local.ids.to_pylist() == ray.ids.to_pylist()
    assert np.array_equal(local.codes, ray.codes)


def test_an_error_of_a_worker_is_told(images: Path) -> None:
    block = pa.table({"row": [0], "source": [str(images / "000.png")], "known": pa.array([None], pa.string())})
    (answer,) = _Worker(EncodeJob(SPACE, broken_teacher))(block).to_pylist()
    assert answer["row"] == FAILED
    found = _error_from(answer["reason"])
    assert type(found) is InputError
    assert (found.expected, found.found, found.fix) == ("sound weights", "others", "Restore them.")


def test_without_ray_the_extra_is_named(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)  # what an import of it then raises is what a missing one raises
    with pytest.raises(MissingBackend, match="ray"):
        add(str(tmp_path / "g"), str(images))
