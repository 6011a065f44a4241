"""Checksums of gallery rows that are independent of their order, so that several writers can keep them.

A row's check is 64 bits of BLAKE2b over its id, code and labels, keyed by the code space: it moves with the row
through compactions, copies and other engines.  A table's are its rows and the sum of their checks modulo 2**64, which a
commit changes by what it added less what it removed.  They detect accidents, not an adversary who can write the table.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gallery.codes import Codes
from gallery.errors import InputError

MAX_ID = 4096  # bytes: the longest path of a file
MAX_LABELS = 1 << 16  # of one item
MODULUS = 1 << 64
Checks = NDArray[np.uint64]
ItemLabels = Sequence[Sequence[str] | None]


class Totals(NamedTuple):
    """How many rows there are, and the sum of their checks modulo 2**64; differences of two are totals as well."""

    rows: int = 0
    sum: int = 0

    @classmethod
    def of(cls, checks: Checks) -> Totals:
        """Return the totals of rows with these checks."""
        return cls(len(checks), int(checks.sum(dtype=np.uint64)))  # uint64 wraps

    def plus(self, other: Totals) -> Totals:
        """Return the totals after a change by `other`."""
        return Totals(self.rows + other.rows, (self.sum + other.sum) % MODULUS)

    def minus(self, other: Totals) -> Totals:
        """Return the change from `other` to these."""
        return Totals(self.rows - other.rows, (self.sum - other.sum) % MODULUS)


def row_checks(space: str, ids: Iterable[str], codes: Codes, labels: ItemLabels) -> Checks:
    """Return the check of each row, uint64 `[n]`; 0.9 us a row.

    space: the id of the code space; codes: packed `[n, bytes]`; labels: those of each item, None where unknown
    """
    keyed = hashlib.blake2b(digest_size=8, key=space.encode())
    width, packed, sums = codes.shape[1], codes.tobytes(), bytearray()
    for row, (id, own) in enumerate(zip(ids, labels, strict=True)):
        digest = keyed.copy()
        digest.update(id.encode() + b"\0" + packed[row * width : (row + 1) * width])
        if own is not None:
            digest.update("\0".join(("", *own)).encode())
        sums += digest.digest()
    return np.frombuffer(bytes(sums), "<u8")


def check_ids(ids: Sequence[str]) -> None:
    """Raise `InputError` for an id that is no text, empty, too long, has control characters, or is there twice."""
    for id in ids:
        problem = _problem(id)
        if problem:
            expected = f"ids of 1 to {MAX_ID:,} bytes of UTF-8 without control characters"
            raise InputError(expected, f"{ascii(id)[:80]}, which {problem}", "Rename it.")
    if len(set(ids)) < len(ids):
        id, count = Counter(ids).most_common(1)[0]
        raise InputError("one item for each id", f"{count} with the id {ascii(id)[:80]}", "Remove all but one.")


def _problem(id: object) -> str:
    if not isinstance(id, str):
        return "is no text"
    try:
        size = len(id.encode())
    except UnicodeEncodeError:
        return "is no UTF-8"
    if not 1 <= size <= MAX_ID:
        return f"has {size:,} bytes"
    return "holds a control character" if any(unicodedata.category(c) == "Cc" for c in id) else ""
