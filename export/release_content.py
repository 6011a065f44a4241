"""What a release ships: files of a bundle and of an exported gallery, described by size and SHA-256."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from export.artifact import first_line
from export.release import MAX_BYTES, MAX_VERSION, NAME, RELEASE, Release, ReleaseFile
from gallery.console import plain
from gallery.errors import CodeSpaceMismatch, InputError
from gallery.files import is_desktop_file, read_json
from gallery.names import some

NO_GALLERY_FILES = ("README.md", "codespace.json", "centers.npy")  # of an exported gallery: an app reads none of them
SEARCHED = 1 << 20  # first bytes of a file that are searched for a private key


def describe_release(bundle: Path, version: int, names: Sequence[str] = (), gallery: Path | None = None) -> Release:
    """Describe the next version of what an app downloads, unsigned.

    bundle:  its checksums are verified, and its code space; the inside of its models is not (`run.py verify`)
    names:   files of the bundle; by default the models that are single files, and `manifest.json` with their metadata
    gallery: a folder that `gallery/run.py export` wrote, of which all files ship but `NO_GALLERY_FILES`
    Raises `InputError` for a version, file or folder that cannot ship, and what `open_bundle` raises.
    """
    from export.bundle import MANIFEST, open_bundle

    if not 0 < version <= MAX_VERSION:
        raise InputError(f"a release version of 1 to {MAX_VERSION:,}", f"{version:,}", "Take one more than the last.")
    manifest = open_bundle(bundle, parse_models=False)
    models = {one.path.name: ReleaseFile(one.path.name, one.bytes, one.sha256)
              for one in manifest.files if one.path.is_file()}  # fmt: skip
    known = [MANIFEST, *sorted(path.name for path in bundle.iterdir() if path.is_file() and path.name != MANIFEST)]
    if not names and not models:
        fix = "Export ONNX or LiteRT too; a Core ML package is a folder, which ships inside the app."
        raise InputError(f"a model that is one file in {bundle}", some(one.path.name for one in manifest.files), fix)
    if wrong := [name for name in names if name not in known or name.startswith(".")]:
        fix = f"Choose from {', '.join(name for name in known if not name.startswith('.'))}, or leave --files out."
        raise InputError(f"single files of the bundle {bundle}", some(wrong), fix)
    chosen = dict.fromkeys(names or [*models, MANIFEST])
    files = [models.get(name) or _describe_file(bundle / name) for name in chosen]
    brought = _gallery_files(gallery, manifest.space.id) if gallery else ()
    student = re.sub(r"[^A-Za-z0-9._/:-]", "_", manifest.files[0].metadata.student)[:100] or "student"
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Release(version, manifest.space.id, student, created, tuple(files), tuple(brought))


def _gallery_files(folder: Path, space: str) -> list[ReleaseFile]:
    """Describe the files of an exported gallery, which must be of the bundle's code space."""
    from gallery import codespace

    again = "Export the gallery of the same run: python gallery/run.py export RUN FOLDER --to site"
    try:
        found = codespace.CodeSpace.from_dict(read_json(folder / codespace.FILE, dict)).id
        inside = [path for path in sorted(folder.iterdir()) if not is_desktop_file(path.name)]
    except (OSError, ValueError) as error:
        raise InputError(f"an exported gallery with {codespace.FILE} at {folder}", first_line(error), again) from error
    if found != space:
        raise CodeSpaceMismatch(f"a gallery of the bundle's code space {space} at {folder}", found, again)
    files = [_describe_file(path) for path in inside if path.is_file() and path.name not in NO_GALLERY_FILES]
    if not files:
        raise InputError(f"files of an exported gallery in {folder}", "none", again)
    return files


def _describe_file(path: Path) -> ReleaseFile:
    """Describe a file to ship; raises `InputError` for one that cannot, and for a private key in PEM.

    A key is looked for in the first `SEARCHED` bytes, whatever the file is named.
    """
    shown = plain(str(path))
    if path.name.lower() == RELEASE:
        raise InputError(f"no {RELEASE} among the files to ship", shown, "Move it away: a release lies beside them.")
    with path.open("rb") as stream:
        if not 0 < (size := os.fstat(stream.fileno()).st_size) <= MAX_BYTES:
            fix = "Move it away, or leave it out."
            raise InputError(f"a file of 1 to {MAX_BYTES:,} bytes to ship", f"{shown} of {size:,} bytes", fix)
        if b"PRIVATE KEY-----" in stream.read(SEARCHED):
            fix = "Move it away, to where nothing is published."
            raise InputError("no private key among the files to ship", shown, fix)
        if not re.fullmatch(NAME, path.name):
            expected = "a name of at most 100 letters, digits, '.', '_' and '-', with no '.' at an end"
            raise InputError(expected, shown, "Rename the file.")
        stream.seek(0)
        return ReleaseFile(path.name, size, hashlib.file_digest(stream, "sha256").hexdigest())
