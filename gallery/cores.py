"""How many cores this process may use."""

import math
import os
from contextlib import suppress
from pathlib import Path


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
