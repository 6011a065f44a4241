"""The run folder: the lock, the record of stages, and settings that may not change under a run."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from distill.config import TrainConfig
from distill.run_dir import open_run
from gallery.console import log
from gallery.errors import InputError, RunLocked

HOLD = "import sys,time; from pathlib import Path; from distill.run_dir import open_run\n" \
       "with open_run(Path(sys.argv[1])): print('in', flush=True); time.sleep(60)"  # fmt: skip


def test_a_second_process_fails_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=root)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(RunLocked, match=str(holder.pid)), open_run(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait()
    with open_run(tmp_path):
        pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(InputError, match=r"a file system with locks .*No locks.* on a local"),
        open_run(tmp_path / "run"),
    ):
        pass


def test_finished_stages_are_remembered_and_failed_ones_are_not(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        with run.stage("a", "one"):
            pass
        with pytest.raises(ZeroDivisionError), run.stage("b", "two"):
            1 / 0  # noqa: B018
    with open_run(tmp_path) as run:
        assert run.is_done("a")
        assert not run.is_done("b")
        assert set(run.seconds) == {"a", "b"}
        run.invalidate("a")
    with open_run(tmp_path) as run:
        assert not run.is_done("a")


def test_other_settings_are_an_error_by_name_and_permitted_ones_are_saved(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        assert not run.check_config("config", TrainConfig())
        assert not run.check_config("config", TrainConfig())
        with pytest.raises(InputError, match=r"bits 32 instead of 64.*--name"):
            run.check_config("config", TrainConfig(bits=32), but=("strict",))
        assert run.check_config("config", TrainConfig(strict=True), but=("strict",)) == {"strict"}
        assert not run.check_config("config", TrainConfig(strict=True))


def test_what_was_saved_stays(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        assert run.load_or_save("plan", TrainConfig, lambda: TrainConfig(seed=1)).seed == 1
        assert run.load_or_save("plan", TrainConfig, lambda: TrainConfig(seed=2)).seed == 1


def test_all_messages_are_in_the_log(tmp_path: Path) -> None:
    with open_run(tmp_path) as run, run.stage("a", "doing one thing"):
        log.warning("beware")
    text = (tmp_path / "log.txt").read_text()
    assert "[a] doing one thing" in text
    assert "WARNING beware" in text


def test_a_folder_that_cannot_be_made_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--output-dir"), open_run(tmp_path / "file" / "run"):
        pass
