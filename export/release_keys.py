"""Ed25519 keys that sign releases: PEM files, the private one for its owner alone.

A private key (PKCS #8) is encrypted where the environment variable `PASSWORD` holds a password.  An app carries the
public one as the 64 hexadecimal digits of its 32 bytes.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from export.artifact import first_line
from gallery.codespace import FILE
from gallery.console import log
from gallery.errors import InputError
from gallery.files import read_bytes
from gallery.onnx_student import MANIFEST

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PASSWORD, PUBLIC = "TWINHASH_RELEASE_PASSWORD", ".pub"
MAX_KEY = 1 << 14  # bytes of a PEM file
MAKE = "Make a pair in new files: python export/run.py release-key new.pem"


def make_keys(path: Path) -> tuple[Path, str]:
    """Write a new private key, mode 0600, and its public key beside it; return the latter's path and digits.

    Of an existing private key without a public one beside it, which was lost, the public key alone is written.
    Raises `InputError` where there is a public key, no name of a file, or the folder is that of a bundle.
    """
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if path.is_dir() or not path.name:
        raise InputError("a file for a private key", f"{path}, a folder", f"Name a file in it: {path / 'key.pem'}")
    public, password = path.with_suffix(PUBLIC), os.environ.get(PASSWORD, "").encode()
    existing = [one for one in (path, public) if one.exists() or one.is_symlink()]
    is_lost = existing == [path] and path.is_file()
    if existing and not is_lost and path != public:
        fix = "Keep that key, by which apps know their releases, or name another file."
        raise InputError("names of two new files, of the private and the public key", str(existing[0]), fix)
    ships = any((folder / MANIFEST).exists() and (folder / FILE).exists() for folder in path.absolute().parents)
    if path == public or ships:
        found = f"{path}, inside of a bundle" if path != public else f"{path}, the name of a public key"
        raise InputError("a file for a private key, outside of what ships", found, "Name it key.pem, elsewhere.")
    key = load_key(path) if is_lost else Ed25519PrivateKey.generate()
    if not is_lost:
        encryption = pem.BestAvailableEncryption(password) if password else pem.NoEncryption()
        _write_new(path, key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, encryption), 0o600)
    info = pem.PublicFormat.SubjectPublicKeyInfo
    _write_new(public, key.public_key().public_bytes(pem.Encoding.PEM, info), 0o644)
    return public, key.public_key().public_bytes_raw().hex()


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that did not exist, which is never readable for more than `mode` says; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise


def load_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key; raises `InputError` for what is none, and for a missing or wrong password."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data, password = _read(path, "private"), os.environ.get(PASSWORD, "").encode()
    encrypted = b"BEGIN ENCRYPTED PRIVATE KEY" in data
    if encrypted and not password:
        fix = f"Set the environment variable {PASSWORD}."
        raise InputError(f"the password of the encrypted key {path}", "none", fix)
    try:
        key = load_pem_private_key(data, password if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        fix = f"Set {PASSWORD} to the password it was made with." if encrypted else MAKE
        raise InputError(f"an Ed25519 private key at {path}", first_line(error), fix) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"an Ed25519 private key at {path}", type(key).__name__, MAKE)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        log.warning("Other users of this machine may read %s: chmod 600 it.", path)
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key; raises `InputError` for what is none, a private key too."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    fix = "Name the .pub file that release-key wrote beside the private key."
    try:
        key = load_pem_public_key(_read(path, "public"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"an Ed25519 public key at {path}", first_line(error), fix) from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"an Ed25519 public key at {path}", type(key).__name__, fix)
    return key


def _read(path: Path, kind: str) -> bytes:
    try:
        return read_bytes(path, MAX_KEY)
    except (OSError, ValueError) as error:
        raise InputError(f"the {kind} key in a PEM file at {path}", first_line(error), MAKE) from error
