"""Reports of other tools become rows of the right model, or errors that name the field at fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gallery.errors import CorruptFile, InputError, TwinhashError
from gallery.results import ModelResult
from mobile_eval import external_results
from mobile_eval.external_results import merge_results, read_results
from tests.mobile_eval.factories import ran

FIXTURES = Path(__file__).with_name("fixtures")
ROWS = [
    ran(variant, path=f"query-{variant.split('-', 1)[1]}{suffix}", sha256=digit * 64)
    for variant, suffix, digit in (
        ("onnx-fp32", ".onnx", "1"),
        ("litert-fp32", ".tflite", "2"),
        ("coreml-fp16", ".mlpackage", "3"),
        ("onnx-fp16", ".onnx", "4"),
    )
]
MAC = {
    "run_on_mac": 1,
    "machine": {"name": "Mac14,2", "chip": "Apple M2", "macos": "15.1", "coremltools": "9.0", "thermal": ""},
    "rows": [
        {
            "file": "query-fp16.mlpackage", "sha256": "3" * 64, "unit": "CPU_AND_NE", "load_ms": 80.5, "first_ms": 2.5,
            "samples_ms": [0.5, 0.5, 0.75], "bits_compared": 512, "bits_flipped": 2, "flips_beyond_tolerance": 1,
            "largest_logit_error": 0.01,
        },
    ],
}  # fmt: skip


def imported(name: str, **names: str) -> ModelResult:
    return merge_results(ROWS, read_results(FIXTURES / name, **names))[-1]


def edited(name: str, change: Callable[[Any], object], folder: Path) -> Path:
    data = json.loads((FIXTURES / name).read_text())
    change(data)
    (folder / name).write_text(json.dumps(data))
    return folder / name


def mac(folder: Path, **row: Any) -> Path:
    (folder / "mac.json").write_text(json.dumps(MAC | {"rows": [{**MAC["rows"][0], **row}]}))  # type: ignore[index]
    return folder / "mac.json"


def test_litert_benchmark() -> None:
    row = imported("litert.json", device="Pixel 10")
    assert (row.path, row.variant, row.sha256, row.status) == ("query-fp32.tflite", "litert-fp32", "2" * 64, "ran")
    assert (row.device, row.engine, row.threads, row.samples) == ("Pixel 10", "LiteRT CPU", 1, 50)
    assert (row.load_ms, row.first_ms, row.p50_ms, row.p90_ms, row.p99_ms) == (11.65, 0.62, 0.33, None, None)
    assert row.conditions == {"mean": "0.340 ms", "p95": "0.370 ms", "fully accelerated": "false"}
    assert row.bits_compared is None


def test_benchmark_model_in_both_spellings(tmp_path: Path) -> None:
    row = imported("benchmark_result.json", model="query-fp32.tflite", device="Pixel 10")
    assert (row.path, row.load_ms, row.first_ms, row.p50_ms, row.samples) == (
        "query-fp32.tflite",
        12.5,
        9.75,
        3.44,
        283,
    )
    assert row.conditions["peak memory of the process"] == "14.5 MiB"
    snake = {"name": "query-fp32.tflite", "latency_metrics": {"avg_ms": 3.5, "median_ms": 3.25}}
    (tmp_path / "snake.json").write_text(json.dumps(snake))
    row = merge_results(ROWS, read_results(tmp_path / "snake.json"))[-1]
    assert (row.path, row.p50_ms, row.load_ms, row.samples) == ("query-fp32.tflite", 3.25, None, None)


def test_ai_hub_profile() -> None:
    row = imported("ai_hub.json", model="query-fp32.onnx", device="Samsung Galaxy S24")
    assert (row.path, row.device, row.samples) == ("query-fp32.onnx", "Samsung Galaxy S24", 4)
    assert (row.load_ms, row.peak_memory_mb) == (pytest.approx(311.671), 2.5)
    assert row.p50_ms == pytest.approx(0.3855)
    assert row.conditions == {"AI Hub's estimate": "0.372 ms", "layers": "CPU 1, NPU 2"}


def test_mac_report_has_bit_flips(tmp_path: Path) -> None:
    row = merge_results(ROWS, read_results(mac(tmp_path)))[-1]
    assert (row.path, row.device, row.engine) == ("query-fp16.mlpackage", "apple-cpu-and-ne", "Core ML, macOS 15.1")
    assert (row.load_ms, row.first_ms, row.p50_ms, row.samples) == (80.5, 2.5, 0.5, 3)
    assert (row.bits_compared, row.bits_flipped, row.bit_flip_rate, row.flips_beyond_tolerance) == (512, 2, 2 / 512, 1)
    assert row.conditions["chip"] == "Apple M2"


def test_rows_stay_and_a_second_import_replaces_the_first() -> None:
    once = merge_results(ROWS, read_results(FIXTURES / "litert.json", device="Pixel 10"))
    twice = merge_results(once, read_results(FIXTURES / "litert.json", device="Pixel 10"))
    assert once == twice
    assert once[:-1] == ROWS
    assert len(merge_results(once, read_results(FIXTURES / "litert.json", device="Pixel 9"))) == len(once) + 1


def test_a_model_is_found_by_its_name_in_any_folder(tmp_path: Path) -> None:
    for reported in ("/data/local/tmp/query-fp32.tflite", "C:\\tmp\\query-fp32.tflite", "query-fp32"):
        path = edited("litert.json", lambda data, reported=reported: data.update(model=reported), tmp_path)
        assert merge_results(ROWS, read_results(path))[-1].path == "query-fp32.tflite"


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("ai_hub.json", "", "none in its report"),
        ("ai_hub.json", "query-fp16", "2 of them"),  # .onnx and .mlpackage
        ("ai_hub.json", "query-fp64.onnx", "0 of them"),
        ("litert.json", "query-fp32.onnx", "0 of them"),  # LiteRT does not run it
    ],
)
def test_a_report_without_a_unique_model_lists_the_choices(name: str, model: str, message: str, tmp_path: Path) -> None:
    path = edited(name, lambda data: data.pop("model", None) if not model else None, tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        merge_results(ROWS, read_results(path, model=model))
    assert "query-fp32.tflite" in str(caught.value)


def test_a_measurement_of_another_version_of_the_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Measure this bundle's file"):
        merge_results(ROWS, read_results(mac(tmp_path, sha256="5" * 64)))


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("litert.json", lambda d: d["latency"].pop("median_ms"), "latency.median_ms"),
        ("litert.json", lambda d: d["latency"].update(init_ms=-1), "latency.init_ms"),
        ("litert.json", lambda d: d.update(num_threads="one"), "num_threads"),
        ("litert.json", lambda d: d["latency"].update(median_ms=float("nan")), "latency.median_ms"),
        ("benchmark_result.json", lambda d: d["latencyMetrics"].update(avgMs="NaN"), "latencyMetrics.avgMs"),
        ("ai_hub.json", lambda d: d["execution_summary"].update(first_load_time="1"), "first_load_time"),
        ("ai_hub.json", lambda d: d["execution_detail"].append({}), "execution_detail.3.compute_unit"),
    ],
)  # fmt: skip
def test_missing_and_invalid_fields_are_named(
    name: str, change: Callable[[Any], object], field: str, tmp_path: Path
) -> None:
    with pytest.raises(CorruptFile, match=field.replace(".", r"\.")):
        read_results(edited(name, change, tmp_path))


@pytest.mark.parametrize(
    "row", [{"sha256": "x"}, {"unit": "TPU"}, {"samples_ms": [1, float("inf")]}, {"bits_flipped": -1}, {"file": 3}]
)
def test_invalid_fields_of_a_mac_report_are_named(row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match=rf"rows\.0\.{next(iter(row))}"):
        read_results(mac(tmp_path, **row))


def test_other_files_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    for text, message in (
        ("{", "Expecting"),
        ("[]", "a JSON list"),
        ("[" * 100_000, "nested too deeply"),
        ("\xff", "decode"),
    ):
        path.write_text(text, "latin-1")
        with pytest.raises(CorruptFile, match=message):
            read_results(path)
    path.write_text('{"model": "query-fp32.tflite"}')
    with pytest.raises(InputError, match="execution_summary"):
        read_results(path)
    with pytest.raises(CorruptFile, match="No such file"):
        read_results(tmp_path / "nowhere.json")
    monkeypatch.setattr(external_results, "MAX_BYTES", 100)
    with pytest.raises(CorruptFile, match="not a file of at most 100 bytes"):
        read_results(FIXTURES / "litert.json")


def test_names_cannot_steer_a_terminal(tmp_path: Path) -> None:
    path = edited("litert.json", lambda d: d.update(accelerators=["GPU\x1b[2J\n" + "x" * 999]), tmp_path)
    row = merge_results(ROWS, read_results(path, device="Pixel\x1b[2J"))[-1]
    assert row.device == r"Pixel\x1b[2J"
    assert row.engine.startswith(r"LiteRT GPU\x1b[2J xxx")
    assert len(row.engine) == external_results.MAX_TEXT


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(["litert.json", "benchmark_result.json", "ai_hub.json"]), data=st.data())
def test_any_value_anywhere_is_read_or_an_error(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    report = inner = json.loads((FIXTURES / name).read_text())
    while True:
        key = data.draw(st.sampled_from(sorted(inner)))
        if not isinstance(inner[key], dict) or data.draw(st.booleans()):
            inner[key] = data.draw(JSON)
            break
        inner = inner[key]
    path = tmp_path_factory.getbasetemp() / name
    path.write_text(json.dumps(report))
    with suppress(TwinhashError):
        made = merge_results(ROWS, read_results(path, model="query-fp32.tflite"))[-1]
        assert ModelResult.model_validate_json(made.model_dump_json()) == made
