"""Which images of a run's data are no longer what its split.csv says."""

import csv
import io
from pathlib import Path
from tempfile import TemporaryDirectory

from distill.data.dataset import Dataset
from distill.data.manifest import save_split
from gallery.files import read_bytes
from gallery.names import some

MAX_BYTES = 1 << 30  # of split.csv: ten million images
SHOWN = 3  # names of each kind


def describe_changes(path: Path, data: Dataset) -> str:
    """Return in words how `data` differs from the split at `path`, which an earlier process saved."""
    with TemporaryDirectory() as folder:
        now = _read_rows(save_split(data, Path(folder) / "split.csv"))
    try:
        before = _read_rows(path)
    except (OSError, ValueError, csv.Error) as error:
        return f"others, and which ones is not known: {path.name} cannot be read ({error})"
    kinds = {
        "missing": [name for name in before if name not in now],
        "new": [name for name in now if name not in before],
        "with another label or split": [name for name in now if name in before and now[name] != before[name]],
    }
    said = [f"{len(names)} {kind} ({some(map(repr, names), SHOWN)})" for kind, names in kinds.items() if names]
    others = "other contents of images, or other unlabeled images"
    return "; ".join(said) or f"the same names, labels and splits, but {others}"


def _read_rows(path: Path) -> dict[str, list[str]]:
    text = read_bytes(path, MAX_BYTES).decode("utf-8")
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    return {row[0]: row[1:] for row in rows[1:]}
