"""Look after a gallery: what is in it, what failed, whether codes are still those of their images."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gallery.batch_encoder import BATCH, EncodeImages, batches, check_logits
from gallery.codes import unpack
from gallery.codespace import CodeSpace
from gallery.console import log, track
from gallery.database import column_codes, owner_columns, read_space
from gallery.errors import InputError
from gallery.files import read_bytes
from gallery.sources.reader import ImageReader, ImageRequest
from gallery.store import GalleryStore, SpaceRecord

MAX_IDS_FILE = 1 << 30  # bytes
ROUNDING = 1e-3  # of a logit, times their root mean square: as for golden logits, bits within it may differ


def active_spaces(store: GalleryStore) -> dict[str, SpaceRecord]:
    """Return the code spaces that items are added to and removed from: all but retired ones."""
    return {name: record for name, record in store.spaces().items() if record.state != "retired"}


def chosen_space(store: GalleryStore, space_id: str | None) -> str:
    """Return the id of a code space: the one named, else the one that is served, or the only one."""
    if space_id is not None:
        return space_id
    served, known = store.space_in("serving"), list(store.spaces())
    if served is None and len(known) != 1:
        raise InputError("a code space", f"{', '.join(known) or 'none'} in {store.uri}", "Name one: --space.")
    return served.space if served else known[0]


def publish_changes(store: GalleryStore, space_id: str) -> SpaceRecord:
    """Publish the newest version of a space if readers do not have it; one that is being built waits for cut-over."""
    record = store.spaces()[space_id]
    served = store.space_in("serving")
    if record.version == store.open_table(space_id).version or (record.state == "building" and served is not None):
        return record
    return store.publish(space_id)


def space_rows(store: GalleryStore) -> list[dict[str, Any]]:
    """Return what is in each code space. items: in the newest version; published: in the one that readers have."""
    rows = []
    for name, record in store.spaces().items():
        table = store.open_table(name)
        space, _ = read_space(store.uri, table.schema)
        failed = list_failures(store, name)
        rows.append({
            "space": name, "state": record.state, "teacher": space.teacher, "bits": space.bits,
            "items": int(table.count_rows()), "published": record.rows, "version": record.version,
            "newest": int(table.version), "failed": len(failed), "stale": sum(row["stale"] for row in failed),
            "columns": owner_columns(table.schema.names), "since": record.since.isoformat(timespec="seconds"),
        })  # fmt: skip
    return rows


def list_failures(store: GalleryStore, space_id: str) -> list[dict[str, Any]]:
    """Return what could not be encoded. stale: whether an older code of it is still in the gallery"""
    failures = store.failures(space_id)
    if not len(failures):
        return []
    known = set(store.rows_of(store.open_table(space_id), failures["id"], [])["id"].to_pylist())
    rows = failures.select(["id", "reason", "source", "etag", "at"]).to_pylist()
    return [row | {"at": row["at"].isoformat(timespec="seconds"), "stale": row["id"] in known} for row in rows]


class DeepCheck(NamedTuple):
    """Images encoded again. changed: other bytes by now, or gone; wrong: other codes than the gallery's"""

    encoded: int
    changed: tuple[str, ...]
    wrong: tuple[str, ...]


def encode_again(
    store: GalleryStore, space: CodeSpace, count: int, reader: ImageReader, load_encoder: Callable[[], EncodeImages]
) -> DeepCheck:
    """Encode images of the gallery again, evenly spaced among those whose bytes are known, and compare the codes.

    A bit may differ where its logit is zero within rounding.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = store.read(store.open_table(space.id), ["id", "source", "sha256", "code"])
    rows = rows.filter(pc.and_(pc.is_valid(rows["sha256"]), pc.is_valid(rows["source"]))).sort_by("id")
    chosen = np.unique(np.linspace(0, max(len(rows) - 1, 0), min(count, len(rows)), dtype=np.int64))
    rows = rows.take(pa.array(chosen))
    ids, sums = rows["id"].to_pylist(), rows["sha256"].to_pylist()
    requests = [ImageRequest(row, source) for row, source in enumerate(rows["source"].to_pylist())]
    images, changed, wrong, encoded = reader.read_all(requests), list[str](), list[str](), 0
    encoder: EncodeImages | None = None
    for batch in batches(track(images, "encoding again", len(requests)), BATCH):
        changed += [ids[image.row] for image in batch if image.sha256 != sums[image.row]]
        same = [image for image in batch if image.sha256 == sums[image.row]]
        if same:
            encoder = encoder or load_encoder()
            pixels = np.stack([image.pixels for image in same if image.pixels is not None])
            logits = check_logits(encoder(pixels), len(same), space)
            rounding = ROUNDING * float(np.sqrt(np.mean(np.square(logits, dtype=np.float64))))
            stored = unpack(column_codes(rows)[[image.row for image in same]])
            bad = (((logits > 0) != stored) & (np.abs(logits) > rounding)).any(1)
            wrong += [ids[image.row] for image, is_bad in zip(same, bad, strict=True) if is_bad]
        encoded += len(same)
    return DeepCheck(encoded, tuple(changed), tuple(wrong))


def read_ids(path: Path) -> list[str]:
    """Return the ids in a text file, one on each line; raises `InputError` for one that cannot be read."""
    try:
        lines = read_bytes(path, MAX_IDS_FILE).decode().split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"a text file of ids in UTF-8 at {path}", str(error), "Write an id on each line.") from error
    return [line for line in (one.removesuffix("\r") for one in lines) if line]


def remove_items(store: GalleryStore, ids: Sequence[str]) -> dict[str, int]:
    """Remove items, and what is noted about them, from every code space but retired ones; return how many of each."""
    removed = {}
    for space_id in active_spaces(store):
        removed[space_id] = store.remove(space_id, ids).removed if ids else 0
        store.forget_failures(space_id, ids)
        log.info("  %d of %d removed from %s", removed[space_id], len(ids), space_id)
    return removed


def parse_age(text: str) -> timedelta:
    """Return an age such as 30d or 12h; raises `InputError` for another text."""
    if not (match := re.fullmatch(r"(\d{1,6})([dh])", text)):
        raise InputError("an age in days or hours, such as 30d or 12h", f"{text[:40]!a}", "Correct --forget-before.")
    return timedelta(**{"d": {"days": int(match[1])}, "h": {"hours": int(match[1])}}[match[2]])
