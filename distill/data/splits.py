"""Train, validation, gallery and query."""

import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.data.dataset import GALLERY, QUERY, TRAIN, UNLABELED, VALIDATION, ImageList, Indices, Split, present
from gallery.console import plain
from gallery.errors import InputError
from gallery.names import counted, some

Labels = tuple[tuple[str, ...], NDArray[Any]]  # classes; int64 `[N]` (-1 for none), or multi-hot bool `[N, C]`


@dataclass(frozen=True)
class SplitConfig:
    """How a split is sampled where the source has none.

    query_fraction: share of each class sampled as queries, of all images where these have several labels or none
    validation_fraction: share of train held out, unless the source marks validation images
    num_unseen_classes: sampled too; they stay in gallery and query, but none of their images is in train
    """

    seed: int
    query_fraction: float = 0.2
    validation_fraction: float = 0.05
    num_unseen_classes: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.query_fraction < 1 and 0 <= self.validation_fraction < 1):
            found = f"{self.query_fraction} and {self.validation_fraction}"
            raise InputError("shares of queries and validation between 0 and 1", found, "Choose others.")


def encode_labels(images: ImageList) -> Labels:
    """Return the classes that occur, sorted by name unless the source orders them, and the labels of the images.

    No classes where no image has a label.  Raises `InputError` for one class, and for none among multi-label images.
    """
    classes = images.classes or tuple(sorted({label for row in images.labels for label in row}))
    labeled = sum(map(bool, images.labels))
    if not (classes or images.multi):
        return (), np.full(len(images.labels), -1, np.int64)
    if len(classes) < 2 or labeled < len(classes):
        some_classes = f"{counted(len(classes), 'class', 'classes')} ({some(classes)})"
        found = f"{some_classes}, {counted(labeled, 'image')} in {images.name}"
        fix = "Point --data at images sorted by class, or at a folder that holds images alone: these have no labels."
        raise InputError("at least two classes and as many images", found, fix)
    column = {name: c for c, name in enumerate(classes)}
    if not images.multi:
        return classes, np.array([column[row[0]] if row else -1 for row in images.labels], np.int64)
    hot = np.zeros((len(images.labels), len(classes)), bool)
    for i, row in enumerate(images.labels):
        hot[i, [column[name] for name in row]] = True
    return classes, hot


def split(images: ImageList, labels: Labels, options: SplitConfig, digests: Sequence[bytes] = ()) -> Split:
    """Take the source's split or sample one, take unseen classes out of train, and hold out the validation images.

    Samples class by class where images have one label each, and of all images where they have none.  What is sampled of
    a class depends on the seed, its name and its own images, so that other classes may come and go.  Images of the same
    digest are sampled together, as far as `digests` are given.  Raises `InputError` for a split that is empty.
    """
    (classes, values), seed, unseen = labels, options.seed, options.num_unseen_classes
    warnings: list[str] = []
    train, gallery, query, description = _assign_splits(images, labels, options, digests)
    found = {TRAIN: len(train), GALLERY: len(gallery), QUERY: len(query)}
    published = {own: size for own, size in zip(found, images.published_sizes, strict=False) if size is not None}
    if wrong := [f"{found[own]} {own} images here, {n} published" for own, n in published.items() if found[own] != n]:
        warnings.append(f"{images.name} is not as published: {', '.join(wrong)}.")
    if images.multi:  # without a label there is nothing to learn, and nothing to find
        labeled = [own[values[own].any(1)] for own in (query, train)]
        fewer = [len(own) - len(left) for own, left in zip((query, train), labeled, strict=True)]
        description += f", less {fewer[0]} queries and {fewer[1]} of train without a label" if any(fewer) else ""
        query, train = labeled
    hidden = _sample_unseen(np.flatnonzero(present(values[train], len(classes))), unseen, seed)
    if unseen:
        description += f", {unseen} classes held out of train by seed {seed}"
        train = train[~(values[train][:, hidden].any(1) if images.multi else np.isin(values[train], hidden))]
    marked = np.intersect1d(train, _members(images, VALIDATION))
    validation = (
        marked if len(marked) else _sample(train, labels, options.validation_fraction, seed + 1, digests, dither=True)
    )
    learned = np.setdiff1d(train, validation)
    warnings += _check_splits(images.name, labels, learned, gallery, query)
    known, there, asked = (present(values[own], len(classes)) for own in (learned, gallery, query))
    apart = np.union1d(hidden, [classes.index(name) for name in images.unseen]).astype(np.int64)
    known[apart] = True
    for what, which in (("in gallery or query alone", (there | asked) & ~known), ("without a query", there & ~asked)):
        if own := [classes[c] for c in np.flatnonzero(which)]:
            description += f", {counted(len(own), 'class', 'classes')} {what} ({some(own)})"
    description += "" if classes else ", no labels"
    sizes = f"{len(train)} train" + (" = gallery" if np.array_equal(train, gallery) else f", {len(gallery)} gallery")
    by = "" if len(marked) else f" by seed {seed}"
    description += f": {sizes}, {len(query)} query; {len(validation)} of train held out for validation{by}."
    return Split(
        protocol=description, train=learned, validation=validation, gallery=gallery,
        query=query, unlabeled=_members(images, UNLABELED), unseen=tuple(classes[c] for c in apart),
        warnings=tuple(warnings),
    )  # fmt: skip


def _members(images: ImageList, own: str) -> Indices:
    return np.flatnonzero([own in splits for splits in images.splits])


def _assign_splits(
    images: ImageList, labels: Labels, options: SplitConfig, digests: Sequence[bytes]
) -> tuple[Indices, Indices, Indices, str]:
    """Return train, gallery and query as the source has them, or sampled; and a description."""
    if any(splits - {UNLABELED} for splits in images.splits):
        for name, splits in zip(images.names, images.splits, strict=True):
            if QUERY in splits and len(splits) > 1:
                found = f"{plain(name)} in {', '.join(sorted(splits))}"
                raise InputError("queries that are in no other split", found, "It would find itself.")
        train, gallery, query = (_members(images, own) for own in (TRAIN, GALLERY, QUERY))
        train = np.union1d(train, _members(images, VALIDATION))
        return train, (gallery if len(gallery) else train), query, images.split_source
    labeled = np.flatnonzero([not splits for splits in images.splits])
    query = _sample(labeled, labels, options.query_fraction, options.seed, digests)
    train = np.setdiff1d(labeled, query)
    of = "each class" if labels[0] and not images.multi else "all images"
    return train, train, query, f"{options.query_fraction:.0%} of {of} sampled as queries by seed {options.seed}"


def _sample_unseen(classes: Indices, count: int, seed: int) -> Indices:
    """Sample `count` of the classes in train, in order; raises `InputError` where fewer than two would be left."""
    if count and not 0 < count <= len(classes) - 2:
        found = f"{count} of the {len(classes)} in train"
        raise InputError("so few unseen classes that two are left to learn", found, "Hold out fewer.")
    return np.sort(np.random.default_rng([seed, zlib.crc32(b"unseen")]).permutation(classes)[:count])


def _sample(
    chosen: Indices, labels: Labels, fraction: float, seed: int, digests: Sequence[bytes], *, dither: bool = False
) -> Indices:
    """Sample a share of each class, or of all where images have several labels or none, but never the whole.

    Rounded to the nearest, and at least one of a class of two; with `dither`, rounded up or down by chance, so that
    a small share of many small classes comes out right, and at least one in all.  Copies are sampled all or none.
    """
    (classes, values), groups = labels, {"": chosen}
    if classes and values.ndim == 1:
        own = values[chosen]
        ends = np.cumsum(np.bincount(own, minlength=len(classes)))[:-1]
        groups = dict(zip(classes, np.split(chosen[np.argsort(own, kind="stable")], ends), strict=True))
    sampled, copies = list[Indices](), _Copies(chosen, digests)
    for name, members in groups.items():
        random = np.random.default_rng([seed, zlib.crc32(name.encode())])
        wanted = int(len(members) * fraction + random.random()) if dither else max(1, round(len(members) * fraction))
        order, count = random.permutation(members), max(0, min(wanted, len(members) - 1))
        sampled.append(copies.draw(order, count) if copies.set_of else order[:count])
    if fraction and not sum(map(len, sampled)):
        largest = max(groups.values(), key=len)
        alone = [i for i in largest if i not in copies.set_of]
        sampled.append(np.array(alone[: min(1, len(largest) - 1)], np.int64))
    return np.sort(np.concatenate(sampled))


class _Copies:
    """Images by their bytes: those with the same are drawn all or none, whatever the classes they are in."""

    def __init__(self, chosen: Indices, digests: Sequence[bytes]) -> None:
        self.set_of = {i: members for members in copies_among(chosen, digests) for i in members}
        self.drawn = dict[int, bool]()  # by the first of each set that was decided on, whether it was drawn

    def draw(self, order: Indices, count: int) -> Indices:
        """Return about `count` of a class's images, in whole sets: the first of `order` that fit, or the smallest.

        A set that another class has drawn, or left, is decided.
        """
        inside, left = set(order.tolist()), dict[int, list[int]]()
        sets = {i: self.set_of.get(i, [i]) for i in order.tolist()}
        own = [i for i, copies in sets.items() if self.drawn.get(copies[0])]
        for copies in sets.values():
            if (first := copies[0]) not in self.drawn:
                together = [i for i in copies if i in inside]
                self.drawn[first] = fits = len(own) + len(together) <= count
                own += together if fits else []
                left |= {} if fits else {first: together}
        smallest = min(left, key=lambda first: len(left[first]), default=-1)
        if count and not own and len(left.get(smallest, order)) < len(order):
            own, self.drawn[smallest] = left[smallest], True
        return np.array(own, np.int64)


def copies_among(chosen: Indices, digests: Sequence[bytes]) -> list[list[int]]:
    """Return the sets of two or more of the images whose digests are the same, in order."""
    found = defaultdict[bytes, list[int]](list)
    for i in chosen.tolist() if digests else ():
        found[digests[i]].append(i)
    return [members for members in found.values() if len(members) > 1]


def _check_splits(name: str, labels: Labels, train: Indices, gallery: Indices, query: Indices) -> Iterator[str]:
    """Yield what should be checked; raises `InputError` for a split that cannot be used."""
    classes, values = labels
    for own, members in ((TRAIN, train), (QUERY, query)):
        if not len(members):
            fix = "Mark some, or leave the split out to have one sampled (which takes two different images of a class)."
            raise InputError(f"{own} images in {name}", "none", fix)
    learned, there, queried = (present(values[members], len(classes)) for members in (train, gallery, query))
    if classes and learned.sum() < 2:
        raise InputError(f"at least two classes among the train images of {name}", "one", "Add images of others.")
    if not classes and len(train) < 2:
        raise InputError(f"at least two train images in {name}", "one", "Add images, or lower --validation-fraction.")
    if lost := [classes[c] for c in np.flatnonzero(queried & ~there)]:
        yield f"{counted(len(lost), 'class', 'classes')} queried but not in the gallery: {some(lost)}."
