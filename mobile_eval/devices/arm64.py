"""The ARM kernels of the real aarch64 engines, under qemu-user: their codes, and the instructions they execute.

No milliseconds: an emulator's time says nothing about a device's.  The count is no time either (it knows no caches, no
clock and no second issue port), but it repeats, and it is of the instructions that a device would execute.
"""

import dataclasses
import os
import re
import subprocess
from pathlib import Path

from export.artifact import ExportedModel
from gallery.errors import InputError, MissingBackend
from mobile_eval.devices.base import DeviceOutput
from mobile_eval.devices.setup import ARM64_FIX, default_folder, out_of_date_reason
from mobile_eval.devices.subprocess_device import EXPECTED, WORKER, SubprocessDevice, WorkerFailed, copy_worker

PROFILES = ("cortex-a53", "cortex-a76")  # most cheap phones; dot products and half precision
MARKS = 5
COUNTS, MODULES = "counts.txt", "modules"  # not the repository: below /usr the emulator may see the userland instead


class Arm64(SubprocessDevice):
    """An emulated core, one of `PROFILES`.

    root:  of the userland; count: whether to count instructions: the least of five inferences after the first
    """

    formats = ("onnx", "ort", "litert", "mediapipe")
    image_s = 30.0  # 0.1 to 0.9 s for MobileNetV3-small at 224 pixels

    def __init__(self, profile: str = "cortex-a76", root: Path | None = None, count: bool = True) -> None:
        if profile not in PROFILES:
            raise InputError(f"one of {', '.join(PROFILES)}", profile, "Name one of them.")
        self.profile, self.root, self.count = profile, (root or default_folder("arm64")).absolute(), count
        self.name = f"arm64-{profile}"

    def prepare(self) -> None:
        """Raises `MissingBackend` unless the userland is there and up to date."""
        if reason := out_of_date_reason(self.root):
            raise MissingBackend("the ARM64 userland", reason, ARM64_FIX)
        super().prepare()
        copy_worker(self.folder / MODULES)

    def run(self, model: ExportedModel) -> DeviceOutput:
        """Run the model and count instructions."""
        output = super().run(model)
        printed = subprocess.run(["qemu-aarch64", "--version"], capture_output=True, text=True, timeout=60, check=True)
        version = re.search(r"version (\d+\.\d+)", printed.stdout)
        emulator = f"qemu-user {version[1] if version else 'of an unknown version'}"
        conditions = {"profile": self.profile, "emulator": emulator}
        figures: dict[str, object] = {"conditions": conditions, "threads": 1}
        if self.count:
            figures["instructions"], multiply_adds, memory = min_instructions(self.folder / COUNTS)
            conditions |= {"vector multiply-adds": f"{multiply_adds:,}", "loads and stores": f"{memory:,}"}
        return dataclasses.replace(output, figures=figures)

    def _command(self, arguments: list[str]) -> list[str]:
        """Run the userland's Python with only the path of the host's environment, one thread, a fixed hash seed."""
        modules = os.pathsep.join(map(str, (self.root / "base/opt/site", self.folder / MODULES)))
        variables = [f"PATH={os.environ.get('PATH', os.defpath)}", "HOME=/tmp", "LANG=C.UTF-8", f"PYTHONPATH={modules}"]
        variables += ["PYTHONHASHSEED=0", "OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1"]
        qemu = ["qemu-aarch64", "-cpu", self.profile, "-seed", "1", "-L", str(self.root / self.profile)]  # of AT_RANDOM
        if self.count:
            qemu += ["-plugin", f"{self.root}/armcount.so,out={self.folder / COUNTS}"]
        python = [str(self.root / "base/usr/bin/python3"), *WORKER, *arguments]
        return ["env", "-i", *variables, *qemu, *python, "--samples", "0", "--marks", str(MARKS if self.count else 0)]


def min_instructions(path: Path) -> tuple[int, int, int]:
    """Return all instructions, vector multiply-adds, and loads and stores of the cheapest marked inference.

    The file has two lines for each inference, before and after it, of three running totals each.
    """
    lines = [[int(number) for number in line.split()] for line in path.read_text().splitlines()]
    if len(lines) != 2 * MARKS or {len(line) for line in lines} != {3}:
        raise WorkerFailed(EXPECTED, f"{len(lines)} lines of the instruction counter, not {2 * MARKS}", ARM64_FIX)
    pairs = zip(lines[::2], lines[1::2], strict=True)
    total, multiply_adds, memory = min([b - a for a, b in zip(*pair, strict=True)] for pair in pairs)
    return total, multiply_adds, memory
