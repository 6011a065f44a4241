"""Atomic writes, checksums and locks."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gallery.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from filelock import AcquireReturnProxy, FileLock
    from numpy.typing import NDArray

FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
PARTIAL = ".partial"  # ends the names of temporary folders
STARTED = time.time() - 1  # of this process, by the clocks of file systems, which lag
MAX_JSON = 64 << 20  # bytes
T = TypeVar("T")
MAX_PACKAGE_MANIFEST = 1 << 20  # bytes
MAX_ENTRIES = 100_000  # files and folders that are listed below a folder
DESKTOP_FILES = {  # what macOS, Windows, file servers and archivers leave in folders that were only looked at
    ".ds_store", ".localized", ".apdisk", "__macosx", ".appledouble", ".spotlight-v100", ".fseventsd", ".trashes",
    ".temporaryitems", "icon\r", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin",
    "system volume information", ".directory", "lost+found", "@eadir", "#recycle", ".@__thumb",
}  # fmt: skip


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it is fsynced and renamed onto `path`, on failure removed.

    Works for files and for directories (a Core ML package, a LanceDB table).  An existing `path` stays as
    it was until the rename; a directory is moved aside first because rename(2) cannot replace a full one.
    A killed process leaves its temporary folder to `remove_partial`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=partial_prefix(path), suffix=PARTIAL, dir=path.parent))
    try:
        draft = beside / path.name
        yield draft
        for item in (draft, *draft.rglob("*")):
            _sync(item)
        _replace(draft, path, beside / "old")
        _sync(path.parent)
    except OSError as error:
        if error.errno in FULL and error.filename is None:  # of write(2), which knows no names
            error.filename = str(path)
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def partial_prefix(path: Path) -> str:
    """Return how the name of a temporary folder for `path` begins: with its name and this process's id."""
    return f".{path.name}.{os.getpid()}."


def remove_partial(folder: Path, name: str = "") -> None:
    """Remove what killed processes left unfinished below `folder`, or of the entry `name` in it alone."""
    for beside in list(folder.glob(f".*{PARTIAL}") if name else folder.rglob(f".*{PARTIAL}")):
        made_by = re.fullmatch(rf"\.(.+)\.(\d+)\.\w+{re.escape(PARTIAL)}", beside.name)
        if made_by and name in ("", made_by[1]) and not _is_alive(int(made_by[2]), beside):
            shutil.rmtree(beside, ignore_errors=True)


def _is_alive(pid: int, beside: Path) -> bool:
    """Whether the process that made a folder lives; in containers a killed one had the id of this one."""
    if pid == os.getpid():
        return beside.stat().st_mtime >= STARTED
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _replace(draft: Path, path: Path, aside: Path) -> None:
    """Rename `draft` onto `path`; what rename(2) cannot replace goes `aside` first, and back should the rest fail."""
    try:
        while True:  # more than once when other writers come between: the last one wins
            try:
                os.replace(draft, path)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR):
                    raise
            shutil.rmtree(aside, ignore_errors=True)
            with suppress(FileNotFoundError):
                path.rename(aside)
    except BaseException:
        with suppress(OSError):
            aside.rename(path)
        raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    with suppress(OSError):  # some file systems refuse to fsync a directory; the rename is still atomic there
        os.fsync(handle)
    os.close(handle)


def atomic_write(path: Path, data: bytes | str) -> Path:
    """Write `data` to `path` atomically; text is UTF-8."""
    with atomic_path(path) as draft:
        draft.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write `value` as indented JSON, atomically."""
    return atomic_write(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def check_regular(path: Path, limit: int) -> None:
    """Raise `ValueError` unless `path` is a file of at most `limit` bytes: a pipe would never end."""
    try:
        status = path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{path.name} is a link that leads to itself") from error
        raise
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        what = f"{status.st_size:,} bytes" if stat.S_ISREG(status.st_mode) else "a folder, pipe or device"
        raise ValueError(f"{path.name} is {what}, not a file of at most {limit:,} bytes")


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a file of at most `limit` bytes; raises `ValueError` for a larger one and whatever is no file."""
    check_regular(path, limit)
    with path.open("rb") as stream:
        return stream.read(limit)


def read_json(path: Path, kind: type[T], limit: int = MAX_JSON) -> T:
    """Read JSON whose outermost value is a `kind`; raises `OSError`, or `ValueError` for all that is wrong in it."""
    try:
        value = json.loads(read_bytes(path, limit))
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deeply") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path.name} holds a JSON {type(value).__name__}, not a {kind.__name__}")
    return value


def open_array(path: Path, limit: int) -> NDArray[Any]:
    """Map an .npy of at most `limit` bytes into memory; raises `OSError`, or `ValueError` for all that is wrong in it.

    Nothing is pickled, and what is in the header takes no memory: a map is as long as its file.
    """
    import numpy as np

    check_regular(path, limit)
    try:
        array: np.memmap[Any, Any] = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy's reader of headers raises what Python's tokenizer does
        raise ValueError(f"{path.name} is no array: {type(error).__name__}: {error}") from error
    return array


def is_desktop_file(name: str) -> bool:
    """Return whether desktop software made a file or folder of this name by itself, and not the user."""
    return name.startswith("._") or name.lower() in DESKTOP_FILES


def list_entries(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield everything below `folder` with its lstat(2), without `DESKTOP_FILES`; no link is followed, nothing opened.

    Raises `ValueError` where there are more than `MAX_ENTRIES`.
    """
    waiting, count = [folder], 0
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if (count := count + 1) > MAX_ENTRIES:
                    raise ValueError(f"more than {MAX_ENTRIES:,} files")
                if is_desktop_file(entry.name):
                    continue
                status = entry.stat(follow_symlinks=False)
                yield Path(entry.path), status
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(Path(entry.path))


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file; of a directory, the hash over its sorted `relative name, file hash` lines.

    Desktop files do not count, and of an .mlpackage's Manifest.json only the content does: coremltools writes it again,
    in the form of its own system, whenever it opens the package.
    """
    if path.is_dir():
        digest = hashlib.sha256()
        for file in _files_below(path):
            line = f"{file.relative_to(path).as_posix()}\0{_content_sha256(file)}\n"
            digest.update(line.encode(errors="surrogateescape"))
        return digest.hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a directory that `sha256_of` reads as they are."""
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in _files_below(path) if not _is_package_manifest(file))


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path, _ in list_entries(folder) if path.is_file())


def _is_package_manifest(file: Path) -> bool:
    return file.name == "Manifest.json" and file.parent.suffix == ".mlpackage"


def _content_sha256(file: Path) -> str:
    """Return the SHA-256 of a file, or of what the JSON of a package's manifest says."""
    if not _is_package_manifest(file):
        return sha256_of(file)
    try:
        data = read_bytes(file, MAX_PACKAGE_MANIFEST)
        with suppress(ValueError, RecursionError):  # anything else is hashed as it is
            data = json.dumps(json.loads(data), sort_keys=True).encode()
    except ValueError as error:
        data = str(error).encode()  # too large to be one
    return hashlib.sha256(data).hexdigest()


def is_writable(path: Path) -> bool:
    """Whether this user may write to a folder, or make it."""
    existing = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
    return os.access(existing, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def acquire_lock(path: Path, fix: str, timeout: float = -1) -> AcquireReturnProxy[FileLock]:
    """Lock a file, whose folder is made, until the context returned is left or the process dies.

    Raises `filelock.Timeout` after `timeout` seconds (-1: never), and `InputError` where there can be no lock.
    """
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path, preserve_lock_file=True).acquire(timeout)
    except Timeout:  # an OSError too
        raise
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            fix = "Use a folder on a local disk, or mount this one with locks."
            raise InputError(f"a file system with locks at {path.parent}", str(error), fix) from error
        raise InputError(f"a folder that can be written at {path.parent}", str(error), fix) from error
