"""The command `serve`: the published version of a gallery over HTTP."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import tyro
from pydantic import Field

from gallery.console import log
from gallery.errors import EXIT_PASSED, InputError
from gallery.layers import require
from gallery.record import Record


class ServeCommand(Record):
    """Serve the published version of a gallery over HTTP: searches by code, image and item, OpenAPI at /docs, a page
    for people at /.  A version that is published meanwhile takes its place without a failed request.  Keys, which
    clients have to send, are in the environment's TWINHASH_API_KEYS; without any it listens on this machine alone."""

    gallery: tyro.conf.Positional[str]
    """Folder, s3://, gs:// or az:// address of the gallery, or the folder of a run."""
    host: str = "127.0.0.1"
    """Address to listen on; any other than this machine's own needs keys or --behind-proxy."""
    port: int = Field(8000, ge=0, le=65535)
    """Port; 0 takes a free one."""
    workers: int = Field(1, ge=1, le=64)
    """Processes, each with the whole gallery in memory."""
    poll: float = Field(5.0, ge=0.2, le=3600)
    """Seconds between looks for a newly published version."""
    bundle: tuple[Path, ...] = ()
    """Bundles whose ONNX students encode images for /search/image; by default the run's."""
    images: Path | None = None
    """Folder of the images; small ones of items whose source is in it are shown."""
    behind_proxy: bool = False
    """Listen on other addresses without keys: a proxy sees to who asks."""


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
