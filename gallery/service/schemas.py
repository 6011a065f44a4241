"""What is asked and answered, and the one form of every error."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from gallery.codes import Codes
from gallery.service.errors import bad_request

MAX_CODES, MAX_K, MAX_COLUMNS, MAX_ID = 256, 1000, 64, 4096
Name = Annotated[str, Field(max_length=64)]
SpaceId = Annotated[str, Field(pattern="^[0-9a-f]{16}$", description="Code space of the student; see /codespace.")]
Count = Annotated[StrictInt, Field(ge=1, le=MAX_K, description="Results of each query.")]
Distance = Annotated[StrictInt | None, Field(ge=0, le=1 << 20, description="Leave out what is farther, in bits.")]
Columns = Annotated[list[Name], Field(max_length=MAX_COLUMNS, description="Columns to return; `labels` is one.")]
Where = Annotated[dict[Name, Any] | None, Field(
    max_length=16, examples=[{"price": {"lt": 10}, "brand": ["a", "b"]}],
    description="Conditions on columns, of which all must hold: a value, a list of values, or `lt`, `le`, `gt`, `ge`, "
    "`eq`, `ne`, `in`.",
)]  # fmt: skip


class Options(BaseModel):
    """What every search takes."""

    model_config = ConfigDict(extra="forbid")
    k: Count = 10
    where: Where = None
    max_distance: Distance = None
    columns: Columns = []


class SearchRequest(Options):
    """Search by packed codes, each hex or base64."""

    code_space: SpaceId
    codes: Annotated[list[Annotated[str, Field(max_length=1024)]], Field(min_length=1, max_length=MAX_CODES)]


class LikeRequest(Options):
    """Search by an item of the gallery, which is not among its own results."""

    id: Annotated[str, Field(min_length=1, max_length=MAX_ID)]
    code_space: SpaceId | None = None


class Neighbor(BaseModel):
    """An item near a query; distance: in bits."""

    id: str
    distance: int
    columns: dict[str, Any] | None = None


class SearchAnswer(BaseModel):
    """Results of each query by (distance, id), all of one version; update: the newer code space to change over to."""

    code_space: str
    version: int
    update: str | None = None
    results: list[list[Neighbor]]


class ItemAnswer(BaseModel):
    """An item of the gallery; code: hex."""

    id: str
    code: str
    code_space: str
    version: int
    update: str | None = None
    columns: dict[str, Any]


class PublishedSpace(BaseModel):
    """A code space that is answered."""

    code_space: str
    version: int
    items: int
    bits: int
    preprocessing: dict[str, Any]
    columns: list[str]
    image_search: bool


class SpacesAnswer(BaseModel):
    """The code space to use, and the one before it, whose students are still answered."""

    current: PublishedSpace
    previous: PublishedSpace | None = None
    thumbnails: bool


class ErrorAnswer(BaseModel):
    """What was expected, what was found, and what to do."""

    error: str
    expected: str
    found: str
    fix: str


def parse_json(body: str | bytes) -> Any:
    """Parse JSON in which no name stands twice and all numbers are finite; raises `ServiceError`."""
    try:
        return DECODER.decode(body.decode() if isinstance(body, bytes) else body)
    except (ValueError, RecursionError) as error:
        raise bad_request("JSON (RFC 8259) with each name once", str(error)[:200], error="bad_json") from error


def parse_codes(texts: Sequence[str], bits: int) -> Codes:
    """Return codes from hex or base64 as uint8 `[n, bits/8]`; raises `ServiceError` for others."""
    width = bits // 8
    try:
        parts = [
            bytes.fromhex(text) if _is_hex(text, width) else base64.b64decode(text, validate=True) for text in texts
        ]
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"codes in hex or base64, each of {width} bytes", str(error), 422, "bad_code") from error
    if wrong := [len(part) * 8 for part in parts if len(part) != width]:
        raise bad_request(f"codes of {bits} bits", f"{wrong[0]} bits", 422, "bad_code")
    return np.frombuffer(b"".join(parts), np.uint8).reshape(len(parts), width)


def _is_hex(text: str, width: int) -> bool:
    return len(text) == 2 * width and not text.endswith("=")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name that stands twice in an object")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name}, which is no number of JSON")


DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)
