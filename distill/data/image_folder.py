"""Images in folders: `class/...`, or `train|gallery|query|validation/class/...`; without classes, none below that."""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from PIL.Image import Image

from distill.data.dataset import GALLERY, QUERY, TRAIN, UNLABELED, VALIDATION, ImageList
from gallery.decode import decode, shorter_side
from gallery.errors import InputError
from gallery.files import sha256_of
from gallery.names import clean_label, counted, some
from gallery.results import Skipped
from gallery.sources.folder import FolderContents, name_of, walk

TEST = "test"  # whether of queries, of a gallery or of both only its maker knows
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), TRAIN),
    **dict.fromkeys(("query", "queries", "probe", "probes"), QUERY),
    **dict.fromkeys(("gallery", "database", "db"), GALLERY),
    **dict.fromkeys(("validation", "valid", "val"), VALIDATION),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation", "retrieval", "holdout"), TEST),
    UNLABELED: UNLABELED,
}
AROUND = "set|data|images?|imgs?|photos?|seg|split|folder|files|crops?|cropped|boundingbox"
SPLIT_NAME = re.compile(f"(?:{AROUND})*({'|'.join(SPLIT_WORDS)})(?:{AROUND})*")


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
    """List the images below `root`, sorted by name; where none is inside a class folder, they have no labels.

    Links are followed, since the owner of the folder made them, but no folder is visited twice.  Raises
    `InputError` for a folder that cannot be read, and where splits and classes cannot be told apart.
    """
    contents = walk(root)
    found = sorted((name_of(path, root), path) for path in contents.paths)
    below = _folders_below([name for name, _ in found])
    roles = _find_splits(root, below)
    depth = 1 if roles else 0
    labeled = any(name.count("/") > depth for name, _ in found)
    least, where = (depth + 1, "a class folder") if labeled else (depth, "the folder of a split")
    inside = [(name, path, name.split("/")) for name, path in found if name.count("/") >= least]
    kept = [(*one, (clean_label(one[2][depth]),) if labeled else ()) for one in inside]
    images = [(name, path, step[0], label) for name, path, step, label in kept if all(label)]
    skipped = [(name, f"not inside {where}") for name, _ in found if name.count("/") < least]
    skipped += [(name, "a class without a name") for name, *_, label in kept if not all(label)]
    warnings = *contents.warnings, *(_merged([name.split("/")[depth] for name, *_ in images]) if labeled else ())
    return ImageList(
        name=root.resolve().name, names=tuple(name for name, *_ in images),
        labels=tuple(label for *_, label in images),
        splits=tuple(frozenset([roles[first]] if roles else []) for _, _, first, _ in images),
        source=ImageFiles(root, [path for _, path, *_ in images]),
        split_source="split given by the folder's first level",
        skipped=(*contents.skipped, *(Skipped(path=name, reason=reason) for name, reason in skipped)),
        warnings=(*warnings, *_empty_folders(contents, found, depth), *(() if roles else _repeated(below))),
    )  # fmt: skip


def _empty_folders(contents: FolderContents, found: Sequence[tuple[str, Path]], depth: int) -> tuple[str, ...]:
    """Return a sentence on folders of classes, or of splits, without a file that may be an image."""
    filled = {"/".join(name.split("/")[: k + 1]) for name, _ in found for k in range(depth + 1)}
    empty = {name for name in contents.folders if name.count("/") <= depth and name not in filled}
    empty = {name for name in empty if name.rpartition("/")[0] not in empty}
    return (f"{counted(len(empty), 'folder')} without an image: {some(sorted(empty))}.",) if empty else ()


def _merged(folders: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence on folders that are one class, since their names look the same."""
    names = defaultdict[str, list[str]](list)
    for folder in sorted(set(folders)):
        names[clean_label(folder)].append(folder)
    if not (same := [own for own in names.values() if len(own) > 1]):
        return ()
    few = "; ".join(some(map(ascii, own)) for own in same[:3])
    return (f"{counted(len(same), 'class', 'classes')} in several folders whose names look the same: {few}.",)


def _repeated(below: dict[str, set[str]]) -> tuple[str, ...]:
    """Return a sentence on folders that are in every class: splits, folds and views are no classes."""
    inner = [own for own in below.values() if own]
    same = set.intersection(*inner) if len(inner) > 1 else set()
    if len(same) < 2:
        return ()
    what = f"The same folders ({some(sorted(same))}) are inside of the classes ({some(sorted(below))})"
    return (f"{what}: if those are the classes, list the images in a manifest.",)


def split_role(name: str) -> str | None:
    """Return the split that a folder's name speaks of ("Training", "seg_train", "val2017"), if any."""
    match = SPLIT_NAME.fullmatch(re.sub(r"[\W\d_]+", "", clean_label(name).casefold()))
    return SPLIT_WORDS[match[1]] if match else None


def _folders_below(names: Sequence[str]) -> dict[str, set[str]]:
    """Return the folders in each folder of the first level."""
    below = defaultdict[str, set[str]](set)
    for name in names:
        first, *rest = name.split("/")
        if rest:
            below[first] |= set(rest[:-1][:1])
    return below


def _find_splits(root: Path, below: dict[str, set[str]]) -> dict[str, str]:
    """Return the split of each folder of the first level; none where these are the classes.

    Raises `InputError` where it may be either: for several folders named like splits that are no train and query,
    for one whose folders are found elsewhere too, and for splits on the second level.
    """
    roles = {first: role for first in below if (role := split_role(first))}
    own = {*roles.values()}
    if {TRAIN, QUERY} <= own <= {TRAIN, QUERY, GALLERY, VALIDATION} and len(own) == len(roles) == len(below):
        return roles
    expected = "class folders, or train, query and perhaps gallery"
    others = [first for first in below if first not in roles]
    repeated = {name for first in others for name in (first, *below[first])}
    if len(roles) > 1 or (roles and (not others or any(below[first] & repeated for first in roles))):
        found = f"{some(sorted(roles))} in {root}" + (f" beside {some(sorted(others))}" if others else "")
        fix = "Rename them train, query and perhaps gallery; if they are classes, list the images in a manifest."
        if not others and len(roles) == 1:
            fix = f"Give that folder itself as --data, or add others.  {fix}"
        raise InputError(expected, found, fix)
    for first in others:
        inner = {name for name in below[first] if split_role(name)}
        if len({split_role(name) for name in inner}) > 1:
            found = f"{some(f'{first}/{name}' for name in sorted(inner))} in {root}"
            fix = "Move these to the first level, rename them, or give the folder that holds them as --data."
            raise InputError(f"{expected} on the first level", found, fix)
    return {}
