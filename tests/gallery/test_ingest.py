"""A gallery is brought up to date: what is the same is not read, what was killed resumes, what fails is told."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from gallery.codespace import CodeSpace, Preprocessing, hash_centers
from gallery.errors import InputError
from gallery.index import open_gallery
from gallery.ingest import IngestCounts, IngestOptions, add_columns, ids_not_in, ingest
from gallery.maintenance import list_failures, publish_changes
from gallery.results import Skipped
from gallery.sources.listing import SourceOptions, list_source
from gallery.store import GalleryStore

ROOT, SIZE, BITS = Path(__file__).parents[2], 8, 64
CENTERS = np.where(np.random.default_rng(0).random((3, BITS)) < 0.5, np.int8(-1), np.int8(1))
SPACE = CodeSpace(
    BITS, ("a", "b", "c"), "projection", "0" * 64, hash_centers(CENTERS),
    Preprocessing(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
)  # fmt: skip
PROJECTION = np.random.default_rng(1).normal(size=(SIZE * SIZE * 3, BITS)).astype(np.float32)
WORKER = """
import sys
from tests.gallery.test_ingest import add
add(sys.argv[1], sys.argv[2], commit_rows=int(sys.argv[3]), slow=float(sys.argv[4]))
"""


def project(pixels: np.ndarray) -> np.ndarray:
    """A teacher that takes no time: a random projection of the pixels, one image at a time."""
    return np.stack([(one.reshape(-1) / np.float32(255) - np.float32(0.5)) @ PROJECTION for one in pixels])


def add(uri: str, source: str, slow: float = 0.0, **options: Any) -> IngestCounts:
    store = GalleryStore(uri, create=True)
    store.add_space(SPACE, CENTERS)

    def encode(pixels: np.ndarray) -> np.ndarray:
        time.sleep(slow)
        return project(pixels)

    counts = ingest(store, SPACE, list_source(source, SourceOptions()), IngestOptions(**options), lambda: encode)
    publish_changes(store, SPACE.id)
    return counts


def never() -> Callable[[np.ndarray], np.ndarray]:
    raise AssertionError("the network is loaded")


def write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(24):
        write(tmp_path / "in" / "ab"[number % 2] / f"{number:02}.png", number)
    return tmp_path / "in"


def contents(uri: str) -> dict[str, bytes]:
    index = open_gallery(uri)
    return {id: code.tobytes() for id, code in zip(index.ids.to_pylist(), index.codes, strict=True)}


def expected(folder: Path) -> dict[str, bytes]:
    """What is to be in a gallery, encoded one image at a time."""
    found = {}
    for path in sorted(folder.rglob("*.png")):
        with Image.open(path) as image:
            bits = project(np.asarray(image.convert("RGB"))[None])[0] > 0
        found[path.relative_to(folder).as_posix()] = np.packbits(bits, bitorder="little").tobytes()
    return found


def test_what_is_there_is_not_done_again(images: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "g")
    first = add(uri, str(images))
    assert (first.seen, first.encoded, first.same) == (24, 24, 0)
    assert contents(uri) == expected(images)
    store, version = GalleryStore(uri), open_gallery(uri).version
    again = ingest(store, SPACE, list_source(str(images), SourceOptions()), IngestOptions(), never)
    assert (again.seen, again.encoded, again.same) == (24, 0, 24)
    publish_changes(store, SPACE.id)
    assert open_gallery(uri).version == version


def test_changes_are_told_apart(images: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "g")
    add(uri, str(images))
    write(images / "a" / "00.png", 100)  # other bytes
    os.utime(images / "a" / "02.png")  # the same bytes at another time
    (images / "a" / "04.png").unlink()
    (images / "b" / "01.png").write_bytes(b"rubbish")
    (images / "b" / "03.png").rename(images / "b" / "moved.png")
    shutil.copy2(images / "b" / "05.png", images / "b" / "copy.png")
    done = add(uri, str(images))
    assert (done.encoded, done.updated, done.failed, done.stale, done.same) == (3, 1, 1, 1, 19)
    found, now = contents(uri), expected_but(images, "b/01.png")
    assert {id: found[id] for id in now} == now
    assert set(found) - set(now) == {"a/04.png", "b/01.png", "b/03.png"}
    store = GalleryStore(uri)
    assert [(row["id"], row["stale"]) for row in list_failures(store, SPACE.id)] == [("b/01.png", True)]
    again = add(uri, str(images))
    assert (again.encoded, again.updated, again.failed, again.same) == (0, 0, 1, 23)
    write(images / "b" / "01.png", 1)
    assert add(uri, str(images)).failed == 0
    assert list_failures(store, SPACE.id) == []
    assert ids_not_in(store, SPACE.id, list_source(str(images), SourceOptions()), 0.2) == ["a/04.png", "b/03.png"]
    with pytest.raises(InputError, match=r"--prune-most 0\.08"):
        ids_not_in(store, SPACE.id, list_source(str(images), SourceOptions()), 0.01)


def test_nothing_is_pruned_by_a_source_that_is_not_known_whole(images: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "g")
    add(uri, str(images))
    (images / "a" / "00.png").unlink()
    (images / "z").symlink_to(images / "b")
    store = GalleryStore(uri)
    assert ids_not_in(store, SPACE.id, list_source(str(images), SourceOptions()), 1.0) == ["a/00.png"]
    listing = list_source(str(images), SourceOptions())
    listing = listing._replace(skipped=(*listing.skipped, Skipped(path="c", reason="a folder that cannot be read")))
    with pytest.raises(InputError, match="listed whole"):
        ids_not_in(store, SPACE.id, listing, 1.0)


def test_columns_that_another_writer_added_meanwhile(images: Path, tmp_path: Path) -> None:
    store = GalleryStore(tmp_path / "g", create=True)
    store.add_space(SPACE, CENTERS)
    table, given = store.open_table(SPACE.id), pa.schema([("price", pa.float64())])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: add_columns(store, SPACE.id, given, ["price"]), range(4)))
    assert "price" in store.open_table(SPACE.id).schema.names
    assert table.count_rows() == 0


def expected_but(folder: Path, name: str) -> dict[str, bytes]:
    (folder / name).rename(folder / "aside")
    found = expected(folder)
    (folder / "aside").rename(folder / name)
    return found


def test_an_image_under_its_old_size_and_time_is_found_by_rehash(images: Path, tmp_path: Path) -> None:
    uri, path = str(tmp_path / "g"), images / "a" / "00.ppm"
    header = f"P6 {SIZE} {SIZE} 255\n".encode()
    path.write_bytes(header + bytes(SIZE * SIZE * 3))
    add(uri, str(images))
    before = path.stat()
    path.write_bytes(header + bytes([255]) * (SIZE * SIZE * 3))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert add(uri, str(images)).encoded == 0
    assert add(uri, str(images), rehash=True).encoded == 1


def test_columns_change_without_an_image_being_read(images: Path, tmp_path: Path) -> None:
    store = GalleryStore(tmp_path / "g", create=True)
    rows = ["id,path,label,price,sku", "x,a/00.png,shoe,1.5,007", "y,b/01.png,,2,008"]
    (images / "m.csv").write_text("\n".join(rows))
    listing = list_source(str(images / "m.csv"), SourceOptions())
    store.add_space(SPACE, CENTERS)
    with pytest.raises(InputError, match="--add-column price sku"):
        ingest(store, SPACE, listing, IngestOptions(), lambda: project)
    ingest(store, SPACE, listing, IngestOptions(add_columns=("price", "sku")), lambda: project)
    with pytest.raises(InputError, match="Call it price"):
        add_columns(store, SPACE.id, pa.schema([("Price", pa.int64())]), ["Price"])
    (images / "m.csv").write_text("\n".join([*rows[:2], "y,b/01.png,boot,3,008"]))
    types = {"price": listing.items.schema.field("price").type, "sku": listing.items.schema.field("sku").type}
    listing = list_source(str(images / "m.csv"), SourceOptions(types=types))
    done = ingest(store, SPACE, listing, IngestOptions(), never)
    assert (done.updated, done.same) == (1, 1)
    publish_changes(store, SPACE.id)
    index = open_gallery(tmp_path / "g")
    told = index.columns(["id", "price", "sku", "labels"]).to_pylist()
    assert told == [{"id": "x", "price": 1.5, "sku": "007", "labels": ["shoe"]},
                    {"id": "y", "price": 3.0, "sku": "008", "labels": ["boot"]}]  # fmt: skip
    assert index.ids_of(index.rows_where("price > 2 AND array_has(labels, 'boot')")).tolist() == ["y"]


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WORKER, *map(str, words)], cwd=ROOT, text=True,
                            stderr=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip


def test_killed_at_any_moment_nothing_is_lost_or_done_twice(images: Path, tmp_path: Path) -> None:
    uri, chance = str(tmp_path / "g"), random.Random(0)
    kills = 0
    for _ in range(4):
        worker = start(uri, images, 2, 0.05)
        deadline = time.monotonic() + 60
        while worker.poll() is None and time.monotonic() < deadline and not (tmp_path / "g" / "spaces.lance").exists():
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.6))
        worker.send_signal(signal.SIGKILL)
        kills += worker.wait() == -signal.SIGKILL
        worker.communicate()
    assert kills
    done = add(uri, str(images))
    assert done.same + done.encoded == 24
    assert contents(uri) == expected(images)
    store = GalleryStore(uri)
    assert store.verify(SPACE.id).problem == ""
    add(str(tmp_path / "undisturbed"), str(images))
    assert store.verify(SPACE.id).found == GalleryStore(tmp_path / "undisturbed").verify(SPACE.id).found
    assert add(uri, str(images)).encoded == 0


def test_two_at_once_lose_and_double_nothing(images: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "g")
    for number in range(24, 48):
        write(tmp_path / "other" / f"{number}.png", number)
    workers = [start(uri, images, 3, 0.02), start(uri, images, 4, 0.02), start(uri, tmp_path / "other", 5, 0.02)]
    for worker in workers:
        _, said = worker.communicate(timeout=120)
        assert worker.returncode == 0, said
    assert add(uri, str(images)).encoded == 0
    assert contents(uri) == expected(images) | expected(tmp_path / "other")
    assert GalleryStore(uri).verify(SPACE.id).problem == ""


def test_a_full_disk_is_told_and_what_is_there_stays(images: Path, tmp_path: Path) -> None:
    import resource

    uri = str(tmp_path / "g")
    add(uri, str(images / "a"))
    before, limits = contents(uri), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_600, limits[1]))  # a real error of write(2), as a full disk gives
    try:
        with pytest.raises(OSError, match=r"[Tt]oo large|[Nn]o space"):
            add(uri, str(images))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(uri) == before
    add(uri, str(images))
    assert contents(uri) == before | expected(images)
    assert GalleryStore(uri).verify(SPACE.id).problem == ""


def test_no_commit_begins_on_a_disk_that_is_all_but_full(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "g")
    add(uri, str(images / "a"))
    with monkeypatch.context() as patch:
        patch.setattr("gallery.database.ROOM", 1 << 62)
        with pytest.raises(OSError, match="No space left"):
            add(uri, str(images))
    assert contents(uri) == expected(images / "a")
    assert add(uri, str(images)).encoded == 24  # by other names


def test_codes_are_those_that_training_stores(run: Path, made: Path, tmp_path: Path) -> None:
    from distill.image_encoder import load_encoder
    from gallery import codespace

    space, centers = codespace.load(run)
    store = GalleryStore(tmp_path / "g", create=True)
    store.add_space(space, centers)
    listing = list_source(str(made / "in"), SourceOptions(labels_from_folders=True))
    ingest(store, space, listing, IngestOptions(), lambda: load_encoder(run, space))
    store.publish(space.id)
    trained, added = open_gallery(run / "gallery"), open_gallery(tmp_path / "g", space)
    rows = added.rows_of(trained.ids.to_pylist())
    assert np.array_equal(added.codes[rows], trained.codes)
    assert added.labels.take(rows).to_pylist() == trained.labels.to_pylist()


def test_the_command_resumes(run: Path, made: Path, tmp_path: Path) -> None:
    words = [sys.executable, "gallery/run.py", "add", str(tmp_path / "g"), str(made / "in"), "--run", str(run),
             "--json", "--commit-rows", "8"]  # fmt: skip
    worker = subprocess.Popen(words, cwd=ROOT, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stderr is not None
    next(line for line in worker.stderr if " of 80: " in line)
    worker.kill()
    worker.communicate()
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (counts,) = json.loads(done.stdout)
    assert counts["same"] >= 8
    assert counts["same"] + counts["encoded"] == 80
    assert len(open_gallery(tmp_path / "g")) == 80
