"""Sweeps: trials are trained once, every row changes what it says, and figures are means over seeds."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks import trial as results
from benchmarks.csch import (
    BASE,
    RELEASED,
    ROWS,
    Csch,
    CschAblation,
    CschSweep,
    Distillers,
    TeacherFinetuning,
)  # fmt: skip
from benchmarks.sweep import Sweep, SweepTrial, compare_to_reference, markdown
from distill.data import DataConfig, load


def trial(row: str = BASE, seed: int = 0, product: float = 0.5, **changes: object) -> SweepTrial:
    facts = {
        "row": row, "data": "d", "bits": 64, "seed": seed, "center_distance": 32, "teacher_teacher": 0.75,
        "student_gallery": product, "student_student": 0.25, "student_gallery_retrieved": 0.5, "bit_agreement": 0.875,
        "low_margin_bits": 0.0625, "student_steps": 10, "seconds": {"student": 2.0}, "protocol": "p",
    }  # fmt: skip
    return SweepTrial.model_validate({**facts, **changes})


def test_the_table_has_means_and_spreads_over_seeds_in_the_order_of_the_rows() -> None:
    trials = [trial(seed=0, product=0.5), trial("labels only", 0, 0.25), trial("raw", 0), trial(seed=1, product=0.75)]
    head, _, *lines = markdown(trials).splitlines()
    assert [line.split(" | ")[2] for line in lines] == [BASE, "labels only", "raw"]
    assert "0.625 ± 0.125" in lines[0]
    assert lines[0].count("|") == head.count("|")


@pytest.mark.parametrize("table", [Csch(), TeacherFinetuning(), CschAblation(), Distillers()])
def test_rows_change_what_they_say_and_nothing_else(table: Sweep) -> None:
    base = table.learning("imagenet20", 64, 0, BASE).model_dump()
    for row in table.rows:
        other = table.learning("imagenet20", 64, 0, row).model_dump()
        changed = {key for key in base if base[key] != other[key]} - {"reuse_gallery"}
        assert changed <= {"student_train", "teacher_train", *ROWS[row]}, row
        assert (changed & {"teacher_train"} != set()) <= ("teaching" in ROWS[row]), row
        assert (other["reuse_gallery"] is None) == (
            row == BASE or bool({"distillation", "teaching"} & ROWS[row].keys())
        )
        terms = {key for key in base["student_train"] if base["student_train"][key] != other["student_train"][key]}
        assert terms == {k for k, v in ROWS[row].get("terms", {}).items() if v != base["student_train"][k]}, row
    folders = {table.folder("d", bits, seed, row) for bits in (16, 64) for seed in (0, 1) for row in table.rows}
    assert len(folders) == 4 * len(table.rows)


def test_a_sweep_is_trained_written_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("TWINHASH_WEIGHTS", raising=False)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    data = load("embedded", {32}, tmp_path / "cache", DataConfig(seed=0))
    for label in (0, 1, 8):
        for i in data.query[data.labels[data.query] == label][:90]:
            home = tmp_path / "in" / str(label)
            home.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.pixels[32][i]).save(home / f"{i}.png")
    rows = (BASE, RELEASED, "labels only")
    options = {
        "data": (str(tmp_path / "in"),),
        "bits": (16,),
        "seeds": (0,),
        "rows": rows,
        "teacher": "resnet10t",
        "student": "resnet10t",
        "size": 32,
        "epochs": 2,
        "runs": tmp_path / "runs",
        "name": "small",
    }
    CschSweep(**options).run()
    record = SweepTrial.model_validate_json(next((tmp_path / "runs").glob("*labels*/trial.json")).read_text())
    assert 0 < record.student_gallery <= 1
    assert record.student_steps == 2 * 3
    for kind in ("json", "md", "svg"):
        assert (tmp_path / "results" / f"small.{kind}").stat().st_size > 100
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("trial.json")}
    assert len(before) == 3
    CschSweep(**options).run()
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("trial.json")}


def test_a_row_is_compared_with_the_reference_and_the_spread_over_seeds() -> None:
    near, far, other = "raw", "labels only", "+ rank"
    made = {BASE: (0.60, 0.62), near: (0.60, 0.63), far: (0.50, 0.51), other: (0.7,)}
    trials = [trial(row, seed, product) for row, own in made.items() for seed, product in enumerate(own)]
    assert list(compare_to_reference(trials, "student_gallery", BASE)) == [
        f"- d, 64 bits: raw is +0.005 from {BASE} in student->gallery: within the spread.",
        f"- d, 64 bits: labels only is -0.105 from {BASE} in student->gallery: "
        "more than the spread over seeds (0.010).",
    ]  # a row of one seed is compared with nothing
    assert list(compare_to_reference(trials, "student_gallery", RELEASED)) == []
