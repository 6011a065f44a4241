"""How a command ends: its exit code and its one line, whatever goes wrong, and whoever stopped listening."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gallery.command_line import explain, run_cli
from gallery.console import LogFile, log, log_to, plain
from gallery.errors import EXIT_BAD_INPUT, EXIT_CRASH, CorruptFile, InputError

ROOT = Path(__file__).resolve().parents[2]
HEAD = """
import os, sys, time, errno
from pathlib import Path
from gallery.command_line import run_cli
from gallery.console import log, log_to, track
from gallery.files import atomic_path
from gallery.errors import InputError
"""
TAIL = """
sys.exit(run_cli(main, "Run it again."))
"""


def script(body: str) -> list[str]:
    return [sys.executable, "-c", HEAD + body + TAIL]


def ran(body: str, **options: object) -> tuple[int, str, str]:
    command = script(body)
    common = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 60}
    done = subprocess.run(command, **common, **options)  # type: ignore[call-overload]
    return done.returncode, done.stdout, done.stderr


def shell(body: str, ending: str, tmp_path: Path) -> tuple[int, str]:
    """The exit code of the command itself, and what is left of its words, in bash."""
    (tmp_path / "script.py").write_text(HEAD + body + TAIL)
    line = f"'{sys.executable}' '{tmp_path}/script.py' {ending}; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, env=environment, timeout=60)
    return done.returncode, done.stdout + done.stderr


CRASHES = {
    "of Python": "raise KeyError('x')", "deep": "f = lambda: f()\n    f()", "no words": "assert False",

    "several lines": "raise RuntimeError('first\\nsecond')",
    "a panic": "raise type('Panic', (BaseException,), {})('rust')",
}  # fmt: skip


@pytest.mark.parametrize("what", CRASHES)
def test_a_crash_is_one_line_and_a_log(what: str, tmp_path: Path) -> None:
    code, _, said = ran(f"def main():\n    {CRASHES[what]}", env={**os.environ, "TMPDIR": str(tmp_path)})
    assert code == EXIT_CRASH
    assert said.count("\n") == 1
    path = re.search(r"Crash: \w+: .*The log is (\S+); please report it", said)
    assert path
    assert "in main" in Path(path[1]).read_text()


def test_windows_is_told_what_to_use() -> None:
    code, _, said = ran("sys.platform = 'win32'\ndef main(): return 0")
    assert (code, "expected Linux or macOS; found Windows. Run it in WSL." in said) == (2, True)


def test_the_log_of_a_run_keeps_its_crash(tmp_path: Path) -> None:
    body = f"def main():\n    with log_to(Path({str(tmp_path / 'log.txt')!r})):\n        log.info('a'); [][1]"
    code, _, said = ran(body)
    assert code == EXIT_CRASH
    assert f"The log is {tmp_path}/log.txt" in said
    kept = (tmp_path / "log.txt").read_text()
    assert "INFO a" in kept
    assert "    | IndexError" in kept


ENDS = {
    "a typed error": ("raise InputError('a', 'b', 'Do c.')", "Error: expected a; found b. Do c."),
    "a full disk": ("raise OSError(errno.ENOSPC, 'No space left', 'x')", "Free some space"),
    "a full quota": ("raise OSError(errno.EDQUOT, 'Quota', 'x')", "Free some space"),
    "rights": ("raise PermissionError(errno.EACCES, 'Permission denied', '/a/file')", "'/a/file'. Give this user"),
    "a mount": ("raise OSError(errno.EROFS, 'Read-only', '/a/file')", "'/a/file'. Give this user"),
    "another": ("open('/no/such/file')", "No such file or directory: '/no/such/file'. Run it again."),
    "memory": ("bytearray(1 << 62)", "short of memory"),
    "memory of torch": ("raise RuntimeError(\"DefaultCPUAllocator: can't allocate memory: 4\")", "short of memory"),
    "memory of C++": ("raise RuntimeError('std::bad_alloc')", "short of memory"),
    "a missing package": ("import no_such_package", "found no module named no_such_package. Run"),
}  # fmt: skip


@pytest.mark.parametrize("what", ENDS)
def test_what_a_user_can_mend_says_how(what: str, caplog: pytest.LogCaptureFixture) -> None:
    statement, expected = ENDS[what]
    code, _, said = ran(f"def main():\n    {statement}")
    assert code == EXIT_BAD_INPUT
    assert said.count("\n") == 1
    assert expected in said
    assert "Traceback" not in said


def test_a_damaged_file_for_want_of_memory_is_not_blamed_alone() -> None:
    error = CorruptFile("a file", "another", "Restore it.")
    assert "short of memory" not in explain(error)
    error.__cause__ = MemoryError()
    assert "short of memory" in explain(error)
    assert "space" not in explain(InputError("a", "b", "c"))
    assert "rights" in explain(OSError(errno.EPERM, "x"))


LONG = """
def main():
    with atomic_path(Path(sys.argv[1]) / "made") as draft:
        draft.write_text("half")
        print("begun", flush=True)
        try:
            time.sleep(50)
        finally:
            time.sleep(WAIT)
    return 0
"""


def start(command: list[str]) -> subprocess.Popen[str]:
    """Start a command with pipes; it heeds signals even where these tests run in the background, which ignores some."""

    def heed() -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, preexec_fn=heed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("times", [1, 2])
def test_stopped_by_a_signal_it_says_so_and_leaves_nothing(number: signal.Signals, times: int, tmp_path: Path) -> None:
    command = [*script(LONG.replace("WAIT", "0.5")), str(tmp_path)]
    with start(command) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "begun\n"
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.1)
        said = process.stderr.read()
    assert process.returncode == 128 + number
    assert "Stopped. Run it again." in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_the_third_signal_ends_it_at_once(tmp_path: Path) -> None:
    command = [*script(LONG.replace("WAIT", "50")), str(tmp_path)]
    with start(command) as process:
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        assert process.wait(10) == 143


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """As under nohup."""
    body = "def main():\n    os.kill(os.getpid(), 1)\n    return 0"
    assert ran(f"import signal\nsignal.signal(1, signal.SIG_IGN)\n{body}")[0] == 0


TALKS = """
def main():
    for _ in range(2000):
        print("a result of many words, more than a pipe holds")
        log.info("a line of the log")
    from rich.console import Console
    Console().print("a table")
    Path(sys.argv[1]).write_text("done")
    return 1
"""


@pytest.mark.parametrize(
    "ending", ["| true", "2>&1 | true", ">&-", "2>&-", ">&- 2>&- <&-", ">/dev/full", "2>/dev/full"]
)
def test_who_stopped_listening_changes_no_exit_code(ending: str, tmp_path: Path) -> None:
    code, said = shell(TALKS, f"{tmp_path}/result {ending}", tmp_path)
    assert code == 1
    assert (tmp_path / "result").read_text() == "done"
    assert "Traceback" not in said
    assert "Exception" not in said


def test_letters_that_the_terminal_lacks_end_nothing() -> None:
    body = "def main():\n    print('gr\\xfcn \\ud800')\n    return 0"
    code, said, _ = ran(body, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert code == 0
    assert said == "gr\\xfcn \\ud800\n"


EVIL = {
    "clears the screen": "a\x1b[2J", "sets the title": "\x1b]0;x\x07", "right to left": "\u202efdp.exe",
    "a line of ours": "x\n2026-01-01 00:00:00,000 INFO Verdict: passed", "a return": "x\rError", "a NUL": "a\0b",
    "C1": "\x9b2J", "a line separator": "a\u2028Crash", "no text": "\udcff\ud800", "invisible": "a\u200bb\ufeff",
}  # fmt: skip


@pytest.mark.parametrize("what", EVIL)
def test_no_name_steers_a_terminal_or_forges_a_line(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        with log_to(tmp_path / "log.txt"):
            log.warning("  skipped %s: no image", EVIL[what])
            raise ValueError(EVIL[what])

    handlers = log.handlers[:]
    try:
        log.handlers.clear()
        assert run_cli(main, "") == EXIT_CRASH
    finally:
        log.handlers[:] = handlers
    said, kept = capsys.readouterr().err, (tmp_path / "log.txt").read_text()
    for text in (said, kept):
        lines = text.split("\n")
        assert all(line.isprintable() for line in lines)
        assert not [line for line in lines if "Verdict" in line and "skipped" not in line and "Error" not in line
                    and not line.startswith("    | ") and "Crash" not in line]  # fmt: skip
    assert said.count("\n") == 2
    assert said.startswith("  skipped ")


def test_plain_text_stays_as_it_is() -> None:
    assert plain("gr\u00fcn/\u65e5\u672c (1).jpg") == "gr\u00fcn/\u65e5\u672c (1).jpg"
    assert plain("a\n b\x1b") == "a b\\x1b"
    assert len(plain("x" * 100_000)) < 9000


def test_a_log_that_cannot_be_written_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    log_file = LogFile(Path("/dev/full"))
    log_file.handle(log.makeRecord("x", 20, "", 0, "a line", (), None))
    log_file.close()
    assert capsys.readouterr().err == ""
