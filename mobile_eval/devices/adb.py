"""Android's debug bridge: one phone, found by its serial number; its shell, and files to it and back."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gallery.console import log
from gallery.errors import DeviceLost, InputError, MissingBackend
from mobile_eval.devices.subprocess_device import describe_exit, worker_error

ASK_S, MOVE_S = 30.0, 300.0
MOST_BYTES = 1 << 20  # of what a command may say
ENDED = 1000  # no exit code of a process
STATES = {
    "unauthorized": "Unlock it and accept this computer's key on its screen.",
    "authorizing": "Unlock it and accept this computer's key on its screen.",
    "offline": "Plug it in again, or run: adb reconnect offline",
    "no permissions": "Add the udev rule of its maker, then run: adb kill-server",
}
CONNECT = "Connect one with USB debugging on (Settings, Developer options), or run: adb connect HOST:PORT"


class AdbClient:
    """The one device that `serial` names, or the only one there is."""

    def __init__(self, serial: str | None = None) -> None:
        """Raises `MissingBackend` without adb or a usable device, `InputError` when it is not clear which."""
        if not shutil.which("adb"):
            raise MissingBackend("adb on the path", "none", "Install Android's platform tools: apt-get install adb")
        said = _run(["adb", "devices"], ASK_S)
        if said.returncode:
            raise MissingBackend("adb to start its server", said.stderr.strip()[-300:], "Run: adb devices")
        self.serial = choose(said.stdout, serial)

    def shell(self, command: str, limit_s: float = ASK_S) -> str:
        """What a command of the device's shell prints; raises `WorkerFailed` when it fails, with its own words."""
        return self._adb(["shell", command], limit_s, command)

    def push(self, sources: Sequence[Path], folder: str) -> None:
        """Copies files into a folder there."""
        self._adb(["push", *map(str, sources), f"{folder}/"], MOVE_S, f"push to {folder}")

    def pull(self, source: str, target: Path) -> None:
        """Copies a file from there."""
        self._adb(["pull", source, str(target)], MOVE_S, f"pull of {source}")

    def lost(self) -> bool:
        """Whether adb no longer sees the device."""
        return _run(["adb", "-s", self.serial, "get-state"], ASK_S).stdout.strip() != "device"

    def _adb(self, words: Sequence[str], limit_s: float, what: str) -> str:
        done = _run(["adb", "-s", self.serial, *words], limit_s)
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        if self.lost():  # asked even after a 0: that is what adb ends with when the device goes while a command runs
            found = f"it gone during `{what}`" + "".join(f" ({line})" for line in said)
            raise DeviceLost(f"{self.serial} to stay connected", found, "Connect it again and run the command again.")
        if done.returncode == 0:
            return done.stdout
        raise worker_error(f"`{what}`: {_ending(done.returncode, limit_s, *said)}", "Run it by hand: adb shell")


def choose(listed: str, serial: str | None) -> str:
    """The serial number to use, from what `adb devices` printed."""
    rows = [line.split(None, 1) for line in listed.splitlines()[1:] if len(line.split(None, 1)) == 2]
    states = {name: state.strip() for name, state in rows}
    if not states:
        raise MissingBackend("an Android device", "none", CONNECT)
    if serial is None and len(states) > 1:
        raise InputError("one Android device, or its serial number", ", ".join(states), f"Name one, e.g. {rows[0][0]}.")
    name = serial or rows[0][0]
    if name not in states:
        raise MissingBackend(f"the Android device {name}", f"only {', '.join(states)}", CONNECT)
    if states[name] != "device":
        fix = next((fix for start, fix in STATES.items() if states[name].startswith(start)), "Start Android on it.")
        raise MissingBackend(f"the Android device {name} to be ready", states[name].split(";")[0], fix)
    return name


def _ending(code: int, limit_s: float, said: str = "") -> str:
    """A shell tells of a signal by an exit code of 128 and more."""
    return (
        f"still running after {limit_s:.0f} s"
        if code == ENDED
        else describe_exit(128 - code if code > 128 else code, said)
    )


def quote(*words: str | Path) -> str:
    """A command line for the device's shell."""
    return shlex.join(map(str, words))


def _run(command: list[str], limit_s: float) -> subprocess.CompletedProcess[str]:
    """Exit code `ENDED` when it took too long.  Into files, not pipes: a server that adb starts keeps a pipe open."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=limit_s).returncode
        except subprocess.TimeoutExpired:
            code = ENDED
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read(MOST_BYTES).decode(errors="replace"))
    log.debug("%s: %d %s", command, code, texts)
    return subprocess.CompletedProcess(command, code, *texts)
