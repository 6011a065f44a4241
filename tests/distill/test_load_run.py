"""A finished run: opened from anywhere, without the files its training started from."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.codebook import hash_centers_of
from distill.export_samples import NUM_GOLDEN, export_request
from distill.load_run import load_run
from gallery.codes import pack
from gallery.errors import InputError
from tests.distill.factories import TEACHER, Learn


def test_it_needs_neither_its_pretrained_weights_nor_its_working_directory(
    learn: Learn, image_folder: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    shutil.copy(weights, tmp_path / weights.name)
    data = os.path.relpath(image_folder / "labelled")
    probe = TEACHER.model_copy(update={"finetune": "linear_probe", "linear_probe_epochs": 2})
    context, models = learn("old", data=data, teacher_weights=Path(weights.name), teacher_train=probe)
    (tmp_path / weights.name).unlink()
    monkeypatch.chdir(elsewhere)

    with load_run("../old") as run:
        request = export_request(run.context, run.student, run.space)
    assert run.space == models.space
    assert Path(run.gallery).resolve() == tmp_path / "old" / "gallery"
    assert all(torch.equal(a, b) for a, b in zip(run.student.parameters(), models.student.parameters(), strict=True))
    assert np.array_equal(request["centers"], hash_centers_of(context))
    images, codes, logits = request["golden"]
    assert len(images) <= NUM_GOLDEN
    assert np.array_equal(codes, pack(logits))

    reused, again = learn("new", reuse_gallery=Path("../old"), data=os.path.relpath(image_folder / "labelled"))
    assert again.space == models.space
    assert reused.config.reuse_gallery == tmp_path / "old"
    (tmp_path / "old").rename(tmp_path / "moved")
    with load_run("../new") as run:
        assert Path(run.gallery) == tmp_path / "old" / "gallery"
        request = export_request(run.context, run.student, run.space)
    assert np.array_equal(request["centers"], hash_centers_of(reused))


def test_what_is_not_finished_is_an_error_with_its_fix(learn: Learn, tmp_path: Path) -> None:
    learn("run")
    record = tmp_path / "run" / "stages.json"
    stages = json.loads(record.read_text())
    del stages["student"]
    record.write_text(json.dumps(stages))
    with (
        pytest.raises(InputError, match=r"no finished student.*distill/run.py --output-dir"),
        load_run(tmp_path / "run"),
    ):
        pytest.fail("it was opened")
    with pytest.raises(InputError, match=r"no config\.yaml"), load_run(tmp_path):
        pytest.fail("it was opened")
