"""The machine: its device, threads and memory allocator."""

import ctypes
import os
import platform

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def limit_threads() -> int:
    """Give torch this process's share of the cores; two greedy jobs on two cores were seen to run 100 times slower."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    torch.set_num_threads(threads)
    return threads


def tune_malloc() -> None:
    """Have glibc keep freed memory for the next step, where it would return large blocks and map them anew.

    Measured on 2 cores: MobileNetV2 and EfficientNet-lite2 train 1.2 times faster, crops are made 2 times faster.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
