"""The open-world benchmark: measured part by part, the trials of all parts in one file, and read back."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from benchmarks import open_world, trial
from benchmarks.open_world import (
    BASELINES,
    FLOAT,
    ITQ_TRAIN,
    OLD,
    OURS,
    OpenWorld,
    OpenWorldTrial,
    cifar_slice,
    compare,
)
from distill.data import DataConfig, load
from distill.data.cifar import CIFAR10_FILES
from distill.models.hash_net import build
from gallery.errors import InputError
from gallery.open_world import OpenWorldMaps


def made(row: str, seed: int = 0, unseen: float = 0.5, **changes: object) -> OpenWorldTrial:
    maps = OpenWorldMaps(seen_seen=0.75, seen_all=0.5, unseen_unseen=unseen, unseen_all=0.25)
    facts = {"data": "ucmerced", "bits": 64, "seed": seed, "row": row, "setting": "inductive", "teacher_teacher": maps,
             "student_gallery": None if row in BASELINES else maps, "unseen": ("a",), "seconds": {"teacher": 2.0},
             "protocol": f"Draw {seed}."}  # fmt: skip
    return OpenWorldTrial.model_validate({**facts, **changes})


def test_the_table_has_all_draws_and_says_how_ours_compares() -> None:
    trials = [made(FLOAT), made(ITQ_TRAIN, unseen=0.625), made(OURS, 0, 0.75), made(OURS, 1, 0.5), made(OLD, 0, 0.25)]
    page = OpenWorld().text(trials)
    assert "### ucmerced, 64 bits\n\nOf draw 0: Draw 0.\n" in page
    ours = next(line for line in page.splitlines() if line.startswith("| **csch** |")).split(" | ")
    assert ours[2:6] == ["0.750 ± 0.000", "0.500 ± 0.000", "0.625 ± 0.125", "0.250 ± 0.000"]
    assert ours[6:10] == ours[2:6]
    assert ours[10:] == ["2", "2 |"]
    assert next(line for line in page.splitlines() if line.startswith("| float-cosine")).count("|") == len(ours) + 1
    said = "seen@seen +0.000, seen@all +0.000, unseen@unseen {}, unseen@all +0.000."
    assert list(compare(open_world.by_row(trials))) == [  # only the draw that both have
        f"- csch against csch-no-similarity, student->gallery, 1 draw: {said.format('+0.500')}",
        f"- csch against itq-of-train, student->gallery, 1 draw: {said.format('+0.125')}",
    ]
    assert list(compare(open_world.by_row(trials[:2]))) == []


def test_each_row_changes_what_it_says(tmp_path: Path) -> None:
    table = OpenWorld(runs=tmp_path)
    configs = {row: table.learning("ucmerced", 64, 0, row) for row in table.rows if row != "csch-labeled-student"}
    assert {row for row, one in configs.items() if one.loss == "csch"} == {*BASELINES, OURS, OLD, *open_world.WEIGHTS}
    assert configs[OLD].loss_args == {"similarity_weight": 0.0, "scale": 8.0}
    assert (configs[OLD].student_train.lr, configs[OLD].student_train.epochs) == (1e-3, table.student_epochs)
    assert configs[OURS].loss_args == {}
    assert all(one.num_unseen_classes == 6 and one.student_train.unlabeled_ratio == "auto" for one in configs.values())
    folders = {table.folder("ucmerced", seed, bits, row) for seed in (0, 1) for bits in (32, 64) for row in table.rows}
    assert len(folders) == 4 * len(table.rows)
    for wrong in ({"rows": ("cshc",)}, {"data": ("mnist",)}):
        with pytest.raises(ValueError, match="is none of"):
            OpenWorld(**wrong)


def test_parts_are_measured_written_together_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TWINHASH_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(trial, "RESULTS", tmp_path / "results")
    images = tmp_path / "in"
    monkeypatch.setattr(open_world, "UNSEEN", {str(images): 1})
    data = load("embedded", {32}, tmp_path / "cache", DataConfig(seed=0))
    for label in (0, 1, 8, 9):
        for i in data.query[data.labels[data.query] == label][:60]:
            home = images / str(label)
            home.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.pixels[32][i]).save(home / f"{i}.png")
    save_file(build("resnet10t", 32, 16, seed=7).backbone.state_dict(), tmp_path / "resnet10t.safetensors")
    options = {"data": (str(images),), "bits": (16,), "seeds": (0,), "teacher": "resnet10t", "student": "resnet10t",
               "size": 32, "epochs": 1, "student_epochs": 1, "runs": tmp_path / "runs"}  # fmt: skip
    monkeypatch.setattr(open_world, "CURVE_BITS", 16)
    OpenWorld(**options, rows=(OURS, "csch-labeled-student", "csch-1", "similarity", "itq")).run()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("trial.json")}
    OpenWorld(**options, rows=tuple(BASELINES)).run()
    record = json.loads((tmp_path / "results/open_world.json").read_text())
    assert record["options"].keys() == {"name", "teacher", "student", "size", "epochs", "student_epochs", "views"}
    trials = [OpenWorldTrial.model_validate(one) for one in record["trials"]]
    assert [one.row for one in trials] == [*BASELINES, OURS, "csch-labeled-student", "similarity", "itq", "csch-1"]
    assert len({one.unseen for one in trials}) == 1
    assert trials[5].setting == "transductive, label-free"
    assert "Nothing was learned from labels" in trials[5].protocol
    assert [one.weight for one in trials[5:]] == [None, None, 1]
    maps = {one.row: one.teacher_teacher for one in trials}
    assert all(0 < value <= 1 for one in maps.values() for value in one.model_dump().values())
    assert maps[OURS] == maps["csch-labeled-student"]  # one teacher
    assert trials[3].student_gallery != trials[4].student_gallery
    assert trials[3].student_steps == trials[4].student_steps
    assert len({str(one) for one in maps.values()}) == 7
    for kind in ("json", "md", "svg"):
        assert (tmp_path / "results" / f"open_world.{kind}").stat().st_size > 100
    shared = OpenWorld(**options).folder(str(images), 0, "features")
    assert {path.name for path in shared.iterdir() if any(path.iterdir())} >= {"features-0", "features-queries"}
    OpenWorld(**options, rows=(OURS,)).run()
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert len(json.loads((tmp_path / "results/open_world.json").read_text())["trials"]) == 8
    with pytest.raises(InputError, match=r"trials of the same options in .*; found epochs 1"):
        OpenWorld(**{**options, "epochs": 2}).run()


def test_a_part_of_cifar10_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar10" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for k, name in enumerate(CIFAR10_FILES):  # twelve images a class
        records = np.random.default_rng(k).integers(0, 256, (20, 3073), np.uint8)
        records[:, 0] = np.arange(20) % 10
        records.tofile(folder / f"{name}.bin")
    monkeypatch.setattr(open_world, "SLICE", (2, 3, 5))
    monkeypatch.delenv("TWINHASH_DATA", raising=False)
    with pytest.raises(InputError, match="CIFAR-10 in <data root>"):
        cifar_slice(tmp_path / "part")
    monkeypatch.setenv("TWINHASH_DATA", str(tmp_path))
    manifest = cifar_slice(tmp_path / "part")
    rows = list(csv.DictReader(manifest.open()))
    counts = {own: sum(row["split"] == own for row in rows) for own in ("query", "gallery;train", "gallery")}
    assert counts == {"query": 20, "gallery;train": 30, "gallery": 20}
    data = load(str(manifest), {32}, tmp_path / "cache", DataConfig(seed=0, num_unseen_classes=3, strict=True))
    assert (len(data.query), len(data.gallery), len(data.seen), len(data.unseen)) == (20, 50, 7, 3)
    written = manifest.stat().st_mtime_ns
    assert cifar_slice(tmp_path / "part") == manifest
    assert manifest.stat().st_mtime_ns == written
