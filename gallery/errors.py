"""What can go wrong through no fault of the code, said so that the reader knows what to do next.

Every error names what was expected, what was found, and the way out.  A command that meets one prints it
without a traceback and exits with `EXIT_BAD_INPUT`.
"""

EXIT_PASSED, EXIT_GATE_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130


class TwinhashError(Exception):
    """Base of all errors meant for the user."""

    def __init__(self, expected: str, found: str, fix: str) -> None:
        self.expected, self.found, self.fix = expected, found, fix
        super().__init__(f"expected {expected}; found {found}. {fix}")


class InputError(TwinhashError):
    """A picture, manifest, flag or configuration that cannot be used."""


class CodeSpaceMismatch(TwinhashError):
    """Two things that speak different Hamming codes were about to be compared."""


class CorruptFile(TwinhashError):
    """A file whose bytes are not what its checksum, header or manifest says."""


class MissingBackend(TwinhashError):
    """An optional engine or library that is not installed here."""


class RunLocked(TwinhashError):
    """Another process is working in this run folder."""


class DeviceLost(TwinhashError):
    """A place where files run that is gone: unplugged, killed, out of reach."""
