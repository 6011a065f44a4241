"""A new code space is served if it passes the gates, in one commit, and taken back in one."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gallery import cutover_gates
from gallery.cutover import candidate, cut_over, delete_space, retire, roll_back
from gallery.cutover_gates import CutoverLimits, check_gates
from gallery.database import code_array, table_name
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError
from gallery.metrics import mean_average_precision
from gallery.query_photos import QueryPhotos
from gallery.store import GalleryStore
from tests.gallery.galleries import SPACE, centers_of, write_spaces

COUNT, CENTERS = 60, centers_of(64)
NEW, NEWER = replace(SPACE, teacher="new"), replace(SPACE, teacher="newer")
IDS = [f"it's {number:02}" for number in range(COUNT)]
CLASSES = np.arange(COUNT) % 3
LABELS = pa.array([[f"class {number}"] for number in CLASSES])


def codes_of(seed: int) -> np.ndarray:
    """Codes that find their classes: of each class near to a code of its own."""
    rng = np.random.default_rng(seed)
    own = rng.integers(0, 256, (3, 8), np.uint8)[CLASSES]
    noise = np.packbits(rng.random((COUNT, 64)) < 0.1, axis=1)
    return np.asarray(own ^ noise, np.uint8)


def fill(store: GalleryStore, space: Any, codes: np.ndarray) -> None:
    store.add_space(space, CENTERS)
    store.put(space.id, pa.table({"id": IDS, "code": code_array(codes), "labels": LABELS}))


def filled(uri: str | Path) -> GalleryStore:
    """A gallery that serves `SPACE`, with `NEW` as good beside it."""
    made = GalleryStore(uri, create=True)
    fill(made, SPACE, codes_of(0))
    made.publish(SPACE.id)
    fill(made, NEW, codes_of(1))
    return made


@pytest.fixture
def store(tmp_path: Path) -> GalleryStore:
    return filled(tmp_path / "g")


def states(store: GalleryStore) -> dict[str, str]:
    names = {SPACE.id: "old", NEW.id: "new", NEWER.id: "newer"}
    return {names[name]: record.state for name, record in store.spaces().items()}


def files(store: GalleryStore, space: Any) -> dict[str, str]:
    """The SHA-256 of each file of a table."""
    folder = Path(store.uri, f"{table_name(space.id)}.lance")
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def refused(store: GalleryStore, limits: CutoverLimits = CutoverLimits()) -> list[str]:  # noqa: B008
    return [one.gate for one in check_gates(store, NEW.id, limits) if not one.passed]


def test_over_back_and_over_again(store: GalleryStore) -> None:
    before = files(store, SPACE)
    assert refused(store) == []
    assert candidate(store).space == NEW.id
    cut_over(store, NEW.id)
    assert states(store) == {"old": "previous", "new": "serving"}
    assert store.find_space().rows == COUNT
    assert roll_back(store).space == SPACE.id
    assert states(store) == {"old": "serving", "new": "previous"}
    assert candidate(store).space == NEW.id
    cut_over(store, NEW.id)
    with pytest.raises(InputError, match="newer than the one"):
        candidate(store)
    assert candidate(store, SPACE.id).space == SPACE.id  # if it is named
    assert states(store) == {"old": "previous", "new": "serving"}
    assert files(store, SPACE) == before
    fill(store, NEWER, codes_of(2))
    cut_over(store, NEWER.id)
    assert states(store) == {"old": "retired", "new": "previous", "newer": "serving"}
    assert store.find_space(NEW.id).state == "previous"
    with pytest.raises(CodeSpaceMismatch, match=f"{NEW.id}, {NEWER.id}"):
        store.find_space(SPACE.id)
    assert files(store, SPACE) == before


def test_each_change_is_one_commit_that_readers_see_whole(store: GalleryStore) -> None:
    import lancedb

    table = lancedb.connect(store.uri).open_table("spaces")
    store.publish(NEW.id)
    seen, stop = list[dict[str, str]](), threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.append(states(store))

    watcher = threading.Thread(target=watch)
    watcher.start()
    versions = []
    for _ in range(3):
        cut_over(store, NEW.id)
        table.checkout_latest()
        versions.append(table.version)
        roll_back(store)
        table.checkout_latest()
        versions.append(table.version)
    stop.set()
    watcher.join()
    assert np.diff(versions).tolist() == [1, 2, 1, 2, 1]  # a cut-over publishes before
    assert all(list(one.values()).count("serving") == 1 for one in seen)


def test_of_two_cut_overs_at_once_one_is_served(store: GalleryStore) -> None:
    fill(store, NEWER, codes_of(2))
    threads = [threading.Thread(target=cut_over, args=(store, space.id)) for space in (NEW, NEWER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(states(store).values()) == ["previous", "retired", "serving"]
    assert states(store)["old"] == "retired"


def test_it_is_the_same_in_an_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("moto")
    from moto.server import ThreadedMotoServer
    from pyarrow.fs import S3FileSystem

    server = ThreadedMotoServer(port=0)
    server.start()
    address = "{}:{}".format(*server.get_host_and_port())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    for name, value in (("ENDPOINT", f"http://{address}"), ("ALLOW_HTTP", "true"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    S3FileSystem(endpoint_override=address, scheme="http", region="us-east-1",
                 allow_bucket_creation=True).create_dir("shop")  # fmt: skip
    try:
        store = filled("s3://shop/g")
        assert refused(store) == []
        cut_over(store, NEW.id)
        assert states(store) == {"old": "previous", "new": "serving"}
        assert roll_back(store).space == SPACE.id
        retire(store, NEW.id)
        delete_space(store, NEW.id)
        assert states(store) == {"old": "serving"}
    finally:
        server.stop()


def test_what_is_published_meanwhile_stays_published(store: GalleryStore) -> None:
    problems: list[Exception] = []

    def publish_each() -> None:
        try:
            for number in range(8):
                store.put(SPACE.id, pa.table({"id": [f"more {number}"], "code": code_array(codes_of(0)[:1])}))
                store.publish(SPACE.id)
        except Exception as error:  # noqa: BLE001 - in another thread
            problems.append(error)

    publisher = threading.Thread(target=publish_each)
    publisher.start()
    while publisher.is_alive():
        cut_over(store, NEW.id)
        roll_back(store)
    publisher.join()
    assert problems == []
    record = store.spaces()[SPACE.id]
    assert (record.state, record.rows) == ("serving", COUNT + 8)
    assert record.version == store.open_table(SPACE.id).version


def shuffle(store: GalleryStore) -> None:
    rows = pa.table({"id": IDS, "code": code_array(np.random.default_rng(0).permutation(codes_of(1)))})
    store.put(NEW.id, rows)


def damage(store: GalleryStore) -> None:
    store.open_table(NEW.id).update("id = 'it''s 07'", {"code": [0] * 8})


def lose(store: GalleryStore) -> None:
    store.remove(NEW.id, IDS[:1])


def lose_and_note(store: GalleryStore) -> None:
    lose(store)
    store.fail(NEW.id, [{"id": IDS[0], "source": "", "etag": "", "reason": "rubbish"}])


def add_one(store: GalleryStore) -> None:
    store.put(NEW.id, pa.table({"id": ["extra"], "code": code_array(codes_of(0)[:1])}))


@pytest.mark.parametrize(
    ("change", "gates"),
    [
        (shuffle, ["retrieval by the gallery's own items"]),
        (damage, ["rows match their checks"]),
        (lose, ["items without a new code", "... that are not in `failures`"]),
        (lose_and_note, ["items without a new code"]),
        (add_one, ["items that the served one has not"]),
    ],
)
def test_what_is_not_right_is_refused(
    store: GalleryStore, change: Callable[[GalleryStore], None], gates: list[str]
) -> None:
    change(store)
    assert refused(store) == gates
    if change is lose_and_note:
        assert refused(store, CutoverLimits(missing=1 / COUNT)) == []
    if change is shuffle:
        assert refused(store, CutoverLimits(map_drop=1)) == []


def test_retrieval_is_not_compared_without_labels(tmp_path: Path) -> None:
    store = GalleryStore(tmp_path / "g", create=True)
    for space in (SPACE, NEW):
        store.add_space(space, CENTERS)
        store.put(space.id, pa.table({"id": IDS, "code": code_array(codes_of(0))}))
        store.publish(space.id)
    gate = check_gates(store, NEW.id, CutoverLimits())[-2]
    assert (gate.passed, "no items with labels" in gate.found) == (True, True)
    unlike = pa.array([[str(number)] for number in range(COUNT)])
    store.put(SPACE.id, pa.table({"id": IDS, "labels": unlike}))
    gate = check_gates(store, NEW.id, CutoverLimits())[-2]
    assert (gate.passed, "no two items" in gate.found) == (True, True)


@pytest.mark.parametrize("old", [0, 1])
def test_students_of_both_are_compared_by_held_out_photos(store: GalleryStore, old: int) -> None:
    """The gallery's own codes as those of a student, against codes of chance."""
    chance = np.random.default_rng(7).integers(0, 256, (COUNT, 8), np.uint8)
    own = {SPACE.id: codes_of(0), NEW.id: codes_of(1)}
    good, bad = ([NEW.id, SPACE.id], [SPACE.id, NEW.id])[old]
    photos = QueryPhotos({good: own[good], bad: chance}, LABELS)
    gate = check_gates(store, NEW.id, CutoverLimits(), photos)[-1]
    maps = [mean_average_precision(photos.codes[one], own[one], CLASSES, CLASSES).map for one in own]
    assert gate.found == f"mAP {maps[0]:.4f} -> {maps[1]:.4f}, {COUNT} photos each among {COUNT} items"
    assert gate.passed == (good == NEW.id)
    assert refused(store) == []
    unlike = QueryPhotos(photos.codes, pa.array([["another"]] * COUNT))
    with pytest.raises(InputError, match="share labels"):
        check_gates(store, NEW.id, CutoverLimits(), unlike)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 40), st.integers(1, 4), st.integers(0, 1000), st.booleans())
def test_leave_one_out_is_a_search_among_the_others(count: int, classes: int, seed: int, many: bool) -> None:
    rng = np.random.default_rng(seed)
    tables = [rng.integers(0, 2, (count, 2), np.uint8) * np.uint8(7) for _ in range(2)]
    hot = np.eye(classes, dtype=bool)[rng.integers(0, classes, count)]
    hot |= rng.random(hot.shape) < 0.3 * many
    labels = pa.array([[str(one) for one in np.flatnonzero(row)] for row in hot])
    answerable = [q for q in range(count) if (hot[q] & np.delete(hot, q, 0)).any()]
    *found, queries = cutover_gates._leave_one_out(cutover_gates._LabelledItems(tables, labels), count)
    assert queries == len(answerable)
    for codes, one in zip(tables, found, strict=True):
        maps = [mean_average_precision(codes[q : q + 1], np.delete(codes, q, 0), hot[q : q + 1], np.delete(hot, q, 0))
                for q in answerable]  # fmt: skip
        assert one == pytest.approx(np.mean([found.map for found in maps]) if maps else 0.0)


def test_there_is_no_way_back_where_there_was_none(store: GalleryStore) -> None:
    with pytest.raises(InputError, match="no cut-over"):
        roll_back(store)
    cut_over(store, NEW.id)
    store.open_table(SPACE.id).update("id = 'it''s 07'", {"code": [0] * 8})
    damaged = store.spaces()[SPACE.id]
    write_spaces(store, [damaged._replace(version=int(store.open_table(SPACE.id).version))])
    with pytest.raises(CorruptFile, match="do not match"):
        roll_back(store)
    assert states(store) == {"old": "previous", "new": "serving"}
    retire(store, SPACE.id)
    with pytest.raises(InputError, match="no cut-over"):
        roll_back(store)


def test_a_retired_space_is_kept_until_it_is_deleted(store: GalleryStore) -> None:
    for wrong in (SPACE.id, "none"):
        with pytest.raises(InputError, match=NEW.id):
            retire(store, wrong)
    with pytest.raises(InputError, match="Retire it first"):
        delete_space(store, NEW.id)
    before = files(store, NEW)
    retire(store, NEW.id)
    assert (states(store)["new"], files(store, NEW)) == ("retired", before)
    store.fail(NEW.id, [{"id": IDS[0], "source": "", "etag": "", "reason": "rubbish"}])
    delete_space(store, NEW.id)
    delete_space(store, NEW.id)  # as one that was killed
    assert (states(store), files(store, NEW), len(store.failures(NEW.id))) == ({"old": "serving"}, {}, 0)
    fill(store, NEW, codes_of(1))
    assert refused(store) == []
