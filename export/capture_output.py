"""Capture what converters print, for the debug log."""

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from gallery.console import log


@contextmanager
def quiet() -> Iterator[None]:
    """Send stdout, stderr (C++ included) and warnings to the debug log; exceptions pass.

    Only the file descriptors are moved: libraries imported inside keep `sys.stderr` in their log handlers.
    """
    _flush()
    kept = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as said:
        try:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            _flush()
            for number, handle in enumerate(kept, 1):
                os.dup2(handle, number)
                os.close(handle)
            said.seek(0)
            log.debug("%s", said.read().decode(errors="replace"))


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
