"""What the numbers were taken on."""

import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gallery.cores import available_cores
from gallery.results import SystemInfo

PACKAGES = (
    "torch", "timm", "numpy", "onnxruntime", "ai-edge-litert", "tflite-runtime", "litert-torch", "coremltools",
    "lancedb", "faiss-cpu",
)  # fmt: skip


def describe() -> SystemInfo:
    """Describe this machine without importing anything heavy: the GPU is named only where torch is loaded already."""
    torch, packages = sys.modules.get("torch"), {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return SystemInfo(
        cpu=cpu_name(), cores=available_cores(), memory_gb=round(pages / 2**30, 1),
        gpu=torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None,
        os=platform.platform(terse=True), python=platform.python_version(), packages=packages,
    )  # fmt: skip


def cpu_name() -> str:
    """The processor's model name as the system gives it, or else its architecture."""
    try:
        if sys.platform == "darwin":
            return subprocess.check_output(["sysctl", "-n", "machdep.cpu.brand_string"], text=True).strip()
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except (OSError, subprocess.CalledProcessError):
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return next(filter(None, names), platform.processor() or platform.machine())
