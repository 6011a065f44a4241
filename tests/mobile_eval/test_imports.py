"""Reports of other tools become rows of the right file, or are refused with the field at fault."""

from __future__ import annotations

import json
import shutil
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
from mobile_eval.external_results import merge, read
from tests.mobile_eval.factories import ran

FIXTURES = Path(__file__).with_name("fixtures")
ROWS = [
    ran(form, path=f"query-{form.split('-', 1)[1]}{suffix}", sha256=digit * 64)
    for form, suffix, digit in (
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


def added(name: str, **names: str) -> ModelResult:
    return merge(ROWS, read(FIXTURES / name, **names))[-1]


def edited(name: str, change: Callable[[Any], object], folder: Path) -> Path:
    data = json.loads((FIXTURES / name).read_text())
    change(data)
    (folder / name).write_text(json.dumps(data))
    return folder / name


def mac(folder: Path, **row: Any) -> Path:
    (folder / "mac.json").write_text(json.dumps(MAC | {"rows": [{**MAC["rows"][0], **row}]}))  # type: ignore[index]
    return folder / "mac.json"


def test_litert_benchmark() -> None:
    row = added("litert.json", device="Pixel 10")
    assert (row.path, row.form, row.sha256, row.status) == ("query-fp32.tflite", "litert-fp32", "2" * 64, "ran")
    assert (row.device, row.engine, row.threads, row.samples) == ("Pixel 10", "LiteRT CPU", 1, 50)
    assert (row.load_ms, row.first_ms, row.p50_ms, row.p90_ms, row.p99_ms) == (11.65, 0.62, 0.33, None, None)
    assert row.conditions == {"mean": "0.340 ms", "p95": "0.370 ms", "fully accelerated": "false"}
    assert row.bits_compared is None


def test_benchmark_model_in_both_spellings(tmp_path: Path) -> None:
    row = added("benchmark_result.json", model="query-fp32.tflite", device="Pixel 10")
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
    row = merge(ROWS, read(tmp_path / "snake.json"))[-1]
    assert (row.path, row.p50_ms, row.load_ms, row.samples) == ("query-fp32.tflite", 3.25, None, None)


def test_xcode_report_and_its_folder(tmp_path: Path) -> None:
    row = added("xcode.json")
    assert (row.path, row.device, row.engine) == ("query-fp16.mlpackage", "iPhone 16", "Core ML, iOS 26.3.1")
    assert (row.samples, row.first_ms) == (5, None)
    assert row.p50_ms == pytest.approx(0.51)
    assert row.p90_ms == pytest.approx(0.754)
    assert row.conditions["compute units"] == "ALL"
    (tmp_path / "query-fp16.mlperf").mkdir()
    shutil.copy(FIXTURES / "xcode.json", tmp_path / "query-fp16.mlperf" / "report.json")
    assert read(tmp_path / "query-fp16.mlperf") == read(FIXTURES / "xcode.json")


def test_ai_hub_profile() -> None:
    row = added("ai_hub.json", model="query-fp32.onnx", device="Samsung Galaxy S24")
    assert (row.path, row.device, row.samples) == ("query-fp32.onnx", "Samsung Galaxy S24", 4)
    assert (row.load_ms, row.peak_memory_mb) == (pytest.approx(311.671), 2.5)
    assert row.p50_ms == pytest.approx(0.3855)
    assert row.conditions == {"AI Hub's estimate": "0.372 ms", "layers": "CPU 1, NPU 2"}


def test_mac_report_brings_its_flips(tmp_path: Path) -> None:
    row = merge(ROWS, read(mac(tmp_path)))[-1]
    assert (row.path, row.device, row.engine) == ("query-fp16.mlpackage", "apple-cpu-and-ne", "Core ML, macOS 15.1")
    assert (row.load_ms, row.first_ms, row.p50_ms, row.samples) == (80.5, 2.5, 0.5, 3)
    assert (row.bits_compared, row.bits_flipped, row.flip_rate, row.flips_beyond_tolerance) == (512, 2, 2 / 512, 1)
    assert row.conditions["chip"] == "Apple M2"


def test_rows_stay_and_a_second_import_replaces_the_first() -> None:
    once = merge(ROWS, read(FIXTURES / "litert.json", device="Pixel 10"))
    twice = merge(once, read(FIXTURES / "litert.json", device="Pixel 10"))
    assert once == twice
    assert once[:-1] == ROWS
    assert len(merge(once, read(FIXTURES / "litert.json", device="Pixel 9"))) == len(once) + 1


def test_a_file_is_found_by_its_name_in_any_folder(tmp_path: Path) -> None:
    for said in ("/data/local/tmp/query-fp32.tflite", "C:\\tmp\\query-fp32.tflite", "query-fp32"):
        path = edited("litert.json", lambda data, said=said: data.update(model=said), tmp_path)
        assert merge(ROWS, read(path))[-1].path == "query-fp32.tflite"


@pytest.mark.parametrize(
    ("name", "model", "words"),
    [
        ("ai_hub.json", "", "none in its report"),
        ("ai_hub.json", "query-fp16", "2 of them"),  # .onnx and .mlpackage
        ("ai_hub.json", "query-fp64.onnx", "0 of them"),
        ("litert.json", "query-fp32.onnx", "0 of them"),  # LiteRT does not run it
    ],
)
def test_a_report_without_one_file_is_refused_with_the_choice(
    name: str, model: str, words: str, tmp_path: Path
) -> None:
    path = edited(name, lambda data: data.pop("model", None) if not model else None, tmp_path)
    with pytest.raises(InputError, match=words) as caught:
        merge(ROWS, read(path, model=model))
    assert "query-fp32.tflite" in str(caught.value)


def test_a_measurement_of_an_older_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Measure this bundle's file"):
        merge(ROWS, read(mac(tmp_path, sha256="5" * 64)))


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("litert.json", lambda d: d["latency"].pop("median_ms"), "latency.median_ms"),
        ("litert.json", lambda d: d["latency"].update(init_ms=-1), "latency.init_ms"),
        ("litert.json", lambda d: d.update(num_threads="one"), "num_threads"),
        ("litert.json", lambda d: d["latency"].update(median_ms=float("nan")), "latency.median_ms"),
        ("benchmark_result.json", lambda d: d["latencyMetrics"].update(avgMs="NaN"), "latencyMetrics.avgMs"),
        ("xcode.json", lambda d: d.update(computeUnit=4), "computeUnit"),
        ("xcode.json", lambda d: d["deviceResults"]["predict"].update(samples=[]), "deviceResults.predict.samples"),
        ("xcode.json", lambda d: d["deviceResults"]["predict"]["samples"].append("1"), "predict.samples.5"),
        ("xcode.json", lambda d: d.pop("deviceInfo"), "deviceInfo"),
        ("ai_hub.json", lambda d: d["execution_summary"].update(first_load_time="1"), "first_load_time"),
        ("ai_hub.json", lambda d: d["execution_detail"].append({}), "execution_detail.3.compute_unit"),
    ],
)  # fmt: skip
def test_a_field_that_is_missing_or_wrong_is_named(
    name: str, change: Callable[[Any], object], field: str, tmp_path: Path
) -> None:
    with pytest.raises(CorruptFile, match=field.replace(".", r"\.")):
        read(edited(name, change, tmp_path))


@pytest.mark.parametrize(
    "row", [{"sha256": "x"}, {"unit": "TPU"}, {"samples_ms": [1, float("inf")]}, {"bits_flipped": -1}, {"file": 3}]
)
def test_a_mac_report_that_is_none_is_refused(row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match=rf"rows\.0\.{next(iter(row))}"):
        read(mac(tmp_path, **row))


def test_what_is_no_report_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    for text, words in (("{", "Expecting"), ("[]", "a JSON list"), ("[" * 100_000, "recursion"), ("\xff", "decode")):
        path.write_text(text, "latin-1")
        with pytest.raises(CorruptFile, match=words):
            read(path)
    path.write_text('{"model": "query-fp32.tflite"}')
    with pytest.raises(InputError, match="execution_summary"):
        read(path)
    with pytest.raises(CorruptFile, match="No such file"):
        read(tmp_path / "nowhere.json")
    monkeypatch.setattr(external_results, "MAX_BYTES", 100)
    with pytest.raises(CorruptFile, match="more than 100 bytes"):
        read(FIXTURES / "litert.json")


def test_names_cannot_steer_a_terminal(tmp_path: Path) -> None:
    path = edited("xcode.json", lambda d: d["deviceInfo"].update(modelName="iPhone\x1b[2J\n" + "x" * 999), tmp_path)
    row = merge(ROWS, read(path))[-1]
    assert row.device.startswith("iPhone?[2J xxx")
    assert len(row.device) == external_results.MAX_TEXT


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(["litert.json", "benchmark_result.json", "xcode.json", "ai_hub.json"]), data=st.data())
def test_any_value_anywhere_is_read_or_refused(
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
        made = merge(ROWS, read(path, model="query-fp32.tflite" if name != "xcode.json" else ""))[-1]
        assert ModelResult.model_validate_json(made.model_dump_json()) == made
