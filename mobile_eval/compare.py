"""Does a shipped file still speak the gallery's code?  Its bits against the float student's, its mAP in the index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.card import ModelMetadata
from gallery.codes import Codes, pack, unpack
from gallery.codespace import CodeSpace
from gallery.console import track
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError, MissingBackend
from gallery.files import sha256_of, size_of
from gallery.index import GalleryIndex
from gallery.metrics import MapResult, mean_average_precision
from gallery.results import (
    MARGIN_BINS,
    MARGIN_STEP,
    MAX_DISAGREEMENTS,
    BitDisagreement,
    ModelResult,
    Thresholds,
    WorstQuery,
)
from mobile_eval import latency
from mobile_eval.runtimes import Runtime

CHUNK = 64  # pictures a call: bounds the memory of engines that batch, and moves the progress bar
WORST, NEAREST = 5, 10
Pixels = NDArray[np.uint8]
Logits = NDArray[np.float32]
NO_ENGINE = (MissingBackend, ImportError, NotImplementedError)  # the file may be sound; this place cannot tell


@dataclass(frozen=True, eq=False)
class FloatReference:
    """What every file is held against: by itself enough to count flips; with a gallery, made by `reference`.

    pixels, logits: the queries `[Q, S, S, 3]`, the float student's finite logits `[Q, bits]`; `InputError` otherwise
    labels:     int or multi-hot; None where nobody knows them, and then there is no mAP
    places:     of these queries among all that were asked; None: all of them
    nearest:    ids `[Q, NEAREST]` of the gallery, by (distance, id) from the float student's code
    map, map_retrieved: of the float student's codes in the gallery, over the first top_k (None: all)
    """

    pixels: Pixels
    logits: Logits
    space: CodeSpace
    labels: NDArray[Any] | None = None
    gallery: GalleryIndex | None = None
    top_k: int | None = None
    tolerance: float = Thresholds().logit_tolerance
    places: NDArray[np.int64] | None = None
    nearest: NDArray[np.int64] | None = None
    map: float | None = None
    map_retrieved: float | None = None

    def __post_init__(self) -> None:
        if self.logits.shape != (len(self.pixels), self.space.bits) or not np.isfinite(self.logits).all():
            raise InputError(
                f"finite float-student logits {(len(self.pixels), self.space.bits)}",
                f"{self.logits.shape}, {int(np.isfinite(self.logits).sum())} finite",
                "Compute them on these queries.",
            )

    def some(self, count: int) -> FloatReference:
        """At most `count` of the queries, evenly spaced; what the float student scores is that of these alone."""
        if count >= len(self.pixels):
            return self
        chosen = np.unique(np.linspace(0, len(self.pixels) - 1, count).round().astype(np.int64))
        labels = None if self.labels is None else self.labels[chosen]
        few = replace(self, pixels=self.pixels[chosen], logits=self.logits[chosen], labels=labels, places=chosen)
        return _scored(few)


@dataclass(frozen=True)
class Shipped:
    """A file of the bundle, at `root`/`path`.

    form: its name in tables, "onnx-fp32"; sha256: what the manifest promises (empty: not compared)
    """

    form: str
    format: str
    precision: str
    path: str
    root: Path
    sha256: str = ""


def reference(
    pixels: Pixels,
    logits: Logits,
    labels: NDArray[Any] | None,
    gallery: GalleryIndex,
    top_k: int | None = None,
    tolerance: float = Thresholds().logit_tolerance,
) -> FloatReference:
    """Searches the gallery with the float student's codes."""
    logits = np.asarray(logits, np.float32)
    return _scored(FloatReference(pixels, logits, gallery.space, labels, gallery, top_k, tolerance))


def check_file(
    file: Shipped,
    against: FloatReference,
    open_model: Callable[[Path], Runtime],
    samples: int = latency.SAMPLES,
    max_seconds: float = latency.MAX_SECONDS,
) -> ModelResult:
    """Executes one file over all queries and times it; whatever stops it becomes the row's reason.

    Raises only `CodeSpaceMismatch`: a file of another code space must not be compared at all.
    """
    row = ModelResult(variant=file.form, format=file.format, precision=file.precision, path=file.path, status="skipped")
    try:
        row = row.model_copy(update=_identity(file))
        return _ran(row, file.root / file.path, against, open_model, samples, max_seconds)
    except CodeSpaceMismatch:
        raise
    except NO_ENGINE as error:
        return row.model_copy(update={"reason": f"{type(error).__name__}: {error}"})
    except Exception as error:  # noqa: BLE001 - engines raise whatever they like; the other rows must still be made
        return row.model_copy(update={"status": "failed", "reason": f"{type(error).__name__}: {error}"})


def compare(codes: Codes, logits: Logits, against: FloatReference) -> dict[str, Any]:
    """The flips, neighbours and mAP of a `ModelResult`, from a file's codes `[Q, bits/8]` and logits `[Q, bits]`."""
    flipped = unpack(codes) != (against.logits > 0)
    found: dict[str, Any] = {
        "bits_compared": flipped.size,
        "bits_flipped": int(flipped.sum()),
        "bit_flip_rate": float(flipped.mean()),
        "flips_beyond_tolerance": int((flipped & (np.abs(against.logits) > against.tolerance)).sum()),
        "predicted_bit_flip_rate": predicted_bit_flip_rate(against.logits, logits - against.logits),
        "bit_flips": tuple(flipped.sum(axis=0).tolist()),
        "worst": worst_queries(flipped, against.places),
        "margins": margins(logits, float(against.logits.std())),
    }
    if against.gallery is not None and against.nearest is not None:
        found["recall_at_10"] = recall_at_10(against.nearest, _nearest(codes, against.gallery))
    if (score := _score(codes, against)) is not None and against.map is not None:
        found |= {"map": score.map, "map_drop": against.map - score.map}
    return found


def compare_hosts(
    codes: Codes, logits: Logits, host_codes: Codes, host_logits: Logits, against: FloatReference
) -> dict[str, Any]:
    """The fields of a `ModelResult` that hold a file's answers somewhere against the same file's on the host."""
    differ = unpack(codes) != unpack(host_codes)
    beyond = differ & ~(np.abs(host_logits) <= against.tolerance)  # a logit that is not a number is no excuse
    first = [(int(q), int(b)) for q, b in np.argwhere(beyond)[:MAX_DISAGREEMENTS]]
    disagreements = tuple(
        BitDisagreement(
            query=_place(against.places, q), bit=b, logit=float(logits[q, b]), host=float(host_logits[q, b])
        )
        for q, b in first
    )
    found = {"host_flips": int(differ.sum()), "host_flips_beyond": int(beyond.sum())}
    return {**found, "disagreements": disagreements}


def recall_at_10(before: NDArray[np.int64], after: NDArray[np.int64]) -> float:
    """The share of ids in `before`, `[Q, k]` and none twice in a row, that are in the same row of `after`."""
    return float((before[:, :, None] == after[:, None, :]).any(axis=2).mean())


def predicted_bit_flip_rate(logits: Logits, error: Logits) -> float:
    """The share of bits that `error` must flip: p(0) * mean|error|, p(0) being the density of the logits at zero.

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
    """How many logits lie how far from zero, in bins of `MARGIN_STEP` units; the last bin is open."""
    with np.errstate(over="ignore"):  # of a broken file
        places = np.nan_to_num(np.abs(logits).ravel() / (MARGIN_STEP * (unit or 1.0)), nan=0)
    counts = np.bincount(np.minimum(places, MARGIN_BINS - 1).astype(int), minlength=MARGIN_BINS)
    return tuple(counts.tolist())


def worst_queries(
    flipped: NDArray[np.bool_], places: NDArray[np.int64] | None = None, count: int = WORST
) -> tuple[WorstQuery, ...]:
    """The queries with most flipped bits of bool `[Q, bits]`, worst first, earlier query first among equals."""
    per_query = flipped.sum(axis=1)
    order = np.argsort(-per_query, kind="stable")[:count]
    return tuple(WorstQuery(query=_place(places, q), flipped=int(per_query[q])) for q in order if per_query[q])


def require(card: ModelMetadata, form: str, against: FloatReference) -> None:
    """Raises `CodeSpaceMismatch` for a file of another code space, `InputError` for one of another size."""
    against.space.check_compatible(card.code_space, "the gallery", form)
    if card.size != against.pixels.shape[1]:
        raise InputError(
            f"queries of {card.size} pixels, as the card of {form} says",
            f"{against.pixels.shape[1]} pixels",
            "Resize the queries by the card's rule.",
        )


def _identity(file: Shipped) -> dict[str, Any]:
    path = file.root / file.path
    found = sha256_of(path)
    if file.sha256 not in ("", found):
        raise CorruptFile(f"{file.path} with sha256 {file.sha256[:16]}...", f"{found[:16]}...", "Restore the bundle.")
    return {"bytes": size_of(path), "sha256": found}


def _ran(
    row: ModelResult,
    path: Path,
    against: FloatReference,
    open_model: Callable[[Path], Runtime],
    samples: int,
    max_seconds: float,
) -> ModelResult:
    runtime, load_ms = latency.timed(lambda: open_model(path))
    require(runtime.metadata, row.variant, against)
    figures: dict[str, Any] = {}
    if runtime.timed:
        taken = latency.measure(runtime.run, against.pixels[:1], samples, max_seconds)
        figures = {**vars(taken), "load_ms": load_ms, "threads": latency.THREADS}
    figures |= compare(*_run(runtime, row.variant, against), against)
    return row.model_copy(update={"status": "ran", "engine": runtime.engine, **figures})


def _run(runtime: Runtime, form: str, against: FloatReference) -> tuple[Codes, Logits]:
    starts: Sequence[int] = range(0, len(against.pixels), CHUNK)
    parts = [runtime.run(against.pixels[start : start + CHUNK]) for start in track(starts, form, len(starts))]
    codes, logits = np.concatenate([part.codes for part in parts]), np.concatenate([part.logits for part in parts])
    expected, bits = against.logits.shape, 8 * codes.shape[1]
    if (len(codes), bits) != expected or logits.shape != expected:
        raise InputError(f"codes and logits {expected}", f"{(len(codes), bits)} and {logits.shape}", "Export it again.")
    return codes, logits


def _scored(bare: FloatReference) -> FloatReference:
    """With what the float student finds in the gallery."""
    if bare.gallery is None:
        return bare
    codes = pack(bare.logits)
    nearest, score = _nearest(codes, bare.gallery), _score(codes, bare)
    if score is None:
        return replace(bare, nearest=nearest)
    return replace(bare, nearest=nearest, map=score.map, map_retrieved=score.map_retrieved)


def _score(codes: Codes, against: FloatReference) -> MapResult | None:
    gallery, labels = against.gallery, against.labels
    if gallery is None or labels is None:
        return None
    return mean_average_precision(codes, gallery.codes(), labels, gallery.labels(), against.top_k)


def _nearest(codes: Codes, gallery: GalleryIndex) -> NDArray[np.int64]:
    return gallery.search(codes, NEAREST).ids


def _place(places: NDArray[np.int64] | None, query: int | np.int64) -> int:
    return int(query if places is None else places[query])
