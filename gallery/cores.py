"""How many cores this process may use, and work that is shared among them."""

import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def available_cores() -> int:
    """Return the cores that this process may use: of its affinity mask, within the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cgroup_cores())))


def cgroup_cores(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the CPU quota of this process's control group, or of one above it, in cores; infinite if there is none.

    Version 2 has `cpu.max` ("200000 100000", or "max 100000"), in a container below `root` itself.
    """
    least = math.inf
    with suppress(OSError, ValueError):
        group = next((line[3:] for line in proc.read_text().splitlines() if line.startswith("0::")), "/")
        folder = root / group.strip().lstrip("/")
        for level in (folder, *folder.parents):
            if level.is_relative_to(root) and (limit := level / "cpu.max").is_file():
                quota, period = limit.read_text().split()
                least = min(least, least if quota == "max" else int(quota) / int(period))
    return least


def map_ahead(work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Yield what `work` makes of each item, in order, by a thread a core, a few items ahead of who takes them.

    For images, which Pillow decodes without the GIL; what it warns of odd metadata is not shown.
    """
    workers, ahead = available_cores(), deque[Future[T]]()
    pool = ThreadPoolExecutor(workers)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) > 4 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
