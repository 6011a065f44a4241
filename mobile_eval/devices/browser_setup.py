"""What the browser device needs, and its installation: Chromium, Playwright, and the engines from npm."""

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
PLAYWRIGHT = "playwright==1.65.2"
FOLDER, VARIABLE = Path("~/.cache/twinhash/browser"), "TWINHASH_BROWSER"
SET_UP = "Run: python mobile_eval/run.py setup browser"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def setup(folder: Path | None = None) -> Path:
    """Install Chromium and npm (apt-get, as root), Playwright (pip) and the engines (npm), each where missing.

    folder: where the engines go, whole or not at all; by default `engines_folder()`.  What is there already at these
    versions stays.  Raises `MissingBackend` with the output of the tool that failed.
    """
    folder = engines_folder(folder)
    if folder.exists() and any(folder.iterdir()) and _package(folder).get("name") != PROJECT:
        raise InputError("a new or empty folder for the engines", f"other files in {folder}", "Name another folder.")
    install({"chromium": "chromium"} if chromium() is None else {})
    if find_spec("playwright") is None:
        step(f"pip install {PLAYWRIGHT}", [sys.executable, "-m", "pip", "install", "-q", PLAYWRIGHT])
    if not installed(folder):
        install({"npm": "npm"})
        with atomic_path(folder) as draft:
            draft.mkdir()
            package = {"name": PROJECT, "private": True, "dependencies": PACKAGES}
            (draft / "package.json").write_text(json.dumps(package))
            flags = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=1"]
            step(f"npm install {' '.join(PACKAGES)}", ["npm", "install", *flags], cwd=draft)
    log.info("The browser's engines are in %s.", folder)
    return folder


def engines_folder(folder: Path | None = None) -> Path:
    """Return `folder`, or else the environment's `VARIABLE`, or else `FOLDER`."""
    return (folder or Path(os.environ.get(VARIABLE) or FOLDER)).expanduser()


def chromium() -> str | None:
    """Return the path of an installed browser of that family."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


def installed(folder: Path) -> bool:
    """Whether the engines are in `folder` at exactly these versions."""
    return {name: _package(folder / "node_modules" / name).get("version") for name in PACKAGES} == PACKAGES


def _package(folder: Path) -> dict[str, Any]:
    """Read a package.json; empty when there is none that can be read."""
    try:
        package = json.loads((folder / "package.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return package if isinstance(package, dict) else {}
