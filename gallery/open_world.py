"""Retrieval of classes that training knew, and of those that came after it: four protocols, named queries@database.

A supervised hash that is only asked for the classes it was trained on is a hidden classifier (Sablayrolles, Douze,
Usunier, Jégou, "How should we evaluate supervised hashing?", ICASSP 2017, arXiv 1609.06753).  So seen and unseen
classes are asked for apart, among their own kind and in the whole gallery.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gallery.codes import Codes
from gallery.cores import available_cores
from gallery.distance_histogram import Labels
from gallery.errors import InputError
from gallery.metrics import expected_precision, mean_average_precision
from gallery.record import Record

BLOCK_BYTES = 1 << 25  # of the similarities that are in memory at once
Mask = NDArray[np.bool_]
Features = NDArray[np.float32]


class OpenWorldMaps(Record):
    """Tie-aware mAP of the four protocols; None where there is nothing to ask, or nothing to search."""

    seen_seen: float | None
    seen_all: float | None
    unseen_unseen: float | None
    unseen_all: float | None


class OpenWorldProtocol(NamedTuple):
    """Which queries are asked of which database: masks `[queries]` and `[gallery]`."""

    queries: Mask
    database: Mask


def open_world_protocols(
    query_labels: Labels, gallery_labels: Labels, seen: NDArray[np.int64]
) -> dict[str, OpenWorldProtocol]:
    """Return the four protocols by the names of `OpenWorldMaps`.

    Labels are int `[n]` (-1: none) or multi-hot bool `[n, classes]`; seen: the classes that training had labels of, as
    indices.  An image is seen if it has classes and all of them are; it is unseen if any of them is not.  Without a
    label it is no query, and in the database of "all" alone.
    """
    (asked, new), (known, other) = (_seen_and_unseen(labels, seen) for labels in (query_labels, gallery_labels))
    whole = np.ones(len(gallery_labels), bool)
    pairs = (asked, known), (asked, whole), (new, other), (new, whole)
    return dict(zip(OpenWorldMaps.model_fields, (OpenWorldProtocol(*pair) for pair in pairs), strict=True))


def open_world_maps(
    query_codes: Codes, gallery_codes: Codes, query_labels: Labels, gallery_labels: Labels, seen: NDArray[np.int64],
    top_k: int | None = None,
) -> OpenWorldMaps:  # fmt: skip
    """Return the tie-aware mAP@top_k (None: of all) of packed codes uint8 `[n, bytes]` in the four protocols.

    Labels and seen are as in `open_world_protocols`; relevant is what shares at least one label, so that a query of
    several classes may find what it shares a seen class with.
    """

    def score(queries: Mask, database: Mask) -> float | None:
        if not (queries.any() and database.any()):
            return None
        codes, labels = (
            (query_codes[queries], gallery_codes[database]),
            (query_labels[queries], gallery_labels[database]),
        )
        return mean_average_precision(*codes, *labels, top_k).map

    protocols = open_world_protocols(query_labels, gallery_labels, seen)
    return OpenWorldMaps(**{name: score(*protocol) for name, protocol in protocols.items()})


def open_world_float(
    query_features: Features, gallery_features: Features, query_labels: Labels, gallery_labels: Labels,
    seen: NDArray[np.int64],
) -> OpenWorldMaps:  # fmt: skip
    """Return the mAP over all of a ranking by the cosine of float features `[n, D]`, in the four protocols.

    Equal similarities (in float32) count as ties, as equal distances of codes do; labels as in `open_world_maps`.
    Memory is bounded: some queries at a time.  Raises `InputError` for features that do not fit their labels.
    """
    import torch

    for side, features, labels in (("query", query_features, query_labels),
                                   ("gallery", gallery_features, gallery_labels)):  # fmt: skip
        if features.ndim != 2 or len(features) != len(labels) or features.shape[1] != gallery_features.shape[1]:
            shapes = f"{features.shape} and {len(labels)} labels"
            raise InputError(f"{side} features [n, D] of one D, and a label for each", shapes, "Pass those of one set.")
    protocols = open_world_protocols(query_labels, gallery_labels, seen)
    queries, items = (torch.from_numpy(normalize_rows(own)) for own in (query_features, gallery_features))
    rows = max(1, BLOCK_BYTES // (4 * max(1, len(items))))

    def precisions(query: int, similarity: Features) -> list[float]:
        return [*_precisions(similarity, query_labels[query], gallery_labels, query, protocols)]

    found: list[list[float]] = []
    with ThreadPoolExecutor(available_cores()) as pool:
        for start in range(0, len(queries), rows):
            cosines = (queries[start : start + rows] @ items.T).numpy()
            found += pool.map(precisions, range(start, start + len(cosines)), cosines)
    maps = {
        name: float(own[one.queries].mean()) if one.queries.any() and one.database.any() else None
        for (name, one), own in zip(protocols.items(), np.array(found).T, strict=True)
    }
    return OpenWorldMaps(**maps)


def normalize_rows(features: Features) -> Features:
    """Return float32 features `[n, D]` of length one; a row of zeros stays one."""
    values = np.asarray(features, np.float32)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.divide(values, np.where(lengths > 0, lengths, 1), dtype=np.float32)


def _precisions(
    similarity: Features, label: Any, labels: Labels, query: int, protocols: dict[str, OpenWorldProtocol]
) -> Iterator[float]:
    """Yield the average precision of a query in each protocol, 0 where it is not asked; similarity: `[gallery]`."""
    values, level = np.unique(-similarity, return_inverse=True)
    relevant = labels[:, label].any(1) if labels.ndim == 2 else labels == label
    for asked, database in protocols.values():
        if not asked[query]:
            yield 0.0
            continue
        everyone, found = (np.bincount(level[own], minlength=len(values)) for own in (database, database & relevant))
        yield float(expected_precision(everyone[None], found[None])[0])


def _seen_and_unseen(labels: Labels, seen: NDArray[np.int64]) -> tuple[Mask, Mask]:
    """Return which images `[n]` are of seen classes alone, and which are of any other."""
    if labels.ndim == 2:
        new = np.ones(labels.shape[1], bool)
        new[seen] = False
        labeled, other = np.asarray(labels.any(1)), np.asarray(labels[:, new].any(1))
    else:
        labeled = np.asarray(labels >= 0)
        other = labeled & ~np.isin(labels, seen)
    return labeled & ~other, other
