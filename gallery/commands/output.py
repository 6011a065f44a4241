"""What the commands of a gallery print: a table for people, or JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gallery.console import plain

WIDTH, LEAST, SHOWN = 80, 12, 100  # characters of a line, and of a column that is cut; rows of a table in a terminal
KEYS = "id", "space"  # columns that are cut last


def show(value: Any, as_json: bool, rows: Sequence[Mapping[str, Any]] | None = None) -> None:
    """Print `value` as JSON, or a table of `rows`; without rows the table is that of the value's items.

    Names may come from anywhere: nothing that could steer a terminal is printed.
    """
    if as_json:
        print(json.dumps(value, indent=1, default=str))
        return
    if rows is None:
        rows = [{"": name.replace("_", " "), " ": own} for name, own in value.items()]
    print("\n".join(table(rows)))


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table, with the names of the columns unless these are blank; long texts are cut to fit."""
    if not rows:
        return ["(none)"]
    names = list(rows[0])
    cells = [[_text(row.get(name)) for name in names] for row in rows]
    cells = [[name.replace("_", " ") for name in names], *cells] if any(name.strip() for name in names) else cells
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    numbers = [all(isinstance(row.get(name), int | float) for row in rows) for name in names]
    texts = [column for column in range(len(names)) if not numbers[column]]
    for columns in ([column for column in texts if names[column] not in KEYS], texts):  # ids are to be copied
        while sum(widths) + 2 * (len(widths) - 1) > WIDTH:
            longest = max(columns, key=widths.__getitem__, default=None)
            if longest is None or widths[longest] <= LEAST:
                break
            widths[longest] -= 1
    return [
        "  ".join(
            _cut(cell, width).rjust(width) if right else _cut(cell, width).ljust(width)
            for cell, width, right in zip(line, widths, numbers, strict=True)
        ).rstrip()
        for line in cells
    ]


def _cut(text: str, width: int) -> str:
    end = (width - 3) // 2
    return text if len(text) <= width else f"{text[: width - 3 - end]}...{text[len(text) - end :]}"


def _text(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, bool | float):
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value:.6g}"
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return "-" if value is None or value == "" else plain(str(value))


def select(rows: Sequence[Mapping[str, Any]], *names: str) -> list[dict[str, Any]]:
    """Return these columns of rows."""
    return [{name: row[name] for name in names} for row in rows]
