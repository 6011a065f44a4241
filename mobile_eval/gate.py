"""The gate: limits and rows in, a verdict in sentences out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gallery.errors import EXIT_BAD_INPUT, EXIT_GATE_FAILED, EXIT_PASSED
from mobile_eval.results import STUDENT_GALLERY, TEACHER_TEACHER, Cell, FileRow, Limits, Verdict, ratio


def check(rows: Sequence[FileRow], limits: Limits, cells: Sequence[Cell] = (), strict: bool = False) -> Verdict:
    """Passes when something ran and nothing failed.

    A file with no engine here becomes a note; `strict` refuses those too.  Whatever is not a number fails.
    """
    failures = [sentence for row in rows for sentence in row_failures(row, limits)]
    if not any(row.status == "ran" for row in rows):
        failures.append("no file ran, so nothing was proved")
    failures += _cell_failures(tuple(cells), limits)
    notes = [f"{row.form}: not run here: {row.reason}" for row in rows if row.status == "not run"]
    passed = not failures and not (strict and notes)
    return Verdict(passed=passed, failures=tuple(failures), notes=tuple(notes))


def exit_code(verdict: Verdict) -> int:
    """0 passed; 1 something failed; 2 nothing failed, but a strict gate could not check everything."""
    if verdict.passed:
        return EXIT_PASSED
    return EXIT_GATE_FAILED if verdict.failures else EXIT_BAD_INPUT


def row_failures(row: FileRow, limits: Limits) -> list[str]:
    """Why this file fails, one sentence a limit; empty when it holds them or has no engine here."""
    if row.status != "ran":
        return [f"{row.form}: broke where it should run: {row.reason}"] if row.status == "failed" else []
    numbers = {
        "mAP": row.map,
        "mAP drop": row.map_drop,
        "flip rate": row.flip_rate,
        "predicted flip rate": row.predicted_flip_rate,
        "count of flips": row.flips_beyond_tolerance,
    }
    limit = limits.of(row)
    failures = [f"{row.form}: {name} is not a number" for name, value in numbers.items() if not _number(value)]
    failures += _over(row.form, "mAP drop", row.map_drop, limit.map_drop)
    failures += _over(row.form, "flip rate", row.flip_rate, limit.flip_rate)
    if row.precision == "fp32":
        name = f"count of bits flipped beyond |logit| {limits.tolerance:g}"
        failures += _over(row.form, name, row.flips_beyond_tolerance, limits.fp32_beyond_tolerance)
    return failures


def _over(form: str, name: str, value: float | None, limit: float | None) -> list[str]:
    if value is None or limit is None or not value > limit:  # NaN has its own sentence
        return []
    return [f"{form}: {name} {value:.6g} is over the limit {limit:.6g}"]


def _number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _cell_failures(cells: tuple[Cell, ...], limits: Limits) -> list[str]:
    failures = [f"{cell.name}: mAP is not a number" for cell in cells if not math.isfinite(cell.map)]
    if limits.min_ratio is None:
        return failures
    pair, found = f"{STUDENT_GALLERY} over {TEACHER_TEACHER}", ratio(cells)
    if found is None:
        return [*failures, f"{pair}: not measured, though a limit is set"]
    if not found >= limits.min_ratio:
        failures.append(f"{pair} is {found:.6g}, under the limit {limits.min_ratio:.6g}")
    return failures
