"""What is said while it works, without and with a terminal."""

from __future__ import annotations

import io
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gallery import console


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    return now


def lines(clock: list[float], caplog: pytest.LogCaptureFixture, seconds: float, count: int, done: int = 0) -> list[str]:
    with caplog.at_level(logging.INFO, "twinhash"):
        for number, item in enumerate(console.track(range(count), "hashing", count + done, done)):
            assert item == number
            clock[0] += seconds
    return [record.getMessage().strip() for record in caplog.records]


def test_without_a_terminal_a_plain_line_comes_every_15_seconds(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    assert lines(clock, caplog, 10, 6) == ["hashing 2/6, eta 40 s", "hashing 4/6, eta 20 s", "hashing 6/6, eta 0 s"]


def test_what_an_earlier_run_did_counts_but_not_for_the_eta(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    assert lines(clock, caplog, 20, 2, done=8) == ["hashing 9/10, eta 20 s", "hashing 10/10, eta 0 s"]


def test_short_work_stays_silent(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    assert lines(clock, caplog, 1, 10) == []


def test_nothing_to_do_is_fine(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    assert lines(clock, caplog, 1, 0, done=5) == []


def test_items_are_taken_one_at_a_time(clock: list[float]) -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for item in range(3):
            taken.append(item)
            yield item

    tracked = console.track(source(), "x", 3)
    assert next(iter(tracked)) == 0
    assert taken == [0]


ON_A_TERMINAL = """
from gallery.console import track
print(sum(track(range(5), "hashing", 8, done=3)))
"""


def test_on_a_terminal_a_bar_is_shown_and_standard_output_stays_clean() -> None:
    master, slave = pty.openpty()
    root = Path(__file__).resolve().parents[2]
    process = subprocess.run([sys.executable, "-c", ON_A_TERMINAL], cwd=root, stdout=subprocess.PIPE, stderr=slave,
                             text=True, check=True, env={**os.environ, "TERM": "xterm"})  # fmt: skip
    os.close(slave)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert process.stdout == "10\n"
    assert "hashing" in shown
    assert "8/8" in shown


BROKEN = """
import sys
from gallery import console
from rich.progress import Progress
def fail(*_, **__):
    raise RuntimeError("no bar")
setattr(Progress, sys.argv[1], fail)
print(sum(console.track(range(5), "hashing", 5)), file=sys.__stdout__)
"""


@pytest.mark.parametrize("part", ["__init__", "start", "advance", "stop", "add_task"])
def test_a_broken_progress_bar_ends_no_work(part: str) -> None:
    master, slave = pty.openpty()
    root = Path(__file__).resolve().parents[2]
    process = subprocess.run([sys.executable, "-c", BROKEN, part], cwd=root, stdout=subprocess.PIPE, stderr=slave,
                             text=True, check=True, env={**os.environ, "TERM": "xterm"})  # fmt: skip
    os.close(slave)
    os.close(master)
    assert process.stdout == "10\n"


def test_without_stderr_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    console.show_log()
    assert list(console.track(range(3), "x", 3)) == [0, 1, 2]


EVIL = r"""
from gallery.console import log, show_log
show_log()
log.warning("skipped %s", "a\x1b[2Jb\x07[red]c[/red]")
"""


def test_no_name_steers_a_terminal() -> None:
    master, slave = pty.openpty()
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", EVIL], cwd=root, stderr=slave, check=True,
                   env={**os.environ, "TERM": "dumb", "NO_COLOR": "1"})  # fmt: skip
    os.close(slave)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert r"skipped a\x1b[2Jb\x07[red]c[/red]" in shown
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown
