"""Conditions on the command line: one, and nothing but one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gallery.errors import InputError
from gallery.index import check_where


@pytest.mark.parametrize(
    "where",
    [
        "price < 10", "price < 10 AND brand = 'acme'", "brand IN ('a;b', 'it''s -- fine', '/*')",
        "price BETWEEN 1 AND 2.5e3",
        "lower(brand) LIKE 'a%' OR NOT (sold)", "`select` = 1", "array_has(labels, 'shoe')", "day > DATE '2026-01-01'",
        "price - -1 > 2", "id = 'größe'",
    ],
)  # fmt: skip
def test_conditions(where: str) -> None:
    check_where(where)


@pytest.mark.parametrize(
    "where",
    [
        "", "  ", "price < 10; DROP TABLE items", "price < 10 -- and more", "price < 10 /* and more", "id = 'open",
        "id IN (SELECT id FROM items)", "(price < 10", "price < 10)", "(" * 40 + "price < 10" + ")" * 40,
        "price < 10 \\",
        "x" * 5000, "EXISTS (TABLE items)", "price < 10 $$ ;", "price --1 > 2", "sold\0",
    ],
)  # fmt: skip
def test_what_is_none(where: str) -> None:
    with pytest.raises(InputError, match="Write one condition"):
        check_where(where)


@given(st.text())
def test_no_text_with_a_semicolon_outside_of_quotes_passes(text: str) -> None:
    try:
        check_where(text)
    except InputError:
        return
    outside = [part for at, part in enumerate(text.replace("`", "'").replace('"', "'").split("'")) if at % 2 == 0]
    assert ";" not in "".join(outside) or any(quote in text for quote in "'`\"")
