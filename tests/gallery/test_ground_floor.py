"""The ground floor imports no other folder, and nothing heavy before it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DECODING = ("decode", "bit_depth")  # of images, by Pillow
IMPORTS = "import sys; import {}; print(*(name.partition('.')[0] for name in sys.modules))"


def test_importing_it_stays_light_and_on_the_ground() -> None:
    stems = {path.stem for path in (ROOT / "gallery").glob("*.py")} - {"__init__", *DECODING}
    modules = [f"gallery.{stem}" for stem in sorted(stems)]
    assert "gallery.index" in modules
    code = IMPORTS.format(", ".join(modules))
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"torch", "scipy", "faiss", "lancedb", "pyarrow", "rich", "pandas", "PIL"}
    upstairs = {"distill", "export", "mobile_eval", "benchmarks"}
    assert not set(loaded.stdout.split()) & (heavy | upstairs)
