"""Read and decode images by their addresses, in threads, a few ahead of what consumes them."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from gallery.cores import map_ahead
from gallery.errors import InputError, StoreUnreachable, TwinhashError
from gallery.files import read_bytes
from gallery.sources.http_fetch import fetch, is_http
from gallery.sources.object_store import ObjectStore, is_remote

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_FILE, LARGE_FILE = 1 << 30, 64 << 20  # bytes
LARGE = threading.Lock()  # a large file is in memory while it is decoded: one at a time


class ImageRequest(NamedTuple):
    """An image to read: its row in a list, its address, and the SHA-256 of the bytes that are known already."""

    row: int
    source: str
    known: str | None = None


class DecodedImage(NamedTuple):
    """row: as requested; sha256: of the bytes; pixels: uint8 `[S, S, 3]`, None where the bytes are the known ones, or
    where there is a reason why they cannot be read."""

    row: int
    sha256: str
    pixels: NDArray[np.uint8] | None
    reason: str = ""


class ImageReader:
    """Reads images from folders, object stores and, if that is allowed, by http(s).  size: side of the squares"""

    def __init__(self, size: int, allow_http: bool = False) -> None:
        self.size, self._allow_http = size, allow_http
        self._store = lru_cache(64)(ObjectStore)

    def read_all(self, requests: Iterable[ImageRequest]) -> Iterator[DecodedImage]:
        """Yield each image in order, decoded as for training; what cannot be read has a reason.

        Raises `StoreUnreachable` where an object store does not answer.
        """
        return map_ahead(self.read, requests)

    def read(self, request: ImageRequest) -> DecodedImage:
        """Read and decode one image, unless its bytes are the known ones."""
        from gallery.decode import to_square

        try:
            image, sha256 = self.open(request.source, request.known)
            pixels = None if image is None else to_square(image, self.size)
        except (OSError, ValueError, TwinhashError) as error:
            return DecodedImage(request.row, "", None, reason_of(error))
        return DecodedImage(request.row, sha256, pixels)

    def open(self, source: str, known: str | None = None) -> tuple[Image | None, str]:
        """Return the upright RGB image at an address, None where its bytes are the known ones, and their SHA-256.

        Raises what `read_bytes` and `gallery.decode.decode` raise.
        """
        from gallery.decode import decode

        with LARGE if _is_large(source) else nullcontext():
            data = self.read_bytes(source)
            sha256 = hashlib.sha256(data).hexdigest()
            return None if sha256 == known else decode(data), sha256

    def read_bytes(self, source: str) -> bytes:
        """Return the bytes at an address; raises `OSError`, `ValueError` or `InputError`."""
        if is_http(source):
            if not self._allow_http:
                fix = "Add --allow-http."
                raise InputError("an image that may be fetched", "an http(s) address without --allow-http", fix)
            return fetch(source)
        if not is_remote(source):
            return read_bytes(Path(source), MAX_FILE)
        parts = urlsplit(source)
        store = self._store(f"{parts.scheme}://{parts.netloc}" + (f"?{parts.query}" if parts.query else ""))
        return store.read(unquote(parts.path).lstrip("/"), MAX_FILE)


def reason_of(error: OSError | ValueError | TwinhashError) -> str:
    """Return in words why an image cannot be read; raises `StoreUnreachable`, which says nothing of the image."""
    if isinstance(error, StoreUnreachable):
        raise error
    if isinstance(error, TwinhashError):
        return error.found
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def _is_large(source: str) -> bool:
    try:
        return not is_remote(source) and os.stat(source).st_size > LARGE_FILE
    except (OSError, ValueError):
        return False
