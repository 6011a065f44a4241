"""The quality gate: results and thresholds to passed or failed, with the reasons as sentences."""

import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

from gallery.errors import EXIT_BAD_INPUT, EXIT_GATE_FAILED, EXIT_PASSED
from gallery.results import (
    STUDENT_GALLERY,
    TEACHER_TEACHER,
    EvaluationResults,
    GateResult,
    ModelResult,
    RetrievalPair,
    RunResults,
    Thresholds,
)

SURE = 2.0  # standard errors
Results = TypeVar("Results", bound=EvaluationResults)


def apply(results: Results, thresholds: Thresholds, strict: bool = False) -> Results:
    """Return the results with these thresholds and the gate's result."""
    run = results if isinstance(results, RunResults) else None
    warnings = (*run.alarms, *run.data_warnings) if run and strict else ()
    gate = check(results.models, thresholds, run.pairs if run else (), strict, (*results.notes, *warnings))
    return results.model_copy(update={"thresholds": thresholds, "gate": gate})


def check(
    models: Sequence[ModelResult], thresholds: Thresholds,
    pairs: Sequence[RetrievalPair] = (), strict: bool = False, notes: Sequence[str] = (),
) -> GateResult:  # fmt: skip
    """Pass if the codes of at least one model were compared and nothing failed.

    What was not measured is not judged; what was measured and is not a number fails.

    strict: fail if anything could not be checked: a skipped model, a threshold without a measurement, a note
    notes: what else could not be checked
    """
    failures = [sentence for row in models for sentence in row_failures(row, thresholds)]
    if not any(row.status == "ran" and row.bit_flip_rate is not None for row in models):
        failures.append("no model ran and gave codes to compare, so nothing was evaluated")
    failures += _pair_failures(tuple(pairs), thresholds)
    unchecked = [f"{row_name(row)}: skipped: {row.reason}" for row in models if row.status == "skipped"]
    timed = [row for row in models if row.status == "ran" and row.device in thresholds.max_p90_latency_ms]
    absent = sorted(thresholds.max_p90_latency_ms.keys() - {row.device for row in timed})
    what = "p90 latency has a threshold"
    unchecked += [f"{row_name(row)}: {what} and was not measured" for row in timed if row.p90_ms is None]
    unchecked += [*(f"{device}: {what}, and nothing ran there" for device in absent), *notes]
    passed = not failures and not (strict and unchecked)
    return GateResult(passed=passed, failures=tuple(dict.fromkeys(failures)), notes=tuple(dict.fromkeys(unchecked)))


def exit_code(gate: GateResult) -> int:
    """Return 0 if passed, 1 if something failed, 2 if nothing failed but a strict gate could not check everything."""
    if gate.passed:
        return EXIT_PASSED
    return EXIT_GATE_FAILED if gate.failures else EXIT_BAD_INPUT


def row_name(row: ModelResult) -> str:
    """Name a row in a sentence: its device and variant."""
    return f"{row.device} {row.variant}"


def row_failures(row: ModelResult, thresholds: Thresholds) -> list[str]:
    """Return a sentence for each threshold that the model exceeds; none if it was skipped."""
    name, size = row_name(row), None if thresholds.max_size_mb is None else thresholds.max_size_mb * 1e6
    failures = [*_above(row.variant, "size in bytes", row.bytes, size)]
    if row.status != "ran":
        return failures + ([f"{name}: failed: {row.reason}"] if row.status == "failed" else [])
    numbers = {
        "mAP": row.map, "mAP drop": row.map_drop, "bit flip rate": row.bit_flip_rate,
        "recall@10": row.neighbor_recall, "recall@10 drop": row.neighbor_recall_drop,
        "predicted bit flip rate": row.predicted_bit_flip_rate, "p90 latency": row.p90_ms,
    }  # fmt: skip
    wrong = [what for what, value in numbers.items() if value is not None and not math.isfinite(value)]
    failures += [f"{name}: {what} is not a number" for what in wrong]
    of_precision = thresholds.of(row)
    failures += _above(name, "mAP drop", row.map_drop, of_precision.max_map_drop)
    if row.map_drop is None:  # without labels, by a figure that one flipped bit may change
        allowed = of_precision.max_map_drop + SURE * (row.neighbor_recall_error or 0.0)
        failures += _above(name, "recall@10 drop", row.neighbor_recall_drop, allowed)
    failures += _above(name, "bit flip rate", row.bit_flip_rate, of_precision.max_bit_flip_rate)
    failures += _above(name, "p90 latency in ms", row.p90_ms, thresholds.max_p90_latency_ms.get(row.device))
    if row.precision == "fp32":  # any arithmetic as exact as fp32 gives the same bit, unless a logit is close to zero
        beyond, most = f"bit flips beyond |logit| {thresholds.logit_tolerance:g}", thresholds.max_fp32_bit_flips
        failures += _above(name, beyond, row.flips_beyond_tolerance, most)
        failures += _above(f"{name}: against the host", beyond, row.host_flips_beyond, most)
    return failures


def _above(name: str, what: str, value: float | None, threshold: float | None) -> Iterator[str]:
    if value is not None and threshold is not None and value > threshold:  # NaN has its own sentence
        yield f"{name}: {what} {value:.6g} is above the threshold {threshold:.6g}"


def ratio(pairs: tuple[RetrievalPair, ...]) -> float | None:
    """mAP (without labels: recall@10) of student->gallery over teacher->teacher; None when either is missing, NaN over
    a zero.
    """
    found = {pair.name: pair.recall_at_10 if pair.map is None else pair.map for pair in pairs}
    student, teacher = found.get(STUDENT_GALLERY), found.get(TEACHER_TEACHER)
    if student is None or teacher is None:
        return None
    return student / teacher if teacher else math.nan


def _pair_failures(pairs: tuple[RetrievalPair, ...], thresholds: Thresholds) -> list[str]:
    wrong = (pair.name for pair in pairs if pair.map is not None and not math.isfinite(pair.map))
    failures = [f"{name}: mAP is not a number" for name in wrong]
    if thresholds.min_map_ratio is None:
        return failures
    name, found = f"{STUDENT_GALLERY} over {TEACHER_TEACHER}", ratio(pairs)
    if found is None:
        return [*failures, f"{name}: not measured, though it has a threshold"]
    if not found >= thresholds.min_map_ratio:
        failures.append(f"{name} is {found:.6g}, below the threshold {thresholds.min_map_ratio:.6g}")
    return failures
