"""Android's debug bridge: one device, found by its serial number; its shell, and files to it and back."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gallery.console import log
from gallery.errors import DeviceLost, InputError, MissingBackend
from mobile_eval.devices.subprocess_device import EXPECTED, WorkerFailed, describe_exit

SHELL_S, TRANSFER_S = 30.0, 300.0
MAX_OUTPUT = 1 << 20  # bytes that are read of a command's output
TIMED_OUT = 1000  # no exit code of a process
STATES = {
    ("unauthorized", "authorizing"): "Unlock it and accept this computer's key on its screen.",
    ("offline",): "Plug it in again, or run: adb reconnect offline",
    ("no permissions",): "Add the udev rule of its maker, then run: adb kill-server",
}
CONNECT = "Connect one with USB debugging on (Settings, Developer options), or run: adb connect HOST:PORT"


class AdbClient:
    """The device with this serial number, or the only one connected."""

    def __init__(self, serial: str | None = None) -> None:
        """Raises `MissingBackend` without adb or a usable device, `InputError` when it is not clear which."""
        if not shutil.which("adb"):
            raise MissingBackend("adb on the path", "none", "Install Android's platform tools: apt-get install adb")
        listed = _run(["adb", "devices"], SHELL_S)
        if listed.returncode:
            raise MissingBackend("adb to start its server", listed.stderr.strip()[-300:], "Run: adb devices")
        self.serial = choose(listed.stdout, serial)

    def shell(self, command: str, limit_s: float = SHELL_S) -> str:
        """Return the output of a command in the device's shell; raises `WorkerFailed` with its message if it fails."""
        return self._adb(["shell", command], limit_s, command)

    def push(self, sources: Sequence[Path], folder: str) -> None:
        """Copy files and folders into a folder on the device."""
        self._adb(["push", *map(str, sources), f"{folder}/"], TRANSFER_S, f"push to {folder}")

    def pull(self, source: str, target: Path) -> None:
        """Copy a file from the device."""
        self._adb(["pull", source, str(target)], TRANSFER_S, f"pull of {source}")

    def _adb(self, arguments: Sequence[str], limit_s: float, action: str) -> str:
        done = _run(["adb", "-s", self.serial, *arguments], limit_s)
        message = "".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-1:])
        # asked even after a 0: that is adb's exit code when the device goes while a command runs
        if _run(["adb", "-s", self.serial, "get-state"], SHELL_S).stdout.strip() != "device":
            found = f"it gone during `{action}`" + (f" ({message})" if message else "")
            raise DeviceLost(f"{self.serial} to stay connected", found, "Connect it again and run the command again.")
        if (code := done.returncode) == 0:
            return done.stdout
        code = 128 - code if 128 < code < TIMED_OUT else code  # how a shell reports a signal
        end = f"still running after {limit_s:.0f} s" if code == TIMED_OUT else describe_exit(code, message)
        raise WorkerFailed(EXPECTED, f"`{action}`: {end}", "Run it by hand: adb shell")


def choose(listed: str, serial: str | None) -> str:
    """Return the serial number to use, from the output of `adb devices`."""
    states = dict(line.split(None, 1) for line in listed.splitlines()[1:] if len(line.split(None, 1)) == 2)
    if not states:
        raise MissingBackend("an Android device", "none", CONNECT)
    first = next(iter(states))
    if serial is None and len(states) > 1:
        found = ", ".join(f"{name} ({state.strip()})" for name, state in states.items())
        raise InputError("one Android device, or its serial number", found, f"Name one, e.g. {first}.")
    name = serial or first
    if name not in states:
        raise MissingBackend(f"the Android device {name}", f"only {', '.join(states)}", CONNECT)
    state = states[name].strip()
    if state != "device":
        fix = next((fix for starts, fix in STATES.items() if state.startswith(starts)), "Start Android on it.")
        raise MissingBackend(f"the Android device {name} to be ready", state.split(";")[0], fix)
    return name


def _run(command: list[str], limit_s: float) -> subprocess.CompletedProcess[str]:
    """Run with exit code `TIMED_OUT` after `limit_s`; into files: a server that adb starts would keep a pipe open."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=limit_s).returncode
        except subprocess.TimeoutExpired:
            code = TIMED_OUT
        for stream in (out, err):
            stream.seek(0)
        texts = [stream.read(MAX_OUTPUT).decode(errors="replace") for stream in (out, err)]
    log.debug("%s: %d %s", command, code, texts)
    return subprocess.CompletedProcess(command, code, *texts)
