"""What the browser lane is made of, and how it gets here: Chromium, Playwright, and the engines from npm."""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gallery.console import log
from gallery.errors import InputError
from gallery.files import atomic_path
from mobile_eval.devices.install import install, step

PACKAGES = {"onnxruntime-web": "1.30.0", "@litertjs/core": "2.5.3"}
PROJECT = "twinhash-browser"
RECORD = {"name": PROJECT, "private": True, "dependencies": PACKAGES}
PLAYWRIGHT = "playwright==1.65.2"
FOLDER, VARIABLE = Path("~/.cache/twinhash/browser"), "TWINHASH_BROWSER"
SET_UP = "Run: python mobile_eval/run.py setup browser"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SERVED = {".js", ".mjs", ".wasm"}


def setup(folder: Path | None = None) -> Path:
    """Installs Chromium and npm (apt-get, as root), Playwright (pip) and the engines (npm), each where missing.

    folder: where the engines go, whole or not at all; `VARIABLE` or else `FOLDER` without it.  What is there already
    at these versions stays.  Raises `MissingBackend` with the message of the tool that failed.
    """
    folder = home(folder)
    if folder.exists() and any(folder.iterdir()) and _record(folder / "package.json").get("name") != PROJECT:
        raise InputError("a new or empty folder for the engines", f"other files in {folder}", "Name another folder.")
    install({"chromium": "chromium"} if chromium() is None else {})
    if find_spec("playwright") is None:
        step(f"pip install {PLAYWRIGHT}", [sys.executable, "-m", "pip", "install", "-q", PLAYWRIGHT])
    if not installed(folder):
        install({"npm": "npm"})
        with atomic_path(folder) as draft:
            draft.mkdir()
            (draft / "package.json").write_text(json.dumps(RECORD))
            flags = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=1"]
            step(f"npm install {' '.join(PACKAGES)}", ["npm", "install", *flags], cwd=draft)
    log.info("The browser's engines are in %s.", folder)
    return folder


def home(folder: Path | None = None) -> Path:
    """Where the engines are: `folder`, the environment's `VARIABLE`, or `FOLDER`."""
    return (folder or Path(os.environ.get(VARIABLE) or FOLDER)).expanduser()


def chromium() -> str | None:
    """The path of a browser of that family, if one is installed."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


def installed(folder: Path) -> bool:
    """Whether the engines are there at exactly the versions that are wanted."""
    found = {name: _record(folder / "node_modules" / name / "package.json").get("version") for name in PACKAGES}
    return found == PACKAGES


def _record(path: Path) -> dict[str, Any]:
    """A package.json, empty when there is none that can be read."""
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def served(folder: Path) -> dict[str, Path]:
    """The engines' scripts and programs, by the paths that the page imports them from."""
    modules = folder / "node_modules"
    files = [file for name in ("onnxruntime-web/dist", "@litertjs") for file in (modules / name).rglob("*")]
    return {f"/npm/{file.relative_to(modules).as_posix()}": file for file in files if file.suffix in SERVED}
