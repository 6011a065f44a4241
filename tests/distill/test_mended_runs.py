"""A run mends itself: whatever is lost or damaged in its folder, the same command ends with the same student."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gallery.files import sha256_of
from gallery.index import create_gallery, open_gallery
from gallery.results import load_run
from tests.conftest import SMALL
from tests.distill.factories import TEACHER, Learn, learn_in

Call = Callable[..., tuple[int, str]]
Damage = Callable[[Path], object]


def flip(path: Path) -> None:
    """Change one byte in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def repaint(path: Path) -> None:
    """Another content of an image, which no other has."""
    with Image.open(path) as image:
        Image.eval(image, lambda value: value // 2 + 7).save(path)


def lose(path: Path) -> None:
    (shutil.rmtree if path.is_dir() else os.unlink)(path)


def occupied(path: Path) -> None:
    """Another thing in its place."""
    lose(path)
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def edited(path: Path) -> None:
    """A sound file of another network."""
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    tensors[next(iter(tensors))] += 1
    save_file(tensors, path, header)


def replaced(path: Path) -> None:
    """A sound gallery of the same space with one code inverted."""
    index = open_gallery(path)
    codes = index.codes.copy()
    codes[0] ^= 255
    ids, labels = index.ids.to_pylist(), index.labels.to_pylist()
    create_gallery(path, index.space, index.centers, codes, ids, labels)


@pytest.fixture
def call(heard: Any, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`distill/run.py` in this process, as the run was made."""
    for name, value in (("HF_HUB_OFFLINE", "1"), ("TWINHASH_WEIGHTS", ""), ("OMP_NUM_THREADS", "1")):
        monkeypatch.setenv(name, value)
    first = sys.path[0]
    import distill.run

    sys.path[0] = first
    found: Call = heard(distill.run.main)
    return found


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of the finished run: it was moved, which changes nothing."""
    shutil.copytree(made / "runs", tmp_path / "runs", symlinks=True)
    return tmp_path / "runs" / "r"


def again(call: Call, made: Path, folder: Path, *more: str) -> tuple[int, str]:
    return call("--data", made / "in", "--output-dir", folder.parent, "--name", folder.name, *SMALL, *more)


STAGES = {
    **dict.fromkeys(("teacher.safetensors", "codespace.json", "centers.npy", "teacher_golden.npy"), "teacher"),
    "gallery": "gallery", "student.safetensors": "student", "bundle": "export", "quantization.json": "export",
    "results.json": "evaluate",
}  # fmt: skip
DAMAGES: list[tuple[str, Damage]] = [
    ("teacher.safetensors", cut), ("teacher.safetensors", edited), ("codespace.json", occupied), ("centers.npy", flip),
    ("teacher_golden.npy", lose), ("gallery", occupied), ("gallery", replaced), ("student.safetensors", lose),
    ("student.safetensors", flip),
]  # fmt: skip
NETWORKS = "teacher.safetensors", "student.safetensors"


def is_said_once(said: str, *names: str) -> bool:
    """Whether one line says what is damaged, and names all of it."""
    lines = [line for line in said.splitlines() if line.startswith("missing or damaged in ")]
    return len(lines) == 1 and all(name in lines[0] for name in names)


@pytest.fixture(scope="module")
def trained(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, whose networks are trained."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("TWINHASH_WEIGHTS", raising=False)
        learn_in(folder, image_folder, "run")
    return folder


@pytest.mark.parametrize(("name", "damage"), DAMAGES, ids=[f"{name} {how.__name__}" for name, how in DAMAGES])
def test_a_stage_whose_product_is_damaged_is_done_again_and_no_other(
    trained: Path, learn: Learn, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Damage
) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "run"
    before = {network: sha256_of(folder / network) for network in NETWORKS}
    damage(folder / name)
    _, models = learn("run")
    assert is_said_once("\n".join(caplog.messages), name)
    for stage in ("teacher", "gallery", "student"):
        assert (f"[{stage}]" in caplog.text) == (stage == STAGES[name]), stage
    assert ("teacher epoch" in caplog.text) == (name == "teacher.safetensors"), "only a lost teacher is trained again"
    assert {network: sha256_of(folder / network) for network in NETWORKS} == before
    assert models.gallery.codes.shape == (len(models.gallery), models.space.bits // 8)
    caplog.clear()
    learn("run")
    assert not any(f"[{stage}]" in caplog.text for stage in ("teacher", "gallery", "student"))


def test_learned_codes_are_needed_while_the_gallery_is_not_made(
    learn: Learn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context, models = learn(loss="adsh")
    codes = models.gallery.codes
    shutil.rmtree(tmp_path / "run" / "cache")
    assert not context.run_dir.damaged("teacher"), "a finished run does not need its cache"
    shutil.rmtree(tmp_path / "run" / "gallery")
    caplog.clear()
    _, models = learn(loss="adsh")
    assert "[teacher]" in caplog.text
    assert (models.gallery.codes == codes).all()


def test_a_student_of_another_code_space_is_distilled_again(
    trained: Path, learn: Learn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The gallery that a run reuses was made again by another teacher."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    learn("new", reuse_gallery=tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    _, old = learn("run", teacher_train=TEACHER.model_copy(update={"epochs": 2}))
    caplog.clear()
    _, new = learn("new", reuse_gallery=tmp_path / "run")
    assert "distilling it again" in caplog.text
    assert new.space == old.space


ALL: dict[str, Damage] = {
    "teacher.safetensors": edited, "centers.npy": lose, "gallery": occupied, "student.safetensors": flip,
    "bundle": lose, "quantization.json": cut, "results.json": cut,
}  # fmt: skip


@pytest.mark.parametrize(
    "damages",
    [ALL, {"bundle/query-fp32.onnx": flip}, {"bundle": occupied, "quantization.json": lose}, {"results.json": lose}],
    ids=["all", "a model", "the bundle", "the results"],
)
def test_the_command_makes_again_what_is_damaged(
    made: Path, folder: Path, call: Call, damages: dict[str, Damage]
) -> None:
    before = load_run(folder / "results.json")
    kept = {network: sha256_of(folder / network) for network in NETWORKS}
    for name, damage in damages.items():
        damage(folder / name)
    code, said = again(call, made, folder)
    assert code in (0, 1), said
    products = {name.split("/")[0] for name in damages}
    assert is_said_once(said, *products), said
    for stage in ("teacher", "gallery", "student", "export", "evaluate"):
        assert (f"[{stage}]" in said) == (stage in {STAGES[name] for name in products}), f"{stage}: {said}"
    assert {network: sha256_of(folder / network) for network in NETWORKS} == kept
    after = load_run(folder / "results.json")
    assert (after.pairs, after.code_space, after.models[0].sha256) == (
        before.pairs, before.code_space, before.models[0].sha256)  # fmt: skip


def test_a_moved_run_is_not_evaluated_again_and_its_seconds_have_the_evaluation(
    made: Path, folder: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = again(call, made, Path("runs/r"))
    assert code in (0, 1), said
    assert not any(f"[{stage}]" in said for stage in STAGES.values())
    results = load_run(folder / "results.json")
    assert results.seconds["evaluate"] > 0
    assert set(results.seconds) >= {"teacher", "gallery", "student", "export"}


def state(folder: Path) -> dict[str, str]:
    names = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".pid", ".lock", "log.txt")]
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in names}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("an image is gone", "1 missing ('bag/"),
        ("an image is new", "1 new ('bag/copy.png')"),
        ("another label", "1 missing ('bag/"),
        ("another content", "other contents of images"),
        ("another split", "with another label or split"),
    ],
)
def test_a_refused_run_changes_nothing_and_names_what_changed(
    made: Path, folder: Path, call: Call, tmp_path: Path, change: str, says: str
) -> None:
    """The advice is followed too: with the images brought back, if to another folder, the same command goes on."""
    images = tmp_path / "in"
    shutil.copytree(made / "in", images)
    first, before = sorted((images / "bag").iterdir())[0], state(folder)
    more: tuple[str, ...] = ()
    if change == "an image is gone":
        first.unlink()
    elif change == "an image is new":
        shutil.copy(first, first.with_name("copy.png"))
    elif change == "another label":
        first.rename(images / "boot" / "moved.png")
    elif change == "another content":
        repaint(first)
    else:
        with (folder / "split.csv").open() as stream:
            rows = list(csv.reader(stream))
        for row in rows[1:3]:
            row[2] = "train;gallery" if row[2] == "query" else "query"
        with (folder / "split.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows(rows)
        repaint(first)
        before = state(folder)
    code, said = again(call, images.parent, folder, *more)
    assert code == 2, said
    assert says in said
    assert "Bring them back" in said
    assert state(folder) == before
    shutil.rmtree(images)
    shutil.copytree(made / "in", images)
    code, said = again(call, images.parent, folder)
    assert code in (0, 1), said
    assert "[teacher]" not in said
    assert f"data: {images}" in (folder / "config.yaml").read_text()


def test_other_settings_are_refused_before_anything_is_written(made: Path, folder: Path, call: Call) -> None:
    before = state(folder)
    code, said = again(call, made, folder, "--seed", "5")
    assert (code, "seed 5 instead of 0" in said) == (2, True)
    assert state(folder) == before


def test_the_first_run_of_a_folder_may_be_refused_and_corrected(made: Path, tmp_path: Path, call: Call) -> None:
    runs = tmp_path / "runs"
    code, said = call("--data", tmp_path / "none", "--output-dir", runs, "--name", "r", *SMALL)
    assert code == 2, said
    assert not (runs / "r" / "config.yaml").exists()
    code, said = call("--data", made / "in", "--output-dir", runs, "--name", "r", *SMALL, "--student-train.lr", "1e30")
    assert code == 2, said
    assert "Lower --student-train.lr" in said
    assert not list((runs / "r" / "cache").glob("student.*"))


RECORDS = "split.csv", "config.yaml", "resolved_config.yaml", "dataset_fingerprint.yaml"


@pytest.mark.parametrize("damage", [lose, cut])
def test_records_of_the_input_are_written_again(made: Path, folder: Path, call: Call, damage: Damage) -> None:
    moved = str(made / "runs").encode(), str(folder.parent).encode()
    before = [(folder / name).read_bytes().replace(*moved) for name in RECORDS]
    for name in RECORDS:
        damage(folder / name)
    code, said = again(call, made, folder)
    assert code in (0, 1), said
    assert [(folder / name).read_bytes() for name in RECORDS] == before
    assert not any(f"[{stage}]" in said for stage in STAGES.values())


def test_a_lost_record_of_stages_trains_the_same_networks_again(made: Path, folder: Path, call: Call) -> None:
    kept = {part: sha256_of(folder / f"{part}.safetensors") for part in ("teacher", "student")}
    (folder / "stages.json").write_text('{"teacher": {"done"')
    code, said = again(call, made, folder)
    assert code in (0, 1), said
    assert "stages.json is damaged" in said
    assert {part: sha256_of(folder / f"{part}.safetensors") for part in kept} == kept
    assert set(json.loads((folder / "stages.json").read_text())) >= {"settings", *STAGES.values()}
