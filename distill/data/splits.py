"""Who is train, validation, gallery and query."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.dataset import GALLERY, QUERY, TRAIN, Indices, Listing
from gallery.console import log
from gallery.errors import InputError


def encode_labels(listing: Listing, kept: Indices) -> tuple[tuple[str, ...], NDArray[Any]]:
    """The classes that occur, sorted by name unless the source orders them, and labels of the pictures kept.

    int64 `[N]`, or multi-hot bool `[N, C]`.  Raises `InputError` where there is nothing to tell apart.
    """
    rows = [listing.labels[i] for i in kept]
    classes = listing.classes or tuple(sorted({label for row in rows for label in row}))
    if len(classes) < 2 or len(rows) < len(classes):
        raise InputError(
            "at least two classes and as many pictures",
            f"{len(classes)} classes, {len(rows)} pictures in {listing.name}",
            "Point --data at pictures sorted by class.",
        )
    place = {name: i for i, name in enumerate(classes)}
    if not listing.multi:
        return classes, np.array([place[row[0]] for row in rows], np.int64)
    hot = np.zeros((len(rows), len(classes)), bool)
    hot[[i for i, row in enumerate(rows) for _ in row], [place[name] for row in rows for name in row]] = True
    return classes, hot


def split(
    listing: Listing,
    kept: Indices,
    classes: tuple[str, ...],
    labels: NDArray[Any],
    seed: int,
    query_fraction: float,
    validation_fraction: float,
) -> tuple[dict[str, Indices], str]:
    """Indices of train, validation, gallery and query into the pictures kept, each sorted; and the protocol in words.

    Takes the source's split or draws one, then holds out the validation slice of train: class by
    class where pictures have one label each.  A class's draw depends on the seed, its name and its own pictures, so
    that other classes may come and go.  Raises `InputError` for a part that is empty.
    """
    everything = np.arange(len(kept))
    parts = [listing.parts[i] for i in kept]
    if any(parts):
        _check_apart(listing)
        train, gallery, query = (everything[[part in p for p in parts]] for part in (TRAIN, GALLERY, QUERY))
        gallery, told = (gallery if len(gallery) else train), listing.origin
    else:
        query = _draw(_groups(everything, classes, labels), query_fraction, seed)
        train = gallery = np.setdiff1d(everything, query)
        whom = "all pictures" if listing.multi else "each class"
        told = f"{query_fraction:.0%} of {whom} drawn as queries by seed {seed}"
    _check_parts(listing.name, classes, labels, train, gallery, query)
    validation = _draw(_groups(train, classes, labels), validation_fraction, seed + 1, dither=True)
    sizes = f"{len(train)} train" + (" = gallery" if np.array_equal(train, gallery) else f", {len(gallery)} gallery")
    told += f": {sizes}, {len(query)} query; {len(validation)} of train held out for validation by seed {seed}."
    fitted = np.setdiff1d(train, validation)
    return {"train": fitted, "validation": validation, "gallery": gallery, "query": query}, told


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


def _check_apart(listing: Listing) -> None:
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
    if _present(labels[train], len(classes)).sum() < 2:
        raise InputError(f"at least two classes among the train pictures of {name}", "one", "Add pictures of others.")
    lost = _present(labels[query], len(classes)) & ~_present(labels[gallery], len(classes))
    if lost.any():
        few = ", ".join(classes[c] for c in np.flatnonzero(lost)[:5])
        log.warning("%d classes are queried but not in the gallery (%s): they cannot be found", lost.sum(), few)


def _present(labels: NDArray[Any], count: int) -> NDArray[np.bool_]:
    return np.asarray(labels.any(0) if labels.ndim == 2 else np.bincount(labels, minlength=count) > 0)
