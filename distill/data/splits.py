"""Who is train, validation, gallery and query."""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distill.data.dataset import (
    GALLERY,
    PARTS,
    QUERY,
    TRAIN,
    UNLABELLED,
    VALIDATION,
    Dataset,
    ImageList,
    Indices,
    present,
)  # fmt: skip
from gallery.console import log
from gallery.errors import InputError
from gallery.files import atomic_write


class Split(NamedTuple):
    """Sorted indices into the pictures kept, the classes held out, and the protocol in words, as in `Dataset`."""

    train: Indices
    validation: Indices
    gallery: Indices
    query: Indices
    unlabelled: Indices
    unseen: tuple[str, ...]
    protocol: str


def encode_labels(listing: ImageList, kept: Indices) -> tuple[tuple[str, ...], NDArray[Any]]:
    """The classes that occur, sorted by name unless the source orders them, and labels of the pictures kept.

    int64 `[N]` (-1 for none), or multi-hot bool `[N, C]`.  Raises `InputError` where there is nothing to tell apart.
    """
    rows = [listing.labels[i] for i in kept]
    classes = listing.classes or tuple(sorted({label for row in rows for label in row}))
    labelled = sum(map(bool, rows))
    if len(classes) < 2 or labelled < len(classes):
        raise InputError(
            "at least two classes and as many pictures",
            f"{len(classes)} classes, {labelled} pictures in {listing.name}",
            "Point --data at pictures sorted by class.",
        )
    place = {name: i for i, name in enumerate(classes)}
    if not listing.multi:
        return classes, np.array([place[row[0]] if row else -1 for row in rows], np.int64)
    hot = np.zeros((len(rows), len(classes)), bool)
    hot[[i for i, row in enumerate(rows) for _ in row], [place[name] for row in rows for name in row]] = True
    return classes, hot


def split(
    listing: ImageList,
    kept: Indices,
    classes: tuple[str, ...],
    labels: NDArray[Any],
    seed: int,
    query_fraction: float,
    validation_fraction: float,
    unseen: int = 0,
) -> Split:
    """Takes the source's split or draws one, takes `unseen` classes out of train, and holds out the validation slice.

    Draws class by class where pictures have one label each.  A class's draw depends on the seed, its name and its own
    pictures, so that other classes may come and go.  Raises `InputError` for a part that is empty.
    """
    train, gallery, query, told = _parts(listing, kept, classes, labels, seed, query_fraction)
    _compare(listing, {TRAIN: len(train), GALLERY: len(gallery), QUERY: len(query)})
    if listing.multi:  # without a label there is nothing to learn, and nothing to find
        labelled = [part[labels[part].any(1)] for part in (query, train)]
        fewer = [len(part) - len(own) for part, own in zip((query, train), labelled, strict=True)]
        told += f", less {fewer[0]} queries and {fewer[1]} of train without a label" if any(fewer) else ""
        query, train = labelled
    hidden = _unseen(present(labels[train], len(classes)), unseen, seed)
    if unseen:
        told += f", {unseen} classes held out of train by seed {seed}"
        train = train[~(labels[train][:, hidden].any(1) if listing.multi else np.isin(labels[train], hidden))]
    _check_parts(listing.name, classes, labels, train, gallery, query)
    held_out = np.intersect1d(train, np.flatnonzero([VALIDATION in listing.parts[i] for i in kept]))
    sampled = not len(held_out)
    validation = _draw(_groups(train, classes, labels), validation_fraction, seed + 1, True) if sampled else held_out
    sizes = f"{len(train)} train" + (" = gallery" if np.array_equal(train, gallery) else f", {len(gallery)} gallery")
    by = f" by seed {seed}" if sampled else ""
    told += f": {sizes}, {len(query)} query; {len(validation)} of train held out for validation{by}."
    unlabelled = np.flatnonzero([UNLABELLED in listing.parts[i] for i in kept])
    names = tuple(classes[c] for c in hidden)
    return Split(np.setdiff1d(train, validation), validation, gallery, query, unlabelled, names, told)


def save_split(data: Dataset, path: Path) -> Path:
    """Write the split as a manifest, which `--data` reads back from the folder that the paths are relative to.

    Images without labels, and those in no part, are left out.
    """
    splits: list[list[str]] = [[] for _ in data.names]
    for part in (TRAIN, VALIDATION, GALLERY, QUERY):
        for i in getattr(data, part):
            splits[i].append(part)
    text, multi = io.StringIO(), data.labels.ndim == 2
    table = csv.writer(text)
    table.writerow(["path", "labels" if multi else "label", "split"])
    for name, label, own in zip(data.names, data.labels, splits, strict=True):
        if own:
            chosen = np.flatnonzero(label) if multi else [label]
            table.writerow([name, ";".join(data.classes[c] for c in chosen), ";".join(own)])
    return atomic_write(path, text.getvalue())


def _parts(
    listing: ImageList, kept: Indices, classes: tuple[str, ...], labels: NDArray[Any], seed: int, query_fraction: float
) -> tuple[Indices, Indices, Indices, str]:
    """Train, gallery and query as the source has them, or drawn; and who did that."""
    parts = [listing.parts[i] for i in kept]
    if any(part - {UNLABELLED} for part in parts):
        _check_apart(listing)
        train, gallery, query = (np.flatnonzero([part in p for p in parts]) for part in PARTS)
        train = np.union1d(train, np.flatnonzero([VALIDATION in part for part in parts]))
        return train, (gallery if len(gallery) else train), query, listing.origin
    labelled = np.flatnonzero([not part for part in parts])
    query = _draw(_groups(labelled, classes, labels), query_fraction, seed)
    train = np.setdiff1d(labelled, query)
    whom = "all pictures" if listing.multi else "each class"
    return train, train, query, f"{query_fraction:.0%} of {whom} drawn as queries by seed {seed}"


def _compare(listing: ImageList, found: Mapping[str, int]) -> None:
    published = dict(zip(PARTS, listing.published, strict=False))
    if wrong := [part for part in published if published[part] not in (None, found[part])]:
        differ = ", ".join(f"{found[part]} {part} pictures here, {published[part]} published" for part in wrong)
        log.warning("%s is not as published: %s", listing.name, differ)


def _unseen(in_train: NDArray[np.bool_], count: int, seed: int) -> Indices:
    """So many of the classes present, in order; raises `InputError` where fewer than two would be left."""
    there = np.flatnonzero(in_train)
    if count and not 0 < count <= len(there) - 2:
        found = f"{count} of the {len(there)} in train"
        raise InputError("so few unseen classes that two are left to learn", found, "Hold out fewer.")
    return np.sort(np.random.default_rng([seed, zlib.crc32(b"unseen")]).permutation(there)[:count])


def _groups(chosen: Indices, classes: tuple[str, ...], labels: NDArray[Any]) -> dict[str, Indices]:
    if labels.ndim == 2:
        return {"": chosen}
    own = labels[chosen]
    ends = np.cumsum(np.bincount(own, minlength=len(classes)))[:-1]
    return dict(zip(classes, np.split(chosen[np.argsort(own, kind="stable")], ends), strict=True))


def _draw(groups: Mapping[str, Indices], fraction: float, seed: int, dither: bool = False) -> Indices:
    """A share of each group, never all of it.

    Rounded to the nearest, and at least one of a group of two; with `dither`, rounded up or down by chance, so that
    a small share of many small groups comes out right, and at least one in all.
    """
    drawn = []
    for name, members in groups.items():
        random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        wanted = int(len(members) * fraction + random.random()) if dither else max(1, round(len(members) * fraction))
        drawn.append(random.permutation(members)[: max(0, min(wanted, len(members) - 1))])
    if fraction and not sum(map(len, drawn)):
        largest = max(groups.values(), key=len)
        drawn.append(largest[: min(1, len(largest) - 1)])
    return np.sort(np.concatenate(drawn))


def _check_apart(listing: ImageList) -> None:
    for name, parts in zip(listing.names, listing.parts, strict=True):
        if QUERY in parts and len(parts) > 1:
            raise InputError(
                "queries that are in no other part", f"{name} in {', '.join(sorted(parts))}", "It would find itself."
            )


def _check_parts(
    name: str, classes: tuple[str, ...], labels: NDArray[Any], train: Indices, gallery: Indices, query: Indices
) -> None:
    for part, members in ((TRAIN, train), (QUERY, query)):
        if not len(members):
            fix = "Mark some, or leave the split out to have one drawn (which takes two pictures of a class)."
            raise InputError(f"{part} pictures in {name}", "none", fix)
    if present(labels[train], len(classes)).sum() < 2:
        raise InputError(f"at least two classes among the train pictures of {name}", "one", "Add pictures of others.")
    lost = present(labels[query], len(classes)) & ~present(labels[gallery], len(classes))
    if lost.any():
        few = ", ".join(classes[c] for c in np.flatnonzero(lost)[:5])
        log.warning("%d classes are queried but not in the gallery (%s): they cannot be found", lost.sum(), few)
