"""The steps of a set-up: other programs, run under a time limit, whose failure is a typed error in their own words."""

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


def step(what: str, command: Sequence[str | Path], cwd: Path | None = None, limit_s: float = LIMIT_S) -> None:
    """Runs a command without a terminal, and ends all it started when it takes longer than `limit_s`.

    Raises `MissingBackend` with the last lines it said.
    """
    log.info("  %s", what)
    out, err = subprocess.PIPE, subprocess.STDOUT
    try:
        child = subprocess.Popen(
            command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err, text=True, errors="replace",
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise _failed(what, command, str(error)) from error
    try:
        said, _ = child.communicate(timeout=limit_s)
    except BaseException as error:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        raise _failed(what, command, f"no end within {limit_s:g} s") from error
    if child.returncode:
        last = " / ".join(said.strip().split("\n")[-LAST_LINES:])
        raise _failed(what, command, last or f"exit code {child.returncode}")


def install(packages: Mapping[str, str]) -> None:
    """Installs the Debian packages whose command is missing.  packages: command to package."""
    missing = {package for command, package in packages.items() if shutil.which(command) is None}
    if not missing:
        return
    names = " ".join(sorted(missing))
    if shutil.which("apt-get") is None or os.geteuid():
        raise MissingBackend(f"{names} to be installed", "none of it on the path", f"Run: sudo apt-get install {names}")
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qy"]
    step("apt-get update", [*quiet, "update"])
    step(f"apt-get install {names}", [*quiet, "install", "--no-install-recommends", *sorted(missing)])


def _failed(what: str, command: Sequence[str | Path], found: str) -> MissingBackend:
    return MissingBackend(f"{what} to succeed", found, f"Run it by hand to see more: {' '.join(map(str, command))}")
