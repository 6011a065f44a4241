"""The commands `release-key`, `release` and `verify-release` of export/run.py."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from gallery.console import log
from gallery.errors import EXIT_PASSED, CorruptFile, InputError
from gallery.layers import require
from gallery.record import Record

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from export.release import Release


class ReleaseKeyCommand(Record):
    """Make the pair of keys that releases are signed and verified with (Ed25519).

        python export/run.py release-key key.pem

    writes the private key key.pem, which only you may read and which never ships, and the public key key.pub.  The last
    line is the public key as apps take it: 64 hexadecimal digits, to be built into the app.  An app takes no release
    that was signed with another key, so keep a copy of key.pem in a safe place; and it takes every release that was
    signed with its own, so make a key for each app.  With a password in the environment variable
    TWINHASH_RELEASE_PASSWORD the private key is encrypted.  If key.pub was lost, it is written again.
    """

    key: tyro.conf.Positional[Path]
    """File of the private key, new, or without its public key, which lies beside it and ends with .pub."""


class ReleaseCommand(Record):
    """Sign the next version of what apps download: release.json, with the checksums of a bundle's files.

        python export/run.py verify runs/mine/bundle
        python export/run.py release runs/mine/bundle --version 3 --key key.pem
        python export/run.py verify-release runs/mine/release.json --public-key key.pub \\
            --folder runs/mine/bundle

    Publish release.json and the files it names.  Apps fetch it, check the signature and what the release may replace
    (apps/release.ts, Release.kt and Release.swift of the bundle), fetch the files and check each.

    A student of the code space that the app's gallery is of is updated alone.  With a new teacher comes a new code
    space: then the gallery must come along, exported by `gallery/run.py export RUN FOLDER --to site` and given as
    --gallery FOLDER.  A version that was published stays as it is: whatever changes is a later version, also on the way
    back.

    Nothing ships that holds a private key in PEM in its first MiB.
    """

    bundle: tyro.conf.Positional[Path]
    """Folder of the bundle; nothing in it is changed."""
    version: int
    """Number of this release, higher than that of every release before."""
    key: Path
    """The private key that `release-key` made."""
    files: tuple[str, ...] = ()
    """Files of the bundle that ship; by default each ONNX and LiteRT model, and manifest.json."""
    gallery: Path | None = None
    """Folder of an exported gallery that ships too: needed when the code space is not that of the release before.
    Thumbnails are published beside it; each is named by its SHA-256, by which it can be checked."""
    out: Path | None = None
    """The release file; by default release.json beside the bundle."""


class VerifyReleaseCommand(Record):
    """Check a release as an app does: its signature, what it may replace, and the files that were downloaded.

        python export/run.py verify-release release.json --public-key key.pub \\
            --space f41b8e36f3c5d793 --installed installed/release.json --pinned-version 2 \\
            --folder downloads

    Exit code 0: an app takes the release, and the last line says what it updates.  Exit code 2: it does not, because
    the text or a file was changed, cut off or signed with another key, the version is lower than the pinned or the
    installed one, or equal with other content, or the code space is another and the release brings no gallery.
    """

    release: tyro.conf.Positional[Path]
    """The release.json."""
    public_key: Path
    """The public key that apps have: the .pub file of `release-key`."""
    space: str | None = None
    """Id of the code space of the gallery that the app searches; by default that of the installed release, or of
    RELEASE itself where none is installed."""
    pinned_version: int = 0
    """The lowest version that the app takes."""
    installed: Path | None = None
    """The release.json that the app has installed, signed with the same key."""
    folder: tuple[Path, ...] = ()
    """Folders in which all files of the release are looked for by name and checked."""


def make_release_keys(command: ReleaseKeyCommand) -> int:
    """Make both keys, and print what an app needs of them."""
    require("release")
    from export.release_keys import PASSWORD, make_keys

    encrypted = "encrypted" if os.environ.get(PASSWORD) else f"not encrypted ({PASSWORD} is not set)"
    if command.key.is_file():
        encrypted = "as it was"
    public, digits = make_keys(command.key)
    log.info("private key %s, %s: keep it secret, and a copy of it", command.key, encrypted)
    log.info("public key %s, in apps: %s", public, digits)
    return EXIT_PASSED


def release(command: ReleaseCommand) -> int:
    """Describe, sign and write a release."""
    require("release")
    from export.release import sign
    from export.release_content import describe_release
    from export.release_keys import load_key
    from gallery.files import atomic_write

    key, out = load_key(command.key), command.out or command.bundle.absolute().parent / "release.json"
    sources = [folder.resolve() for folder in (command.bundle, command.gallery) if folder]
    if any(out.resolve().is_relative_to(folder) for folder in sources) or out.is_dir():
        fix = "Leave --out out: release.json then lies beside the bundle."
        if command.out is None:
            fix = "Name a file elsewhere: --out FILE"
        raise InputError("a file outside of the bundle and the gallery for the release", str(out), fix)
    before = _read_former(out, command, key.public_key()) if out.exists() else None
    signed = sign(describe_release(command.bundle, command.version, command.files, command.gallery), key)
    atomic_write(out, signed.text)
    if before and before.code_space != signed.code_space and not signed.gallery:
        log.warning("The release before is of code space %s, this one of %s without a gallery: only apps that search a "
                    "server's gallery of this space take it.", before.code_space, signed.code_space)  # fmt: skip
    _log_release(signed)
    if packages := sorted(path.name for path in command.bundle.iterdir() if path.suffix in (".mlpackage", ".aimodel")):
        log.info("  not in it, since they are folders: %s", ", ".join(packages))
    log.info("release %s", out)
    return EXIT_PASSED


def _read_former(out: Path, command: ReleaseCommand, public_key: Ed25519PublicKey) -> Release:
    """Read the file to replace; raises `InputError` unless it is an earlier release, signed with the same key."""
    from export.release import read_release

    try:
        before = read_release(_read(out), public_key)
    except (CorruptFile, InputError) as error:
        expected = f"an earlier release of the same key to replace at {out}"
        raise InputError(expected, error.found, "Choose another --out, or take the key of before.") from error
    if before.version >= command.version:
        fix = f"Take --version {before.version + 1}, or choose another --out."
        raise InputError(f"a version above {before.version}, that of {out}", str(command.version), fix)
    return before


def verify_release(command: VerifyReleaseCommand) -> int:
    """Check signature, rule and files; say what an app does with the release."""
    require("release")
    from export.release import ReleaseClient, check_file, check_update, read_release
    from export.release_keys import load_public_key

    key = load_public_key(command.public_key)
    found = read_release(_read(command.release), key)
    installed = read_release(_read(command.installed), key) if command.installed else None
    _log_release(found)
    space = command.space or (installed or found).code_space
    update = check_update(found, ReleaseClient(space, installed, command.pinned_version))
    if command.folder:
        for file in (*found.files, *found.gallery):
            check_file(_find(file.name, command.folder), file)
    log.info("an app updates %s%s", update, "; all files are right" if command.folder else "; no file was looked at")
    return EXIT_PASSED


def _find(name: str, folders: Sequence[Path]) -> Path:
    return next((path for folder in folders if (path := folder / name).exists()), folders[0] / name)


def _read(path: Path) -> bytes:
    from export.artifact import first_line
    from export.release import MAX_RELEASE
    from gallery.files import read_bytes

    try:
        return read_bytes(path, MAX_RELEASE)
    except (OSError, ValueError) as error:
        fix = "Name the release.json that `release` wrote."
        raise InputError(f"a release of at most {MAX_RELEASE:,} bytes at {path}", first_line(error), fix) from error


def _log_release(found: Release) -> None:
    log.info("release %s of code space %s, student %s, created %s", found.version, found.code_space, found.student,
             found.created)  # fmt: skip
    for kind, files in (("file", found.files), ("gallery", found.gallery)):
        for one in files:
            log.info("  %s %s: %s bytes, sha256 %s", kind, one.name, f"{one.bytes:,}", one.sha256[:16])
