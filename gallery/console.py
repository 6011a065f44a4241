"""What is said while it works: log lines that no name can forge, and progress with an ETA on every long step."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gallery.errors import TwinhashError

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("twinhash")
log.setLevel(logging.INFO)
PLAIN_LINE_EVERY_S = 15.0
MAX_LINE = 8192  # characters of a log line
LOGGED_IN = "logged_in"  # attribute of an error whose traceback is in a log file: its path
T = TypeVar("T")


def plain(text: str) -> str:
    """`text` on one line and fit for a terminal: characters that could steer it are escaped, blanks are joined."""
    line = " ".join(text[:MAX_LINE].split()) + (" ..." if len(text) > MAX_LINE else "")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


class LogFormatter(logging.Formatter):
    """A record on one line, whatever the names in it; a traceback follows on lines that begin with a bar."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Escape the message, but for its indentation."""
        record.message = _escaped(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Escape each line."""
        return "\n".join(f"    | {_escaped(line)}" for line in super().formatException(ei).split("\n"))


def _escaped(line: str) -> str:
    """`line` with its indentation, fit for a terminal."""
    return " " * min(len(line) - len(line.lstrip(" ")), 40) + plain(line)


class LogFile(logging.FileHandler):
    """A log file; lines that cannot be written are lost, since what fills the disk says so itself."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Go on."""

    def close(self) -> None:
        """Close it, also where the last lines do not fit any more."""
        with suppress(OSError):
            super().close()


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Write log lines to the file at `path` too, and in the end the error that left the block, if one did."""
    with closing(LogFile(path)) as handler, ExitStack() as stack:
        log.addHandler(handler)
        stack.callback(log.removeHandler, handler)
        try:
            yield
        except BaseException as error:
            known = isinstance(error, TwinhashError | KeyboardInterrupt | SystemExit | GeneratorExit)
            text, trace = f"{type(error).__name__}: {error}", (type(error), error, error.__traceback__)
            handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, text, (), None if known else trace))
            with suppress(Exception):  # an exception of a compiled module may take no attributes
                setattr(error, LOGGED_IN, path)
            raise


@cache
def terminal() -> Console:
    """Return the one rich console, on stderr: log lines and progress bars have to share it."""
    from rich.console import Console

    return Console(stderr=True)


def is_terminal() -> bool:
    """Whether stderr is a terminal; not where it is closed."""
    with suppress(AttributeError, ValueError):  # None, or a closed file
        return sys.stderr.isatty()
    return False


class _Stderr(logging.StreamHandler[Any]):
    """Writes to what `sys.stderr` is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        if self.stream is not None:
            super().emit(record)


def show_log() -> None:
    """Send log lines to stderr: above a running progress bar on a terminal, plain elsewhere."""
    log.propagate = False  # converters give the root logger a handler, which would say everything twice
    if any(not isinstance(h, logging.FileHandler) for h in log.handlers):
        return
    handler: logging.Handler = _Stderr()
    if is_terminal():
        from rich.logging import RichHandler

        handler = RichHandler(console=terminal(), show_time=False, show_level=False, show_path=False)
    handler.setFormatter(LogFormatter("%(message)s"))
    log.addHandler(handler)


def track(items: Iterable[T], label: str, total: int, done: int = 0) -> Iterator[T]:
    """Yield `items` under a progress bar on a terminal, or with a plain line every 15 s elsewhere.

    total: number of items in all; done: number that an earlier run had finished.  A bar that fails ends no work.
    """
    with ExitStack() as stack:
        advance = _lines(label, total, done)
        with suppress(Exception):
            advance = _bar(stack, label, total, done) if is_terminal() else advance
        for item in items:
            yield item
            with suppress(Exception):
                advance()


def _bar(stack: ExitStack, label: str, total: int, done: int) -> Callable[[], None]:
    """Show a progress bar until `stack` is closed; return what moves it on by one."""
    from rich import progress

    columns = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeRemainingColumn())
    text = progress.TextColumn("  {task.description}", markup=False)
    bar = progress.Progress(text, *columns, console=terminal(), transient=True)

    def stop() -> None:
        with suppress(Exception):
            bar.stop()

    task = bar.add_task(plain(label), total=total, completed=done)
    stack.callback(stop)
    bar.start()
    return lambda: bar.advance(task)


def _lines(label: str, total: int, done: int) -> Callable[[], None]:
    """Return what counts one item, and says so every `PLAIN_LINE_EVERY_S`."""
    count, start = 0, time.monotonic()
    last = start

    def advance() -> None:
        nonlocal count, last
        count, now = count + 1, time.monotonic()
        if now - last >= PLAIN_LINE_EVERY_S:
            last, eta = now, (now - start) / count * (total - done - count)
            log.info("  %s %d/%d, eta %.0f s", label, done + count, total, eta)

    return advance
