"""Folders of pictures without labels, from which the student learns the teacher's codes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from distill.data.dataset import UNLABELLED, ImageList, Skipped, join
from distill.data.image_folder import ImageFiles, name_of, walk
from gallery.console import log
from gallery.errors import InputError

Identity = tuple[int, int]  # device and inode: the same for every name and link of a file


def join_unlabelled(listing: ImageList, folders: Sequence[str | Path]) -> ImageList:
    """`listing`, then the pictures anywhere below `folders`, each file once and none that is listed already."""
    known = set(_identities(listing.pictures.paths)) if isinstance(listing.pictures, ImageFiles) else set()
    return join(listing, *(_list(Path(folder), known) for folder in folders)) if folders else listing


def _list(root: Path, known: set[Identity | None]) -> ImageList:
    """Adds its pictures to `known`; raises `InputError` for what is no folder that can be read."""
    if not root.is_dir():
        raise InputError(f"a folder of pictures without labels at {root}", "none", "Check the path.")
    skipped: list[Skipped] = []
    found, new = sorted(walk(root, skipped)), []
    for path, identity in zip(found, _identities(found), strict=True):
        if identity is None or identity not in known:  # what cannot be read goes on record later
            new.append(path)
        known.add(identity)
    log.info("%d pictures without labels in %s, and %d that are listed already", len(new), root, len(found) - len(new))
    prefix = f"{UNLABELLED}/{root.resolve().name}"
    return ImageList(
        name=root.name,
        names=tuple(f"{prefix}/{name_of(path, root)}" for path in new),
        labels=((),) * len(new),
        parts=(frozenset({UNLABELLED}),) * len(new),
        pictures=ImageFiles(root, new),
        skipped=tuple(Skipped(f"{prefix}/{skip.name}", skip.reason) for skip in skipped),
    )


def _identities(paths: Iterable[Path]) -> Iterable[Identity | None]:
    for path in paths:
        try:
            status = path.stat()
            yield status.st_dev, status.st_ino
        except OSError:
            yield None
