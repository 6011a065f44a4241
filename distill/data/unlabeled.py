"""Folders of unlabeled images, from which the student learns the teacher's codes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from distill.data.dataset import UNLABELED, ImageList, join
from distill.data.image_folder import ImageFiles, name_of, walk
from gallery.console import log
from gallery.errors import InputError
from gallery.results import Skipped

FileId = tuple[int, int]  # device and inode: the same for every name and link of a file


def join_unlabeled(images: ImageList, folders: Sequence[str | Path]) -> ImageList:
    """Return `images`, then those anywhere below `folders`, each file once and none that is listed already."""
    known = set(_file_ids(images.source.paths)) if isinstance(images.source, ImageFiles) else set()
    return join(images, *(_list_folder(Path(folder), known) for folder in folders)) if folders else images


def _list_folder(root: Path, known: set[FileId | None]) -> ImageList:
    """List the files that are not in `known`, and add them; raises `InputError` for no readable folder."""
    if not root.is_dir():
        raise InputError(f"a folder of unlabeled images at {root}", "none", "Check the path.")
    skipped: list[Skipped] = []
    found, new = sorted(walk(root, skipped)), []
    for path, file_id in zip(found, _file_ids(found), strict=True):
        if file_id is None or file_id not in known:  # what cannot be read is reported later
            new.append(path)
        known.add(file_id)
    log.info("%d unlabeled images in %s, and %d that are listed already", len(new), root, len(found) - len(new))
    prefix = f"{UNLABELED}/{root.resolve().name}"
    return ImageList(
        name=root.name,
        names=tuple(f"{prefix}/{name_of(path, root)}" for path in new),
        labels=((),) * len(new),
        splits=(frozenset({UNLABELED}),) * len(new),
        source=ImageFiles(root, new),
        skipped=tuple(Skipped(path=f"{prefix}/{skip.path}", reason=skip.reason) for skip in skipped),
    )


def _file_ids(paths: Iterable[Path]) -> Iterable[FileId | None]:
    for path in paths:
        try:
            status = path.stat()
            yield status.st_dev, status.st_ino
        except OSError:
            yield None
