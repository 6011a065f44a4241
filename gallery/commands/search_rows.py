"""The results of one query, as rows with what the gallery says of each item."""

from __future__ import annotations

from typing import Any

import numpy as np

from gallery.codes import Codes
from gallery.codespace import CodeSpace
from gallery.errors import InputError
from gallery.index import GalleryIndex

SHOWN_COLUMNS = "labels", "source"


def parse_code(text: str, space: CodeSpace) -> Codes:
    """Return a code in hexadecimal as packed `[1, bytes]`; raises `InputError` for one of another length."""
    try:
        code = np.frombuffer(bytes.fromhex(text), np.uint8)
    except ValueError:
        code = np.empty(0, np.uint8)
    if len(code) * 8 != space.bits or len(text) != len(code) * 2:
        expected = f"a code of {space.bits // 4} hexadecimal digits, as in code space {space.id}"
        raise InputError(expected, f"{text[:80]!a} of {len(text)}", "Give the packed code, little bit order.")
    return code[None]


def result_rows(
    index: GalleryIndex, code: Codes, k: int, where: str | None = None, max_distance: int | None = None
) -> list[dict[str, Any]]:
    """Return the k nearest items of a packed code `[1, bytes]`, by (distance, id), with all that is known of each.

    where: SQL's condition on the columns; max_distance: in bits
    """
    among = None if where is None else index.rows_where(where)
    if among is not None and not len(among):
        return []
    found = index.search(code, k, among)
    near = found.distances[0] <= (index.space.bits if max_distance is None else max_distance)
    rows, distances = found.rows[0, near], found.distances[0, near].tolist()
    about = index.columns([*SHOWN_COLUMNS, *index.owner_columns], rows).to_pylist() if len(rows) else []
    return [{"id": id, "distance": d} | row for id, d, row in zip(found.ids[0, near], distances, about, strict=True)]
