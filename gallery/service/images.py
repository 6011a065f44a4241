"""Images: those that are searched by, and small ones of the gallery's items."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from gallery.decode import decode, thumbnail
from gallery.errors import InputError
from gallery.onnx_student import OnnxStudent
from gallery.service.errors import ServiceError
from gallery.service.schemas import Options
from gallery.service.snapshots import Answering, Snapshot

THUMBNAIL = 240  # pixels of the longer side


class ImageEncoder:
    """The students of bundles, by their code spaces."""

    def __init__(self, bundles: tuple[Path, ...]) -> None:
        self.students = {student.code_space: student for student in map(OnnxStudent, bundles)}

    def search(self, answering: Answering, image: bytes, space: str | None, options: Options) -> tuple[Snapshot, Any]:
        """Search by an image, in the newest code space that has a student here, or in `space`."""
        snapshots = [answering.of(space)] if space else [one for one in answering if one]
        found = next((one for one in snapshots if one.record.space in self.students), None)
        if found is None:
            fix = "Start the service with --bundle and a bundle of that code space, or encode on the client."
            texts = f"a student of code space {snapshots[0].record.space}", ", ".join(self.students) or "none", fix
            raise ServiceError(409, "code_space_mismatch", texts) if self.students else ServiceError(
                501, "no_student", texts)  # fmt: skip
        try:
            codes = self.students[found.record.space].encode(image)
        except InputError as error:
            raise ServiceError(422, "not_an_image", (error.expected, ascii(error.found), error.fix)) from error
        return found, found.search(codes, options)


class Thumbnails:
    """Small images of items whose source is in a folder; none without a folder."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder.resolve(strict=True) if folder else None

    def make(self, snapshot: Snapshot, id: str) -> bytes:
        """Return the image of an item as JPEG; raises `ServiceError` unless it lies in the folder."""
        row, missing = snapshot.row(id), ("an image of this item that may be shown", "none", "Show its id.")
        source = snapshot.source[row].as_py() if snapshot.source is not None else None
        try:
            image = decode(self._path(source or ""))
        except (OSError, ValueError, RuntimeError, InputError) as error:
            raise ServiceError(404, "no_thumbnail", missing) from error
        return thumbnail(image, THUMBNAIL)

    def _path(self, source: str) -> Path:
        if self.folder is None:
            raise ValueError("no images are shown")
        path = self.folder / (unquote(urlsplit(source).path) if source.startswith("file://") else source)
        if not path.resolve(strict=True).is_relative_to(self.folder):
            raise ValueError("outside the folder")
        return path.resolve()
