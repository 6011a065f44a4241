"""What all tests need before anything is imported, and what several of them begin with."""

from __future__ import annotations

import importlib
import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands do: the machine may be shared
if (worker := os.environ.get("PYTEST_XDIST_WORKER", "")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))  # a core for each worker, and for the processes that its tests start
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

ROOT, PATIENCE_S = Path(__file__).parents[1], 900
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TWINHASH_WEIGHTS": "", "OMP_NUM_THREADS": "1"}
SMALL = ("--teacher", "resnet10t", "--student", "mobilenetv3_small", "--bits", "16", "--teacher-train.epochs", "1",
         "--teacher-train.batch-size", "16", "--student-train.epochs", "1", "--student-train.cached-views", "1",
         "--student-train.batch-size", "16", "--formats", "onnx", "--precisions", "fp32")  # fmt: skip
LONG = (
    "test_end_to_end.py",
    "test_quantize.py",
    "test_apps.py",
    "test_six_students.py",
    "test_arm64.py",
    "test_release.py",
)
Call = Callable[..., tuple[int, str]]


def import_script(name: str) -> Any:
    """A command's `run.py` as a module; as a script it would keep the front of the path, which it takes when loaded."""
    first = sys.path[0]
    module = importlib.import_module(name)
    sys.path[0] = first
    return module


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take a minute or more go first: in the end no process waits for another."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `in`, eighty images of four classes, and `runs/r`, a finished run of 16 bits."""
    from PIL import Image

    from distill.data import DataConfig, load

    folder = tmp_path_factory.mktemp("made")
    data = load("embedded", {32}, folder / "cache", DataConfig(seed=0))
    for label, name in ((0, "shirt"), (1, "trouser"), (8, "bag"), (9, "boot")):
        (folder / "in" / name).mkdir(parents=True)
        for i in data.query[data.labels[data.query] == label][:20]:
            Image.fromarray(data.pixels[32][i]).save(folder / "in" / name / f"{i}.png")
    command = [sys.executable, "distill/run.py", "--data", str(folder / "in"), "--output-dir", str(folder / "runs"),
               "--name", "r", *SMALL]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode in (0, 1), done.stderr
    return folder


@pytest.fixture(scope="module")
def run(made: Path) -> Path:
    """The finished run."""
    return made / "runs" / "r"


@pytest.fixture
def heard() -> Iterator[Callable[[Callable[[list[str]], int]], Call]]:
    """A command line in this process: of its `main`, a function of words to exit code and what was logged."""
    from gallery.console import log

    said, propagate = io.StringIO(), log.propagate
    handler = logging.StreamHandler(said)
    log.addHandler(handler)

    def of(main: Callable[[list[str]], int]) -> Call:
        def call(*words: object) -> tuple[int, str]:
            said.truncate(said.seek(0))
            return main([str(word) for word in words]), said.getvalue()

        return call

    yield of
    log.removeHandler(handler)
    log.propagate = propagate


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how much the tests in `tests/attack` tried."""
    reports = [report for end in ("passed", "failed") for report in terminalreporter.getreports(end)]
    for text in sorted(str(text) for report in reports for key, text in report.user_properties if key == "attack"):
        terminalreporter.write_line(text)
