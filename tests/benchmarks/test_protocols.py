"""The protocols benchmark: a small CIFAR-10 in the true layout, both denominators, and published figures beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from benchmarks import protocols, trial
from benchmarks.protocols import ProtocolMap, Protocols, ProtocolTrial, Schedule
from benchmarks.published import CIFAR_ZS, PUBLISHED
from distill.data import cifar
from distill.data.cifar import CIFAR10_FILES
from distill.losses import LOSSES
from distill.models.hash_net import build
from tests.distill.data.factories import photo

FOUR = ("seen@seen", "seen@all", "unseen@unseen", "unseen@all")


def made(data: str, bits: int, queries: tuple[str, ...]) -> ProtocolTrial:
    maps = tuple(ProtocolMap(pair=pair, queries=name, map=0.5, retrieved=0.75)
                 for pair in protocols.BOTH for name in queries)  # fmt: skip
    return ProtocolTrial(data=data, bits=bits, seed=0, row="csch", top_k=None, maps=maps, epochs=(3, 2, 1),
                         seconds={"teacher": 60.0}, protocol="Sampled.")  # fmt: skip


def test_the_table_of_a_protocol_stands_above_the_published_figures() -> None:
    page = Protocols().text([made("cifar10-1", 64, ("all@all",)), made("cifar10-zs", 64, FOUR)])
    first, last = page.split("### cifar10-zs")
    assert "One seed." in first
    assert "| 64 | csch | 0.500 (0.750) | 0.500 (0.750) | 3 + 2 + 1 | 60 |" in first
    assert "| greedyhash | 48 | 0.817 | AlexNet |" in first
    assert "student->gallery, unseen@all" in last
    assert "| orthohash | 64 | 0.957 | 0.937 | 0.821 | 0.376 | ResNet50 |" in last
    assert set(CIFAR_ZS) <= set(LOSSES.names())
    every = {one.data for several in PUBLISHED.values() for one in several}
    assert set(protocols.DATA.values()) <= every


def test_rows_differ_in_the_images_without_labels_alone() -> None:
    ours, labeled = (Protocols().learning("cifar10-1", 64, row) for row in ("csch", "csch-labeled"))
    assert (ours.loss_args, ours.student_train.unlabeled_ratio) == ({}, "auto")
    assert (labeled.loss_args, labeled.student_train.unlabeled_ratio) == ({"similarity_weight": 0.0}, 0.0)
    same = {"loss_args": {}, "student_train": ours.student_train}
    assert labeled.model_copy(update=same) == ours


def test_protocols_are_trained_written_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TWINHASH_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TWINHASH_DATA", str(tmp_path))
    monkeypatch.setattr(trial, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(protocols, "SCHEDULES", dict.fromkeys(protocols.SCHEDULES, Schedule(1, 1, 1, 1)))
    published = cifar.CIFAR_PROTOCOLS["cifar10-1"][2:]
    monkeypatch.setitem(cifar.CIFAR_PROTOCOLS, "cifar10-1", (2, 6, *published))
    folder = tmp_path / "cifar10" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for k, name in enumerate(CIFAR10_FILES):  # twelve images a class
        images = np.stack([np.array(photo(20 * k + i).resize((32, 32))).transpose(2, 0, 1).ravel() for i in range(20)])
        np.column_stack([np.arange(20, dtype=np.uint8) % 10, images]).tofile(folder / f"{name}.bin")
    save_file(build("resnet10t", 32, 16, seed=7).backbone.state_dict(), tmp_path / "resnet10t.safetensors")
    options = {
        "bits": (16,),
        "rows": ("csch-labeled",),
        "teacher": "resnet10t",
        "student": "resnet10t",
        "size": 32,
        "runs": tmp_path / "runs",
    }
    Protocols(**options, data=("cifar10-zs",)).run()
    Protocols(**options, data=("cifar10-1",)).run()
    record = json.loads((tmp_path / "results/protocols.json").read_text())
    first, last = (ProtocolTrial.model_validate(one) for one in record["trials"])
    assert (first.data, first.top_k, last.data, last.top_k) == ("cifar10-1", None, "cifar10-zs", 1000)
    assert [one.queries for one in first.maps] == ["all@all"] * 2
    assert [one.queries for one in last.maps] == [*FOUR] * 2
    assert all(0 < one.map <= 1 and one.retrieved >= one.map - 1e-9 for one in (*first.maps, *last.maps))
    assert "the last 2 of 10 classes, as in DSH_Analysis (mAP@1000)" in last.protocol
    assert "| 16 | csch-labeled |" in (tmp_path / "results/protocols.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("trial.json")}
    assert len(before) == 2
    Protocols(**options, data=("cifar10-1", "cifar10-zs")).run()
    assert before == {path: path.stat().st_mtime_ns for path in before}
