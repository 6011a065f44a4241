"""The losses benchmark: trials are trained once, learning rates by validation, and the table says which are better."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

from benchmarks import losses
from benchmarks import trial as results
from benchmarks.losses import OURS, LossBenchmark, LossTrial, by_loss, compare_to_ours
from benchmarks.published import PUBLISHED
from distill.data import DataConfig, load
from distill.losses import LOSSES
from distill.models.hash_net import build


def trial(name: str, map: float, seed: int = 0, **changes: object) -> LossTrial:
    facts = {"loss": name, "data": "d", "bits": 32, "seed": seed, "transductive": False, "map": map}
    return LossTrial.model_validate({**facts, **changes})


def test_losses_better_than_ours_are_reported_with_the_spread_over_seeds() -> None:
    trials = [trial(OURS, 0.5), trial(OURS, 0.6, 1), trial("a", 0.62), trial("a", 0.64, 1), trial("b", 0.56),
             trial("b", 0.57, 1), trial("c", 0.4), trial("adsh", 0.9, transductive=True)]  # fmt: skip
    assert list(by_loss(trials)) == ["adsh", "a", "b", OURS, "c"]
    assert list(compare_to_ours(by_loss(trials))) == [
        f"- a is 0.080 better than {OURS}, ours: more than the spread over seeds (0.050).",
        f"- b is 0.015 better than {OURS}, ours: within the spread over seeds (0.050).",
    ]
    first = by_loss(trials[:2] + trials[-2:])
    assert list(compare_to_ours(first)) == [f"- {OURS}, ours, is first among the inductive losses."]
    assert list(compare_to_ours(by_loss(trials[2:]))) == []


def test_the_table_is_by_data_and_length_and_names_the_transductive() -> None:
    trials = [trial(OURS, 0.5, protocol="Sampled."), trial("adsh", 0.9, transductive=True, protocol="Sampled. By adsh"),
             trial("greedyhash", 0, skipped="several classes")]  # fmt: skip
    page = LossBenchmark().text([*trials, trial(OURS, 0.25, bits=64)])
    assert page.index("### d, 32 bits") < page.index("| adsh (transductive") < page.index("| **csch** | 0.500")
    assert "### d, 32 bits\n\nSampled.\n" in page
    assert "By adsh" not in page
    assert "- greedyhash: skipped: several classes." in page
    assert "| greedyhash" not in page.partition("### Published")[0]
    assert page.index("### d, 64 bits") < page.index("| **csch** | 0.250")
    assert f"| adsh | {PUBLISHED['adsh'][0].map:.3f} | 48 |" in page


def test_published_figures_are_of_methods_there_are() -> None:
    assert set(PUBLISHED) <= set(LOSSES.names())
    assert all(0 < one.map < 1 and one.bits for several in PUBLISHED.values() for one in several)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TWINHASH_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(losses, "FACTORS", (0.5, 1.0))
    data = load("embedded", {32}, tmp_path / "cache", DataConfig(seed=0))
    for label in (0, 1, 8):
        for i in data.query[data.labels[data.query] == label][:60]:
            home = tmp_path / "in" / str(label)
            home.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.pixels[32][i]).save(home / f"{i}.png")
    save_file(build("resnet10t", 32, 16, seed=7).backbone.state_dict(), tmp_path / "resnet10t.safetensors")
    return {"data": (str(tmp_path / "in"),), "bits": (16,), "seeds": 2, "losses": ("dsh", "adsh"),
            "teacher": "resnet10t", "size": 32, "epochs": 1, "linear_probe_epochs": 2,
            "runs": tmp_path / "runs"}  # fmt: skip


def test_losses_are_trained_written_and_read_back(tmp_path: Path, options: dict[str, object]) -> None:
    LossBenchmark(**options).run()
    record = json.loads((tmp_path / "results/losses.json").read_text())
    trials = [LossTrial.model_validate(one) for one in record["trials"]]
    assert [(one.loss, one.seed) for one in trials] == [(n, s) for s in (0, 1) for n in ("adsh", "dsh")]
    assert all(0.3 < one.map <= 1 and 0 < one.entropy <= 1 and one.factor in (0.5, 1.0) for one in trials)
    assert [one.transductive for one in trials[:2]] == [True, False]
    assert all(len(one.recall) == 17 and one.recall[-1] == 1 for one in trials)
    assert {one.factor for one in trials if one.loss == "dsh"} in ({0.5}, {1.0})  # that of seed 0, for all
    records = list((tmp_path / "runs").rglob("trial.json"))
    tried = [LossTrial.model_validate_json(path.read_text()) for path in records if "-16-0-dsh" in str(path)]
    best = max(sorted(tried, key=lambda one: one.factor), key=lambda one: one.validation or 0)
    assert best.validation
    assert next(one for one in trials if one.loss == "dsh") == best
    page = (tmp_path / "results/losses.md").read_text()
    assert "resnet10t at 32 px, resnet10t.safetensors in TWINHASH_WEIGHTS" in page
    for kind in ("json", "md", "svg"):
        assert (tmp_path / "results" / f"losses.{kind}").stat().st_size > 100
    before = {path: path.stat().st_mtime_ns for path in records}
    assert len(before) == 2 * (2 + 1)  # two rates of seed 0, and the better of seed 1
    LossBenchmark(**options | {"losses": ("dsh",)}).run()
    assert before == {path: path.stat().st_mtime_ns for path in records}
    assert json.loads((tmp_path / "results/losses.json").read_text())["trials"] == record["trials"]  # and adsh is kept
