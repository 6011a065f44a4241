"""The tables of a gallery: their schemas, what their metadata say, and access to the database they are in."""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gallery.codes import Codes, pack, unpack
from gallery.codespace import CodeSpace, hash_centers
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError, TwinhashError
from gallery.files import check_regular

SPACE_KEY, CENTERS_KEY, SCHEMA_KEY = b"twinhash.codespace", b"twinhash.centers", b"twinhash.schema"
SCHEMA = b"2"
SPACES, LEDGER, FAILED, PREFIX = "spaces", "ledger", "failed", "codes_"
TIME = pa.timestamp("us", tz="UTC")
SCHEMAS = {
    SPACES: pa.schema([
        ("space", pa.string()), ("state", pa.string()), ("version", pa.int64()), ("rows", pa.int64()),
        ("sum", pa.uint64()), ("since", TIME),
    ]),
    LEDGER: pa.schema([
        ("line", pa.string()), ("space", pa.string()), ("version", pa.int64()), ("at", TIME), ("op", pa.string()),
        ("rows", pa.int64()), ("sum", pa.uint64()), ("added", pa.int64()), ("replaced", pa.int64()),
        ("removed", pa.int64()), ("by", pa.string()),
    ]),
    FAILED: pa.schema([
        ("space", pa.string()), ("id", pa.string()), ("source", pa.string()), ("etag", pa.string()),
        ("reason", pa.string()), ("at", TIME),
    ]),
}  # fmt: skip
COLUMN_NAME = r"[A-Za-z][A-Za-z0-9_]{0,63}"
RESTORE = "The gallery is damaged or was edited: restore it, or encode it again."
MAX_ROWS = 1 << 31  # LanceDB wants a limit
SYSTEM_ERRORS = {"No space left": errno.ENOSPC, "Disk quota": errno.EDQUOT, "File too large": errno.EFBIG,
                 "Permission denied": errno.EACCES, "Read-only file system": errno.EROFS}  # fmt: skip
T = TypeVar("T")
P = ParamSpec("P")


def table_name(space_id: str) -> str:
    """Return the name of a code space's table."""
    return PREFIX + space_id


def item_columns(width: int) -> pa.Schema:
    """Return the columns of every item, whose code has `width` bytes."""
    return pa.schema([
        pa.field("id", pa.string(), nullable=False), ("code", pa.list_(pa.uint8(), width)), ("source", pa.string()),
        ("etag", pa.string()), ("sha256", pa.string()), ("labels", pa.list_(pa.string())), ("encoded_at", TIME),
        ("check", pa.uint64()),
    ])  # fmt: skip


def code_schema(space: CodeSpace, centers: NDArray[np.int8], columns: pa.Schema | None = None) -> pa.Schema:
    """Return the schema of a table of codes.

    centers: +-1 `[classes, bits]`, those of the space; columns: the owner's own
    """
    if hash_centers(centers) != space.centers_sha256:
        fix = "Take space and centers from one run."
        raise InputError(f"the hash centers of code space {space.id}", "others", fix)
    metadata = {
        SPACE_KEY: json.dumps(space.to_dict()), CENTERS_KEY: base64.b64encode(pack(centers).tobytes()),
        SCHEMA_KEY: SCHEMA,
    }  # fmt: skip
    for name in () if columns is None else columns.names:
        check_column(name)
    return pa.schema([*item_columns(space.bits // 8), *(columns or ())], metadata=metadata)


def check_column(name: str) -> None:
    """Raise `InputError` for a name that no column of the owner's may have."""
    own = name.lower() in item_columns(1).names
    if own or not re.fullmatch(COLUMN_NAME, name):
        found = ascii(name)[:80] + (", which is the gallery's own" if own else "")
        raise InputError("columns named by up to 64 letters, digits and _", found, "Rename the column.")


def read_space(uri: str, schema: pa.Schema) -> tuple[CodeSpace, NDArray[np.int8]]:
    """Return the code space and centers of a table; raises `CodeSpaceMismatch` without, `CorruptFile` for damaged."""
    metadata = schema.metadata or {}
    if SPACE_KEY not in metadata or CENTERS_KEY not in metadata or metadata.get(SCHEMA_KEY) != SCHEMA:
        fix = "Encode the gallery again with Twinhash."
        raise CodeSpaceMismatch(f"the gallery {uri} to carry a code space", "a table without one", fix)
    try:
        space = CodeSpace.from_dict(dict(json.loads(metadata[SPACE_KEY])))
        packed = np.frombuffer(base64.b64decode(metadata[CENTERS_KEY], validate=True), np.uint8)
        centers = np.where(unpack(packed.reshape(-1, space.bits // 8)), np.int8(1), np.int8(-1))
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptFile(f"readable metadata in the gallery {uri}", str(error), RESTORE) from error
    if len(centers) != len(space.classes) or hash_centers(centers) != space.centers_sha256:
        raise CorruptFile(f"the hash centers of code space {space.id} in {uri}", "others", RESTORE)
    return space, centers


def code_array(codes: Codes) -> pa.FixedSizeListArray:
    """Return packed codes `[n, bytes]` as a column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(codes).reshape(-1)), codes.shape[1])


def column_codes(rows: pa.Table) -> Codes:
    """Return the column `code` as packed `[n, bytes]`; raises `ValueError` for a null in it."""
    column = rows["code"].combine_chunks()
    if column.null_count or column.flatten().null_count:
        raise ValueError("codes that are null")
    width = rows.schema.field("code").type.list_size
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(flat.reshape(len(rows), width), np.uint8)


def quoted(ids: Sequence[str]) -> str:
    """Return ids as a list of SQL's strings, in which nothing but the quote has a meaning."""
    return ", ".join("'" + id.replace("'", "''") + "'" for id in ids)


def check_schema(uri: str, name: str, schema: pa.Schema) -> None:
    """Raise `CorruptFile` unless a table has the columns of its kind."""
    types = dict(zip(schema.names, schema.types, strict=True))
    wanted = SCHEMAS.get(name) or item_columns(getattr(types.get("code"), "list_size", 1))
    if any(types.get(field.name) != field.type for field in wanted):
        raise CorruptFile(f"the columns of the table {name} in {uri}", ", ".join(schema.names), RESTORE)


def now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(UTC)


def is_local(uri: str) -> bool:
    """Return whether a gallery is in a folder."""
    return "://" not in uri


def holds_gallery(folder: Path) -> bool:
    """Return whether there is a gallery in a folder."""
    return (folder / f"{SPACES}.lance").is_dir()


def connect(uri: str) -> Any:
    """Return the LanceDB database, whose tables see at once what other processes write."""
    import lancedb

    if is_local(uri):
        check_files(Path(uri))
    return lancedb.connect(uri, read_consistency_interval=timedelta(0))


def check_files(folder: Path) -> None:
    """Raise `ValueError` for anything in a local gallery but folders and files: LanceDB would wait for a pipe."""
    for path in folder.rglob("*") if folder.is_dir() else ():
        if not path.is_dir():
            check_regular(path, sys.maxsize)


def call(uri: str, action: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Call `action`: LanceDB and pyarrow raise a dozen types for whatever is wrong with a table, or panic."""
    try:
        return action(*args, **options)
    except (KeyboardInterrupt, SystemExit, MemoryError, TwinhashError):
        raise
    except BaseException as error:
        problem = f"{type(error).__name__}: {error}"
        for text, number in SYSTEM_ERRORS.items():
            if text in problem:
                raise OSError(number, os.strerror(number), uri) from error
        if is_local(uri):
            raise CorruptFile(f"a readable gallery at {uri}", problem, RESTORE) from error
        fix = "Check the address, the network and the credentials in the environment, then run it again."
        raise InputError(f"a gallery that can be read at {uri}", problem, fix) from error
