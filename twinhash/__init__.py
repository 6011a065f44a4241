"""The public API, imported on first use: `import twinhash` loads no framework."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.load_run import load_run
    from gallery.codes import hamming, pack, unpack
    from gallery.index import open_gallery
    from gallery.metrics import mean_average_precision
    from mobile_eval.runtimes import open_model

__all__ = ["hamming", "load_run", "mean_average_precision", "open_gallery", "open_model", "pack", "unpack"]
_MODULES = {
    "hamming": "gallery.codes",
    "load_run": "distill.load_run",
    "mean_average_precision": "gallery.metrics",
    "open_gallery": "gallery.index",
    "open_model": "mobile_eval.runtimes",
    "pack": "gallery.codes",
    "unpack": "gallery.codes",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'twinhash' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
