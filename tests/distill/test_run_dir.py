"""The run folder: the lock, the record of stages, and settings that may not change under a run."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from distill.config import StudentTrainConfig, TrainConfig
from distill.run_dir import RunDir, open_run
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


def test_control_characters_stay_out_of_paths_that_lancedb_reads(tmp_path: Path) -> None:
    assert TrainConfig(data="some/\x1b[31m\u202ered", bits=16).title == r"vit_b-mobilenetv3-\x1b[31m\u202ered-16"
    with pytest.raises(InputError, match="without control characters"), open_run(tmp_path / "a\x1bb"):
        pass
    assert not list(tmp_path.iterdir())


def test_other_settings_are_an_error_by_name_and_permitted_ones_are_saved(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        assert not run.check_config("config", TrainConfig())
        assert not (tmp_path / "config.yaml").exists()
        run.save_settings({"config": TrainConfig()})
        assert not run.check_config("config", TrainConfig())
        with pytest.raises(InputError, match=r"bits 32 instead of 64.*--name"):
            run.check_config("config", TrainConfig(bits=32), but=("strict",))
        nested = TrainConfig(student_train=StudentTrainConfig(lr=0.5), loss_args={"margin": 1})
        with pytest.raises(InputError, match=r"loss_args.margin 1 .* None; student_train.lr 0.5 instead of 'auto'\."):
            run.check_config("config", nested)
        assert run.check_config("config", nested, but=("loss_args", "student_train")) == {"loss_args", "student_train"}
        assert run.check_config("config", TrainConfig(strict=True), but=("strict",)) == {"strict"}
        run.save_settings({"config": TrainConfig(strict=True)})
        assert not run.check_config("config", TrainConfig(strict=True))


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 9),
    "deep": lambda path: path.write_text("[" * 100_000),
    "another type": lambda path: path.write_text("7\n"),
    "edited": lambda path: path.write_text(path.read_text().replace("bits: 32", "bits: 64")),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_settings_that_are_damaged_are_written_again_from_their_copy(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = TrainConfig(bits=32, data="embedded")
    with open_run(tmp_path) as run:
        run.save_settings({"config": config})
    path = tmp_path / "config.yaml"
    before = path.read_text()
    DAMAGES[damage](path)
    with open_run(tmp_path) as run:
        assert run.load_settings("config", TrainConfig) == run.load_settings("config", TrainConfig) == config
        assert caplog.text.count("its copy in stages.json holds") == 1
        with pytest.raises(InputError, match="bits 64 instead of 32"):
            run.check_config("config", TrainConfig(bits=64))
        assert path.is_fifo() or not path.exists() or path.read_bytes() != before.encode()  # so far nothing is written
        run.save_settings({"config": config})
    assert path.read_text() == before


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name not in ("missing", "edited", "another type")])
def test_settings_without_a_copy_are_an_error(tmp_path: Path, damage: str) -> None:
    with open_run(tmp_path) as run:
        run.save_settings({"config": TrainConfig(bits=32)})
    (tmp_path / "stages.json").unlink()
    DAMAGES[damage](tmp_path / "config.yaml")
    with open_run(tmp_path) as run, pytest.raises(InputError, match=r"config\.yaml.*another --name"):
        run.check_config("config", TrainConfig(bits=32))


RECORDS = {
    "null": "null", "list": "[]", "number": "7", "empty": "", "deep": "[" * 100_000,
    "truncated": '{"student": {"done": tr',
    "no seconds": '{"student": {"done": true, "seconds": null}}', "text": '{"student": "done"}',
    "not a number": '{"student": {"done": true, "seconds": NaN}}',
    "other keys": '{"student": {"done": true, "seconds": 1.0, "product": {}}}', "binary": "\x00\x01\x02",
}  # fmt: skip


@pytest.mark.parametrize("record", RECORDS)
def test_a_damaged_record_is_said_and_nothing_is_done(
    tmp_path: Path, record: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "stages.json").write_text(RECORDS[record])
    with open_run(tmp_path) as run:
        assert not run.is_done("student")
        assert not run.seconds
    assert "stages.json is damaged" in caplog.text


def test_a_record_that_is_gone_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_run(tmp_path) as run:
        run.save_settings({"config": TrainConfig()})
    assert not caplog.text
    (tmp_path / "stages.json").unlink()
    with open_run(tmp_path):
        assert "stages.json is missing, so it is not known what is finished" in caplog.text


def test_a_stage_is_done_only_while_its_products_are_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def make(run: RunDir, text: str) -> None:
        with run.stage("student", "one"):
            (tmp_path / "student.safetensors").write_text(text)
        with run.stage("evaluate", "two"):
            (tmp_path / "results.json").write_text("{}")

    with open_run(tmp_path) as run:
        make(run, "a")
        run.verify()
        assert run.is_done("student")
    (tmp_path / "student.safetensors").write_text("b")
    with open_run(tmp_path) as run:
        assert run.damaged("student", "evaluate") == {"student": ["student.safetensors"]}
        run.verify()
        assert "missing or damaged" in caplog.text
        assert not run.is_done("student")
        assert run.is_done("evaluate")
        with run.stage("student", "again"):
            (tmp_path / "student.safetensors").write_text("a")
        assert run.is_done("evaluate"), "the same bytes: what depends on them stays"
        run.invalidate("student")
        with run.stage("student", "again"):
            (tmp_path / "student.safetensors").write_text("b")
        assert not run.is_done("evaluate"), "other bytes: what depends on them does not"
        assert "student came out different: making evaluate again too" in caplog.text


def test_a_product_that_may_not_be_read_is_not_taken_for_damaged() -> None:
    user = os.geteuid()
    with TemporaryDirectory() as folder:  # pytest's own folders are closed to the user below
        os.chmod(folder, 0o755)
        network = Path(folder) / "student.safetensors"
        with open_run(Path(folder)) as run, run.stage("student", "distilling"):
            network.write_bytes(b"sound")
        network.chmod(0)
        try:
            if user == 0:
                os.seteuid(65534)  # root may read everything
            with open_run(Path(folder), read_only=True) as run, pytest.raises(PermissionError):
                run.damaged("student")
        finally:
            os.seteuid(user)


def test_a_stage_without_its_checksums_is_not_done(tmp_path: Path) -> None:
    (tmp_path / "student.safetensors").write_text("a")
    (tmp_path / "stages.json").write_text('{"student": {"done": true, "seconds": 1}}')
    with open_run(tmp_path) as run:
        run.verify()
        assert not run.is_done("student")


def test_a_stage_that_refuses_its_input_leaves_no_trace(tmp_path: Path) -> None:
    with open_run(tmp_path) as run, pytest.raises(InputError), run.stage("data", "reading"):
        raise InputError("a", "b", "c")
    assert not (tmp_path / "stages.json").exists()


def test_all_messages_are_in_the_log(tmp_path: Path) -> None:
    with open_run(tmp_path) as run, run.stage("a", "doing one thing"):
        log.warning("beware")
    text = (tmp_path / "log.txt").read_text()
    assert "[a] doing one thing" in text
    assert "WARNING beware" in text


def test_a_folder_of_something_else_is_no_run_folder(tmp_path: Path) -> None:
    """Its folders may have the names of a run's products, and would be replaced."""
    (tmp_path / "gallery" / "cat").mkdir(parents=True)
    with pytest.raises(InputError, match=r"or empty folder, or that of a run; found gallery in"), open_run(tmp_path):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["gallery", "cat"]
    (tmp_path / "gallery").rename(tmp_path / ".DS_Store")
    with open_run(tmp_path):
        (tmp_path / "notes.txt").touch()
    with open_run(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--output-dir"), open_run(tmp_path / "file" / "run"):
        pass
