"""Images in an object store, by pyarrow: `s3://bucket/prefix`, `gs://`, `az://`.

Credentials, and for a store of one's own its address (AWS_ENDPOINT_URL), come from the environment, as for a gallery.
An address that holds credentials is refused, since it is stored with each item.  A source alone may name its store:
`s3://bucket/prefix?endpoint_override=127.0.0.1:9000&scheme=http`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from gallery.console import plain
from gallery.errors import InputError, StoreUnreachable

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SCHEMES = ("s3", "gs", "az")
REFUSED = "ACCESS_DENIED", "NO_SUCH_BUCKET", "NO_SUCH_KEY"  # the store's answers about one bucket or object
TIMEOUT_S, ATTEMPTS = 10.0, 4  # with nothing sent; ten attempts, pyarrow's default, take 99 s
MAX_OBJECTS = 100_000_000
FIX = "Check the address, the network and the credentials in the environment, then run it again."


def is_remote(source: str) -> bool:
    """Return whether a source is an address and no path."""
    return "://" in source


def own_endpoint() -> str:
    """Return the address of the S3 store to ask in the place of Amazon's, empty where none is given."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


class ObjectStore:
    """Objects below a prefix."""

    def __init__(self, uri: str) -> None:
        """Open a prefix; raises `InputError` for an address that is none, or one with credentials in it."""
        self.uri, parts = uri, urlsplit(uri)
        if parts.scheme not in SCHEMES or not parts.netloc:
            raise InputError("s3://, gs:// or az:// with a bucket", ascii(uri)[:200], "Correct the address.")
        if "@" in parts.netloc:
            fix = "Put the credentials into the environment, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            raise InputError("an address without credentials", f"some in one of {parts.scheme}://", fix)
        self._scheme, self._bucket, self._query = parts.scheme, parts.netloc, parts.query
        self._prefix = unquote(parts.path).strip("/")
        self._files: FileSystem = self._call(_open, parts.scheme, parts.netloc, parts.query)

    def list(self) -> Iterator[tuple[str, int, int]]:
        """Yield name below the prefix, bytes, and time of change (ns) of every object."""
        from pyarrow.fs import FileSelector, FileType

        root = f"{self._bucket}/{self._prefix}".rstrip("/")
        infos = self._call(self._files.get_file_info, FileSelector(root, recursive=True))
        if len(infos) > MAX_OBJECTS:
            raise InputError(f"at most {MAX_OBJECTS:,} objects", f"{len(infos):,}", "Name a longer prefix.")
        for info in infos:
            if info.type == FileType.File:
                yield info.path[len(root) + 1 :], int(info.size or 0), int(info.mtime_ns or 0)

    def address(self, name: str) -> str:
        """Return the address of an object, by its name below the prefix."""
        path = quote("/".join(filter(None, (self._prefix, name))))
        return f"{self._scheme}://{self._bucket}/{path}" + (f"?{self._query}" if self._query else "")

    def read(self, name: str, limit: int = 1 << 30) -> bytes:
        """Return the bytes of an object, by its name below the prefix; raises `InputError` beyond `limit`."""
        path = "/".join(filter(None, (self._bucket, self._prefix, name)))

        def read() -> bytes:
            with self._files.open_input_stream(path) as stream:
                return bytes(stream.read(limit + 1))

        data = self._call(read)
        if len(data) > limit:
            raise InputError(f"an object of at most {limit:,} bytes", f"more in {plain(name)}", "Remove it.")
        return data

    def _call(self, action: Any, *arguments: Any) -> Any:
        import pyarrow

        try:
            return action(*arguments)
        except FileNotFoundError as error:
            raise InputError(f"what is at {plain(self.uri)[:200]}", "nothing", FIX) from error
        except (OSError, ValueError, NotImplementedError, pyarrow.ArrowException) as error:
            silent = isinstance(error, OSError) and not any(word in str(error) for word in REFUSED)
            kind = StoreUnreachable if silent else InputError
            raise kind(f"what is at {plain(self.uri)[:200]}", plain(str(error))[:300], FIX) from error


def _open(scheme: str, bucket: str, query: str) -> Any:
    from pyarrow import fs

    if scheme == "s3":
        return _open_s3(bucket, dict(parse_qsl(query)))
    if scheme != "az":
        return fs.FileSystem.from_uri(f"{scheme}://{bucket}" + (f"?{query}" if query else ""))[0]
    account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    if not account:
        raise ValueError("no AZURE_STORAGE_ACCOUNT_NAME in the environment")
    return fs.AzureFileSystem(account_name=account, account_key=os.environ.get("AZURE_STORAGE_ACCOUNT_KEY"))


def _open_s3(bucket: str, options: dict[str, str]) -> Any:
    from pyarrow import fs

    if unknown := sorted(options.keys() - {"endpoint_override", "scheme", "region"}):
        raise ValueError(f"{unknown[0]!a} in the address: it takes endpoint_override, scheme and region")
    own = urlsplit(own_endpoint())
    if own.netloc and "endpoint_override" not in options:
        options |= {"endpoint_override": own.netloc, "scheme": own.scheme}
    if "endpoint_override" not in options and "region" not in options:
        options["region"] = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        **options, connect_timeout=TIMEOUT_S, request_timeout=TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )  # fmt: skip
