"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gallery.files import STARTED, atomic_path, atomic_write, remove_partial, sha256_of, size_of, write_json


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def fill(folder: Path, text: str) -> Path:
    (folder / "deep").mkdir(parents=True)
    for name in ("a", "deep/b"):
        (folder / name).write_text(text)
    return folder


def contents(folder: Path) -> set[str]:
    return {p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("data", [b"\x00\xff", "gr\u00fc\u00dfe\n", ""])
def test_a_file_is_written_whole(tmp_path: Path, data: bytes | str) -> None:
    path = atomic_write(tmp_path / "new" / "file.txt", data)
    assert path.read_bytes() == (data if isinstance(data, bytes) else data.encode())
    assert names(path.parent) == ["file.txt"]


def test_json_is_readable_by_people_and_machines(tmp_path: Path) -> None:
    path = write_json(tmp_path / "x.json", {"caf\u00e9": [1, None]})
    assert "caf\u00e9" in path.read_text()
    assert json.loads(path.read_text()) == {"caf\u00e9": [1, None]}


def put(draft: Path, kind: str, text: str) -> None:
    if kind == "file":
        draft.write_text(text)
    else:
        fill(draft, text)


def interrupted(path: Path, kind: str) -> None:
    with atomic_path(path) as draft:
        put(draft, kind, "half")
        raise KeyboardInterrupt


@pytest.mark.parametrize("old", ["file", "folder", "nothing"])
@pytest.mark.parametrize("new", ["file", "folder"])
def test_an_exception_in_the_middle_leaves_what_was_there(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "x"
    if old != "nothing":
        put(path, old, "old")
    before = names(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        interrupted(path, new)
    assert names(tmp_path) == before
    assert contents(tmp_path) == ({"old"} if before else set())


@pytest.mark.parametrize("old", ["file", "folder", "link", "nothing"])
@pytest.mark.parametrize("new", ["file", "folder"])
def test_anything_replaces_anything(tmp_path: Path, old: str, new: str) -> None:
    path, elsewhere = tmp_path / "here" / "x", fill(tmp_path / "elsewhere", "untouched")
    path.parent.mkdir()
    if old == "link":
        path.symlink_to(elsewhere)
    elif old != "nothing":
        put(path, old, "old")
    with atomic_path(path) as draft:
        put(draft, new, "new")
    assert path.is_dir() == (new == "folder")
    assert not path.is_symlink()
    assert contents(tmp_path / "here") == {"new"}
    assert names(path.parent) == ["x"]
    assert contents(elsewhere) == {"untouched"}


def test_a_failed_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "x", "old")
    replace, calls = os.replace, []

    def fails_the_second_time(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) > 1:
            raise PermissionError("denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_the_second_time)
    with pytest.raises(PermissionError), atomic_path(tmp_path / "x") as draft:
        fill(draft, "new")
    assert len(calls) == 2
    assert contents(tmp_path) == {"old"}
    assert names(tmp_path) == ["x"]


def test_a_draft_that_was_never_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "x"):
        pass
    assert (tmp_path / "x").read_text() == "old"


KILLED = """
import os, signal, sys
from pathlib import Path
from gallery.files import atomic_path
with atomic_path(Path(sys.argv[1])) as draft:
    draft.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    root = Path(__file__).resolve().parents[2]
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "x")], cwd=root, check=False)
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "x").read_text() == "old"
    atomic_write(tmp_path / "x", "new")  # what the killed writer left does not stand in the way
    assert (tmp_path / "x").read_text() == "new"
    assert len(names(tmp_path)) == 2
    remove_partial(tmp_path, "y")
    assert len(names(tmp_path)) == 2
    with atomic_path(tmp_path / "x") as draft:  # this process is alive
        draft.write_text("newer")
        remove_partial(tmp_path.parent)
        assert draft.exists()
    assert names(tmp_path) == ["x"]


def test_a_killed_process_of_another_container_may_have_had_the_id_of_this_one(tmp_path: Path) -> None:
    left = tmp_path / f".x.{os.getpid()}.abcdefgh.partial"
    left.mkdir()
    remove_partial(tmp_path)
    assert left.exists()
    os.utime(left, (STARTED - 1, STARTED - 1))
    remove_partial(tmp_path)
    assert not left.exists()


@pytest.mark.parametrize("name", ["v2.x", "[x]"])
def test_only_the_named_entry_is_cleaned(tmp_path: Path, name: str) -> None:
    root = Path(__file__).resolve().parents[2]
    for one in ("x", name):
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / one)], cwd=root, check=False)
    assert len(names(tmp_path)) == 2
    remove_partial(tmp_path, name)
    (left,) = names(tmp_path)
    assert left.startswith(".x.")
    remove_partial(tmp_path, "x")
    assert names(tmp_path) == []


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_get_the_umask_of_the_user(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert atomic_write(tmp_path / "x", "new").stat().st_mode & 0o777 == 0o666 & ~umask
    finally:
        os.umask(before)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_of_concurrent_writers_one_wins_whole(tmp_path: Path, kind: str) -> None:
    path, texts = tmp_path / "x", [str(writer) * 10_000 for writer in range(8)]

    def write(text: str) -> None:
        for _ in range(5):
            with atomic_path(path) as draft:
                put(draft, kind, text)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, texts))
    assert len(contents(tmp_path)) == 1
    assert contents(tmp_path) <= set(texts)
    assert names(tmp_path) == ["x"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, seen = atomic_write(tmp_path / "x", "0" * 100_000), set()

    def write() -> None:
        for digit in "123456789":
            atomic_write(path, digit * 100_000)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not writing.done():
            seen.add(path.read_text())
        writing.result()
    assert all(len(text) == 100_000 and len(set(text)) == 1 for text in seen)


def test_the_hash_of_a_file_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 1_000_000)
    expected = subprocess.run(["sha256sum", tmp_path / "x"], capture_output=True, text=True, check=True).stdout.split()
    assert sha256_of(tmp_path / "x") == expected[0]


def test_the_hash_of_a_folder_depends_on_names_and_bytes_only(tmp_path: Path) -> None:
    first, second = fill(tmp_path / "1", "text"), fill(tmp_path / "2", "text")
    os.utime(second / "a", (0, 0))
    start = sha256_of(first)
    assert sha256_of(second) == start
    (second / "a").write_text("Text")
    assert sha256_of(second) != start
    (first / "a").rename(first / "c")
    renamed = sha256_of(first)
    assert renamed != start
    (first / "c").rename(first / "deep" / "c")
    assert sha256_of(first) not in (renamed, start)
    (first / "deep" / "c").unlink()
    assert sha256_of(first) not in (renamed, start)


def test_size_counts_all_files(tmp_path: Path) -> None:
    assert size_of(fill(tmp_path / "x", "12345")) == 10
    assert size_of(tmp_path / "x" / "a") == 5
