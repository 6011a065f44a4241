"""The benchmark of many students: a trial is read again, what failed has its reason, and every table has a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.students import VARIANTS, StudentBenchmark, StudentTrial, embedded_images
from gallery.results import ModelResult


def test_a_network_that_cannot_be_built_is_a_reason_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = StudentBenchmark(runs=tmp_path, students=("levit_128s",), bits=63, images=2)
    (trial,) = benchmark.trials()
    assert "whole bytes" in trial.reason
    assert not trial.complete
    assert f"- levit_128s: {trial.reason}" in benchmark.text([trial])
    monkeypatch.setattr(StudentBenchmark, "measure", None)
    assert list(StudentBenchmark(runs=tmp_path, students=("levit_128s",), bits=63, images=2).trials()) == [trial]
    with pytest.raises(TypeError):  # other settings are measured again
        list(benchmark.model_copy(update={"images": 3}).trials())


def test_the_tables_of_a_student() -> None:
    def row(variant: str, **values: Any) -> ModelResult:
        format, precision = variant.split("-")
        known = {"variant": variant, "format": format, "precision": precision, "path": f"{variant}.file"}
        flips = 0.0 if precision == "fp32" else 0.0125
        ran = {"status": "ran", "bytes": 2_000_000, "bit_flip_rate": flips, "p50_ms": 1.5}
        return ModelResult(**known | ran | values)

    rows = [row(variant) for variant in VARIANTS]
    whole = StudentTrial(data="d", bits=64, seed=0, student="whole", size=64, images=4, models=tuple(rows))
    rows[-1] = row(VARIANTS[-1], status="skipped", path="", reason="no such operation")
    part = whole.model_copy(update={"student": "part", "models": tuple(rows)})
    assert whole.complete
    assert not part.complete
    rows[-1], rows[0] = row(VARIANTS[-1]), row("onnx-fp32", flips_beyond_tolerance=9)
    wrong = whole.model_copy(update={"student": "wrong", "models": tuple(rows)})
    assert not wrong.complete
    assert "- wrong, host onnx-fp32: bit flips beyond" in StudentBenchmark().text([wrong])
    text = StudentBenchmark().text([whole, part])
    assert text.startswith("1 of 2 students are exported and evaluated in all 12 variants.")
    assert text.count("| whole | 64 |") == text.count("| part | 64 |") == 3
    assert "1.25%" in text
    assert "2.00" in text
    assert "not exported |" in text
    assert text.endswith("- part, coreml-w8a8: no such operation")


def test_queries_are_real_images_drawn_by_the_seed() -> None:
    images = embedded_images(64, 6, seed=0)
    assert images.shape == (6, 64, 64, 3)
    assert len(np.unique(images.reshape(6, -1), axis=0)) == 6
    assert np.array_equal(images, embedded_images(64, 6, seed=0))
    assert not np.array_equal(images, embedded_images(64, 6, seed=1))
