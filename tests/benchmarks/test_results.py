"""The committed tables are what the benchmarks make of the committed trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.app_augment import AppAugment, AppAugmentTrial
from benchmarks.csch import CschSweep
from benchmarks.export import ExportBenchmark, ExportTrial
from benchmarks.gallery import GalleryBenchmark, GalleryTrial
from benchmarks.losses import LossBenchmark, LossTrial
from benchmarks.multilabel_centers import CenterTrial, MultilabelCenters
from benchmarks.open_world import OpenWorld, OpenWorldTrial
from benchmarks.protocols import Protocols, ProtocolTrial
from benchmarks.students import StudentBenchmark, StudentTrial
from benchmarks.sweep import SweepTrial
from benchmarks.trial import RESULTS, Benchmark, Trial

KINDS: dict[str, tuple[type[Benchmark], type[Trial]]] = {
    **dict.fromkeys(("csch", "csch_ablation", "distillers", "teacher_finetuning"), (CschSweep, SweepTrial)),
    "app_augment": (AppAugment, AppAugmentTrial),
    "export": (ExportBenchmark, ExportTrial),
    "gallery": (GalleryBenchmark, GalleryTrial),
    "losses": (LossBenchmark, LossTrial),
    "multilabel_centers": (MultilabelCenters, CenterTrial),
    "open_world": (OpenWorld, OpenWorldTrial),
    "protocols": (Protocols, ProtocolTrial),
    "students": (StudentBenchmark, StudentTrial),
}


@pytest.mark.parametrize("name", KINDS)
def test_tables_are_up_to_date(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.trial.RESULTS", tmp_path)
    kind, trial = KINDS[name]
    if not (RESULTS / f"{name}.json").exists():
        pytest.skip(f"{name} has not been measured yet: it takes hours")
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    kind(**record["options"]).write([trial.model_validate(one) for one in record["trials"]])
    assert (tmp_path / f"{name}.md").read_text() == (RESULTS / f"{name}.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in RESULTS.glob(f"{name}.*")}
