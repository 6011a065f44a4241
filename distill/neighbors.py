"""The true neighbors of a run's queries, by the pretrained teacher: what codes are measured by without labels."""

import numpy as np

from distill.config import load_yaml
from distill.context import DatasetFingerprint, RunContext
from distill.distributed import main_process_first
from distill.infer import Indices, Logits, code_logits
from distill.run_dir import NEIGHBORS
from gallery.errors import CorruptFile, InputError
from gallery.files import atomic_path, open_array
from gallery.neighbors import MOST, Rows, nearest_by_cosine

MAX_BYTES = 1 << 30  # of the file: 2.6 million queries


def make_neighbors(context: RunContext) -> None:
    """Find the nearest gallery images of each query by float features, once in a run whose loss uses no labels.

    They are kept in a file: nothing that reads them needs the pretrained weights.
    """
    run_dir, data, info = context.run_dir, context.data, context.resolved.teacher
    if context.loss_class.uses_labels or run_dir.is_done("neighbors"):
        return
    (queries, items), count = (len(data.query), len(data.gallery)), min(MOST, len(data.gallery))
    what = f"finding the {count} nearest of {items} images to each of {queries} queries by {info.name}"
    with run_dir.stage("neighbors", what):
        rows = _earlier_neighbors(context) if context.config.reuse_gallery else nearest_images(context)
        with main_process_first() as first:
            if first:
                with atomic_path(run_dir.folder / NEIGHBORS) as draft, draft.open("wb") as stream:
                    np.save(stream, rows.astype(np.int32), allow_pickle=False)


def nearest_images(context: RunContext) -> Rows:
    """Return the rows of the gallery's index nearest to each query by the pretrained teacher, `[queries, MOST]`."""
    model = context.build_model("teacher").eval()
    features = code_logits(model.backbone)

    def of(index: Indices, label: str) -> Logits:
        return context.infer(features, "teacher", index, f"teacher float features {label}", f"pretrained {label}")

    return nearest_by_cosine(of(context.data.query, "queries"), of(context.indexed_images, "gallery"))


def float_neighbors(context: RunContext) -> Rows | None:
    """Return what `make_neighbors` found, `[queries, n]`, nearest first; None for a run whose loss uses labels.

    Raises `CorruptFile` for a damaged file.
    """
    if context.loss_class.uses_labels:
        return None
    path, data = context.run_dir.folder / NEIGHBORS, context.data
    shape = len(data.query), min(MOST, len(data.gallery))
    try:
        rows = np.array(open_array(path, MAX_BYTES))
        if rows.shape != shape or rows.dtype != np.int32 or not ((rows >= 0) & (rows < len(data.gallery))).all():
            raise ValueError(f"{rows.dtype} {list(rows.shape)}")
    except (OSError, ValueError) as error:
        fix = "Make it again: run the command of the run again."
        raise CorruptFile(f"rows of neighbors {list(shape)} in {path}", str(error), fix) from error
    return rows.astype(np.int64)


def _earlier_neighbors(context: RunContext) -> Rows:
    """Return those of the run whose gallery is reused, of the same queries and gallery."""
    folder = context.config.reuse_gallery
    assert folder is not None
    earlier = load_yaml(folder / "dataset_fingerprint.yaml", DatasetFingerprint)
    if earlier.images != context.data.fingerprint:
        fix = "Use its --data, --seed and --query-fraction."
        raise InputError(f"the queries and the gallery of {folder}, whose true neighbors are known", "others", fix)
    rows = np.array(open_array(folder / NEIGHBORS, MAX_BYTES))
    return rows.astype(np.int64)
