"""What a person sees while it works: log lines, and progress with an ETA on every long step."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from gallery.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, TwinhashError

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("twinhash")
log.setLevel(logging.INFO)
PLAIN_LINE_EVERY_S = 15.0
T = TypeVar("T")


@cache
def terminal() -> Console:
    """The one rich console, on stderr: log lines and progress bars have to share it."""
    from rich.console import Console

    return Console(stderr=True)


def show_log() -> None:
    """Sends log lines to stderr: above a running progress bar on a terminal, plain elsewhere."""
    log.propagate = False  # converters give the root logger a handler, which would say everything twice
    if any(not isinstance(h, logging.FileHandler) for h in log.handlers):
        return
    if sys.stderr.isatty():
        from rich.logging import RichHandler

        log.addHandler(
            RichHandler(console=terminal(), show_time=False, show_level=False, show_path=False, markup=False)
        )
    else:
        log.addHandler(logging.StreamHandler())


def exit_code(work: Callable[[], int], left: str) -> int:
    """What `work` returns, or the exit code of what kept it from returning, said in a line without a traceback.

    left: what is left of the work after Ctrl-C or on a full disk, a sentence that says what to do
    """
    show_log()
    try:
        return work()
    except TwinhashError as error:
        log.error("Error: %s", error)
    except OSError as error:
        log.error("Error: %s.  Free or repair the disk.  %s", error, left)
    except KeyboardInterrupt:
        log.warning("Stopped.  %s", left)
        return EXIT_INTERRUPTED
    return EXIT_BAD_INPUT


def track(items: Iterable[T], label: str, total: int, done: int = 0) -> Iterator[T]:
    """Yields `items` under a progress bar on a terminal, or with a plain line every 15 s elsewhere.

    total: how many there are in all; done: how many an earlier run had finished.
    """
    yield from (_bar if sys.stderr.isatty() else _lines)(items, label, total, done)


def _bar(items: Iterable[T], label: str, total: int, done: int) -> Iterator[T]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=terminal(), transient=True) as progress:
        task = progress.add_task(label, total=total, completed=done)
        for item in items:
            yield item
            progress.advance(task)


def _lines(items: Iterable[T], label: str, total: int, done: int) -> Iterator[T]:
    start = last = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= PLAIN_LINE_EVERY_S:
            last, eta = now, (now - start) / count * (total - done - count)
            log.info("  %s %d/%d, eta %.0f s", label, done + count, total, eta)
