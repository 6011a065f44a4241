"""The ground floor imports no other folder, and nothing heavy before it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DECODING = {"decode", "bit_depth", "icc", "resampling"}  # of images, by Pillow; and what stores rows, by pyarrow:
STORING = {"backfill", "cutover", "cutover_gates", "database", "exports", "index", "ingest", "ledger", "maintenance",
           "row_checks", "store"}  # fmt: skip
HEAVY = {"torch", "scipy", "faiss", "lancedb", "rich", "pandas", "PIL"}
IMPORTS = "import sys; import {}; print(*(name.partition('.')[0] for name in sys.modules))"


def loaded_by(stems: set[str]) -> set[str]:
    code = IMPORTS.format(", ".join(f"gallery.{stem}" for stem in sorted(stems)))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_it_stays_light_and_on_the_ground() -> None:
    stems = {path.stem for path in (ROOT / "gallery").glob("*.py")} - {"__init__", "run", *DECODING}
    assert stems > STORING
    upstairs = {"distill", "export", "mobile_eval", "benchmarks"}
    assert not loaded_by(stems) & (HEAVY | upstairs)
    assert "pyarrow" not in loaded_by(stems - STORING)
