"""A new teacher from the command line, on two real runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gallery import codespace
from gallery.index import TRAINING, open_gallery
from gallery.metrics import mean_average_precision
from gallery.onnx_student import OnnxStudent
from gallery.store import GalleryStore
from tests.conftest import ENVIRONMENT, PATIENCE_S, ROOT, SMALL, Call, import_script

gallery_run = import_script("gallery.run")
ANY_DROP = ("--map-drop", "1")  # runs of one epoch are as good as chance has it


@pytest.fixture(scope="module")
def new(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with another teacher, trained on the same images from another seed."""
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "distill/run.py", "--data", str(made / "in"), "--output-dir", str(folder),
               "--name", "new", "--seed", "1", *SMALL]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode in (0, 1), done.stderr
    return folder / "new"


@pytest.fixture
def mine(run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, whose gallery has 64 items."""
    return Path(shutil.copytree(run, tmp_path / "runs" / "mine"))


@pytest.fixture
def command(heard: Callable[..., Call]) -> Call:
    return heard(gallery_run.main)


def told(capsys: pytest.CaptureFixture[str], call: Call, *words: object, code: int = 0) -> Any:
    capsys.readouterr()
    ended, said = call(*words, "--json")
    assert ended == code, said
    return json.loads(capsys.readouterr().out)


def test_a_new_teacher_from_backfill_to_retirement(
    mine: Path, new: Path, made: Path, tmp_path: Path, command: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    old_space, new_space = (codespace.load(folder)[0] for folder in (mine, new))
    before = open_gallery(mine / "gallery")
    code, said = command("backfill", mine, "--run", new)
    assert (code, "64 items have no source" in said, "--images FOLDER" in said) == (0, True, True)
    assert command("cutover", mine, *ANY_DROP)[0] == 1
    done = told(capsys, command, "backfill", mine, "--run", new, "--images", made / "in")
    assert (done["items"], done["encoded"], done["failed"], done["without_source"]) == (64, 64, 0, 0)
    code, said = command("cutover", mine, "--space", old_space.id)
    assert (code, "which is serving" in said) == (2, True)
    assert told(capsys, command, "verify", mine, "--space", new_space.id, "--run", new, "--deep", "64")["encoded"] == 64
    result = told(capsys, command, "cutover", mine, *ANY_DROP)
    assert result["passed"]
    after = open_gallery(mine / "gallery")
    assert (after.space, after.ids, after.labels) == (new_space, before.ids, before.labels)
    assert open_gallery(mine / "gallery", old_space).codes.tolist() == before.codes.tolist()
    assert command("cutover", mine, *ANY_DROP)[0] == 2
    assert told(capsys, command, "rollback", mine)["space"] == old_space.id
    assert told(capsys, command, "cutover", mine, *ANY_DROP)["code_space"] == new_space.id
    source = tmp_path / "shop"
    source.mkdir()
    for number, path in enumerate(sorted((made / "in").rglob("*.png"))[:3]):
        shutil.copy(path, source / f"{number}.png")
    code, said = command("add", mine, source)
    assert (code, "--run runs/OLD runs/NEW" in said) == (2, True)
    counts = told(capsys, command, "add", mine, source, "--run", mine, new)
    assert [one["encoded"] for one in counts] == [3, 3]
    assert told(capsys, command, "remove", mine, "--ids", "0.png") == {old_space.id: 1, new_space.id: 1}
    assert [row["rows"] for row in told(capsys, command, "publish", mine)] == [66, 66]
    code, said = command("retire", mine, old_space.id, "--delete")
    assert (code, f"--confirm {old_space.id}" in said) == (2, True)
    assert told(capsys, command, "retire", mine, old_space.id)["state"] == "retired"
    assert command("rollback", mine)[0] == 2
    photo = next(source.glob("*.png"))
    code, said = command("search", mine, photo)
    assert (code, f"found {old_space.id}" in said) == (2, True)  # the student is stale
    assert len(open_gallery(mine / "gallery", old_space, TRAINING)) == 64  # by which its run is evaluated
    code, said = command("add", mine, source)
    assert (code, "which is retired" in said) == (2, True)
    assert told(capsys, command, "add", mine, source, "--run", new)[0]["encoded"] == 1
    done = told(capsys, command, "retire", mine, old_space.id, "--delete", "--confirm", old_space.id)
    assert (done["state"], list(GalleryStore(mine / "gallery").spaces())) == ("deleted", [new_space.id])


def test_students_of_both_code_spaces_are_compared(
    mine: Path, new: Path, made: Path, tmp_path: Path, command: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    told(capsys, command, "backfill", mine, "--run", new, "--images", made / "in")
    stored = set(open_gallery(mine / "gallery").ids.to_pylist())
    for path in (made / "in").rglob("*.png"):
        name = path.relative_to(made / "in")
        if name.as_posix() not in stored:
            (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "photos" / name)
    shown = ("cutover", mine, *ANY_DROP, "--query-images", tmp_path / "photos")
    code, said = command(*shown)
    assert (code, "--bundle runs/OLD runs/NEW" in said) == (2, True)
    code, said = command(*shown[:-1], made / "in" / "bag", "--bundle", new)
    assert (code, "query photos with labels" in said) == (2, True)
    (tmp_path / "photos" / "bag" / "rubbish.png").write_bytes(b"rubbish")
    shutil.copy(made / "in" / sorted(stored)[0], tmp_path / "photos" / "bag" / "repeated.png")
    shutil.copy(made / "in" / sorted(stored)[1], tmp_path / "photos" / "no_label.png")
    capsys.readouterr()
    code, said = command(*shown, "--bundle", new, "--json")
    gate = json.loads(capsys.readouterr().out)["gates"][-1]
    assert (code, gate["passed"]) == (0, True)
    maps = [map_of_student(one, mine, tmp_path / "photos") for one in (mine, new)]
    assert gate["found"] == f"mAP {maps[0]:.4f} -> {maps[1]:.4f}, 16 photos each among 64 items"
    for what in ("1 query photo without a label", "1 query photo not decoded: bag/rubbish.png",
                 "1 query photo in the gallery: bag/repeated.png"):  # fmt: skip
        assert f"left out: {what}" in said


def map_of_student(run: Path, mine: Path, photos: Path) -> float:
    """The mean average precision of a run's student, computed as for a report."""
    index = open_gallery(mine / "gallery", codespace.load(run)[0])
    student, classes = OnnxStudent(run), sorted(path.name for path in photos.iterdir() if path.is_dir())
    found = [path for path in sorted(photos.rglob("*/*.png")) if path.stem not in ("rubbish", "repeated")]
    codes = np.concatenate([student.encode(path) for path in found])
    labels = np.array([classes.index(path.parent.name) for path in found])
    return mean_average_precision(codes, index.codes, labels, index.class_labels(classes, False)).map


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["backfill", "--run", "nowhere"], "a run folder"),
        (["cutover"], "newer than the one"),
        (["cutover", "--space", "0123"], "which is not in it"),
        (["cutover", "--missing-allowed", "2"], "less than or equal to 1"),
        (["cutover", "--bundle", "nowhere"], "Add --query-images"),
        (["rollback"], "no cut-over"),
        (["retire", "0123"], "which is not in it"),
        (["retire", "0123", "--delete", "--confirm", "0124"], "the code space again"),
    ],
)
def test_what_is_wrong_is_told(run: Path, command: Call, words: list[str], problem: str) -> None:
    code, said = command(words[0], run, *words[1:])
    assert (code, problem in said) == (2, True), said


def test_a_run_is_no_new_teacher_of_its_own_gallery(run: Path, command: Call) -> None:
    code, said = command("backfill", run, "--run", run)
    assert (code, "which is served" in said) == (2, True)
