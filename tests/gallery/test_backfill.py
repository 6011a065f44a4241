"""A new teacher's table is filled beside the served one: killed, changed meanwhile, and with images that are gone."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gallery.backfill import NO_SOURCE, BackfillCounts, backfill
from gallery.cutover import cut_over, roll_back
from gallery.cutover_gates import CutoverLimits, check_gates
from gallery.database import code_array, column_codes
from gallery.errors import InputError
from gallery.ingest import IngestOptions, ingest
from gallery.maintenance import publish_changes
from gallery.sources.listing import Listing, SourceOptions, list_source
from gallery.store import GalleryStore
from tests.conftest import ROOT
from tests.gallery.test_cutover import files
from tests.gallery.test_ingest import CENTERS, SPACE, images, project, write

__all__ = ["images"]
NEW = replace(SPACE, teacher="other")
WORKER = """
import sys
from tests.gallery.test_backfill import fill
fill(sys.argv[1], slow=float(sys.argv[2]), commit_rows=2)
"""


def project_anew(pixels: np.ndarray) -> np.ndarray:
    """The new teacher: it hashes to the complement."""
    return -project(pixels)


def fill(uri: str, images: Listing | None = None, slow: float = 0.0, **options: Any) -> BackfillCounts:
    def encode(pixels: np.ndarray) -> np.ndarray:
        time.sleep(slow)
        return project_anew(pixels)

    return backfill(GalleryStore(uri), NEW, CENTERS, images, IngestOptions(**options), lambda: encode)


def add(store: GalleryStore, folder: Path) -> None:
    """Bring the served table, which has two columns, up to date with a folder."""
    listing = list_source(str(folder), SourceOptions(labels_from_folders=True))
    prices = pa.array([float(len(id)) for id in listing.items["id"].to_pylist()])
    items = listing.items.append_column("price", prices)
    store.add_space(SPACE, CENTERS, pa.schema([("price", pa.float64()), ("brand", pa.string())]))
    ingest(store, SPACE, listing._replace(items=items), IngestOptions(), lambda: project)
    publish_changes(store, SPACE.id)


@pytest.fixture
def store(images: Path, tmp_path: Path) -> GalleryStore:
    """A gallery that serves 24 images."""
    made = GalleryStore(tmp_path / "g", create=True)
    add(made, images)
    return made


def contents(store: GalleryStore, space_id: str) -> dict[str, tuple[Any, ...]]:
    """What is known of each item, with its code as bytes."""
    rows = store.read(store.open_table(space_id), ["id", "code", "labels", "price", "brand", "source", "etag"])
    told = rows.drop_columns("code").to_pylist()
    assert len({row["id"] for row in told}) == len(told)
    return {row.pop("id"): (code.tobytes(), *row.values()) for row, code in zip(told, column_codes(rows), strict=True)}


def complements(store: GalleryStore) -> dict[str, tuple[Any, ...]]:
    """What the new table is to hold, by the served one."""
    old = contents(store, SPACE.id)
    return {id: (bytes(255 - byte for byte in code), *others) for id, (code, *others) in old.items()}


def start(store: GalleryStore, slow: float) -> subprocess.Popen[bytes]:
    """Fill in a process of its own, and return when it has committed something new."""
    before = len(contents(store, NEW.id)) if NEW.id in store.spaces() else 0
    worker = subprocess.Popen([sys.executable, "-c", WORKER, store.uri, str(slow)], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while NEW.id not in store.spaces() or store.open_table(NEW.id).count_rows() <= before:
        assert time.monotonic() < deadline
        assert worker.poll() is None
        time.sleep(0.01)
    return worker


def test_killed_twice_it_ends_with_what_is_served(store: GalleryStore, images: Path) -> None:
    chance, before = random.Random(0), files(store, SPACE)
    for _ in range(2):
        worker = start(store, 0.1)
        time.sleep(chance.uniform(0, 0.3))
        worker.send_signal(signal.SIGKILL)
        assert worker.wait() == -signal.SIGKILL
        assert [store.spaces()[space.id].state for space in (SPACE, NEW)] == ["serving", "building"]
    (images / "b" / "23.png").write_bytes(b"rubbish")  # it has a code in the served table, and gets none
    done = fill(store.uri)
    assert done.same >= 4
    assert (done.same + done.encoded, done.failed, done.removed, done.items) == (23, 1, 0, 24)
    expected = complements(store)
    del expected["b/23.png"]
    assert contents(store, NEW.id) == expected
    assert store.verify(NEW.id).problem == ""
    assert fill(store.uri).encoded == 0
    refused = {one.gate for one in check_gates(store, NEW.id, CutoverLimits(map_drop=1)) if not one.passed}
    assert refused == {"items without a new code"}
    assert all(one.passed for one in check_gates(store, NEW.id, CutoverLimits(missing=0.05, map_drop=1)))
    write(images / "b" / "23.png", 23)
    again = fill(store.uri, retry=True)
    assert (again.encoded, again.failed, contents(store, NEW.id)) == (1, 0, complements(store))
    cut_over(store, NEW.id)
    roll_back(store)
    cut_over(store, NEW.id)
    assert [store.spaces()[space.id].state for space in (SPACE, NEW)] == ["previous", "serving"]
    assert files(store, SPACE) == before


def test_what_is_added_and_removed_meanwhile_is_caught_up_with(store: GalleryStore, images: Path) -> None:
    worker = start(store, 0.1)
    write(images / "a" / "new.png", 100)
    write(images / "a" / "22.png", 101)
    (images / "b" / "01.png").unlink()
    add(store, images)
    store.remove(SPACE.id, ["b/01.png", "b/03.png"])
    assert worker.wait(120) == 0
    assert contents(store, NEW.id) == complements(store)
    assert "a/new.png" in contents(store, NEW.id)
    assert store.spaces()[NEW.id].state == "building"


def test_later_changes_of_the_served_table_are_refused_until_it_runs_again(store: GalleryStore, images: Path) -> None:
    fill(store.uri)
    write(images / "a" / "new.png", 100)
    write(images / "a" / "00.png", 101)
    add(store, images)
    store.remove(SPACE.id, ["b/03.png"])
    found = {one.gate: one.found for one in check_gates(store, NEW.id, CutoverLimits(map_drop=1)) if not one.passed}
    assert found.pop("items without a new code").startswith("1 of 24")
    assert found == {"... that are not in `failures`": "1", "items that the served one has not": "1",
                     "items with another image, labels or columns": "1"}  # fmt: skip
    done = fill(store.uri)
    assert (done.encoded, done.removed) == (2, 1)
    assert all(one.passed for one in check_gates(store, NEW.id, CutoverLimits(map_drop=1)))
    store.open_table(SPACE.id).add_columns(pa.schema([("stock", pa.int64())]))
    store.put(SPACE.id, pa.table({"id": ["a/00.png"], "stock": pa.array([7], pa.int64())}))
    assert [one.found for one in check_gates(store, NEW.id, CutoverLimits(map_drop=1)) if not one.passed] == ["24"]
    assert fill(store.uri).updated == 1
    store.put(SPACE.id, pa.table({"id": ["a/02.png"], "price": [0.5], "labels": pa.array([["b"]])}))
    assert [one.found for one in check_gates(store, NEW.id, CutoverLimits(map_drop=1)) if not one.passed] == ["1"]
    assert fill(store.uri).updated == 1
    assert contents(store, NEW.id) == complements(store)
    assert store.rows_of(store.open_table(NEW.id), pa.chunked_array([["a/00.png"]]), ["stock"])["stock"][0].as_py() == 7


def test_images_that_changed_since_are_counted(store: GalleryStore, images: Path) -> None:
    write(images / "a" / "00.png", 101)
    assert fill(store.uri).changed == 1


def test_items_without_a_source_are_counted_and_found_by_their_ids(store: GalleryStore, images: Path) -> None:
    ids = [f"old/{number}.png" for number in range(3)]
    codes = np.random.default_rng(0).integers(0, 256, (3, 8), np.uint8)
    store.put(SPACE.id, pa.table({"id": ids, "code": code_array(codes)}))
    done = fill(store.uri)
    assert (done.items, done.encoded, done.without_source, done.failed) == (27, 24, 3, 3)
    assert set(store.failures(NEW.id)["reason"].to_pylist()) == {NO_SOURCE}
    refused = {one.gate for one in check_gates(store, NEW.id, CutoverLimits(map_drop=1)) if not one.passed}
    assert refused == {"items without a new code"}
    for number in range(2):
        write(images.parent / "elsewhere" / "old" / f"{number}.png", number)
    where = list_source(str(images.parent / "elsewhere"), SourceOptions())
    done = fill(store.uri, where)
    assert (done.encoded, done.without_source, done.failed) == (2, 1, 1)
    assert fill(store.uri, where).encoded == fill(store.uri).encoded == 0
    assert set(contents(store, NEW.id)) == set(contents(store, SPACE.id)) - {"old/2.png"}
    store.remove(SPACE.id, ["old/2.png"])
    assert fill(store.uri).failed == 0
    assert all(one.passed for one in check_gates(store, NEW.id, CutoverLimits(map_drop=1)))


def test_nothing_is_filled_beside_itself_or_beside_nothing(store: GalleryStore, tmp_path: Path) -> None:
    fill(store.uri)
    cut_over(store, NEW.id)
    with pytest.raises(InputError, match="which is served"):
        fill(store.uri)
    GalleryStore(tmp_path / "empty", create=True)
    with pytest.raises(InputError, match="that is served"):
        fill(str(tmp_path / "empty"))
