"""The bench of votes: published lists alone are enough, and pictures with one class are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import multilabel_centers
from benchmarks.multilabel_centers import Votes, retrieved
from distill.hash_centers.constructions import hash_centers
from distill.hash_centers.multilabel import center_targets
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


def test_cells_of_a_list_without_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multilabel_centers, "RESULTS", tmp_path)
    known, asked = listed(tmp_path, "train", 150, 1), listed(tmp_path, "test", 30, 2)
    Votes(data=("voc2012",), bits=(16,), seeds=2, root=tmp_path).run()
    record = json.loads((tmp_path / "votes.json").read_text())
    assert [cell["seed"] for cell in record["cells"]] == [0, 1]
    for cell in record["cells"]:
        assert (cell["queries"], cell["train"], cell["classes"]) == (30, 150, 20)
        assert cell["separated"] == retrieved(hash_centers(20, 16, cell["seed"]), asked, known)
        assert cell["elected"] > cell["separated"]
        assert cell["distances"][0] >= cell["distances"][1]
    page = (tmp_path / "votes.md").read_text()
    assert "| voc2012 | 20 | 30 x 150 | 16 |" in page


def test_the_true_words_are_scored_as_if_they_were_codes() -> None:
    known, centers = np.eye(6, dtype=bool), hash_centers(6, 32)
    assert retrieved(centers, known[[2, 5]], known) == 1  # each class finds its own picture first
    ties = np.array([[True, False], [False, True]])
    same = np.ones((2, 16), np.int8)
    assert np.array_equal(center_targets(ties, same), same)
    assert retrieved(same, ties, ties) == pytest.approx(0.75)  # first or second, as chance has it


def test_pictures_with_one_class_elect_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"several classes; found embedded, with one each"):
        Votes(data=("embedded",), runs=tmp_path).labels("embedded", 0)
