"""Logging, progress with an ETA on every long step, and exit codes of the command lines."""

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
    """Return the one rich console, on stderr: log lines and progress bars have to share it."""
    from rich.console import Console

    return Console(stderr=True)


def show_log() -> None:
    """Send log lines to stderr: above a running progress bar on a terminal, plain elsewhere."""
    log.propagate = False  # converters give the root logger a handler, which would say everything twice
    if any(not isinstance(h, logging.FileHandler) for h in log.handlers):
        return
    if sys.stderr.isatty():
        from rich.logging import RichHandler

        log.addHandler(RichHandler(console=terminal(), show_time=False, show_level=False, show_path=False))
    else:
        log.addHandler(logging.StreamHandler())


def run_cli(main: Callable[[], int], on_interrupt: str) -> int:
    """Return the exit code of `main`; an error meant for the user becomes one line without a traceback.

    on_interrupt: after Ctrl-C or on a full disk, a sentence that says what is kept and what to do
    """
    show_log()
    try:
        return main()
    except TwinhashError as error:
        log.error("Error: %s", error)
    except OSError as error:
        log.error("Error: %s.  Free or repair the disk.  %s", error, on_interrupt)
    except KeyboardInterrupt:
        log.warning("Stopped.  %s", on_interrupt)
        return EXIT_INTERRUPTED
    return EXIT_BAD_INPUT


def track(items: Iterable[T], label: str, total: int, done: int = 0) -> Iterator[T]:
    """Yield `items` under a progress bar on a terminal, or with a plain line every 15 s elsewhere.

    total: number of items in all; done: number that an earlier run had finished.
    """
    if sys.stderr.isatty():
        from rich import progress

        columns = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeRemainingColumn())
        with progress.Progress("  {task.description}", *columns, console=terminal(), transient=True) as bar:
            task = bar.add_task(label, total=total, completed=done)
            for item in items:
                yield item
                bar.advance(task)
        return
    start = last = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= PLAIN_LINE_EVERY_S:
            last, eta = now, (now - start) / count * (total - done - count)
            log.info("  %s %d/%d, eta %.0f s", label, done + count, total, eta)
