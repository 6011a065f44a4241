from __future__ import annotations

import math

import pytest

from gallery.errors import EXIT_BAD_INPUT, EXIT_GATE_FAILED, EXIT_PASSED
from gallery.results import STUDENT_GALLERY, TEACHER_TEACHER, ModelResult, RetrievalPair, Threshold, Thresholds
from mobile_eval.gate import check, exit_code, ratio, row_failures
from mobile_eval.golden import allowed_flips, golden_thresholds
from tests.mobile_eval.factories import not_run, pairs, ran

THRESHOLDS = Thresholds(
    float=Threshold(max_map_drop=0.002, max_bit_flip_rate=0.005),
    quantized=Threshold(max_map_drop=0.01, max_bit_flip_rate=0.02),
)


def just_over(value: float) -> float:
    return math.nextafter(value, math.inf)


@pytest.mark.parametrize(
    ("variant", "field", "threshold"),
    [
        ("onnx-fp32", "map_drop", 0.002),
        ("onnx-fp32", "bit_flip_rate", 0.005),
        ("coreml-fp16", "map_drop", 0.002),
        ("coreml-fp16", "bit_flip_rate", 0.005),
        ("litert-w8a32", "map_drop", 0.01),
        ("litert-w8a8", "bit_flip_rate", 0.02),
    ],
)
def test_each_threshold_on_both_sides(variant: str, field: str, threshold: float) -> None:
    assert check([ran(variant, **{field: threshold})], THRESHOLDS).passed
    gate = check([ran(variant, **{field: just_over(threshold)})], THRESHOLDS)
    assert not gate.passed
    assert len(gate.failures) == 1
    assert gate.failures[0].startswith(f"host {variant}: ")
    assert exit_code(gate) == EXIT_GATE_FAILED


def test_fp32_bits_beyond_the_tolerance() -> None:
    one = {"flips_beyond_tolerance": 1}
    assert not check([ran("onnx-fp32", **one)], THRESHOLDS).passed
    assert check([ran("coreml-fp16", **one)], THRESHOLDS).passed, "fp16 rounds: its flips are bounded by the rate"
    assert check([ran("onnx-fp32", **one)], THRESHOLDS.model_copy(update={"max_fp32_bit_flips": 1})).passed
    assert check([ran("onnx-fp32", **one)], THRESHOLDS.model_copy(update={"max_fp32_bit_flips": None})).passed


@pytest.mark.parametrize("field", ["map", "map_drop", "bit_flip_rate", "predicted_bit_flip_rate", "p90_ms"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_never_passes(field: str, value: float | None) -> None:
    lax = Thresholds(float=Threshold(max_map_drop=1.0, max_bit_flip_rate=1.0))
    gate = check([ran(**{field: value})], lax)
    assert not gate.passed
    assert "is not a number" in " ".join(gate.failures)


def test_a_better_file_passes() -> None:
    assert check([ran(map_drop=-0.5, bit_flip_rate=0.0)], THRESHOLDS).passed


def test_not_run_is_a_note_and_strict_fails_it() -> None:
    rows = [ran(), not_run(reason="MissingBackend: no Mac")]
    gate = check(rows, THRESHOLDS)
    assert gate.passed
    assert exit_code(gate) == EXIT_PASSED
    assert gate.notes == ("host coreml-w8a32: skipped: MissingBackend: no Mac",)
    strict = check(rows, THRESHOLDS, strict=True)
    assert not strict.passed
    assert not strict.failures
    assert exit_code(strict) == EXIT_BAD_INPUT
    assert check([ran()], THRESHOLDS, strict=True).passed
    both = check([ran(map_drop=1.0), not_run()], THRESHOLDS, strict=True)
    assert exit_code(both) == EXIT_GATE_FAILED, "a failure outweighs what could not be checked"


def test_a_file_that_failed_fails() -> None:
    gate = check([ran(), not_run(status="failed", reason="Fail: INVALID_PROTOBUF")], THRESHOLDS)
    assert gate.failures == ("host coreml-w8a32: failed: Fail: INVALID_PROTOBUF",)


@pytest.mark.parametrize("rows", [[], [not_run()]])
def test_nothing_ran_nothing_passes(rows: list[ModelResult]) -> None:
    gate = check(rows, THRESHOLDS)
    assert "nothing was evaluated" in gate.failures[0]
    assert exit_code(gate) == EXIT_GATE_FAILED


def test_one_bad_file_among_good_ones_names_only_itself() -> None:
    gate = check([ran("litert-fp32"), ran("onnx-fp32", map_drop=0.3, bit_flip_rate=0.4)], THRESHOLDS)
    assert [sentence.split(":")[0] for sentence in gate.failures] == ["host onnx-fp32"] * 2
    assert row_failures(ran("litert-fp32"), THRESHOLDS) == []


def test_the_student_must_keep_its_share_of_the_teacher() -> None:
    thresholds = Thresholds(min_map_ratio=0.95)
    assert check([ran()], thresholds, pairs(0.80, 0.80 * 0.95 + 1e-9)).passed
    under = check([ran()], thresholds, pairs(0.80, 0.80 * 0.95 - 1e-9))
    assert "student->gallery over teacher->teacher" in under.failures[0]
    assert not check([ran()], thresholds).passed, "a threshold on what was not measured"
    assert not check([ran()], thresholds, pairs(0.0, 0.5)).passed
    assert not check([ran()], THRESHOLDS, pairs(math.nan, 0.5)).passed, "NaN fails even where no threshold is set"
    assert check([ran()], THRESHOLDS, pairs(0.80, 0.01)).passed, "not gated unless asked"


UNMEASURED = {"map": None, "map_drop": None, "bit_flip_rate": None, "predicted_bit_flip_rate": None,
              "flips_beyond_tolerance": None}  # fmt: skip


def test_what_was_not_measured_is_not_judged_but_something_must_be() -> None:
    """A phone's latency tells nothing of codes: beside rows that do it passes, alone it says nothing."""
    latency = ran("litert-fp32", device="pixel", p90_ms=3.0, **UNMEASURED)
    assert check([ran(), latency], THRESHOLDS).passed
    assert check([ran(map=None, map_drop=None)], THRESHOLDS).passed, "golden images have no labels"
    alone = check([latency], THRESHOLDS)
    assert "nothing was evaluated" in alone.failures[0]
    assert exit_code(alone) == EXIT_GATE_FAILED


@pytest.mark.parametrize("device", ["arm64-cortex-a53", "browser-webgpu", "android"])
def test_an_fp32_file_that_disagrees_with_the_host_fails_wherever_it_ran(device: str) -> None:
    rows = [ran(), ran(device=device, host_flips=3, host_flips_beyond=1)]
    gate = check(rows, THRESHOLDS)
    said = f"{device} onnx-fp32: against the host: bit flips beyond |logit| 0.001 1 is above the threshold 0"
    assert gate.failures == (said,)
    assert check([ran(), ran(device=device, host_flips=3, host_flips_beyond=0)], THRESHOLDS).passed
    rounded = ran("onnx-w8a8", device=device, host_flips=3, host_flips_beyond=3)
    assert check([ran(), rounded], THRESHOLDS).passed, "rounding may differ: its flips are bounded by the rate"


def test_thresholds_of_codes_hold_on_every_device() -> None:
    gate = check([ran(), ran(device="browser-wasm-2t", bit_flip_rate=0.4)], THRESHOLDS)
    assert [sentence.split(":")[0] for sentence in gate.failures] == ["browser-wasm-2t onnx-fp32"]


def test_time_is_limited_by_device() -> None:
    thresholds = THRESHOLDS.model_copy(update={"max_p90_latency_ms": {"android": 5.0}})
    slow_host, phone = ran(p90_ms=50.0), ran(device="android", p90_ms=5.0)
    assert check([slow_host, phone], thresholds, strict=True).passed
    gate = check([slow_host, phone.model_copy(update={"p90_ms": just_over(5.0)})], thresholds)
    assert [sentence.split(" is above")[0] for sentence in gate.failures] == ["android onnx-fp32: p90 latency in ms 5"]


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
def test_a_threshold_that_nothing_was_held_against_is_a_note_and_strict_fails_it(
    rows: list[ModelResult], says: str
) -> None:
    thresholds = THRESHOLDS.model_copy(update={"max_p90_latency_ms": {"android": 5.0}})
    gate = check(rows, thresholds)
    assert gate.passed
    assert gate.notes[0].startswith(says)
    assert exit_code(check(rows, thresholds, strict=True)) == EXIT_BAD_INPUT


def test_size_is_limited_and_said_once_for_all_devices() -> None:
    rows = [ran(bytes=2_000_001), ran(bytes=2_000_001, device="arm64-cortex-a53")]
    assert check([ran(bytes=2_000_000)], THRESHOLDS.model_copy(update={"max_size_mb": 2.0})).passed
    gate = check(rows, THRESHOLDS.model_copy(update={"max_size_mb": 2.0}))
    assert len(gate.failures) == 1
    assert "onnx-fp32: size in bytes" in gate.failures[0]


def test_notes_of_the_caller_count_as_what_could_not_be_checked() -> None:
    gate = check([ran()], THRESHOLDS, notes=("apple: none", "apple: none"))
    assert (gate.passed, gate.notes) == (True, ("apple: none",))
    assert exit_code(check([ran()], THRESHOLDS, strict=True, notes=("apple: none",))) == EXIT_BAD_INPUT


def test_ratio() -> None:
    assert ratio(pairs(teacher=0.72)) == pytest.approx(0.70 / 0.72)
    assert ratio(pairs()[:1]) is None
    assert math.isnan(ratio(pairs(teacher=0.0)) or 0.0)


def test_on_golden_inputs_a_threshold_that_is_given_leaves_the_others_as_verify_has_them() -> None:
    defaults = golden_thresholds(512, Thresholds())
    assert 512 * (defaults.quantized.max_bit_flip_rate or 0) == allowed_flips(512, 0.02) == 19
    assert golden_thresholds(512, Thresholds(max_size_mb=5)) == defaults.model_copy(update={"max_size_mb": 5})
    own = golden_thresholds(512, Thresholds(quantized=Threshold(max_map_drop=0.01, max_bit_flip_rate=0.1)))
    assert (own.float, own.quantized.max_bit_flip_rate) == (defaults.float, 0.1)


def of_neighbors(drop: float, error: float) -> ModelResult:
    """A row of a run without labels."""
    changes = {"map": None, "map_drop": None, "neighbor_recall": 0.4, "neighbor_recall_drop": drop}
    return ran("onnx-fp16").model_copy(update={**changes, "neighbor_recall_error": error})


@pytest.mark.parametrize(
    ("drop", "error", "failures"), [(0.0, 0.0, 0), (0.003, 0.0, 1), (0.003, 0.001, 0), (0.2, 0.01, 1)]
)
def test_without_labels_recall_may_drop_within_its_noise(drop: float, error: float, failures: int) -> None:
    found = row_failures(of_neighbors(drop, error), Thresholds())
    assert len(found) == failures
    assert all("recall@10 drop" in sentence for sentence in found)


def test_without_labels_the_ratio_is_that_of_recall() -> None:
    pairs = tuple(RetrievalPair(name=name, recall_at_10=share)
                  for name, share in ((TEACHER_TEACHER, 0.5), (STUDENT_GALLERY, 0.4)))  # fmt: skip
    assert ratio(pairs) == pytest.approx(0.8)
    assert check([of_neighbors(0, 0)], Thresholds(), pairs).passed
    gate = check([of_neighbors(0, 0)], Thresholds(min_map_ratio=0.9), pairs)
    assert "0.8, below the threshold 0.9" in gate.failures[0]
