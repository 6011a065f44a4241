"""Checksums of gallery rows that are independent of their order, so that several writers can keep them.

A row's check is 64 bits of BLAKE2b over its id, code and labels, keyed by the code space: it moves with the row
through compactions, copies and other engines.  A table's are its rows and the sum of their checks modulo 2**64, which a
commit changes by what it added less what it removed.  They detect accidents, not an adversary who can write the table.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gallery.codes import Codes
from gallery.errors import InputError

MAX_ID = 4096  # bytes: the longest path of a file
MODULUS = 1 << 64
BLOCK = 1 << 16  # rows
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
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


def row_checks(space: str, ids: pa.StringArray, codes: Codes, labels: pa.ListArray) -> Checks:
    """Return the check of each row, uint64 `[n]`; 0.7 us a row.

    space: the id of the code space; codes: packed `[n, bytes]`; labels: those of each item, null where unknown.  None
    of the texts holds a null character, as `check_ids` and `check_labels` see to.
    """
    keyed = hashlib.blake2b(digest_size=8, key=space.encode())

    def check(row: bytes) -> bytes:
        own = keyed.copy()
        own.update(row)
        return own.digest()

    blocks = (slice(at, at + BLOCK) for at in range(0, len(ids), BLOCK))
    checks = (b"".join(map(check, _messages(ids[own], codes[own], labels[own]))) for own in blocks)
    return np.frombuffer(b"".join(checks), "<u8")


def _messages(ids: pa.StringArray, codes: Codes, labels: pa.ListArray) -> Iterator[bytes]:
    """Return `id \\0 code` of each row, and if known `\\0 label` of each, or `\\0` for an item of none."""
    packed = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(codes.shape[1]), len(codes), [None, pa.py_buffer(np.ascontiguousarray(codes))]
    )
    joined = pc.binary_join(labels, "\0").cast(pa.binary())
    columns = ids.cast(pa.binary()), packed.cast(pa.binary()), joined
    messages = pc.binary_join_element_wise(*columns, b"\0", null_handling="skip")
    yield from messages.to_pylist()


def item_id(name: str) -> str:
    """Return the id of an image by its name: control characters, which no id may have, are percent-encoded."""
    return CONTROL.sub(lambda found: quote(found[0]), name)


def check_ids(ids: Sequence[str]) -> None:
    """Raise `InputError` for an id that is no text, empty, too long, has control characters, or is there twice."""
    for id in ids:
        if problem := problem_of_id(id):
            expected = f"ids of 1 to {MAX_ID:,} bytes of UTF-8 without control characters"
            raise InputError(expected, f"{ascii(id)[:80]}, which {problem}", "Rename it.")
    if len(set(ids)) < len(ids):
        id, count = Counter(ids).most_common(1)[0]
        raise InputError("one item for each id", f"{count} with the id {ascii(id)[:80]}", "Remove all but one.")


def problem_of_id(id: object) -> str:
    """Return in words why an id cannot be one; empty if it can."""
    if not isinstance(id, str):
        return "is no text"
    try:
        size = len(id.encode())
    except UnicodeEncodeError:
        return "is no UTF-8"
    if not 1 <= size <= MAX_ID:
        return f"has {size:,} bytes"
    return "holds a control character" if CONTROL.search(id) else ""


def check_labels(labels: pa.ChunkedArray) -> None:
    """Raise `InputError` for a label that is null or holds a null character; an item's labels may be null."""
    flat = pc.list_flatten(labels)
    if flat.null_count or pc.any(pc.match_substring(flat, "\0")).as_py():
        raise InputError("labels that are text", "a null among them", "Leave it out; null labels are unknown ones.")
