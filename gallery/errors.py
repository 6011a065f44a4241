"""Errors meant for the user, and the exit codes of the command lines.

Every error names what was expected, what was found, and the fix.  A command that meets one prints it
without a traceback and exits with `EXIT_BAD_INPUT`; so it does where this machine lacks something: memory, rights,
space.  Whatever else goes wrong is a fault of this program and ends with `EXIT_CRASH`.  A command that is stopped by
signal n exits with `EXIT_STOPPED` + n: 130 by Ctrl-C, 143 by SIGTERM.
"""

EXIT_PASSED, EXIT_GATE_FAILED, EXIT_BAD_INPUT, EXIT_CRASH, EXIT_STOPPED = 0, 1, 2, 3, 128


class TwinhashError(Exception):
    """Base of all errors meant for the user."""

    def __init__(self, expected: str, found: str, fix: str) -> None:
        self.expected, self.found, self.fix = expected, found, fix
        super().__init__(f"expected {expected}; found {found}. {fix}")


class InputError(TwinhashError):
    """An image, manifest, flag or configuration that cannot be used."""


class CodeSpaceMismatch(TwinhashError):
    """Two things of different code spaces were about to be compared."""


class CorruptFile(TwinhashError):
    """A file whose bytes are not what its checksum, header or manifest says."""


class MissingBackend(TwinhashError):
    """An optional engine or library that is not installed here."""


class RunLocked(TwinhashError):
    """Another process is working in this run folder."""


class StoreUnreachable(TwinhashError):
    """An object store that does not answer, as opposed to one that says what is wrong."""


class DeviceLost(TwinhashError):
    """A device that is gone: unplugged, killed, out of reach."""
