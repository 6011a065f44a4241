"""Galleries for tests."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gallery.codespace import CodeSpace, Preprocessing, hash_centers
from gallery.database import SCHEMAS, SPACES, Database, code_array
from gallery.index import GalleryIndex, create_gallery
from gallery.store import GalleryStore, SpaceRecord


def centers_of(bits: int, classes: int = 2) -> Any:
    """Random +-1 centers."""
    return np.random.default_rng(classes).choice(np.array([-1, 1], np.int8), (classes, bits))


def space_of(
    bits: int = 16, teacher: str = "vit_tiny", classes: Sequence[str] = ("a", "b"), size: int = 64
) -> CodeSpace:
    """The code space of `centers_of`."""
    seen = Preprocessing(size, (0.5,) * 3, (0.2,) * 3)
    return CodeSpace(bits, tuple(classes), teacher, "ab" * 32, hash_centers(centers_of(bits, len(classes))), seen)


def named(labels: Any, classes: Sequence[str]) -> list[list[str] | None]:
    """The names of the classes of each item, from labels that are int (-1: none) or multi-hot."""
    if np.ndim(labels) == 2:
        return [[classes[i] for i in np.flatnonzero(row)] or None for row in labels]
    return [[classes[i]] if i >= 0 else None for i in labels]


def numbered(count: int) -> list[str]:
    """Ids whose order is that of their numbers."""
    return [f"{i:06d}.jpg" for i in range(count)]


SPACE = space_of(64)
ID = SPACE.id


def rows(ids: Sequence[str], seed: int = 0, **columns: Any) -> pa.Table:
    """Rows of `SPACE` with random codes."""
    codes = np.random.default_rng(seed).integers(0, 256, (len(ids), 8), np.uint8)
    return pa.table({"id": pa.array(ids, pa.string()), "code": code_array(codes), **columns})


def index_of(space: CodeSpace, codes: Any, labels: Any) -> GalleryIndex:
    """An index of a gallery whose folder is gone; rows are in the order of the codes."""
    with tempfile.TemporaryDirectory() as folder:
        centers, labels = centers_of(space.bits, len(space.classes)), named(labels, space.classes)
        return create_gallery(Path(folder, "g"), space, centers, codes, numbered(len(codes)), labels)


def write_spaces(store: GalleryStore, records: Sequence[SpaceRecord]) -> None:
    """Write the states of code spaces in one commit."""
    rows = pa.Table.from_pylist([one._asdict() for one in records], SCHEMAS[SPACES])
    Database(store.uri).upsert(SPACES, "space", rows)
