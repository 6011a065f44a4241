"""Sign what an app may download after its installation, and check it as an app does: `release.json`.

    {"payload": "twinhash release 1\\nversion 3\\n...", "signature": "<128 hexadecimal digits>"}

The signature (Ed25519, RFC 8032) is over the bytes of `payload` as they are: a client verifies them before it reads any
of them, and never writes JSON.  The payload is lines of ASCII text, of which one regular expression (`PAYLOAD`) accepts
exactly one form, the same expression in Python, TypeScript, Kotlin and Swift (`export/apps/`).  JSON inside would have
had to be read by four parsers, which differ in keys that stand twice, in 3.0 for 3 and in large numbers; hexadecimal
digits have one reading where base64 has several.

    twinhash release 1
    version 3
    code_space f41b8e36f3c5d793
    student mobilenetv3_small_100
    created 2026-11-30T12:00:00Z
    file SHA256 1769472 query-w8a32.tflite
    gallery SHA256 39200 codes.bin

A client knows the public key from its own installation.  What a signature cannot tell is that a newer release is being
held back.  `created` is information: no decision depends on it, as the clocks of phones are wrong.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from export.artifact import first_line
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError
from gallery.files import atomic_path, check_regular, read_bytes, sha256_of
from gallery.names import some

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

RELEASE, FORMAT = "release.json", 1
MAX_RELEASE, MAX_FILES, MAX_VERSION = 1 << 16, 64, 999_999_999  # bytes; files, and as many of a gallery
NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?"
LINE = rf" [0-9a-f]{{64}} [1-9][0-9]{{0,9}} {NAME}\n"
MAX_BYTES = 9_999_999_999  # of a file
PAYLOAD = (
    r"twinhash release 1\nversion [1-9][0-9]{0,8}\ncode_space [0-9a-f]{16}\nstudent [A-Za-z0-9._/:-]{1,100}\n"
    r"created [0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\n"
    rf"(?:file{LINE}){{1,64}}(?:gallery{LINE}){{0,64}}"
)
AGAIN = "Download it again; if that does not help, do not install it: it is not what was signed with the app's key."


@dataclass(frozen=True)
class ReleaseFile:
    """A file to download: its name, without folders, its bytes and their SHA-256 in hexadecimal digits."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Release:
    """What one version of a release consists of; two are equal if the same text was signed.

    version: a whole number that grows; code_space: the id of the student's and the gallery's
    created: UTC, `2026-11-30T12:00:00Z`; signature: hexadecimal digits, empty before `sign`
    """

    version: int
    code_space: str
    student: str
    created: str
    files: tuple[ReleaseFile, ...]
    gallery: tuple[ReleaseFile, ...] = ()
    signature: str = dataclasses.field(default="", compare=False)

    @property
    def payload(self) -> str:
        """The text that is signed."""
        kinds = [("file", one) for one in self.files] + [("gallery", one) for one in self.gallery]
        lines = [f"twinhash release {FORMAT}", f"version {self.version}", f"code_space {self.code_space}"]
        lines += [f"student {self.student}", f"created {self.created}"]
        return "\n".join([*lines, *(f"{kind} {one.sha256} {one.bytes} {one.name}" for kind, one in kinds), ""])

    @property
    def text(self) -> str:
        """The text of `release.json`."""
        return json.dumps({"payload": self.payload, "signature": self.signature}, indent=1) + "\n"


class ReleaseUpdate(StrEnum):
    """What a client does with a release that it may have."""

    NONE = "nothing: it is installed"
    STUDENT = "the student alone"
    BOTH = "the student together with the gallery"


@dataclass(frozen=True)
class ReleaseClient:
    """What a client knows before it sees a release.

    space: the code space of the gallery that it searches now, its own or a server's: once a release has brought a
    gallery, that release's
    installed: the release that it has, none before the first
    pinned: the lowest version that it takes, e.g. that of the files inside the app
    """

    space: str
    installed: Release | None = None
    pinned: int = 0


def read_release(data: bytes, public_key: Ed25519PublicKey) -> Release:
    """Verify the signature of a `release.json`, then read it.

    Raises `CorruptFile` for whatever was not signed with the key, or is not as `sign` writes it, and `InputError` for a
    release of a later format.
    """
    from cryptography.exceptions import InvalidSignature

    try:
        payload, signature = _split(data)
        public_key.verify(bytes.fromhex(signature), payload.encode())
        return dataclasses.replace(_parse(payload), signature=signature)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"a whole {RELEASE} of Twinhash", first_line(error), AGAIN) from error
    except InvalidSignature as error:
        expected = f"a release signed with the key {public_key.public_bytes_raw().hex()[:16]}..."
        raise CorruptFile(expected, "a changed text, or another key's signature", AGAIN) from error


def _split(data: bytes) -> tuple[str, str]:
    """Read payload and signature of a `release.json`; raises `ValueError` or `RecursionError` for another form."""
    if len(data) > MAX_RELEASE:
        raise ValueError(f"more than {MAX_RELEASE:,} bytes")
    record = json.loads(data.decode())  # UTF-8 alone, as in the apps
    if not isinstance(record, dict) or set(record) != {"payload", "signature"}:
        raise ValueError("not an object of payload and signature")
    payload, signature = record["payload"], record["signature"]
    if not isinstance(payload, str) or not isinstance(signature, str):
        raise ValueError("a payload or signature that is no text")
    if not re.fullmatch("[0-9a-f]{128}", signature):
        raise ValueError("a signature that is not 128 hexadecimal digits")
    return payload, signature


def _parse(payload: str) -> Release:
    """Read a payload whose signature was verified; raises `ValueError` for one of another form."""
    told = re.match(r"twinhash release ([0-9]{1,9})\n", payload)
    if told and told[1] != str(FORMAT):
        raise InputError(f"a release of format {FORMAT}", f"format {told[1]}", "Update the app, which knows no later.")
    if not re.fullmatch(PAYLOAD, payload):
        raise ValueError("a payload that is not as Twinhash writes it")
    _, version, space, student, created, *rows = (line.split(" ") for line in payload.split("\n")[:-1])
    kinds: dict[str, list[ReleaseFile]] = {"file": [], "gallery": []}
    for kind, sha256, count, name in rows:
        kinds[kind].append(ReleaseFile(name, int(count), sha256))
    names = [RELEASE, *(one.name.lower() for one in chain(*kinds.values()))]  # some file systems know no case
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the name {twice[0]} twice")
    files, gallery = map(tuple, kinds.values())
    return Release(int(version[1]), space[1], student[1], created[1], files, gallery)


def check_update(release: Release, client: ReleaseClient) -> ReleaseUpdate:
    """Return what a client does with a release whose signature it has verified (`read_release`).

    A student of the same code space, the client's and that of a gallery which the installed release brought, is updated
    alone; one of another only together with its gallery.
    Raises `InputError` for a version below the pinned or the installed one, and for the installed version with other
    content; `CodeSpaceMismatch` for another code space without its gallery.
    """
    installed = client.installed
    least, why = max((client.pinned, "pinned"), (installed.version if installed else 0, "installed"))
    if release.version < least:
        fix = f"Keep what is installed; publish this content as version {least + 1} or later."
        raise InputError(f"version {least}, which is {why}, or a later one", f"version {release.version}", fix)
    if installed and release.version == installed.version:
        if release != installed:
            fix = f"Keep what is installed; publish the new content as version {release.version + 1}."
            raise InputError(f"version {release.version} as it is installed", "the same version of other content", fix)
        return ReleaseUpdate.NONE
    if release.gallery:
        return ReleaseUpdate.BOTH
    _check_space(release, client.space)
    if installed and installed.gallery:
        _check_space(release, installed.code_space)
    return ReleaseUpdate.STUDENT


def _check_space(release: Release, space: str) -> None:
    if release.code_space != space:
        expected = f"a release of the gallery's code space {space}, or one that brings its own gallery"
        fix = "Keep what is installed; publish the release with its gallery: release --gallery FOLDER."
        raise CodeSpaceMismatch(expected, f"code space {release.code_space} without a gallery", fix)


def check_file(path: Path, file: ReleaseFile) -> None:
    """Raise `CorruptFile` unless a downloaded file is the one that was signed; a larger one is not read."""
    expected = f"{file.name} of {file.bytes:,} bytes, sha256 {file.sha256[:16]}"
    try:
        check_regular(path, file.bytes)
        found = f"{path.stat().st_size:,} bytes, sha256 {(digest := sha256_of(path))[:16]}"
    except (OSError, ValueError) as error:
        raise CorruptFile(expected, first_line(error), "Download the file again.") from error
    if digest != file.sha256:
        raise CorruptFile(expected, found, "Download the file again.")


def install_files(
    release: Release, client: ReleaseClient, downloads: Path, folder: Path, wanted: Collection[str] = ()
) -> ReleaseUpdate:
    """Put the downloaded files in place as `folder/<version>/`, whole or not at all; return what was updated.

    `student/` holds the release's files, `gallery/` its gallery or, where it brings none, that of the installed
    version, with the release that brought it.  A client uses the folder of the highest number, which is renamed there
    when it is complete, and removes the lower ones when it has opened the new model.
    downloads: a folder with the files by their names; wanted: of the student's files, those this client runs (all)
    Raises what `check_update` and `check_file` raise, `InputError` for a wanted file that is not in the release,
    `CorruptFile` or `CodeSpaceMismatch` for an installed gallery that is not whole, or not of the release's code space.
    """
    update, files = check_update(release, client), {one.name: one for one in release.files}
    if missing := set(wanted) - set(files):
        fix = f"Choose from {', '.join(files)}."
        raise InputError(f"files of release {release.version}", some(sorted(missing)), fix)
    if update == ReleaseUpdate.NONE:
        return update
    brought: Release | None = release if release.gallery else None
    source = downloads
    if client.installed and not brought:
        source = folder / str(client.installed.version) / "gallery"
        brought = _installed_gallery(source, client.installed, release)
    with atomic_path(folder / str(release.version)) as draft:
        draft.mkdir()
        _copy([files[name] for name in files if name in wanted or not wanted], downloads, draft / "student")
        if brought:
            _copy(brought.gallery, source, draft / "gallery")
            (draft / "gallery" / RELEASE).write_text(brought.text)
        (draft / RELEASE).write_text(release.text)
    return update


def _installed_gallery(folder: Path, installed: Release, release: Release) -> Release | None:
    """Return the release that brought an installed gallery, whose files are checked; None where there is no gallery."""
    if not installed.gallery and not folder.is_dir():
        return None
    again = "Install a release that brings its gallery; for the same version again, name none as installed."
    try:
        payload, signature = _split(read_bytes(folder / RELEASE, MAX_RELEASE))
        brought = dataclasses.replace(_parse(payload), signature=signature)
        for file in brought.gallery:
            check_file(folder / file.name, file)
    except CorruptFile as error:
        raise CorruptFile(f"{error.expected} in {folder}", error.found, again) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptFile(f"the {RELEASE} that brought the gallery {folder}", first_line(error), again) from error
    _check_space(release, brought.code_space)
    return brought


def _copy(files: Sequence[ReleaseFile], source: Path, target: Path) -> None:
    """Copy files, and check the copies: what is checked is what stays."""
    target.mkdir()
    for file in files:
        check_file(source / file.name, file)
        shutil.copyfile(source / file.name, target / file.name)
        check_file(target / file.name, file)


def sign(release: Release, key: Ed25519PrivateKey) -> Release:
    """Return the release with its signature; raises `InputError` where its text cannot be one."""
    try:
        _parse(release.payload)
        signed = dataclasses.replace(release, signature=key.sign(release.payload.encode()).hex())
        if len(signed.text) > MAX_RELEASE:
            raise ValueError(f"a text of more than {MAX_RELEASE:,} bytes")
    except ValueError as error:
        expected = f"up to {MAX_FILES} files with names of their own, and as many of a gallery"
        found = f"{len(release.files)} and {len(release.gallery)} files: {first_line(error)}"
        raise InputError(expected, found, "Rename what has the name of another file, or choose fewer.") from error
    return signed
