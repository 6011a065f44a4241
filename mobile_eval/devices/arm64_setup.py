"""An AArch64 userland on this machine: Debian's packages and the real aarch64 wheels, to run under qemu-user.

root/base         the userland, with the wheels in opt/site
root/cortex-a53   the same by links, with the /proc/cpuinfo of that processor: ONNX Runtime reads it and crashes on that
                  of an x86 host, or picks instructions that the emulated core does not have
root/armcount.so  counts instructions
root/stamp.json   versions of all of it
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gallery.console import log
from gallery.errors import InputError, MissingBackend
from gallery.files import write_json
from mobile_eval.devices.install import install, step

SETUP = "python mobile_eval/run.py setup arm64"
SUITE, PYTHON = "bookworm", "3.11"  # Debian 12: its python3 is the one that cp311 wheels want
DEBIAN = "python3-minimal,libpython3-stdlib,libstdc++6,libgcc-s1,libgomp1,busybox-static"
TOOLS = {"qemu-aarch64": "qemu-user", "mmdebstrap": "mmdebstrap", "gcc": "gcc", "cc": "libc6-dev"}  # cc comes with gcc
WHEELS = ("numpy", "onnxruntime", "ai-edge-litert")  # all that the worker imports
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
COUNTER = Path(__file__).with_name("armcount.c")
A53 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
PROFILES = {  # features, variant and part number, as Linux prints them
    "cortex-a53": (A53, "0x0", "0xd03"),
    "cortex-a76": (f"{A53} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp", "0x4", "0xd0b"),
}
CORES = 2


def default_root() -> Path:
    """Return `TWINHASH_ARM64`, or a folder in the user's cache."""
    return Path(os.environ.get("TWINHASH_ARM64") or Path.home() / ".cache/twinhash/arm64")


def setup(root: Path | None = None) -> Path:
    """Build the userland at `root`, whole or not at all; one that is up to date is left alone.

    Takes about half a minute and 260 MB.  Raises `MissingBackend` with the output of the step that failed, `InputError`
    when `root` is somebody else's folder.
    """
    root = (root or default_root()).absolute()
    if not out_of_date_reason(root):
        log.info("The ARM64 userland in %s is up to date.", root)
        return root
    if root.exists() and "recipe" not in _read_stamp(root) and (root.is_file() or any(root.iterdir())):
        raise InputError("a new or empty folder for the ARM64 userland", f"files in {root}", "Name another folder.")
    root.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        _build(beside / "new")
        if root.exists():
            root.rename(beside / "old")
        (beside / "new").rename(root)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    log.info("The ARM64 userland is in %s.", root)
    return root


def out_of_date_reason(root: Path) -> str:
    """Return why the userland at `root` cannot be used; empty when it can."""
    found = _read_stamp(root)
    if "recipe" not in found:
        return f"no userland in {root}"
    other = [f"{key} {found.get(key)}, not {value}" for key, value in _stamp().items() if found.get(key) != value]
    if other:
        return f"one that was made of {', '.join(other)}"
    return "" if shutil.which("qemu-aarch64") else "no qemu-aarch64 on the path"


def environment(root: Path, *modules: Path) -> dict[str, str]:
    """Return the environment of the userland's Python: only the path of the host's, one thread, a fixed hash seed."""
    path = os.pathsep.join(map(str, [root / "base/opt/site", *modules]))
    fixed = {"HOME": "/tmp", "PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "PYTHONPATH": path}
    return fixed | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def qemu_command(root: Path, profile: str, counts: Path | None = None) -> list[str]:
    """Return the command of the userland's Python on that processor; counts: the file for the instruction counter."""
    plugin = ["-plugin", f"{root}/armcount.so,out={counts}"] if counts else []
    qemu = ["qemu-aarch64", "-cpu", profile, "-seed", "1", "-L", str(root / profile)]  # the seed of AT_RANDOM
    return [*qemu, *plugin, str(root / f"base/usr/bin/python{PYTHON}")]


def cpuinfo(profile: str) -> str:
    """Return the /proc/cpuinfo of a Linux on that processor."""
    features, variant, part = PROFILES[profile]
    core = {"BogoMIPS": "38.40", "Features": features, "CPU implementer": "0x41", "CPU architecture": "8"}
    core |= {"CPU variant": variant, "CPU part": part, "CPU revision": "1"}
    lines = "".join(f"{key}\t: {value}\n" for key, value in core.items())
    return "".join(f"processor\t: {number}\n{lines}\n" for number in range(CORES))


def _build(root: Path) -> None:
    root.mkdir()
    install(TOOLS)
    unpack = ["mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64", f"--include={DEBIAN}", SUITE]
    step("unpack an ARM64 Debian", [*unpack, root / "base", *_mirrors()])  # executes nothing of it: needs no binfmt
    stamp = _stamp()
    tags = ["--python-version", PYTHON, "--implementation", "cp", "--only-binary=:all:", "--no-deps", "--quiet"]
    tags += [f"--platform={platform}" for platform in PLATFORMS]
    pinned = [f"{name}=={stamp[name]}" for name in WHEELS]
    pip = [sys.executable, "-m", "pip", "install", "--target", str(root / "base/opt/site"), *tags, *pinned]
    step(f"download {', '.join(pinned)} for ARM64", pip)
    step("compile the instruction counter", ["gcc", "-O2", "-shared", "-fPIC", "-o", root / "armcount.so", COUNTER])
    for profile in PROFILES:
        _make_sysroot(root, profile)
        _smoke_test(root, profile)
    write_json(root / "stamp.json", stamp)


def _mirrors() -> list[str]:
    """Return where this machine's apt takes the suite from; on another system nothing: mmdebstrap's own choice."""
    if not shutil.which("apt-get"):
        return []
    line = "$(CODENAME) deb $(SITE) $(RELEASE) $(COMPONENT)"
    command = ["apt-get", "indextargets", "--format", line, "Created-By: Packages", "Origin: Debian"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL).stdout
    return sorted({line.partition(" ")[2] for line in printed.splitlines() if line.startswith(SUITE)})


def _make_sysroot(root: Path, profile: str) -> None:
    (root / profile / "proc").mkdir(parents=True)
    (root / profile / "proc/cpuinfo").write_text(cpuinfo(profile))
    for folder in (root / "base").iterdir():
        if folder.name != "proc":
            (root / profile / folder.name).symlink_to(Path("../base", folder.name))


def _smoke_test(root: Path, profile: str) -> None:
    """Import the engines and count an instruction; another version of QEMU would show here."""
    lines = root / "counts.txt"
    program = "import os, onnxruntime, ai_edge_litert.interpreter; os.getppid()"
    clean = ["env", "-i", *(f"{name}={value}" for name, value in environment(root).items())]
    step(f"try it as a {profile}", [*clean, *qemu_command(root, profile, lines), "-c", program])
    if not lines.read_text().strip():
        found = "none: this QEMU has another plugin interface"
        raise MissingBackend("counted instructions", found, "Use the qemu-user of Debian 12 (7.2).")
    lines.unlink()


def _read_stamp(root: Path) -> dict[str, str]:
    try:
        return dict(json.loads((root / "stamp.json").read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _stamp() -> dict[str, str]:
    """Return what a userland of today is made of; its wheels are the versions installed here: only the CPU differs."""
    recipe = hashlib.sha256(COUNTER.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:12]
    try:
        return {name: version(name) for name in WHEELS} | {"suite": SUITE, "recipe": recipe}
    except PackageNotFoundError as error:
        raise MissingBackend(", ".join(WHEELS), f"no {error.name}", f"Run: pip install {error.name}") from error
