"""Conditions over the owner's columns, as JSON: `{"price": {"lt": 10}, "brand": ["a", "b"]}`; no SQL over the wire."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gallery.service.errors import ServiceError, bad_request

COMPARE = {"lt": pc.less, "le": pc.less_equal, "gt": pc.greater, "ge": pc.greater_equal, "eq": pc.equal,
           "ne": pc.not_equal}  # fmt: skip
MAX_VALUES = 1000


def rows_where(table: pa.Table, where: dict[str, Any]) -> NDArray[np.bool_]:
    """Return for each row whether all conditions hold, bool `[rows]`; raises `ServiceError` for one that cannot."""
    mask = np.ones(len(table), bool)
    for name, condition in where.items():
        if name not in table.column_names:
            raise bad_filter(f"one of the columns {', '.join(table.column_names) or '(there are none)'}", name)
        operators = condition if isinstance(condition, dict) else {"in": condition}
        for operator, value in operators.items():
            mask &= _holds(name, table[name], operator, value)
    return mask


def bad_filter(expected: str, found: object) -> ServiceError:
    """Build the error for a condition that cannot be evaluated."""
    return bad_request(f"in `where` {expected}", found, error="bad_filter")


def _holds(name: str, column: pa.ChunkedArray, operator: str, value: Any) -> NDArray[np.bool_]:
    type_, repeated = column.type, pa.types.is_list(column.type)
    if operator != "in" and (repeated or operator not in COMPARE):
        raise bad_filter("in" if repeated else f"one of {', '.join(COMPARE)}, in", operator)
    values = value if operator == "in" and isinstance(value, list) else [value]
    if not values or len(values) > MAX_VALUES:
        raise bad_filter(f"1 to {MAX_VALUES} values for {name}", f"{len(values)} values")
    try:
        if repeated:
            return _any_of(column.combine_chunks(), _array(values, type_.value_type))
        if operator == "in":
            found = pc.is_in(column, value_set=_array(values, type_))
        else:
            found = COMPARE[operator](column, _array(values, type_)[0])
        return np.asarray(pc.fill_null(found, False).to_numpy(), bool)
    except (pa.ArrowException, ValueError, OverflowError, TypeError) as error:
        raise bad_filter(f"values of the type {type_} for {name}", value) from error


def _array(values: list[Any], type_: pa.DataType) -> pa.Array:
    """Return values as an array that compares with a column of the type; raises what pyarrow does, or `TypeError`."""
    kinds: tuple[type, ...] = (str,)  # of texts, times and dates
    if pa.types.is_boolean(type_):
        kinds = (bool,)
    elif pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        kinds = (int, float)
    for value in values:
        if not isinstance(value, kinds) or isinstance(value, bool) != (kinds == (bool,)):
            raise TypeError(f"{type(value).__name__} for {type_}")
        if isinstance(value, float) and not math.isfinite(value):
            raise TypeError("a number that is not finite")
    array = pa.array(values)
    return array if pa.types.is_floating(array.type) else array.cast(type_)


def _any_of(lists: pa.ListArray, values: pa.Array) -> NDArray[np.bool_]:
    mask = np.zeros(len(lists), bool)
    hits = pc.is_in(lists.flatten(), value_set=values).to_numpy(zero_copy_only=False)
    mask[pc.list_parent_indices(lists).to_numpy()[hits]] = True
    return mask
