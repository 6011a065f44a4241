"""A gallery as a folder that any static web host can serve and a page or an app can search.

`codes.bin` has the packed codes one after the other, in the order of the ids; `items.json` the ids, labels and names of
thumbnails, in the same order; `thumbs/` small JPEGs, each named by the SHA-256 of its bytes: a host can cache them for
good, equal ones are there once, and a name says nothing of the item.  `gallery.json` describes and sums up the rest.
Addresses of the images and the owner's columns stay out: whoever can read the folder can read all that is in it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gallery import codespace
from gallery.codespace import CENTERS, FILE, CodeSpace
from gallery.console import log, track
from gallery.cores import map_ahead
from gallery.errors import CorruptFile, InputError, TwinhashError
from gallery.files import FULL, check_regular, read_bytes, read_json, sha256_of, size_of, write_json
from gallery.names import some
from gallery.sources.reader import ImageReader, reason_of

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image

    from gallery.index import GalleryIndex

CODES, ITEMS, DESCRIPTION, THUMBNAILS, README = "codes.bin", "items.json", "gallery.json", "thumbs", "README.md"
CHECKED = CODES, ITEMS, FILE, CENTERS  # their checksums are in gallery.json
FORMAT = 1
MOST = 1_000_000  # items, of which items.json has 70 MB
MAX_DESCRIPTION, MAX_FILE, MAX_THUMBNAIL = 1 << 20, 1 << 30, 8 << 20  # bytes
NAME = 32  # hexadecimal digits of a thumbnail's SHA-256
THUMBNAIL_NAME = r"[0-9a-f]{2}/[0-9a-f]{30}\.jpg"
NO_SOURCE = "no source is known"
CHANGED = "the image is another by now than the one that was encoded: bring the gallery up to date with add"
ReadImage = Callable[[str], "Image"]  # of the id of an item; raises as `ImageReader.open`


class SiteOptions(NamedTuple):
    """thumbnail_size: of the longer side, in pixels; None for no thumbnails; limit: the most items
    allow_http: fetch images by http(s); load_images: loads what reads the images of items without a source"""

    thumbnail_size: int | None = 160
    limit: int | None = None
    allow_http: bool = False
    load_images: Callable[[], ReadImage] | None = None

    def count(self, items: int) -> int:
        """Return how many of so many items are written."""
        return min(items, self.limit or items)


def check_site(folder: Path) -> CodeSpace:
    """Verify what `write_site` wrote, but for the thumbnails, and return its code space.

    Raises `CorruptFile` for files that are not as they were written, and what `codespace.load` raises.
    """
    with _corrupt(folder):
        about = read_json(folder / DESCRIPTION, dict, MAX_DESCRIPTION)
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']!a}, not {FORMAT}")
        for name in CHECKED:
            check_regular(folder / name, MAX_FILE)
            if sha256_of(folder / name) != about["files"][name]["sha256"]:
                raise ValueError(f"{name} has another checksum")
        space, _ = codespace.load(folder)
        if (about["code_space"], about["bits"]) != (space.id, space.bits):
            raise ValueError(f"{DESCRIPTION} is of another code space than {FILE}")
        if 8 * size_of(folder / CODES) != about["items"] * space.bits:
            raise ValueError(f"{CODES} has not as many codes as {DESCRIPTION} says")
    return space


def copy_site(folder: Path, copy: Path) -> None:
    """Copy what `write_site` wrote into the new folder `copy`, and nothing else that lies there; no link is followed.

    Raises `CorruptFile` for thumbnails that are not what their names say, and for links.
    """
    copy.mkdir(parents=True)
    with _corrupt(folder):
        for name in (DESCRIPTION, README, *CHECKED):
            check_regular(_no_link(folder, name), MAX_FILE)
            shutil.copyfile(folder / name, copy / name)
        for name in sorted({*read_json(copy / ITEMS, dict, MAX_FILE)["thumbnails"]} - {None}):
            if not re.fullmatch(THUMBNAIL_NAME, name):
                raise ValueError(f"{ascii(name)[:80]} is no thumbnail's name")
            data = read_bytes(_no_link(folder, f"{THUMBNAILS}/{name}"), MAX_THUMBNAIL)
            if _thumbnail_name(data) != name:
                raise ValueError(f"the thumbnail {name} has another checksum")
            (copy / THUMBNAILS / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / THUMBNAILS / name).write_bytes(data)


@contextmanager
def _corrupt(folder: Path) -> Iterator[None]:
    """Raise what reading a folder's files raises as `CorruptFile`."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError) as error:
        if isinstance(error, OSError) and error.errno in FULL:  # of a copy
            raise
        found = f"no {error}" if isinstance(error, KeyError) else str(error)
        fix = "Export it again: gallery/run.py export --to site."
        raise CorruptFile(f"a gallery as static files in {folder}", found, fix) from error


def _no_link(folder: Path, name: str) -> Path:
    """Return the path of a name below a folder; raises `ValueError` where that leads through a link."""
    path = folder / name
    if any((folder / one).is_symlink() for one in (Path(name), *Path(name).parents[:-1])):
        raise ValueError(f"{name} is a link, or in one")
    return path


def _thumbnail_name(data: bytes) -> str:
    digest = sha256(data).hexdigest()[:NAME]
    return f"{digest[:2]}/{digest[2:]}.jpg"  # 256 folders: some hosts list no more than 1,000 files of one


def write_site(index: GalleryIndex, folder: Path, options: SiteOptions) -> dict[str, str]:
    """Write the files into a folder that has the code space; return why items have no thumbnail, by their ids.

    Of a gallery of more than `options.limit` items, evenly spaced ones are written, which is logged and is in
    `gallery.json`.  Raises `InputError` for more than a million, `StoreUnreachable` where an object store is silent.
    """
    count = options.count(len(index))
    if count > MOST:
        fix = f"Take some of them: gallery/run.py export --to site --limit {MOST}."
        raise InputError(f"at most {MOST:,} items for a page", f"{count:,}", fix)
    rows = np.linspace(0, len(index) - 1, count, dtype=np.int64)
    if count < len(index):
        log.warning("  %d of the %d items are written, evenly spaced", count, len(index))
    (folder / CODES).write_bytes(index.codes[rows].tobytes())
    thumbnails, missing = _Thumbnails(index, rows, options), dict[str, str]()
    names: list[str | None] = [None] * count
    if options.thumbnail_size:
        names = thumbnails.write(folder / THUMBNAILS, missing)
    _write_items(index, rows, names, folder / ITEMS)
    files = {name: {"bytes": size_of(folder / name), "sha256": sha256_of(folder / name)}
             for name in CHECKED}  # fmt: skip
    made = {"size": options.thumbnail_size, "items": count - names.count(None), "files": len({*names} - {None}),
            "bytes": thumbnails.bytes}  # fmt: skip
    about: dict[str, Any] = {"format": FORMAT, "code_space": index.space.id, "bits": index.space.bits, "items": count}
    about |= {"gallery_items": len(index), "gallery_version": index.version, "files": files, "thumbnails": made}
    write_json(folder / DESCRIPTION, about)
    return missing


def _write_items(index: GalleryIndex, rows: NDArray[np.int64], names: list[str | None], path: Path) -> None:
    """Write a column each: a label is a place in `classes`; null is an item without known labels, or a thumbnail."""
    import pyarrow as pa

    ids, labels = (column.take(pa.array(rows)).to_pylist() for column in (index.ids, index.labels))
    classes = sorted({label for own in labels for label in own or ()})
    place = {label: number for number, label in enumerate(classes)}
    columns = {"ids": ids, "classes": classes, "labels": [own and [place[one] for one in own] for own in labels],
               "thumbnails": names}  # fmt: skip
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        json.dump(columns, stream, ensure_ascii=False, separators=(",", ":"))


class _Thumbnails:
    """The thumbnails of rows. bytes: of those that were written, each once"""

    def __init__(self, index: GalleryIndex, rows: NDArray[np.int64], options: SiteOptions) -> None:
        self._index, self._rows, self._options, self.bytes = index, rows, options, 0
        self._reader = ImageReader(0, options.allow_http)
        self._own: ReadImage | None = None  # reads the images of items without a source

    def write(self, folder: Path, missing: dict[str, str]) -> list[str | None]:
        """Write them; return the name of each row's below `folder`, None where `missing` gets the reason by its id."""
        items = self._index.columns(["id", "source", "sha256"], self._rows)
        if not all(items["source"].to_pylist()):
            self._own = _load_own(self._options)
        names: list[str | None] = []
        made = track(map_ahead(self._make, self._listed(items)), "making thumbnails", len(items))
        for id, found in zip(items["id"].to_pylist(), made, strict=True):
            if isinstance(found, str):
                missing[id] = found
                names.append(None)
            else:
                names.append(self._save(folder, found))
        folder.mkdir(exist_ok=True)
        if missing:
            few = some(f"{id} ({reason})" for id, reason in missing.items())
            log.warning("  %d of %d items have no thumbnail: %s", len(missing), len(items), few)
        return names

    def _save(self, folder: Path, data: bytes) -> str:
        name = _thumbnail_name(data)
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
            self.bytes += len(data)
        return name

    def _listed(self, items: pa.Table) -> Iterator[dict[str, Any]]:
        for batch in items.to_batches(4096):
            yield from batch.to_pylist()

    def _make(self, item: dict[str, Any]) -> bytes | str:
        """Return the thumbnail of an item, or why there is none."""
        from gallery.decode import thumbnail

        try:
            return thumbnail(self._image(item), self._options.thumbnail_size or 0)
        except (OSError, ValueError, TwinhashError) as error:
            return reason_of(error)

    def _image(self, item: dict[str, Any]) -> Image:
        if self._own and not item["source"]:
            return self._own(item["id"])
        image, digest = self._reader.open(item["source"])
        if image is None or item["sha256"] not in (None, digest):
            raise ValueError(CHANGED)
        return image


def _load_own(options: SiteOptions) -> ReadImage:
    """Return what reads the images of items without a source."""

    def none(_: str, reason: str = NO_SOURCE) -> Image:
        raise ValueError(reason)

    try:
        return options.load_images() if options.load_images else none
    except TwinhashError as error:
        return partial(none, reason=f"{NO_SOURCE}, and the run's own data cannot be listed: {error.found}")
