"""The timing of stored views runs both ways and writes what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import views


def test_both_ways_are_timed_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("TWINHASH_WEIGHTS", raising=False)
    monkeypatch.setattr(views, "RESULTS", tmp_path)
    small = {"data": "embedded", "teacher": "vit_t", "student": "resnet10t", "teacher_size": 32, "student_size": 32}
    views.Views(**small, batch=8, steps=2, rounds=2, runs=tmp_path / "runs").run()
    record = json.loads((tmp_path / "views.json").read_text())
    for one in record["rounds"]:
        for way in ("stored", "online"):
            assert 0 <= one[way]["waited"] < one[way]["seconds"]
    assert record["online_over_stored"] > 0
    assert record["options"]["steps"] == 2
