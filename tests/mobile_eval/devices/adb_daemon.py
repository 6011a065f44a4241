"""What Android's adbd is to adb, as far as our harness goes: a daemon on 127.0.0.1, for tests only.

It speaks the transport of `packages/modules/adb/protocol.txt` (CNXN, AUTH, OPEN, OKAY, WRTE, CLSE), the shell service
in version 2 (`shell_protocol.h`) and file sync in version 1 (`SYNC.TXT`).  Commands run in a changed root directory:
a Debian userland for ARM64 under qemu-user, laid out like a phone's.  It is no Android: no bionic, no SELinux.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

CNXN, AUTH, OPEN, OKAY, WRTE, CLSE = (int.from_bytes(name, "little") for name in
                                      (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"WRTE", b"CLSE"))  # fmt: skip
VERSION, PAYLOAD, PIECE = 0x01000001, 1 << 18, 1 << 16
PROFILE = "cortex-a76"
ARM_APPLETS = ("cat", "chmod", "ls", "mkdir", "rm", "sleep")
PROPERTIES = {"ro.product.model": "Test double", "ro.build.version.release": "none"}


def make_root(userland: Path, root: Path) -> Path:
    """A root directory with the ARM64 userland, and natively only the shell and qemu, so that no binfmt is needed."""
    if subprocess.run(["cp", "-al", userland / "base", root], capture_output=True).returncode:
        shutil.rmtree(root, ignore_errors=True)
        subprocess.run(["cp", "-a", userland / "base", root], check=True)
    for name, path in {"sh": "/bin/sh", "qemu": shutil.which("qemu-aarch64") or ""}.items():
        _native(root, Path(path).resolve(), root / "bin" / name)
    busybox = next(path for path in (root / "bin/busybox", root / "usr/bin/busybox") if path.exists())
    qemu = f"exec /bin/qemu -cpu {PROFILE}"
    for name in ARM_APPLETS:
        _script(root, name, f'{qemu} /{busybox.relative_to(root)} {name} "$@"')
    _script(root, "python3", f'export PYTHONPATH="$PYTHONPATH:/opt/site"; {qemu} /usr/bin/python3.11 "$@"')
    _script(
        root,
        "getprop",
        "\n".join(f'[ "$1" = {key} ] && echo "{value}"' for key, value in PROPERTIES.items()) + "\ntrue",
    )
    _script(root, "dumpsys", '[ "$1" = thermalservice ] && echo "Thermal Status: 1"')
    cpu = "sys/devices/system/cpu"
    files = {
        "proc/cpuinfo": (userland / PROFILE / "proc/cpuinfo").read_text(),
        f"{cpu}/cpu0/cpufreq/scaling_governor": "schedutil\n",
    }
    files |= {f"{cpu}/{name}": "0-1\n" for name in ("possible", "present", "online")}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "data/local/tmp").mkdir(parents=True)
    return root


def _native(root: Path, binary: Path, target: Path) -> None:
    """Copies a program of the host, and the libraries it is linked with to where it looks for them."""
    linked = subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout.split()
    for library in [word for word in linked if word.startswith("/")]:
        (root / library[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, root / library[1:])
    target.unlink(missing_ok=True)
    shutil.copy(binary, target)


def _script(root: Path, name: str, text: str) -> None:
    path = root / "bin" / name
    path.unlink(missing_ok=True)  # else a hard link to the userland would be written through
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


class Daemon:
    """Serves until `unplug`, which may come at any time.  locked: never accepts a computer's key."""

    def __init__(self, root: Path, locked: bool = False) -> None:
        self.root, self.locked = root, locked
        self.children: list[subprocess.Popen[bytes]] = []
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self.serial = f"127.0.0.1:{self._sockets[0].getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def unplug(self) -> None:
        """Ends every connection, and every process that a connection started."""
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for child in self.children:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait(10)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._sockets[0].accept()
                self._sockets.append(connection)
                threading.Thread(target=Transport(self, connection).serve, daemon=True).start()


class Transport:
    """One connection of an adb server, and the streams that are open on it."""

    def __init__(self, daemon: Daemon, connection: socket.socket) -> None:
        self.daemon, self._socket, self._lock = daemon, connection, threading.Lock()
        self._streams: dict[int, Stream] = {}

    def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        head = struct.pack("<6I", command, first, second, len(data), sum(data), command ^ 0xFFFFFFFF)
        with self._lock:
            self._socket.sendall(head + data)

    def serve(self) -> None:
        with suppress(OSError, EOFError):
            while True:
                command, first, second, length = struct.unpack("<4I8x", exactly(24, self._socket.recv))
                self._took(command, first, second, exactly(length, self._socket.recv))
        for stream in self._streams.values():
            stream.end()

    def _took(self, command: int, first: int, second: int, data: bytes) -> None:
        if command in (CNXN, AUTH):
            self._greet(command, first)
        elif command == OPEN:
            stream = self._streams[first] = Stream(self, first)
            self.send(OKAY, first, first)
            threading.Thread(target=stream.serve, args=(data.rstrip(b"\0").decode(),), daemon=True).start()
        elif second in self._streams:  # our number of a stream is theirs
            self._streams[second].took(command, data)

    def _greet(self, command: int, kind: int) -> None:
        if not self.daemon.locked:
            self.send(CNXN, VERSION, PAYLOAD, b"device::features=shell_v2")
        elif command == CNXN or kind == 2:  # a signature with a key we do not know: ask again, then comes the key
            self.send(AUTH, 1, 0, bytes(20))


class Stream:
    """One service: a shell command, or file sync."""

    def __init__(self, transport: Transport, number: int) -> None:
        self._transport, self._number = transport, number
        self._inbox, self._news, self._ended = bytearray(), threading.Condition(), False
        self._ready = threading.Semaphore(0)

    def took(self, command: int, data: bytes) -> None:
        if command == OKAY:
            self._ready.release()
        elif command == WRTE:
            with self._news:
                self._inbox += data
                self._news.notify()
            self._transport.send(OKAY, self._number, self._number)
        elif command == CLSE:
            self.end()

    def end(self) -> None:
        with self._news:
            self._ended = True
            self._news.notify()
        self._ready.release()

    def read(self, most: int) -> bytes:
        with self._news:
            self._news.wait_for(lambda: self._inbox or self._ended)
            found = bytes(self._inbox[:most])
            del self._inbox[:most]
            return found

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            self._transport.send(WRTE, self._number, self._number, data[start : start + PIECE])
            self._ready.acquire()
            if self._ended:
                raise EOFError

    def serve(self, service: str) -> None:
        kind, _, command = service.partition(":")
        with suppress(OSError, EOFError):
            if kind.startswith("shell,v2"):
                self._shell(command)
            elif kind == "sync":
                self._sync()
            self._transport.send(CLSE, self._number, self._number)

    def _shell(self, command: str) -> None:
        root = self._transport.daemon.root
        child = subprocess.Popen(
            ["/usr/sbin/chroot", root, "/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True, env={"PATH": "/bin:/usr/bin", "HOME": "/data/local/tmp"},
        )  # fmt: skip
        self._transport.daemon.children.append(child)
        said = child.communicate()
        for number, text in enumerate(said, 1):
            for start in range(0, len(text), PIECE):
                piece = text[start : start + PIECE]
                self.write(struct.pack("<BI", number, len(piece)) + piece)
        code = child.returncode if child.returncode >= 0 else 128 - child.returncode
        self.write(struct.pack("<BIB", 3, 1, code))

    def _sync(self) -> None:
        answers: dict[bytes, Callable[[str], None]] = {b"STAT": self._stat, b"SEND": self._receive, b"RECV": self._give}
        while True:
            request, length = struct.unpack("<4sI", exactly(8, self.read))
            if request == b"QUIT":
                return
            answers[request](exactly(length, self.read).decode())

    def _place(self, name: str) -> Path:
        """The file below the root; links of the userland are not followed out of it."""
        return self._transport.daemon.root / os.path.normpath(f"/{name}").lstrip("/")

    def _stat(self, name: str) -> None:
        try:
            found = self._place(name).stat()
            self.write(struct.pack("<4s3I", b"STAT", found.st_mode, found.st_size, int(found.st_mtime)))
        except OSError:
            self.write(struct.pack("<4s3I", b"STAT", 0, 0, 0))

    def _receive(self, name_and_mode: str) -> None:
        name, _, mode = name_and_mode.rpartition(",")
        path = self._place(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as target:
            while (head := struct.unpack("<4sI", exactly(8, self.read)))[0] == b"DATA":
                target.write(exactly(head[1], self.read))
        path.chmod(int(mode) & 0o777)
        self.write(struct.pack("<4sI", b"OKAY", 0))

    def _give(self, name: str) -> None:
        with self._place(name).open("rb") as source:
            while piece := source.read(PIECE):
                self.write(struct.pack("<4sI", b"DATA", len(piece)) + piece)
        self.write(struct.pack("<4sI", b"DONE", 0))


def exactly(count: int, read: Callable[[int], bytes]) -> bytes:
    """That many bytes; `EOFError` when the other end has gone."""
    data = b""
    while len(data) < count:
        piece = read(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data
