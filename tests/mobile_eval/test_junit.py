"""The XML that CI reads: its counts, its sentences, and nothing that breaks a parser."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from gallery.results import EvaluationResults, ModelResult, Thresholds, load
from mobile_eval.gate import check
from mobile_eval.junit import write_junit
from tests.mobile_eval.factories import not_run, ran, results


def evaluation(rows: tuple[ModelResult, ...], **changes: Any) -> EvaluationResults:
    made: dict[str, Any] = {
        "created": "2026-01-02T03:04:05+00:00", "command": "run.py check", "name": "mine", "code_space": "c" * 16,
        "bits": 64, "student": "net", "query_set": "8 images", "num_queries": 8, "gallery_size": None, "map": None,
        "models": rows, "thresholds": Thresholds(), "gate": check(rows, Thresholds()), "system": results().system,
    }  # fmt: skip
    return EvaluationResults(**made | changes)


def written(rows: tuple[ModelResult, ...], folder: Path, **changes: Any) -> ET.Element:
    return ET.parse(write_junit(evaluation(rows, **changes), folder / "junit.xml")).getroot()


def counts(part: ET.Element) -> tuple[int, ...]:
    return tuple(int(part.get(name, "-1")) for name in ("tests", "failures", "skipped", "errors"))


def test_a_suite_a_device_and_a_case_a_file(tmp_path: Path) -> None:
    rows = (
        ran(),
        ran("litert-fp32"),
        ran(device="browser-wasm-1t", map_drop=0.3, bit_flip_rate=0.4),
        not_run("litert-fp32").model_copy(update={"device": "browser-wasm-1t"}),
        not_run("onnx-w8a8", "failed", "Fail: bad").model_copy(update={"device": "arm64-cortex-a53"}),
    )
    root = written(rows, tmp_path)
    assert root.tag == "testsuites"
    assert counts(root) == (5, 2, 1, 0)
    suites = {suite.get("name"): suite for suite in root}
    assert {name: counts(suite) for name, suite in suites.items()} == {
        "host": (2, 0, 0, 0), "browser-wasm-1t": (2, 1, 1, 0), "arm64-cortex-a53": (1, 1, 0, 0),
    }  # fmt: skip
    cases = {(case.get("classname"), case.get("name")): case for case in root.iter("testcase")}
    assert len(cases) == 5
    assert list(cases["host", "onnx-fp32"]) == []
    (failure,) = cases["browser-wasm-1t", "onnx-fp32"]
    assert failure.tag == "failure"
    assert "mAP drop 0.3" in failure.get("message", "")
    assert "flip rate 0.4" in (failure.text or "")
    (skipped,) = cases["browser-wasm-1t", "litert-fp32"]
    assert (skipped.tag, skipped.get("message")) == ("skipped", "MissingBackend: none")
    assert "Fail: bad" in cases["arm64-cortex-a53", "onnx-w8a8"][0].get("message", "")


def test_failures_of_no_model_are_a_case_of_their_own(tmp_path: Path) -> None:
    root = written((not_run(),), tmp_path)
    assert counts(root) == (2, 1, 1, 0)
    (case,) = [case for case in root.iter("testcase") if case.get("name") == "gate"]
    assert "nothing was evaluated" in case[0].get("message", "")


@pytest.mark.parametrize("text", ['<script>&"]]>', "\x00\x1b[31m\ufffe", "line\nbreak", "\ud800"])
def test_no_text_breaks_it(text: str, tmp_path: Path) -> None:
    rows = (ran(), not_run("onnx-w8a8", reason=text), not_run("onnx-int4", "failed", text))
    root = written(rows, tmp_path, name=text)
    assert counts(root) == (3, 1, 1, 0)
    assert "\x00" not in (tmp_path / "junit.xml").read_text("utf-8")


def test_results_are_read_back(tmp_path: Path) -> None:
    made = evaluation((ran(), ran(device="android", map=float("nan"))))
    again = load(made.save(tmp_path / "results.json"))
    assert again.model_dump_json() == made.model_dump_json()
