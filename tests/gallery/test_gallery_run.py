"""The commands on a gallery, on a finished run: what they print, and how they end."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gallery.index import open_gallery
from gallery.store import GalleryStore
from tests.conftest import ROOT, Call, import_script

gallery_run = import_script("gallery.run")
WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] == "torch" else find_spec(name, *rest)
from gallery.run import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def command(heard: Callable[..., Call]) -> Call:
    return heard(gallery_run.main)


@pytest.fixture
def mine(run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(run, tmp_path / "runs" / "mine"))


@pytest.fixture
def manifest(made: Path, tmp_path: Path) -> Path:
    """Eight images with columns of their owner's."""
    folder = tmp_path / "shop"
    folder.mkdir()
    rows = ["id,path,price,brand"]
    for number, path in enumerate(sorted((made / "in").rglob("*.png"))[::10]):
        shutil.copy(path, folder / f"{number}.png")
        rows.append(f"sku {number},{number}.png,{number}.5,{'acme' if number % 2 else 'other'}")
    (folder / "m.csv").write_text("\n".join(rows))
    return folder / "m.csv"


def told(capsys: pytest.CaptureFixture[str], call: Call, *words: object) -> Any:
    capsys.readouterr()
    code, said = call(*words, "--json")
    assert code == 0, said
    return json.loads(capsys.readouterr().out)


def test_from_add_to_a_search(
    mine: Path, manifest: Path, made: Path, command: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = command("add", mine, manifest)
    assert (code, "--add-column price brand" in said) == (2, True)
    (counts,) = told(capsys, command, "add", mine, manifest, "--add-column", "price", "brand")
    assert (counts["seen"], counts["encoded"]) == (8, 8)
    photo = manifest.parent / "3.png"
    for network in ("student", "teacher"):
        found = told(capsys, command, "search", mine, photo, "--with", network, "--k", "3")
        assert len(found["results"]) == 3
    assert found["results"][0]["distance"] == 0  # by the teacher, which encoded it
    same = told(capsys, command, "search", mine, "--code", found["code"], "--k", "3")
    assert same["results"] == found["results"]
    near = told(capsys, command, "search", mine, "--id", "sku 3", "--k", "100", "--where", "brand = 'acme'")
    assert {row["id"] for row in near["results"]} == {"sku 1", "sku 5", "sku 7"}
    assert all(row["brand"] == "acme" for row in near["results"])
    none = told(capsys, command, "search", mine, "--id", "sku 3", "--where", "price > 100", "--max-distance", "2")
    assert none["results"] == []


def test_a_student_searches_without_torch(mine: Path, made: Path) -> None:
    photo = next((made / "in").rglob("*.png"))
    words = [sys.executable, "-c", WITHOUT_TORCH, "search", str(mine), str(photo), "--json"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["results"]) == 10


def test_every_other_command_speaks_json(
    mine: Path, manifest: Path, tmp_path: Path, command: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    (manifest.parent / "5.png").write_bytes(b"rubbish")
    names = manifest.parent / "\x1b[31mred.png"
    shutil.copy(manifest.parent / "1.png", names)
    told(capsys, command, "add", mine, manifest, "--add-column", "price", "brand", "--no-publish")
    (space,) = told(capsys, command, "stats", mine)["spaces"]
    assert (space["items"], space["published"], space["failed"], space["columns"]) == (71, 64, 1, ["price", "brand"])
    assert told(capsys, command, "publish", mine)[0]["rows"] == 71
    assert told(capsys, command, "verify", mine, "--deep", "5")["encoded"] == 5
    (failure,) = told(capsys, command, "failures", mine)
    assert (failure["id"], failure["stale"]) == ("sku 5", False)
    shutil.copy(manifest.parent / "4.png", manifest.parent / "5.png")
    assert told(capsys, command, "failures", mine, "--retry") == []
    groups = told(capsys, command, "duplicates", mine)
    assert any({"sku 4", "sku 5"} <= {row["id"]} | {"sku 4", "sku 5"} and row["same_bytes"] for row in groups["items"])
    assert told(capsys, command, "duplicates", mine, "--out", tmp_path / "d.parquet")["items"] == len(groups["items"])
    assert told(capsys, command, "compact", mine)["forgotten"] is False  # the training version is kept
    assert "items.sqlite" in told(capsys, command, "export", mine, tmp_path / "out", "--to", "sqlite")["files"]
    assert told(capsys, command, "remove", mine, "--ids", "sku 1", "none") == {space["space"]: 1}
    assert len(open_gallery(mine / "gallery")) == 71
    for words in (["stats", mine], ["failures", mine], ["verify", mine], ["duplicates", mine]):
        assert command(*words)[0] == 0
        assert "\x1b" not in capsys.readouterr().out


def test_a_site_shows_the_runs_own_images_and_added_ones(
    mine: Path, manifest: Path, tmp_path: Path, command: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    told(capsys, command, "add", mine, manifest, "--add-column", "price", "brand")
    (manifest.parent / "1.png").write_bytes(b"rubbish")
    written = told(capsys, command, "export", mine, tmp_path / "site", "--to", "site")
    assert (written["items"], list(written["without_thumbnail"])) == (72, ["sku 1"])
    items = json.loads((tmp_path / "site" / "items.json").read_text())
    assert [id for id, name in zip(items["ids"], items["thumbnails"], strict=True) if name is None] == ["sku 1"]
    few = told(capsys, command, "export", mine, tmp_path / "few", "--to", "site", "--limit", "5", "--no-thumbnails")
    assert (few["items"], "thumbs" in few["files"]) == (5, False)
    shutil.move(manifest.parent, tmp_path / "away")
    code, said = command("export", mine, tmp_path / "gone", "--to", "site")
    assert (code, "8 of 72 items have no thumbnail: sku 0 (No such file or directory)" in said) == (0, True), said


def test_the_source_says_what_stays(
    mine: Path, made: Path, tmp_path: Path, command: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(made / "in", tmp_path / "in"))
    (counts,) = told(capsys, command, "add", mine, source)
    assert (counts["seen"], counts["encoded"], counts["same"]) == (80, 80, 0)
    for path in sorted(source.rglob("*.png"))[:4]:
        path.unlink()
    code, said = command("add", mine, source, "--prune", "--prune-most", "0.01")
    assert (code, "--prune-most 0.05" in said) == (2, True)
    (counts,) = told(capsys, command, "add", mine, source, "--prune")
    assert (counts["removed"], counts["same"], counts["encoded"]) == (4, 76, 0)
    shutil.rmtree(source / "bag")
    (removed,) = told(capsys, command, "remove", mine, "--not-in", source, "--prune-most", "0.5").values()
    assert removed == 16
    assert not any(id.startswith("bag/") for id in open_gallery(mine / "gallery").ids.to_pylist())


def test_a_gallery_elsewhere_takes_the_teacher_of_its_run(
    mine: Path, manifest: Path, tmp_path: Path, command: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = command("add", tmp_path / "g", manifest)
    assert (code, "--run runs/NAME" in said) == (2, True)
    (counts,) = told(capsys, command, "add", tmp_path / "g", manifest, "--run", mine)
    assert counts["encoded"] == 8  # a new gallery has the manifest's columns
    code, said = command("search", tmp_path / "g", manifest.parent / "1.png")
    assert (code, "--bundle" in said) == (2, True)
    found = told(capsys, command, "search", tmp_path / "g", manifest.parent / "1.png", "--bundle", mine / "bundle")
    assert len(found["results"]) == 8


def test_another_teacher_is_refused(mine: Path, manifest: Path, tmp_path: Path, command: Call) -> None:
    from dataclasses import replace

    from gallery import codespace

    space, centers = codespace.load(mine)
    store = GalleryStore(tmp_path / "g", create=True)
    store.add_space(replace(space, teacher="another"), centers)
    store.publish(replace(space, teacher="another").id)
    code, said = command("add", tmp_path / "g", manifest, "--run", mine)
    assert (code, "the runs of the code spaces" in said) == (2, True)
    code, said = command("search", tmp_path / "g", manifest.parent / "1.png", "--bundle", mine / "bundle")
    assert (code, "code space" in said and "stale" in said) == (2, True)
    teacher = mine / "teacher.safetensors"
    teacher.write_bytes(teacher.read_bytes()[:-1] + b"x")
    code, said = command("add", mine, manifest, "--add-column", "price", "brand")
    assert (code, "Restore" in said) == (2, True)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["search"], "an image, --code or --id"),
        (["search", "--code", "zz"], "hexadecimal digits"),
        (["search", "--code", "00" * 8], "4 hexadecimal digits"),
        (["search", "--id", "none"], "Choose another id"),
        (["search", "--code", "0000", "--where", "price < 1; price > 2"], "Write one condition"),
        (["search", "--code", "0000", "--where", "nothing = 1"], "a condition over the columns"),
        (["search", "none.png"], "none.png"),
        (["search", "--code", "0000", "--k", "0"], "greater than or equal to 1"),
        (["remove"], "one of --ids"),
        (["remove", "--ids-file", "none.txt"], "none.txt"),
        (["compact", "--forget-before", "soon"], "30d"),
        (["add", "nowhere"], "a source of images"),
        (["verify", "--space", "0000"], "code space"),
        (["export", "none", "--to", "sqlite", "--thumbnail-size", "32"], "found --thumbnail-size with --to sqlite"),
    ],
)
def test_what_is_wrong_is_told(run: Path, command: Call, words: list[str], problem: str) -> None:
    code, said = command(words[0], run, *words[1:])
    assert (code, problem in said) == (2, True), said


def test_a_damaged_row_fails_the_verification(mine: Path, command: Call, capsys: pytest.CaptureFixture[str]) -> None:
    store = GalleryStore(mine / "gallery")
    (space,) = store.spaces()
    table = store.open_table(space)
    id = open_gallery(mine / "gallery").ids[0].as_py()
    table.update(f"id = '{id}'", values={"labels": ["another"]})
    assert command("verify", mine, "--json")[0] == 1
    assert json.loads(capsys.readouterr().out)["damaged"] == [id]


def test_help_loads_little() -> None:
    code = "import sys, gallery.run; print(*(name.partition('.')[0] for name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "lancedb", "pyarrow", "PIL", "distill"} & set(loaded.stdout.split())
