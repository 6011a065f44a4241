"""How much memory this process takes, and a limit of it, where the system has them: on Linux."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def memory(key: str) -> float | None:
    """Return `VmRSS`, `VmHWM` or `VmData` of this process in 10**6 bytes; None where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024 / 1e6
    return None


@contextmanager
def limit_memory(more: int) -> Iterator[None]:
    """Let this process allocate that many bytes more, and no more than half of what the machine has.

    A file that asks for a thousand times its size then fails alone, and not with all else on the machine.
    """
    if (now := memory("VmData")) is None:
        yield
        return
    import os
    import resource

    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = int(now * 1e6) + min(more, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
    resource.setrlimit(resource.RLIMIT_DATA, (most if before < 0 else min(most, before), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))
