"""Folders of unlabeled images, from which the student learns the teacher's codes, and some teachers similarities."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from PIL.Image import Image

from distill.data.dataset import UNLABELED, ImageList
from distill.data.image_folder import ImageFiles
from gallery.console import log
from gallery.errors import InputError
from gallery.results import Skipped
from gallery.sources.folder import name_of, walk

FileId = tuple[int, int]  # device and inode: the same for every name and link of a file


class ConcatSource:
    """The images of several lists, one after another."""

    def __init__(self, lists: Sequence[ImageList]) -> None:
        self.sources = [images.source for images in lists]
        self.items = [(images.source, i) for images in lists for i in range(len(images.names))]

    def stamp(self) -> str:
        return hashlib.sha256("".join(source.stamp() for source in self.sources).encode()).hexdigest()

    def read(self, index: int) -> tuple[Image, str]:
        source, own = self.items[index]
        return source.read(own)

    def shorter_side(self, index: int) -> int:
        source, own = self.items[index]
        return source.shorter_side(own)


def join_unlabeled(images: ImageList, folders: Sequence[str | Path]) -> ImageList:
    """Return `images`, then those anywhere below `folders`, each file once and none that is listed already."""
    if not folders:
        return images
    known = set(_file_ids(images.source.paths)) if isinstance(images.source, ImageFiles) else set()
    lists = [images, *(_list_folder(Path(folder), known) for folder in folders)]
    columns = ("names", "labels", "splits", "skipped", "warnings")
    joined: dict[str, Any] = {c: tuple(chain.from_iterable(getattr(one, c) for one in lists)) for c in columns}
    return replace(images, **joined, source=ConcatSource(lists))


def _list_folder(root: Path, known: set[FileId | None]) -> ImageList:
    """List the files that are not in `known`, and add them; raises `InputError` for no readable folder."""
    if not root.is_dir():
        raise InputError(f"a folder of unlabeled images at {root}", "none", "Check the path.")
    contents, new = walk(root), list[Path]()
    found = sorted(contents.paths)
    if not found:
        raise InputError(f"images in the folder of unlabeled images {root}", "none", "Leave it out, or check the path.")
    for path, file_id in zip(found, _file_ids(found), strict=True):
        if file_id is None or file_id not in known:  # what cannot be read is reported later
            new.append(path)
        known.add(file_id)
    log.info("%d unlabeled images in %s, and %d that are listed already", len(new), root, len(found) - len(new))
    prefix = f"{UNLABELED}/{root.resolve().name}"
    return ImageList(
        name=root.name, names=tuple(f"{prefix}/{name_of(path, root)}" for path in new), labels=((),) * len(new),
        splits=(frozenset({UNLABELED}),) * len(new), source=ImageFiles(root, new),
        skipped=tuple(Skipped(path=f"{prefix}/{skip.path}", reason=skip.reason) for skip in contents.skipped),
        warnings=tuple(f"{prefix}: {sentence}" for sentence in contents.warnings),
    )  # fmt: skip


def _file_ids(paths: Iterable[Path]) -> Iterable[FileId | None]:
    for path in paths:
        try:
            status = path.stat()
            yield status.st_dev, status.st_ino
        except OSError:
            yield None
