"""The gate: thresholds and rows in, a verdict in sentences out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gallery.errors import EXIT_BAD_INPUT, EXIT_GATE_FAILED, EXIT_PASSED
from gallery.results import STUDENT_GALLERY, TEACHER_TEACHER, GateResult, ModelResult, RetrievalPair, Thresholds, ratio


def check(
    rows: Sequence[ModelResult],
    thresholds: Thresholds,
    cells: Sequence[RetrievalPair] = (),
    strict: bool = False,
    notes: Sequence[str] = (),
) -> GateResult:
    """Passes when some file's codes were compared and nothing failed.

    A file with no engine somewhere becomes a note, beside the `notes` given; `strict` refuses those too.  What was not
    measured is not judged; whatever was and is not a number fails.
    """
    failures = [sentence for row in rows for sentence in row_failures(row, thresholds)]
    if not any(row.status == "ran" and row.bit_flip_rate is not None for row in rows):
        failures.append("no file ran and gave codes to compare, so nothing was proved")
    failures += _cell_failures(tuple(cells), thresholds)
    untold = [f"{who(row)}: skipped: {row.reason}" for row in rows if row.status == "skipped"]
    untold += [*_untimed(rows, thresholds), *notes]
    passed = not failures and not (strict and untold)
    return GateResult(passed=passed, failures=tuple(dict.fromkeys(failures)), notes=tuple(dict.fromkeys(untold)))


def exit_code(verdict: GateResult) -> int:
    """0 passed; 1 something failed; 2 nothing failed, but a strict gate could not check everything."""
    if verdict.passed:
        return EXIT_PASSED
    return EXIT_GATE_FAILED if verdict.failures else EXIT_BAD_INPUT


def who(row: ModelResult) -> str:
    """What a row is called in sentences."""
    return f"{row.device} {row.variant}"


def row_failures(row: ModelResult, thresholds: Thresholds) -> list[str]:
    """Why this file fails, one sentence a limit; empty when it holds them or has no engine there."""
    size = None if thresholds.max_size_mb is None else thresholds.max_size_mb * 1e6
    failures = _over(row.variant, "size in bytes", row.bytes, size)
    if row.status != "ran":
        broke = [f"{who(row)}: broke where it should run: {row.reason}"] if row.status == "failed" else []
        return failures + broke
    numbers = {
        "mAP": row.map,
        "mAP drop": row.map_drop,
        "flip rate": row.bit_flip_rate,
        "predicted flip rate": row.predicted_bit_flip_rate,
        "p90": row.p90_ms,
    }
    wrong = [name for name, value in numbers.items() if value is not None and not math.isfinite(value)]
    limit = thresholds.of(row)
    failures += [f"{who(row)}: {name} is not a number" for name in wrong]
    failures += _over(who(row), "mAP drop", row.map_drop, limit.max_map_drop)
    failures += _over(who(row), "flip rate", row.bit_flip_rate, limit.max_bit_flip_rate)
    failures += _over(who(row), "p90 in milliseconds", row.p90_ms, thresholds.max_p90_latency_ms.get(row.device))
    return failures + (_fp32_failures(row, thresholds) if row.precision == "fp32" else [])


def _fp32_failures(row: ModelResult, thresholds: Thresholds) -> list[str]:
    """All arithmetic that is as exact as fp32 gives the same bits, but where a logit is next to nothing."""
    beyond, most = f"beyond |logit| {thresholds.logit_tolerance:g}", thresholds.max_fp32_bit_flips
    student = _over(who(row), f"count of bits flipped {beyond}", row.flips_beyond_tolerance, most)
    unlike = f"{who(row)}: disagrees with the host"
    return student + _over(unlike, f"count of bits {beyond}", row.host_flips_beyond, most)


def _over(name: str, what: str, value: float | None, limit: float | None) -> list[str]:
    if value is None or limit is None or not value > limit:  # NaN has its own sentence
        return []
    return [f"{name}: {what} {value:.6g} is over the limit {limit:.6g}"]


def _untimed(rows: Sequence[ModelResult], thresholds: Thresholds) -> list[str]:
    """Limits on time that nothing was held against: a device that was not asked for, a file that is not timed there."""
    ran = [row for row in rows if row.status == "ran" and row.device in thresholds.max_p90_latency_ms]
    notes = [f"{who(row)}: its p90 was not measured, though a limit is set" for row in ran if row.p90_ms is None]
    absent = sorted(thresholds.max_p90_latency_ms.keys() - {row.device for row in ran})
    return notes + [f"{device}: a limit of p90 is set, and nothing ran there" for device in absent]


def _cell_failures(cells: tuple[RetrievalPair, ...], thresholds: Thresholds) -> list[str]:
    failures = [f"{cell.name}: mAP is not a number" for cell in cells if not math.isfinite(cell.map)]
    if thresholds.min_map_ratio is None:
        return failures
    pair, found = f"{STUDENT_GALLERY} over {TEACHER_TEACHER}", ratio(cells)
    if found is None:
        return [*failures, f"{pair}: not measured, though a limit is set"]
    if not found >= thresholds.min_map_ratio:
        failures.append(f"{pair} is {found:.6g}, under the limit {thresholds.min_map_ratio:.6g}")
    return failures
