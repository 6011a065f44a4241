"""Images in folders: `class/...`, or `train|gallery|query/class/...`."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL.Image import Image

from distill.data.dataset import QUERY, SPLITS, TRAIN, ImageList
from distill.data.decode import decode, shorter_side
from gallery.errors import InputError
from gallery.files import sha256_of
from gallery.results import Skipped

# Found beside images and clearly none: passed over in silence, like hidden files.
NO_IMAGE = re.compile(
    r".*\.(txt|md|[ct]sv|jsonl?|xml|ya?ml|html?|pdf|log|db|ini|parquet|np[yz]|mat|py|zip|gz|tar)", re.I
)
SPLIT_NAMES = frozenset((*SPLITS, "test", "val", "valid", "validation", "database", "db", "retrieval"))


class ImageFiles:
    """Image files below `root`."""

    def __init__(self, root: Path, paths: Sequence[Path]) -> None:
        self.root, self.paths = root, paths

    def stamp(self) -> str:
        """Return a SHA-256 over path, size, modification time and mode of each file."""
        digest = hashlib.sha256(os.fsencode(self.root.resolve()))
        for path in self.paths:
            try:
                s = path.stat()
                state = f"{s.st_size} {s.st_mtime_ns} {s.st_mode}"
            except OSError as error:  # reading it will report it
                state = str(error.errno)
            digest.update(os.fsencode(path.relative_to(self.root)) + f"\0{state}\n".encode())
        return digest.hexdigest()

    def read(self, index: int) -> tuple[Image, str]:
        return decode(self.paths[index]), sha256_of(self.paths[index])

    def shorter_side(self, index: int) -> int:
        return shorter_side(self.paths[index])


def list_folder(root: Path) -> ImageList:
    """List the images below `root`, sorted by name.

    Links are followed, since the owner of the folder made them, but no folder is visited twice.  Raises
    `InputError` for a folder that cannot be read, or whose first level is a split not known here.
    """
    skipped: list[Skipped] = []
    depth = 1 if _has_splits(root) else 0
    found = sorted((name_of(path, root), path) for path in walk(root, skipped))
    outside = [name for name, _ in found if name.count("/") <= depth]
    skipped += [Skipped(path=name, reason="not inside a class folder") for name in outside]
    images = [(name, path) for name, path in found if name.count("/") > depth]
    steps = [name.split("/") for name, _ in images]
    return ImageList(
        name=root.resolve().name, names=tuple(name for name, _ in images),
        labels=tuple((step[depth],) for step in steps), splits=tuple(frozenset(step[:depth]) for step in steps),
        source=ImageFiles(root, [path for _, path in images]), split_source="split given by the folder's first level",
        skipped=tuple(skipped),
    )  # fmt: skip


def name_of(path: Path, root: Path) -> str:
    """Return `path` below `root`, as text that can be written."""
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")


def _has_splits(root: Path) -> bool:
    """Return whether the first level of `root` is a split rather than the classes."""
    tops = {path.name for path in _entries(root) if os.path.isdir(path)}
    if {TRAIN, QUERY} <= tops <= set(SPLITS):
        return True
    if tops and tops <= SPLIT_NAMES:
        found = f"{', '.join(sorted(tops))} in {root}"
        raise InputError("class folders, or train, query and perhaps gallery", found, "Rename or add folders.")
    return False


def walk(root: Path, skipped: list[Skipped]) -> Iterator[Path]:
    """Yield the files that may be images, in every folder below `root` once."""
    folders, seen = [root], {os.path.realpath(root)}
    while folders:
        for path in _entries(folders.pop()):
            if not os.path.isdir(path):
                if not NO_IMAGE.fullmatch(path.name):
                    yield path
            elif (real := os.path.realpath(path)) in seen:
                skipped.append(Skipped(path=name_of(path, root), reason="a link to a folder that is listed already"))
            else:
                seen.add(real)
                folders.append(path)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder / name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise InputError(f"a readable folder {folder}", str(error.strerror), "Check its path and rights.") from error
