"""What every command line promises: an exit code that says how it ended, one line for an error, and no half-made files.

Exit codes are those of `gallery.errors`.  A stream that nobody reads any more, or that was closed from the start,
changes neither the exit code nor the results.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeGuard, TypeVar

from gallery.console import LOGGED_IN, LogFormatter, log, show_log
from gallery.errors import EXIT_BAD_INPUT, EXIT_CRASH, EXIT_STOPPED, InputError, TwinhashError
from gallery.files import FULL
from gallery.layers import missing_module

STOPPING = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_MEMORY = ("allocate memory", "out of memory", "bad_alloc", "can't start new thread", "failed to map segment")
T = TypeVar("T")
MEMORY_FIX = (
    "This process is short of memory: close other programs, raise its limit, or ask for less (smaller batches, images "
    "and networks)."
)


class Stopped(KeyboardInterrupt):
    """A signal that asks the process to end; what cleans up after Ctrl-C cleans up after it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def run_cli(main: Callable[[], int], on_stop: str) -> int:
    """Return the exit code of `main`; whatever goes wrong becomes one line without a traceback.

    on_stop: after a signal or for want of something, a sentence that says what is kept and what to do
    """
    with _lasting_streams(), _catch_signals():
        show_log()
        try:
            if sys.platform == "win32":
                raise InputError("Linux or macOS", "Windows", "Run it in WSL.")
            return main()
        except SystemExit:  # of --help, and of flags that cannot be read
            raise
        except KeyboardInterrupt as error:
            log.warning("Stopped.  %s", on_stop)
            return EXIT_STOPPED + getattr(error, "number", signal.SIGINT)
        except BaseException as error:  # noqa: BLE001 - a panic of a library in Rust is no Exception
            if text := explain(error, on_stop):
                log.error("Error: %s", text)
                return EXIT_BAD_INPUT
            lines = [line for line in str(error).splitlines() if line.strip()]
            log.error("Crash: %s: %s.  %s", type(error).__name__, lines[0] if lines else "no message", _where(error))
            return EXIT_CRASH


def read_flags(parse: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Return what a function of tyro makes of the flags; raises `InputError` for values that are out of range."""
    try:
        return parse(*arguments, **options)
    except ValueError as error:  # of the outermost options, which tyro leaves to its caller
        raise InputError("options within their limits", str(error.args[0]), "See --help.") from error


def explain(error: BaseException, on_stop: str = "") -> str:
    """Return what a user can do about an error, or an empty string where it is a fault of this program."""
    if isinstance(error, TwinhashError):
        return f"{error} {MEMORY_FIX}" if _is_memory(error) else str(error)
    if _is_memory(error):
        return f"{type(error).__name__} {error}.  {MEMORY_FIX}  {on_stop}".replace(" .", ".")
    if _is_missing(error):
        return f"{missing_module(str(error.name))}  {on_stop}"
    if not isinstance(error, OSError):
        return ""
    if error.errno in FULL:
        return f"{error}.  Free some space on that disk, or in its quota.  {on_stop}"
    if error.errno in FORBIDDEN:
        return f"{error}.  Give this user the rights to that path, or name another.  {on_stop}"
    return f"{error}.  {on_stop}"


def _is_memory(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is a want of memory: libraries have many names for that."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        text = str(error).lower()
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        if isinstance(error, RuntimeError | ImportError | OSError) and any(word in text for word in NO_MEMORY):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def _is_missing(error: BaseException) -> TypeGuard[ModuleNotFoundError]:
    """Whether an error says that a whole package is not installed."""
    root = (getattr(error, "name", "") or "").partition(".")[0]
    return isinstance(error, ModuleNotFoundError) and bool(root) and importlib.util.find_spec(root) is None


def _where(error: BaseException) -> str:
    """Say where the traceback of a crash is: in the log of its run, or in a file that is written now."""
    path = getattr(error, LOGGED_IN, None)
    if path is None:
        text = LogFormatter().formatException((type(error), error, error.__traceback__))
        try:
            handle, path = tempfile.mkstemp(prefix="twinhash-crash-", suffix=".log")
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(f"{' '.join(map(ascii, sys.argv))}\n{text}\n")
        except OSError as problem:
            return f"No log could be written ({problem}); please report it."
    return f"The log is {path}; please report it."


@contextmanager
def _catch_signals() -> Iterator[None]:
    """Have signals that ask the process to end raise `Stopped`, once: cleaning up is not interrupted.

    The third one ends the process at once.  A signal that the parent has us ignore (nohup) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    count, owner = 0, os.getpid()

    def stop(number: int, _frame: Any) -> None:
        nonlocal count
        count += 1
        if os.getpid() != owner or count > 2:  # a forked child has nothing to clean up
            os._exit(EXIT_STOPPED + number)
        if count == 1:
            raise Stopped(number)
        log.warning("Stopping; once more ends it at once, without cleaning up.")

    before = {number: signal.getsignal(number) for number in STOPPING}
    ours = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:  # once stopped, nothing may end the process between here and its exit
            signal.signal(number, signal.SIG_IGN if count else before[number])


class _Stream:
    """A standard stream whose reader may go away, or that was closed: then what is written to it is dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._call(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._call(self._stream.flush)

    def _call(self, method: Callable[..., Any], *arguments: str) -> None:
        try:
            method(*arguments)
        except (OSError, ValueError):  # a closed pipe or file, a full disk
            with suppress(OSError, ValueError):  # nor may the interpreter fail on what is left in the buffer
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)


@contextmanager
def _lasting_streams() -> Iterator[None]:
    """Make standard streams that were closed, and have both outlive their readers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file to be opened would take its place, and what is printed
            os.open(os.devnull, os.O_RDWR)
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    for name, stream in before.items():
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal of few letters ends no work
        setattr(sys, name, _Stream(stream))
    try:
        yield
    finally:
        for name, stream in before.items():
            getattr(sys, name).flush()
            setattr(sys, name, stream)
