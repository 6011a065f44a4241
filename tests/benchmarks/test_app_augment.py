"""The benchmark of views as apps make them: one teacher a seed, measured part by part, and read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

from benchmarks import trial
from benchmarks.app_augment import RESIZES, AppAugment, AppAugmentTrial, by_share, compare
from distill.data import DataConfig, load
from distill.data.app_pixels import KERNELS
from distill.models.hash_net import build
from gallery.errors import InputError
from gallery.skew_results import PreprocessingSkew, SkewRow
from mobile_eval.skew import PIPELINES

SIZE = 32


def made(share: float, seed: int, clean: float, lost: float) -> AppAugmentTrial:
    rows = tuple(
        SkewRow(pipeline=name, found_in="an app", bit_flip_rate=0.03125, recall_at_10=0.5, map_drop=drop,
                map_drop_error=0.001)
        for name in PIPELINES for drop in [lost if name == RESIZES[0] else lost / 2]
    )  # fmt: skip
    skew = PreprocessingSkew(queries=100, reduction=2.0, rows=rows)
    return AppAugmentTrial(data="ucmerced", bits=64, seed=seed, share=share, clean=clean, skew=skew, seconds=9.0,
                           protocol="A protocol.")  # fmt: skip


def test_the_resizes_are_those_trained_on_and_reported() -> None:
    assert set(RESIZES) == set(KERNELS) - {"bilinear"}
    assert set(RESIZES) < set(PIPELINES)


def test_the_page_says_what_it_costs_and_saves() -> None:
    trials = [made(0.5, 0, 0.75, 0.0), made(0, 0, 0.75, 0.01), made(0, 1, 0.5, 0.02), made(0.5, 1, 0.5625, 0.01)]
    page = AppAugment().text(trials)
    assert "### ucmerced\n\nA protocol. 100 queries, 2 times the input's side (median).\n" in page
    row = next(line for line in page.splitlines() if line.startswith("| 0 | 0.6250 ± 0.1250 |")).split(" | ")
    assert row[2:4] == ["0.0090 ± 0.0030", "0.0150 ± 0.0050"]
    assert row[-2:] == ["9", "2 |"]
    assert "| 0.5 | 3.12% |" in page
    assert list(compare(by_share(trials))) == [
        "- 0.5 against 0, 2 seeds: clean +0.0312 (from +0.0000 to +0.0625); lost by bilinear without antialiasing "
        "0.0150 -> 0.0050, by five resizes 0.0090 -> 0.0030."
    ]
    assert list(compare(by_share(trials[:1]))) == []


def test_parts_share_a_teacher_and_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TWINHASH_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(trial, "RESULTS", tmp_path / "results")
    images = tmp_path / "in"
    data = load("embedded", {2 * SIZE}, tmp_path / "cache", DataConfig(seed=0))
    for label in (0, 1, 8, 9):
        for i in data.query[data.labels[data.query] == label][:25]:
            home = images / str(label)
            home.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.pixels[2 * SIZE][i]).save(home / f"{i}.png")
    save_file(build("resnet10t", SIZE, 16, seed=7).backbone.state_dict(), tmp_path / "resnet10t.safetensors")
    options = {"data": (str(images),), "seeds": (0,), "bits": 16, "teacher": "resnet10t", "student": "resnet10t",
               "size": SIZE, "student_epochs": 1, "runs": tmp_path / "runs"}  # fmt: skip
    AppAugment(**options, shares=(0.5,)).run()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("trial.json")}
    assert len(before) == 2
    AppAugment(**options, shares=(0.0, 0.5)).run()
    record = json.loads((tmp_path / "results/app_augment.json").read_text())
    assert not {"data", "seeds", "shares"} & record["options"].keys()
    off, on = (AppAugmentTrial.model_validate(one) for one in record["trials"])
    assert (off.share, on.share) == (0.0, 0.5)
    assert off.skew.rows != on.skew.rows
    assert (off.skew.reduction, off.skew.queries) == (2, 20)
    assert [row.pipeline for row in off.skew.rows] == list(PIPELINES)
    assert all(0 < one.clean <= 1 and one.seconds > 0 for one in (off, on))
    bench = AppAugment(**options)
    assert not (bench.folder(str(images), 0, 0.5) / "teacher.safetensors").exists()
    assert before == {path: path.stat().st_mtime_ns for path in before}
    for kind in ("json", "md", "svg"):
        assert (tmp_path / "results" / f"app_augment.{kind}").stat().st_size > 100
    with pytest.raises(InputError, match=r"trials of the same options in .*; found student_epochs 1"):
        AppAugment(**{**options, "student_epochs": 2}).run()
