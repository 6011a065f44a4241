from __future__ import annotations

import math

import pytest
from made_up import cells, not_run, ran

from gallery.errors import EXIT_BAD_INPUT, EXIT_GATE_FAILED, EXIT_PASSED
from mobile_eval.gate import check, exit_code, row_failures
from mobile_eval.results import FileRow, Limit, Limits

LIMITS = Limits(
    float_files=Limit(map_drop=0.002, flip_rate=0.005), quantized_files=Limit(map_drop=0.01, flip_rate=0.02)
)


def just_over(value: float) -> float:
    return math.nextafter(value, math.inf)


@pytest.mark.parametrize(
    ("form", "field", "limit"),
    [
        ("onnx-fp32", "map_drop", 0.002),
        ("onnx-fp32", "flip_rate", 0.005),
        ("coreml-fp16", "map_drop", 0.002),
        ("coreml-fp16", "flip_rate", 0.005),
        ("litert-int8-weights", "map_drop", 0.01),
        ("litert-int8", "flip_rate", 0.02),
    ],
)
def test_each_limit_on_both_sides(form: str, field: str, limit: float) -> None:
    assert check([ran(form, **{field: limit})], LIMITS).passed
    verdict = check([ran(form, **{field: just_over(limit)})], LIMITS)
    assert not verdict.passed
    assert len(verdict.failures) == 1
    assert verdict.failures[0].startswith(f"{form}: ")
    assert exit_code(verdict) == EXIT_GATE_FAILED


def test_fp32_bits_beyond_the_tolerance() -> None:
    one = {"flips_beyond_tolerance": 1}
    assert not check([ran("onnx-fp32", **one)], LIMITS).passed
    assert check([ran("coreml-fp16", **one)], LIMITS).passed, "fp16 rounds: its flips are bounded by the rate"
    assert check([ran("onnx-fp32", **one)], LIMITS.model_copy(update={"fp32_beyond_tolerance": 1})).passed
    assert check([ran("onnx-fp32", **one)], LIMITS.model_copy(update={"fp32_beyond_tolerance": None})).passed


@pytest.mark.parametrize("field", ["map", "map_drop", "flip_rate", "predicted_flip_rate"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_is_not_a_number_never_passes(field: str, value: float | None) -> None:
    lax = Limits(float_files=Limit(map_drop=1.0, flip_rate=1.0))
    verdict = check([ran(**{field: value})], lax)
    assert not verdict.passed
    assert "is not a number" in " ".join(verdict.failures)


def test_a_better_file_passes() -> None:
    assert check([ran(map_drop=-0.5, flip_rate=0.0)], LIMITS).passed


def test_not_run_is_a_note_and_strict_refuses_it() -> None:
    rows = [ran(), not_run(reason="MissingBackend: no Mac")]
    verdict = check(rows, LIMITS)
    assert verdict.passed
    assert exit_code(verdict) == EXIT_PASSED
    assert verdict.notes == ("coreml-int8-weights: not run here: MissingBackend: no Mac",)
    strict = check(rows, LIMITS, strict=True)
    assert not strict.passed
    assert not strict.failures
    assert exit_code(strict) == EXIT_BAD_INPUT
    assert check([ran()], LIMITS, strict=True).passed
    both = check([ran(map_drop=1.0), not_run()], LIMITS, strict=True)
    assert exit_code(both) == EXIT_GATE_FAILED, "a failure outweighs what could not be checked"


def test_a_file_that_broke_fails() -> None:
    verdict = check([ran(), not_run(status="failed", reason="Fail: INVALID_PROTOBUF")], LIMITS)
    assert verdict.failures == ("coreml-int8-weights: broke where it should run: Fail: INVALID_PROTOBUF",)


@pytest.mark.parametrize("rows", [[], [not_run()]])
def test_nothing_ran_nothing_passes(rows: list[FileRow]) -> None:
    verdict = check(rows, LIMITS)
    assert "nothing was proved" in verdict.failures[0]
    assert exit_code(verdict) == EXIT_GATE_FAILED


def test_one_bad_file_among_good_ones_names_only_itself() -> None:
    verdict = check([ran("litert-fp32"), ran("onnx-fp32", map_drop=0.3, flip_rate=0.4)], LIMITS)
    assert [sentence.split(":")[0] for sentence in verdict.failures] == ["onnx-fp32"] * 2
    assert row_failures(ran("litert-fp32"), LIMITS) == []


def test_the_student_must_keep_its_share_of_the_teacher() -> None:
    limits = Limits(min_ratio=0.95)
    assert check([ran()], limits, cells(0.80, 0.80 * 0.95 + 1e-9)).passed
    under = check([ran()], limits, cells(0.80, 0.80 * 0.95 - 1e-9))
    assert "student->gallery over teacher->teacher" in under.failures[0]
    assert not check([ran()], limits).passed, "a limit on what was not measured"
    assert not check([ran()], limits, cells(0.0, 0.5)).passed
    assert not check([ran()], LIMITS, cells(math.nan, 0.5)).passed, "NaN fails even where no limit is set"
    assert check([ran()], LIMITS, cells(0.80, 0.01)).passed, "not gated unless asked"
