"""The multi-label centers benchmark: published lists alone are enough, single-label data is an error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import trial as results
from benchmarks.multilabel_centers import MultilabelCenters, target_code_map
from distill.hash_centers.constructions import hash_centers
from distill.hash_centers.multilabel import target_codes
from gallery.errors import InputError


def listed(root: Path, part: str, count: int, seed: int) -> np.ndarray:
    """A list of VOC 2012's form, and the labels in it: motor bikes and riders come together."""
    rng = np.random.default_rng(seed)
    hot = rng.random((count, 20)) < 0.1
    hot[:, 14] |= hot[:, 13]
    (root / "voc2012").mkdir(exist_ok=True)
    lines = (f"VOCdevkit/VOC2012/JPEGImages/2008_{seed:02d}{i:04d}.jpg {' '.join('01'[b] for b in row)}"
             for i, row in enumerate(hot.astype(int)))  # fmt: skip
    (root / f"voc2012/{part}.txt").write_text("\n".join(lines) + "\n")
    return hot


def test_trials_of_a_list_without_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    known, asked = listed(tmp_path, "train", 150, 1), listed(tmp_path, "test", 30, 2)
    MultilabelCenters(data=("voc2012",), bits=(16,), seeds=2, root=tmp_path).run()
    record = json.loads((tmp_path / "multilabel_centers.json").read_text())
    assert [trial["seed"] for trial in record["trials"]] == [0, 1]
    for trial in record["trials"]:
        assert (trial["queries"], trial["train"], trial["classes"]) == (30, 150, 20)
        assert trial["separated"] == target_code_map(hash_centers(20, 16, trial["seed"]), asked, known)
        assert trial["optimised"] > trial["separated"]
        assert trial["distances"][0] >= trial["distances"][1]
    page = (tmp_path / "multilabel_centers.md").read_text()
    assert "| voc2012 | 20 | 30 x 150 | 16 |" in page


def test_target_codes_are_scored_as_codes() -> None:
    known, centers = np.eye(6, dtype=bool), hash_centers(6, 32)
    assert target_code_map(centers, known[[2, 5]], known) == 1  # each class finds its own image first
    ties = np.array([[True, False], [False, True]])
    same = np.ones((2, 16), np.int8)
    assert np.array_equal(target_codes(ties, same), same)
    assert target_code_map(same, ties, ties) == pytest.approx(0.75)  # first or second, as chance has it


def test_single_label_data_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"multi-label data; found embedded, with one label an image"):
        MultilabelCenters(data=("embedded",), runs=tmp_path).labels("embedded", 0)
