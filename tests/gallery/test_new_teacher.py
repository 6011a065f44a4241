"""A new teacher from the command line, on two real runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gallery import codespace
from gallery.codes import unpack
from gallery.index import TRAINING, open_gallery
from gallery.store import GalleryStore
from tests.conftest import Call, import_script

gallery_run = import_script("gallery.run")
ORDER = np.random.default_rng(0).permutation(16)


@pytest.fixture(scope="module")
def new(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with another teacher that is as good: it has the bits in another order."""
    from distill.checkpoint import save_network
    from distill.image_encoder import TEACHER
    from distill.teacher_golden import golden_logits, save_golden
    from distill.train_teacher import load_teacher
    from gallery.files import sha256_of

    folder = Path(shutil.copytree(run, tmp_path_factory.mktemp("runs") / "new"))
    space, centers = codespace.load(folder)
    teacher = load_teacher(folder / TEACHER, space)
    for values in (*teacher.head.parameters(), *(one for one in teacher.head.buffers() if one.ndim)):
        values.data = values.data[ORDER]
    save_network(folder / TEACHER, teacher, space.teacher, space.preprocessing.size, space.bits)
    centers = centers[:, ORDER]
    space = replace(
        space, teacher_sha256=sha256_of(folder / TEACHER), centers_sha256=codespace.hash_centers(centers),
        golden_sha256=save_golden(folder, golden_logits(teacher, space.preprocessing)),
    )  # fmt: skip
    codespace.save(folder, space, centers)
    return folder


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
    assert command("cutover", mine)[0] == 1
    done = told(capsys, command, "backfill", mine, "--run", new, "--images", made / "in")
    assert (done["items"], done["encoded"], done["failed"], done["without_source"]) == (64, 64, 0, 0)
    code, said = command("cutover", mine, "--space", old_space.id)
    assert (code, "which is serving" in said) == (2, True)
    result = told(capsys, command, "cutover", mine)
    assert result["passed"]
    after = open_gallery(mine / "gallery")
    assert (after.space, after.ids, after.labels) == (new_space, before.ids, before.labels)
    assert (unpack(after.codes) == unpack(before.codes)[:, ORDER]).mean() > 0.999  # rounding
    assert open_gallery(mine / "gallery", old_space).codes.tolist() == before.codes.tolist()
    assert command("cutover", mine)[0] == 2
    assert told(capsys, command, "rollback", mine)["space"] == old_space.id
    assert told(capsys, command, "cutover", mine)["code_space"] == new_space.id
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


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["backfill", "--run", "nowhere"], "a run folder"),
        (["cutover"], "newer than the one"),
        (["cutover", "--space", "0123"], "which is not in it"),
        (["cutover", "--missing-allowed", "2"], "less than or equal to 1"),
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
