"""Tables in a terminal."""

from gallery.commands.output import table


def test_a_table_fits_80_columns_and_has_no_blank_cells() -> None:
    row = {"id": "a/b.png", "distance": 1_234_567, "source": "/x" * 200, "reason": "y " * 90, "labels": None, "at": ""}
    lines = table([row, row | {"id": "\x1b[31m"}])
    assert max(map(len, lines)) <= 80
    assert lines[1].split()[:2] == ["a/b.png", "1,234,567"]  # numbers are never cut
    assert lines[1].split()[-2:] == ["-", "-"]
    assert "..." in lines[1]
    assert table([{"id": "i" * 60, "source": "s" * 60}])[1].startswith("i" * 60 + "  s")  # ids are cut last
    assert "\x1b" not in lines[2]


def test_a_table_without_rows_says_so() -> None:
    assert table([]) == ["(none)"]
