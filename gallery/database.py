"""The tables of a gallery: their schemas, what their metadata say, and access to the database they are in."""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gallery.codes import Codes, pack, unpack
from gallery.codespace import CodeSpace, fits_classes, hash_centers
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError, TwinhashError
from gallery.files import check_regular
from gallery.row_checks import Totals
from gallery.sources.object_store import own_endpoint

SPACE_KEY, CENTERS_KEY, SCHEMA_KEY = b"twinhash.codespace", b"twinhash.centers", b"twinhash.schema"
SCHEMA = b"2"
SPACES, LEDGER, FAILED, PREFIX = "spaces", "ledger", "failed", "codes_"
TIME = pa.timestamp("us", tz="UTC")
KEY = b"lance-schema:unenforced-primary-key"
T = TypeVar("T")
P = ParamSpec("P")


def key_field(name: str, position: int = 1) -> pa.Field:
    """Return a column of a table's key.

    Two upserts at once that insert the same key are told apart by it: without, both did, and 1,200 rows became 4,400.
    """
    return pa.field(name, pa.string(), False, {KEY: b"true", KEY + b":position": b"%d" % position})


SCHEMAS = {
    SPACES: pa.schema([
        key_field("space"), ("state", pa.string()), ("version", pa.int64()), ("rows", pa.int64()),
        ("sum", pa.uint64()), ("since", TIME),
    ]),
    LEDGER: pa.schema([
        key_field("line"), ("space", pa.string()), ("version", pa.int64()), ("at", TIME), ("op", pa.string()),
        ("rows", pa.int64()), ("sum", pa.uint64()), ("added", pa.int64()), ("replaced", pa.int64()),
        ("removed", pa.int64()), ("by", pa.string()),
    ]),
    FAILED: pa.schema([
        key_field("space"), key_field("id", 2), ("source", pa.string()), ("etag", pa.string()),
        ("reason", pa.string()), ("at", TIME),
    ]),
}  # fmt: skip
MAY_BE_NULL = "source", "etag", "reason"  # of a failure
COLUMN_NAME = r"[A-Za-z][A-Za-z0-9_]{0,63}"
RESTORE = "The gallery is damaged or was edited: restore it, or encode it again."
ROOM = 64 << 20  # bytes that are free before a commit begins
MAX_ROWS = 1 << 31  # LanceDB wants a limit
CLIENT_LIMITS = {"timeout": "15s", "connect_timeout": "5s", "client_max_retries": "1", "client_retry_timeout": "30"}
SYSTEM_ERRORS = {"No space left": errno.ENOSPC, "Disk quota": errno.EDQUOT, "File too large": errno.EFBIG,
                 "Permission denied": errno.EACCES, "Read-only file system": errno.EROFS}  # fmt: skip


def table_name(space_id: str) -> str:
    """Return the name of a code space's table."""
    return PREFIX + space_id


def item_columns(width: int) -> pa.Schema:
    """Return the columns of every item, whose code has `width` bytes."""
    return pa.schema([
        key_field("id"), ("code", pa.list_(pa.uint8(), width)), ("source", pa.string()),
        ("etag", pa.string()), ("sha256", pa.string()), ("labels", pa.list_(pa.string())), ("encoded_at", TIME),
        ("check", pa.uint64()),
    ])  # fmt: skip


def owner_columns(names: list[str]) -> list[str]:
    """Return the columns of a table that are its owner's."""
    return [name for name in names if name not in item_columns(1).names]


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
    own = name.lower() in {*item_columns(1).names, "distance"}  # which a result has
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
    if not fits_classes(centers, space) or hash_centers(centers) != space.centers_sha256:
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


def sql_sum(totals: Totals) -> str:
    """Return the sum of checks as SQL's number: a plain one would be a float from 2**63 on."""
    return f"CAST({totals.sum} AS BIGINT UNSIGNED)"


def now() -> datetime:
    """Return the time, in UTC."""
    return datetime.now(UTC)


def is_local(uri: str) -> bool:
    """Return whether a gallery is in a folder."""
    return "://" not in uri


def holds_gallery(folder: Path) -> bool:
    """Return whether there is a gallery in a folder."""
    return (folder / f"{SPACES}.lance").is_dir()


def make_folder(uri: str) -> None:
    """Make the folder of a local gallery, unless it is there; raises `InputError` where there can be none."""
    try:
        if not uri.strip():
            raise ValueError("an empty name")
        Path(uri).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, FileNotFoundError, ValueError) as error:
        raise InputError("a folder for the gallery", f"{uri!a}: {error}", "Name another.") from error


class Database:
    """A LanceDB database at an address, whose tables see at once what other processes write."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._db = self.call(_connect, uri)

    def call(self, action: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Call `action`, whose errors become the project's or the system's own."""
        return call(self.uri, action, *args, **options)

    def check_room(self) -> None:
        """Raise `OSError` where a disk is all but full: LanceDB 0.40 may commit a file that was cut off there."""
        if is_local(self.uri) and shutil.disk_usage(self.uri).free < ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.uri)

    def names(self) -> set[str]:
        """Return the names of the tables."""
        return set(self.call(self._db.list_tables).tables)

    def create(self, name: str, schema: pa.Schema) -> None:
        """Make an empty table, unless it is there."""
        self.call(self._db.create_table, name, schema=schema, exist_ok=True)

    def table(self, name: str) -> Any:
        """Return the LanceDB table."""
        return self.call(self._db.open_table, name)

    def forget(self, table: Any, keep: timedelta) -> None:
        """Delete versions of a table that are older; what LanceDB says of readers is in the command's help."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "optimize", UserWarning)
            self.call(table.optimize, cleanup_older_than=keep)

    def drop(self, name: str) -> None:
        """Delete a table for good, if it is there."""
        if name in self.names():
            self.call(self._db.drop_table, name)

    def read(self, table: Any, columns: Sequence[str]) -> pa.Table:
        """Return columns of all rows of an open table, in any order."""
        check_schema(self.uri, table.name, table.schema)
        query = table.search().with_row_id("_rowid" in columns)
        return self.call(query.select(list(columns)).limit(MAX_ROWS).to_arrow)

    def rows(self, name: str) -> pa.Table:
        """Return all rows of one of the tables in `SCHEMAS`."""
        rows = self.read(self.table(name), SCHEMAS[name].names)
        if wrong := [own for own in rows.column_names if own not in MAY_BE_NULL and rows[own].null_count]:
            raise CorruptFile(f"values of {wrong[0]} in the table {name} of {self.uri}", "a null", RESTORE)
        return rows

    def upsert(self, name: str, keys: str | list[str], rows: pa.Table) -> Any:
        """Update the rows of these keys and insert the others, in one commit."""
        merge = self.table(name).merge_insert(keys).when_matched_update_all().when_not_matched_insert_all()
        return self.call(merge.execute, rows)


def _connect(uri: str) -> Any:
    import lancedb

    if is_local(uri):
        check_files(Path(uri))
    return lancedb.connect(uri, read_consistency_interval=timedelta(0), storage_options=_client_options(uri))


def _client_options(uri: str) -> dict[str, str]:
    """Return how an object store is asked: for a bounded time, and without TLS if its address begins with http:."""
    if is_local(uri):
        return {}
    own = own_endpoint()
    plain_http = {"aws_endpoint": own, "allow_http": "true"} if uri.startswith("s3") and own.startswith("http:") else {}
    return CLIENT_LIMITS | plain_http


def check_files(folder: Path) -> None:
    """Raise `ValueError` for anything in a local gallery but folders and files: LanceDB would wait for a pipe."""
    for below, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # which a writer had begun
                check_regular(Path(below, name), sys.maxsize)


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
        if "commit conflict" in problem:
            raise InputError(f"no other commit in {uri} at the same moment", "one", "Run it again.") from error
        if is_local(uri):
            raise CorruptFile(f"a readable gallery at {uri}", problem, RESTORE) from error
        fix = "Check the address, the network and the credentials in the environment, then run it again."
        raise InputError(f"a gallery that can be read at {uri}", problem, fix) from error
