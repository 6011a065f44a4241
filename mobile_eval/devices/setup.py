"""What the emulated ARM64 and the browser need: where it is, whether it is up to date, its set-up by shell scripts."""

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import Any, Literal

from gallery.console import log
from gallery.errors import InputError, MissingBackend
from gallery.files import atomic_path, read_json, write_json
from gallery.layers import missing_module

LIMIT_S, LAST_LINES, STEP = 1800.0, 6, "== "
FOLDER = Path(__file__).parent
ARM64_SCRIPT, ARM64_FIX = FOLDER / "arm64_setup.sh", "Run: python mobile_eval/run.py setup arm64"
BROWSER_SCRIPT, BROWSER_FIX = FOLDER / "browser_setup.sh", "Run: python mobile_eval/run.py setup browser"
DEMO_FIX = "Run: python mobile_eval/run.py setup demo"
WHEELS = ("numpy", "onnxruntime", "ai-edge-litert")  # all that the worker imports
NPM_PACKAGES = {"onnxruntime-web": "1.30.0", "@litertjs/core": "2.5.3", "esbuild": "0.28.2"}  # the last for the demo
PLAYWRIGHT = "playwright==1.65.2"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def default_folder(part: Literal["arm64", "browser"]) -> Path:
    """Return `TWINHASH_ARM64` or `TWINHASH_BROWSER`, or else a folder in the user's cache."""
    return Path(os.environ.get(f"TWINHASH_{part.upper()}") or f"~/.cache/twinhash/{part}").expanduser().absolute()


def set_up_arm64(root: Path | None = None) -> Path:
    """Build the userland of `arm64_setup.sh` at `root`, whole or not at all; one that is up to date is left alone.

    Takes about half a minute and 260 MB.  Raises `MissingBackend` with the step that failed and its output,
    `InputError` when `root` is somebody else's folder.
    """
    root = (root or default_folder("arm64")).absolute()
    if not out_of_date_reason(root):
        log.info("The ARM64 userland in %s is up to date.", root)
        return root
    _check_own(root, "recipe" in _read_json(root / "stamp.json"))
    packages = _missing_packages("qemu-user:qemu-aarch64", "mmdebstrap", "gcc", "libc6-dev:cc")  # cc comes with gcc
    root.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent, ignore_cleanup_errors=True) as beside:
        new, stamp = Path(beside, "new"), _arm64_stamp()
        wheels = " ".join(f"{name}=={stamp[name]}" for name in WHEELS)
        run_script(ARM64_SCRIPT, [new, sys.executable, packages, wheels])
        write_json(new / "stamp.json", stamp)
        if root.exists():
            root.rename(Path(beside, "old"))
        new.rename(root)
    log.info("The ARM64 userland is in %s.", root)
    return root


def out_of_date_reason(root: Path) -> str:
    """Return why the ARM64 userland at `root` cannot be used; empty when it can."""
    found = _read_json(root / "stamp.json")
    if "recipe" not in found:
        return f"no userland in {root}"
    other = [f"{key} {found.get(key)}, not {value}" for key, value in _arm64_stamp().items() if found.get(key) != value]
    if other:
        return f"one that was made of {', '.join(other)}"
    return "" if shutil.which("qemu-aarch64") else "no qemu-aarch64 on the path"


def _arm64_stamp() -> dict[str, str]:
    """Return what a userland of today is made of; its wheels are the versions installed here: only the CPU differs."""
    recipe = (FOLDER / "armcount.c").read_bytes() + ARM64_SCRIPT.read_bytes()
    try:
        return {name: version(name) for name in WHEELS} | {"recipe": hashlib.sha256(recipe).hexdigest()[:12]}
    except PackageNotFoundError as error:
        raise missing_module(error.name) from error


def set_up_browser(folder: Path | None = None, engines_only: bool = False) -> Path:
    """Install Chromium and npm (apt-get, as root), Playwright (pip) and the engines (npm), each where missing.

    folder: where the engines go, whole or not at all; engines_only: neither Chromium nor Playwright
    Raises `MissingBackend` with the step that failed and its output, `InputError` when `folder` is somebody else's.
    """
    folder = folder or default_folder("browser")
    _check_own(folder, _read_json(folder / "package.json").get("name") == "twinhash-browser")
    found = engines_installed(folder)
    browser = [] if engines_only or chromium() else ["chromium"]
    packages = _missing_packages(*browser, *["npm"] * (not found))
    requirement = "" if engines_only or find_spec("playwright") else PLAYWRIGHT
    engines = "" if found else " ".join(f"{name}@{release}" for name, release in NPM_PACKAGES.items())
    with nullcontext(folder) if found else atomic_path(folder) as draft:
        run_script(BROWSER_SCRIPT, [draft, sys.executable, packages, requirement, engines])
    log.info("The browser's engines are in %s.", folder)
    return folder


def engines_installed(folder: Path) -> bool:
    """Whether the browser's engines are in `folder` at exactly these versions."""
    packages = {name: _read_json(folder / "node_modules" / name / "package.json") for name in NPM_PACKAGES}
    return {name: package.get("version") for name, package in packages.items()} == NPM_PACKAGES


def chromium() -> str | None:
    """Return the path of an installed browser of that family."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


def run_script(script: Path, arguments: Sequence[str | Path], limit_s: float = LIMIT_S) -> None:
    """Run a shell script without a terminal; after `limit_s` it is killed with all it started.

    Raises `MissingBackend` with the step that failed, which a line "== NAME" of its output began, and its last lines.
    """
    command, name, start = ["bash", script, *arguments], script.name, time.monotonic()
    if shutil.which("bash") is None:
        raise MissingBackend("bash to be installed", "none on the path", "Install it.")
    printed: deque[str] = deque(maxlen=LAST_LINES)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=True,
    ) as child:  # fmt: skip
        timer = Timer(limit_s, _kill_group, [child.pid])
        timer.start()
        try:
            for line in child.stdout or ():
                if line.startswith(STEP):
                    name = line.removeprefix(STEP).strip()
                    log.info("  %s", name)
                    printed.clear()
                else:
                    printed.append(line.strip())
            child.wait()
        finally:
            timer.cancel()
            _kill_group(child.pid)
    if child.returncode:
        late = f"no end within {limit_s:g} s" if time.monotonic() - start > limit_s else ""
        found = late or " / ".join(filter(None, printed)) or f"exit code {child.returncode}"
        fix = f"Run it by hand to see more: {shlex.join(map(str, command))}"
        raise MissingBackend(f"{name} to succeed", found, fix)


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _missing_packages(*packages: str) -> str:
    """Return the Debian packages, each NAME or NAME:COMMAND, whose command is missing; they take apt-get and root."""
    missing = [one.partition(":")[0] for one in packages if shutil.which(one.rpartition(":")[2]) is None]
    names = " ".join(sorted(missing))
    if names and (shutil.which("apt-get") is None or os.geteuid()):
        raise MissingBackend(f"{names} to be installed", "none of it on the path", f"Run: sudo apt-get install {names}")
    return names


def _check_own(folder: Path, ours: bool) -> None:
    """Raise `InputError` unless the folder is ours, empty or not there."""
    if not ours and folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise InputError("a new or empty folder", f"other files in {folder}", "Name another folder.")


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file; empty when there is none that can be read."""
    try:
        return read_json(path, dict)
    except (OSError, ValueError):
        return {}
