"""Row checks against a slow twin, and totals that several writers can keep in any order."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gallery import row_checks as module
from gallery.errors import InputError
from gallery.row_checks import MODULUS, Totals, check_ids, check_labels, item_id, row_checks

TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=12)
ROW = st.tuples(TEXT, st.binary(min_size=8, max_size=8), st.none() | st.lists(TEXT, max_size=3))
ROWS = st.lists(ROW, max_size=30)
SPACE = "0123456789abcdef"


def checks(rows: list[Any], space: str = SPACE) -> np.ndarray:
    ids, labels = (
        pa.array([row[0] for row in rows], pa.string()),
        pa.array([row[2] for row in rows], pa.list_(pa.string())),
    )
    codes = np.frombuffer(b"".join(row[1] for row in rows), np.uint8).reshape(-1, 8)
    return row_checks(space, ids, codes, labels)


def slow(row: Any) -> int:
    """One row by itself."""
    id, code, labels = row
    message = id.encode() + b"\0" + code + (b"" if labels is None else b"\0" + "\0".join(labels).encode())
    return int.from_bytes(hashlib.blake2b(message, digest_size=8, key=SPACE.encode()).digest(), "little")


@settings(deadline=None)
@given(ROWS, st.integers(1, 7))
def test_checks_equal_those_of_a_slow_twin_in_blocks_of_any_size(rows: list[Any], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        found = checks(rows)
    assert (found.dtype, found.tolist()) == (np.uint64, [slow(row) for row in rows])


@settings(deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_totals_are_the_same_in_any_order(rows: list[Any], random: Any) -> None:
    before = Totals.of(checks(rows))
    random.shuffle(rows)
    assert Totals.of(checks(rows)) == before == (len(rows), sum(map(slow, rows)) % MODULUS)


@given(
    st.lists(st.tuples(st.integers(-9, 9), st.integers(0, MODULUS - 1)), max_size=9), st.randoms(use_true_random=False)
)
def test_changes_commute_and_can_be_undone(changes: list[Any], random: Any) -> None:
    all_of_them = [Totals(*change) for change in changes]
    total = Totals()
    for change in all_of_them:
        total = total.plus(change)
    random.shuffle(all_of_them)
    for change in all_of_them:
        total = total.minus(change)
    assert total == Totals()


def test_every_part_of_a_row_and_the_code_space_change_its_check() -> None:
    row = ("a", b"12345678", ["x"])
    others = [("b", *row[1:]), ("a", b"12345679", ["x"]), *((*row[:2], own) for own in (None, [], ["y"], ["x", "x"]))]
    found = [*checks([row, *others]).tolist(), *checks([row], "f" * 16).tolist()]
    assert len(set(found)) == len(found)


def test_a_row_twice_does_not_cancel() -> None:
    one = Totals.of(checks([("a", b"12345678", None)]))
    assert one.plus(one).sum not in (0, one.sum)


@pytest.mark.parametrize(
    "id", ["a", "'", '"; DROP TABLE spaces; --', "\U0001f431 \u202e%20", "x" * 4096, "../../etc", " "]
)
def test_ids_are_any_text_of_the_owners(id: str) -> None:
    check_ids([id, id[:4095] + "2"])
    with pytest.raises(InputError, match="found 2 with the id"):
        check_ids([id, "another", id])


@pytest.mark.parametrize("id", ["", "a\0", "\n", "\x7f", "\x85", "x" * 4097, "\u00e9" * 2049, "\udce9", None, 3, b"a"])
def test_what_is_no_id_is_an_error_that_a_terminal_may_show(id: Any) -> None:
    with pytest.raises(InputError, match="Rename it") as caught:
        check_ids(["good", id])
    assert str(caught.value).isprintable()


@given(st.text(max_size=20).filter(lambda text: text.isprintable() or text.isascii()))
def test_any_name_becomes_an_id_and_a_plain_one_stays(name: str) -> None:
    if name and item_id(name):
        check_ids([item_id(name)])
    if name.isprintable():
        assert item_id(name) == name
    assert item_id("a\nb\x85%") == "a%0Ab%C2%85%"


def test_labels_hold_text() -> None:
    check_labels(pa.chunked_array([[["a", ""], None, []]], pa.list_(pa.string())))
    for wrong in ([["a", None]], [["a\0b"]]):
        with pytest.raises(InputError, match="labels that are text"):
            check_labels(pa.chunked_array([wrong], pa.list_(pa.string())))
