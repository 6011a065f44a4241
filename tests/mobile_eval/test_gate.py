from __future__ import annotations

import math

import pytest

from gallery.errors import EXIT_BAD_INPUT, EXIT_GATE_FAILED, EXIT_PASSED
from gallery.results import ModelResult, Threshold, Thresholds
from mobile_eval.gate import check, exit_code, row_failures
from tests.mobile_eval.factories import cells, not_run, ran

LIMITS = Thresholds(
    float=Threshold(max_map_drop=0.002, max_bit_flip_rate=0.005),
    quantized=Threshold(max_map_drop=0.01, max_bit_flip_rate=0.02),
)


def just_over(value: float) -> float:
    return math.nextafter(value, math.inf)


@pytest.mark.parametrize(
    ("form", "field", "limit"),
    [
        ("onnx-fp32", "map_drop", 0.002),
        ("onnx-fp32", "bit_flip_rate", 0.005),
        ("coreml-fp16", "map_drop", 0.002),
        ("coreml-fp16", "bit_flip_rate", 0.005),
        ("litert-w8a32", "map_drop", 0.01),
        ("litert-w8a8", "bit_flip_rate", 0.02),
    ],
)
def test_each_limit_on_both_sides(form: str, field: str, limit: float) -> None:
    assert check([ran(form, **{field: limit})], LIMITS).passed
    verdict = check([ran(form, **{field: just_over(limit)})], LIMITS)
    assert not verdict.passed
    assert len(verdict.failures) == 1
    assert verdict.failures[0].startswith(f"host {form}: ")
    assert exit_code(verdict) == EXIT_GATE_FAILED


def test_fp32_bits_beyond_the_tolerance() -> None:
    one = {"flips_beyond_tolerance": 1}
    assert not check([ran("onnx-fp32", **one)], LIMITS).passed
    assert check([ran("coreml-fp16", **one)], LIMITS).passed, "fp16 rounds: its flips are bounded by the rate"
    assert check([ran("onnx-fp32", **one)], LIMITS.model_copy(update={"max_fp32_bit_flips": 1})).passed
    assert check([ran("onnx-fp32", **one)], LIMITS.model_copy(update={"max_fp32_bit_flips": None})).passed


@pytest.mark.parametrize("field", ["map", "map_drop", "bit_flip_rate", "predicted_bit_flip_rate", "p90_ms"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_never_passes(field: str, value: float | None) -> None:
    lax = Thresholds(float=Threshold(max_map_drop=1.0, max_bit_flip_rate=1.0))
    verdict = check([ran(**{field: value})], lax)
    assert not verdict.passed
    assert "is not a number" in " ".join(verdict.failures)


def test_a_better_file_passes() -> None:
    assert check([ran(map_drop=-0.5, bit_flip_rate=0.0)], LIMITS).passed


def test_not_run_is_a_note_and_strict_refuses_it() -> None:
    rows = [ran(), not_run(reason="MissingBackend: no Mac")]
    verdict = check(rows, LIMITS)
    assert verdict.passed
    assert exit_code(verdict) == EXIT_PASSED
    assert verdict.notes == ("host coreml-w8a32: skipped: MissingBackend: no Mac",)
    strict = check(rows, LIMITS, strict=True)
    assert not strict.passed
    assert not strict.failures
    assert exit_code(strict) == EXIT_BAD_INPUT
    assert check([ran()], LIMITS, strict=True).passed
    both = check([ran(map_drop=1.0), not_run()], LIMITS, strict=True)
    assert exit_code(both) == EXIT_GATE_FAILED, "a failure outweighs what could not be checked"


def test_a_file_that_broke_fails() -> None:
    verdict = check([ran(), not_run(status="failed", reason="Fail: INVALID_PROTOBUF")], LIMITS)
    assert verdict.failures == ("host coreml-w8a32: failed: Fail: INVALID_PROTOBUF",)


@pytest.mark.parametrize("rows", [[], [not_run()]])
def test_nothing_ran_nothing_passes(rows: list[ModelResult]) -> None:
    verdict = check(rows, LIMITS)
    assert "nothing was evaluated" in verdict.failures[0]
    assert exit_code(verdict) == EXIT_GATE_FAILED


def test_one_bad_file_among_good_ones_names_only_itself() -> None:
    verdict = check([ran("litert-fp32"), ran("onnx-fp32", map_drop=0.3, bit_flip_rate=0.4)], LIMITS)
    assert [sentence.split(":")[0] for sentence in verdict.failures] == ["host onnx-fp32"] * 2
    assert row_failures(ran("litert-fp32"), LIMITS) == []


def test_the_student_must_keep_its_share_of_the_teacher() -> None:
    thresholds = Thresholds(min_map_ratio=0.95)
    assert check([ran()], thresholds, cells(0.80, 0.80 * 0.95 + 1e-9)).passed
    under = check([ran()], thresholds, cells(0.80, 0.80 * 0.95 - 1e-9))
    assert "student->gallery over teacher->teacher" in under.failures[0]
    assert not check([ran()], thresholds).passed, "a limit on what was not measured"
    assert not check([ran()], thresholds, cells(0.0, 0.5)).passed
    assert not check([ran()], LIMITS, cells(math.nan, 0.5)).passed, "NaN fails even where no limit is set"
    assert check([ran()], LIMITS, cells(0.80, 0.01)).passed, "not gated unless asked"


UNMEASURED = {"map": None, "map_drop": None, "bit_flip_rate": None, "predicted_bit_flip_rate": None,
              "flips_beyond_tolerance": None}  # fmt: skip


def test_what_was_not_measured_is_not_judged_but_something_must_be() -> None:
    """A phone's latency tells nothing of codes: beside rows that do it passes, alone it proves nothing."""
    latency = ran("litert-fp32", device="pixel", p90_ms=3.0, **UNMEASURED)
    assert check([ran(), latency], LIMITS).passed
    assert check([ran(map=None, map_drop=None)], LIMITS).passed, "golden pictures have no labels"
    alone = check([latency], LIMITS)
    assert "nothing was evaluated" in alone.failures[0]
    assert exit_code(alone) == EXIT_GATE_FAILED


@pytest.mark.parametrize("device", ["arm64-cortex-a53", "browser-webgpu", "android"])
def test_an_fp32_file_that_disagrees_with_the_host_fails_wherever_it_ran(device: str) -> None:
    rows = [ran(), ran(device=device, host_flips=3, host_flips_beyond=1)]
    verdict = check(rows, LIMITS)
    said = f"{device} onnx-fp32: against the host: bit flips beyond |logit| 0.001 1 is above the threshold 0"
    assert verdict.failures == (said,)
    assert check([ran(), ran(device=device, host_flips=3, host_flips_beyond=0)], LIMITS).passed
    rounded = ran("onnx-w8a8", device=device, host_flips=3, host_flips_beyond=3)
    assert check([ran(), rounded], LIMITS).passed, "rounding may differ: its flips are bounded by the rate"


def test_the_limits_of_codes_hold_on_every_device() -> None:
    verdict = check([ran(), ran(device="browser-wasm-2t", bit_flip_rate=0.4)], LIMITS)
    assert [sentence.split(":")[0] for sentence in verdict.failures] == ["browser-wasm-2t onnx-fp32"]


def test_time_is_limited_by_device() -> None:
    thresholds = LIMITS.model_copy(update={"max_p90_latency_ms": {"android": 5.0}})
    slow_host, phone = ran(p90_ms=50.0), ran(device="android", p90_ms=5.0)
    assert check([slow_host, phone], thresholds, strict=True).passed
    verdict = check([slow_host, phone.model_copy(update={"p90_ms": just_over(5.0)})], thresholds)
    assert [sentence.split(" is above")[0] for sentence in verdict.failures] == [
        "android onnx-fp32: p90 latency in ms 5"
    ]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (
            [ran(), ran(device="android", p90_ms=None)],
            "android onnx-fp32: p90 latency has a threshold and was not measured",
        ),
        ([ran()], "android: p90 latency has a threshold, and nothing ran there"),
    ],
)
def test_a_limit_that_nothing_was_held_against_is_a_note_and_strict_refuses_it(
    rows: list[ModelResult], says: str
) -> None:
    thresholds = LIMITS.model_copy(update={"max_p90_latency_ms": {"android": 5.0}})
    verdict = check(rows, thresholds)
    assert verdict.passed
    assert verdict.notes[0].startswith(says)
    assert exit_code(check(rows, thresholds, strict=True)) == EXIT_BAD_INPUT


def test_size_is_limited_and_said_once_for_all_devices() -> None:
    rows = [ran(bytes=2_000_001), ran(bytes=2_000_001, device="arm64-cortex-a53")]
    assert check([ran(bytes=2_000_000)], LIMITS.model_copy(update={"max_size_mb": 2.0})).passed
    verdict = check(rows, LIMITS.model_copy(update={"max_size_mb": 2.0}))
    assert len(verdict.failures) == 1
    assert "onnx-fp32: size in bytes" in verdict.failures[0]


def test_notes_of_the_caller_count_as_what_could_not_be_checked() -> None:
    verdict = check([ran()], LIMITS, notes=("apple: none", "apple: none"))
    assert (verdict.passed, verdict.notes) == (True, ("apple: none",))
    assert exit_code(check([ran()], LIMITS, strict=True, notes=("apple: none",))) == EXIT_BAD_INPUT
