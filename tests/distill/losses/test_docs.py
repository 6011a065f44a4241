"""The page on losses: its example is a method, its test passes, and its tables name every method there is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distill.distillers import DISTILLERS
from distill.losses import LOSSES

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/losses.md").read_text()
FILES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))


def test_every_method_is_in_the_tables() -> None:
    named = re.findall(r"`([a-z0-9]+)`", "".join(line for line in PAGE.splitlines() if line.startswith("|")))
    assert sorted(named) == sorted((*LOSSES.names(), *DISTILLERS.names()))


def test_the_example_is_thirty_lines() -> None:
    assert len(FILES["distill/losses/pulls.py"].strip().splitlines()) <= 30


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package with the page's files in it."""
    for folder in ("distill", "gallery", "tests/distill/losses"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
    for folder in ("tests", "tests/distill"):
        (tmp_path / folder / "__init__.py").touch()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_example_is_a_method_by_its_file_alone(copy: Path) -> None:
    command = [sys.executable, "-c", "from distill.losses import LOSSES; print(LOSSES.names())"]
    said = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "'pulls'" in said


def test_the_test_of_the_example_passes(copy: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(copy), "-p", "no:cacheprovider",
               "tests/distill/losses/test_pulls.py"]  # fmt: skip
    run = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout
    assert "1 passed" in run.stdout
