"""Steps of a set-up: other programs under a time limit, whose failure is a typed error with their own output."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from gallery.console import log
from gallery.errors import MissingBackend

LIMIT_S, LAST_LINES = 600.0, 6


def step(name: str, command: Sequence[str | Path], cwd: Path | None = None, limit_s: float = LIMIT_S) -> None:
    """Run a command without a terminal; after `limit_s` it is killed with all it started.

    Raises `MissingBackend` with the last lines of its output.
    """
    log.info("  %s", name)
    try:
        with subprocess.Popen(
            command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True,
        ) as child:  # fmt: skip
            try:
                output, _ = child.communicate(timeout=limit_s)
            except BaseException:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                raise
        if child.returncode == 0:
            return
        found = " / ".join(output.strip().split("\n")[-LAST_LINES:]) or f"exit code {child.returncode}"
    except subprocess.TimeoutExpired:
        found = f"no end within {limit_s:g} s"
    except OSError as error:
        found = str(error)
    fix = f"Run it by hand to see more: {' '.join(map(str, command))}"
    raise MissingBackend(f"{name} to succeed", found, fix)


def install(packages: Mapping[str, str]) -> None:
    """Install the Debian packages whose command is missing.  packages: command to package."""
    missing = sorted({package for command, package in packages.items() if shutil.which(command) is None})
    if not missing:
        return
    names = " ".join(missing)
    if shutil.which("apt-get") is None or os.geteuid():
        raise MissingBackend(f"{names} to be installed", "none of it on the path", f"Run: sudo apt-get install {names}")
    apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qy"]
    step("apt-get update", [*apt, "update"])
    step(f"apt-get install {names}", [*apt, "install", "--no-install-recommends", *missing])
