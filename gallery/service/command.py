"""The command `serve`: the published version of a gallery over HTTP."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from gallery.console import log
from gallery.errors import EXIT_PASSED, InputError
from gallery.layers import require
from gallery.record import Record


class ServeCommand(Record):
    """Serve the published version of a gallery over HTTP: search by code, image or item.

    The page at / searches by image, and OpenAPI is at /docs.  A version that is published later replaces the one in
    memory without a failed request.  Clients send a key that is in TWINHASH_API_KEYS (an environment variable, several
    separated by blanks); without keys the service listens on this machine alone.

    Example: `gallery/run.py serve runs/mine --images catalogue/`
    """

    gallery: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GALLERY")]
    """The folder of a run, or the folder or address of a gallery (s3://bucket/path, gs://, az://)."""
    host: str = "127.0.0.1"
    """Address to listen on; one that other machines can reach needs keys or --behind-proxy."""
    port: int = Field(8000, ge=0, le=65535)
    """Port; 0 takes a free one."""
    workers: int = Field(1, ge=1, le=64)
    """Processes, each with the whole gallery in memory."""
    poll: float = Field(5.0, ge=0.2, le=3600)
    """Seconds between looks for a newly published version."""
    bundle: tuple[Path, ...] = ()
    """Bundles whose ONNX students encode images for /search/image; by default the run's."""
    images: Path | None = None
    """Folder of the images, to show thumbnails of the items whose source is in it."""
    behind_proxy: bool = False
    """Allow any address without keys, because a proxy checks the clients."""


def serve(command: ServeCommand, runs: Sequence[Path] = ()) -> int:
    """Serve until a signal; requests that are being answered then are answered.  runs: those of the gallery."""
    require("serve")
    from gallery.service import server
    from gallery.service.app import ServiceSettings, create_app
    from gallery.service.security import check_binding

    check_binding(command.host, command.behind_proxy)
    bundles = command.bundle or own_bundles(runs)
    check_gallery(command.gallery, bundles)
    if command.images and not command.images.is_dir():
        raise InputError("a folder for --images", ascii(str(command.images)), "Name the folder of the images.")
    settings = ServiceSettings(command.gallery, bundles, command.images, command.poll, command.behind_proxy)
    with listen(command.host, command.port) as listening:
        address = command.host if ":" not in command.host else f"[{command.host}]"
        log.info("Serving %s at http://%s:%d (OpenAPI at /docs)", command.gallery, address, listening.getsockname()[1])
        server.run(partial(create_app, settings), listening, command.workers)
    return EXIT_PASSED


def own_bundles(runs: Sequence[Path]) -> tuple[Path, ...]:
    """Return the bundles of runs that can encode images here."""
    from gallery.onnx_student import find_model

    found = []
    for bundle in (run / "bundle" for run in runs if (run / "bundle").is_dir()):
        try:
            find_model(bundle)
            found.append(bundle)
        except InputError as error:
            log.warning("No searches by image: %s", error)
    return tuple(found)


def check_gallery(uri: str, bundles: tuple[Path, ...]) -> None:
    """Raise what is wrong with a gallery or a bundle before anything listens."""
    from gallery.onnx_student import OnnxStudent
    from gallery.store import GalleryStore

    store = GalleryStore(uri)
    store.find_space()
    for bundle in bundles:  # also those of a space that is published later
        store.open_table(OnnxStudent(bundle).code_space)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raises `InputError` for a port that is taken, or an unknown host."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        fix = "Choose another --port or --host."
        raise InputError(f"to listen on {host!a}, port {port}", str(error.strerror or error), fix) from error
