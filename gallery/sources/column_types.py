"""The columns that a gallery's owner adds to items: typed once, when they are first seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gallery.console import plain
from gallery.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

NUMBER, WHOLE = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$", r"^(0|-?[1-9]\d{0,17})$"  # 007 is the name of something
DATE, FLAG = r"^\d{4}-\d{2}-\d{2}$", r"^(?i:true|false)$"


def typed_column(name: str, column: pa.ChunkedArray, wanted: pa.DataType | None) -> pa.ChunkedArray | None:
    """Return a column with the type that the gallery has for it, or the narrowest that all of its values have.

    Empty fields and NaN are nulls.  None where there is no value, and so no type.  Types are bool, int64, double,
    string, date32 and timestamp[us].  Raises `InputError` for values of other types.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    if pa.types.is_string(column.type):
        trimmed = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.equal(trimmed, ""), None, trimmed)
    elif pa.types.is_floating(column.type):
        column = column.cast(pa.float64())
        column = pc.if_else(pc.is_nan(column), None, column)
    if column.null_count == len(column) and wanted is None:
        return None
    try:
        typed = column.cast(wanted or _type_of(column))
        if pa.types.is_floating(typed.type) and pc.any(pc.is_inf(typed)).as_py():
            raise ValueError("an infinite number, which JSON does not have")
        return typed
    except (pa.ArrowException, ValueError) as error:
        expected = f"values of {wanted} in the column {name}, as in the gallery" if wanted else f"values in {name}"
        fix = "Change the values; the types are bool, int64, double, string, date and timestamp."
        raise InputError(expected, plain(str(error))[:200], fix) from error


def _type_of(column: pa.ChunkedArray) -> pa.DataType:
    import pyarrow as pa
    import pyarrow.compute as pc

    types = pa.types
    if types.is_string(column.type):
        for pattern, kind in ((WHOLE, pa.int64()), (NUMBER, pa.float64()), (FLAG, pa.bool_()), (DATE, pa.date32())):
            if pc.all(pc.match_substring_regex(column, pattern)).as_py():
                return pa.string() if kind == pa.float64() and _has_names(column) else kind
        return pa.string()
    simple: list[tuple[Any, pa.DataType]] = [
        (types.is_integer, pa.int64()), (types.is_floating, pa.float64()), (types.is_decimal, pa.float64()),
        (types.is_boolean, pa.bool_()), (types.is_date, pa.date32()), (types.is_timestamp, pa.timestamp("us")),
    ]  # fmt: skip
    for matches, kind in simple:
        if matches(column.type):
            return kind
    raise ValueError(f"values of type {column.type}")


def _has_names(column: pa.ChunkedArray) -> bool:
    """Whether a column of digits holds names: with zeros in front, or too long for a number."""
    import pyarrow.compute as pc

    return bool(pc.any(pc.match_substring_regex(column, r"^[+-]?0\d|^\d{19,}$")).as_py())
