"""Does an exported model still give the gallery's codes?  Its bits and its mAP against the float student's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gallery.codes import Codes, pack, unpack
from gallery.codespace import CodeSpace
from gallery.errors import InputError, MissingBackend
from gallery.index import GalleryIndex
from gallery.metrics import MapResult, mean_average_precision
from gallery.neighbors import NeighborRecall, neighbor_recall
from gallery.results import MARGIN_BINS, MARGIN_STEP, MAX_DISAGREEMENTS, BitDisagreement, Thresholds, WorstQuery

WORST, NEAREST = 5, 10
NO_ENGINE = (MissingBackend, ImportError, NotImplementedError)  # says nothing about the model
Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class FloatReference:
    """The float student's answers, which every exported model is compared with.

    pixels, logits: the queries `[Q, S, S, 3]`, the float student's finite logits `[Q, bits]`; `InputError` otherwise
    labels:         int or multi-hot; None if unknown, and then there is no mAP
    gallery, top_k: where to search, and how many of the first results count (None: all)
    query_indices:  of these queries among all queries; None: all of them
    classes:        the names of the classes that `labels` are of
    neighbors:      rows of the gallery nearest by float features, `[Q, n]`; None where they are not known
    """

    pixels: Pixels
    logits: Logits
    space: CodeSpace
    labels: NDArray[Any] | None = None
    gallery: GalleryIndex | None = None
    top_k: int | None = None
    tolerance: float = Thresholds().logit_tolerance
    query_indices: NDArray[np.int64] | None = None
    classes: Sequence[str] = ()
    neighbors: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.logits.shape != (len(self.pixels), self.space.bits) or not np.isfinite(self.logits).all():
            expected = f"finite float-student logits {(len(self.pixels), self.space.bits)}"
            found = f"{self.logits.shape}, {int(np.isfinite(self.logits).sum())} finite"
            raise InputError(expected, found, "Compute them on these queries.")

    def subset(self, count: int) -> Self:
        """Take at most `count` of the queries, evenly spaced; mAP is then that of these queries alone."""
        if count >= len(self.pixels):
            return self
        chosen = np.unique(np.linspace(0, len(self.pixels) - 1, count).round().astype(np.int64))
        labels, neighbors = (None if one is None else one[chosen] for one in (self.labels, self.neighbors))
        pixels, logits = self.pixels[chosen], self.logits[chosen]
        chosen_alone = replace(self, pixels=pixels, logits=logits, labels=labels, query_indices=chosen)
        return replace(chosen_alone, neighbors=neighbors)

    @property
    def indices(self) -> NDArray[np.int64]:
        """`query_indices`, or those of all queries."""
        return np.arange(len(self.pixels)) if self.query_indices is None else self.query_indices

    @cached_property
    def nearest(self) -> NDArray[np.int64] | None:
        """Rows `[Q, NEAREST]` of the gallery, by (distance, id) from the float student's codes; None without one."""
        return None if self.gallery is None else self.gallery.search(pack(self.logits), NEAREST).rows

    @cached_property
    def precision(self) -> MapResult | None:
        """Average precision by the float student's codes."""
        return self.score(pack(self.logits))

    @property
    def map(self) -> float | None:
        """mAP of the float student's codes."""
        return self.precision.map if self.precision else None

    def score(self, codes: Codes) -> MapResult | None:
        """Return the average precision of codes of these queries in the gallery; None without a gallery or labels."""
        if self.gallery is None or self.labels is None:
            return None
        gallery_labels = self.gallery.class_labels(self.classes, self.labels.ndim == 2)
        return mean_average_precision(codes, self.gallery.codes, self.labels, gallery_labels, self.top_k)

    @cached_property
    def neighbor_recall(self) -> NeighborRecall | None:
        """Recall of float neighbors by the float student's codes."""
        return self.recall(pack(self.logits))

    def recall(self, codes: Codes) -> NeighborRecall | None:
        """Return the recall of float neighbors by codes of these queries; None without a gallery or neighbors."""
        if self.gallery is None or self.neighbors is None:
            return None
        return neighbor_recall(codes, self.gallery.searcher, self.neighbors)


def compare_to_float(codes: Codes, logits: Logits, reference: FloatReference) -> dict[str, Any]:
    """Compute the bit flips and the retrieval of a `ModelResult`: of a model's codes `[Q, bits/8]` and logits."""
    flipped = unpack(codes) != (reference.logits > 0)
    per_query = flipped.sum(axis=1)
    worst = [q for q in np.argsort(-per_query, kind="stable")[:WORST] if per_query[q]]
    found: dict[str, Any] = {
        "bits_compared": flipped.size, "bits_flipped": int(flipped.sum()), "bit_flip_rate": float(flipped.mean()),
        "flips_beyond_tolerance": int((flipped & (np.abs(reference.logits) > reference.tolerance)).sum()),
        "predicted_bit_flip_rate": predicted_bit_flip_rate(reference.logits, logits - reference.logits),
        "bit_flips": tuple(flipped.sum(axis=0).tolist()),
        "worst": tuple(WorstQuery(query=int(reference.indices[q]), flipped=int(per_query[q])) for q in worst),
        "margins": margins(logits, float(reference.logits.std())),
    }  # fmt: skip
    if reference.gallery is not None and reference.nearest is not None:
        rows = reference.gallery.search(codes, NEAREST).rows
        found["recall_at_10"] = float((reference.nearest[:, :, None] == rows[:, None, :]).any(axis=2).mean())
    if reference.map is not None and (score := reference.score(codes)) is not None:
        found |= {"map": score.map, "map_drop": reference.map - score.map}
    if reference.neighbor_recall is not None and (recall := reference.recall(codes)) is not None:
        lost = reference.neighbor_recall.per_query - recall.per_query
        error = float(lost.std() / np.sqrt(len(lost)))
        found |= {"neighbor_recall": recall.at_10, "neighbor_recall_drop": float(lost.mean()),
                  "neighbor_recall_error": error}  # fmt: skip
    return found


def compare_to_host(
    codes: Codes, logits: Logits, host_codes: Codes, host_logits: Logits, reference: FloatReference
) -> dict[str, Any]:
    """Compute the fields of a `ModelResult` that compare a model on a device with the same model on the host."""
    differ = unpack(codes) != unpack(host_codes)
    beyond = differ & ~(np.abs(host_logits) <= reference.tolerance)  # a logit that is not a number is no excuse
    indices = reference.indices
    disagreements = tuple(
        BitDisagreement(query=int(indices[q]), bit=int(b), logit=float(logits[q, b]), host=float(host_logits[q, b]))
        for q, b in np.argwhere(beyond)[:MAX_DISAGREEMENTS]
    )
    found = {"host_flips": int(differ.sum()), "host_flips_beyond": int(beyond.sum())}
    return {**found, "disagreements": disagreements}


def predicted_bit_flip_rate(logits: Logits, error: Logits) -> float:
    """Estimate the share of bits that `error` flips: p(0) * mean|error|, p(0) being the density of the logits at zero.

    A bit of logit z flips when the error crosses zero: P = integral of p(z) P(error crosses z) = p(0) E|error| for an
    error that is small against the scale on which p varies.  p(0) is taken from the n**(2/3) logits nearest zero (or,
    for coarse quantization, from all within mean|error|), and so is E|error|: quantization errors grow with the
    logit, and only those near zero can flip it.  Not a number (or infinite) when an error is.
    """
    size, slip = np.abs(logits.astype(np.float64)).ravel(), np.abs(error.astype(np.float64)).ravel()
    nearest = min(int(np.ceil(size.size ** (2 / 3))), size.size - 1)
    window = max(float(np.partition(size, nearest)[nearest]), float(slip.mean()))
    if not np.isfinite(slip).all() or window == 0:  # a window of zero: every error is zero too
        return float(slip.sum())
    return float(slip[size <= window].sum() / (2 * window * size.size))


def margins(logits: Logits, unit: float) -> tuple[int, ...]:
    """Count the logits by their distance from zero, in bins of `MARGIN_STEP` units; the last bin is open."""
    with np.errstate(over="ignore"):  # of a damaged model
        bins = np.nan_to_num(np.abs(logits).ravel() / (MARGIN_STEP * (unit or 1.0)), nan=0)
    counts = np.bincount(np.minimum(bins, MARGIN_BINS - 1).astype(int), minlength=MARGIN_BINS)
    return tuple(counts.tolist())
