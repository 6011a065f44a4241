"""What readers have of a gallery: the same as brute force, and galleries that are stale, tampered with or not there."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gallery.codes import hamming
from gallery.codespace import CodeSpace
from gallery.database import CENTERS_KEY, SCHEMA_KEY, SPACE_KEY, code_array, table_name
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError
from gallery.index import TRAINING, GalleryIndex, create_gallery, later_commits, open_gallery
from gallery.store import GalleryStore
from tests.gallery.galleries import centers_of, named, space_of

Items = tuple[Any, list[str], list[list[str] | None]]
TABLE = table_name(space_of().id)


def items(n: int, bits: int = 16, seed: int = 0) -> Items:
    """Codes, ids and labels: few distinct codes, so that nearly everything is a tie."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, (n, bits // 8)).astype(np.uint8)
    ids = [f"folder/{i} gr\u00fcn \U0001f431's.jpg" for i in range(n)]
    return codes, ids, named(rng.integers(-1, 2, n), "ab")


def made(folder: Path, own: Items, space: CodeSpace | None = None) -> GalleryIndex:
    space = space or space_of()
    return create_gallery(folder, space, centers_of(space.bits), *own)


def brute(own: Items, queries: np.ndarray, k: int) -> tuple[list[list[int]], list[list[str]]]:
    distance = hamming(queries, own[0]).tolist()
    order = [sorted((d, own[1][i].encode()) for i, d in enumerate(row))[:k] for row in distance]
    return [[d for d, _ in row] for row in order], [[id.decode() for _, id in row] for row in order]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> GalleryIndex:
    return made(tmp_path_factory.mktemp("x") / "gallery", items(500))


def check(gallery: GalleryIndex, own: Items, queries: np.ndarray, k: int) -> None:
    distances, ids, rows = gallery.search(queries, k)
    assert (distances.dtype, ids.dtype, rows.dtype) == (np.uint16, object, np.int64)
    assert (distances.tolist(), ids.tolist()) == brute(own, queries, k)
    assert gallery.ids_of(rows).tolist() == ids.tolist()


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 2**32), st.sampled_from([8, 16, 24, 64, 128, 256]), st.integers(1, 300), st.integers(1, 400))
def test_any_gallery_equals_brute_force_with_ties(
    tmp_path_factory: pytest.TempPathFactory, seed: int, bits: int, n: int, k: int
) -> None:
    own = items(n, bits, seed)
    check(made(tmp_path_factory.mktemp("x") / "g", own, space_of(bits)), own, items(5, bits, seed + 1)[0], k)


@pytest.mark.parametrize("k", [1, 2, 7, 40, 499, 500, 9999])
def test_a_folder_equals_brute_force_with_ties(gallery: GalleryIndex, k: int) -> None:
    check(gallery, items(500), items(6, seed=1)[0], k)


def test_the_order_in_which_items_came_makes_no_difference(tmp_path: Path) -> None:
    codes, ids, labels = items(300)
    order = np.random.default_rng(0).permutation(300)
    shuffled = made(tmp_path / "g", (codes[order], [ids[i] for i in order], [labels[i] for i in order]))
    check(shuffled, items(300), items(6, seed=1)[0], 10)
    store = GalleryStore(tmp_path / "g")
    for part in np.array_split(order, 3):
        rows = pa.table({"id": [ids[i] for i in part], "code": code_array(codes[part])})
        store.put(space_of().id, rows)
    store.publish(space_of().id)
    again = open_gallery(tmp_path / "g")
    assert again.version > shuffled.version
    assert again.labels.equals(shuffled.labels)
    check(again, items(300), items(6, seed=1)[0], 10)


def test_some_of_the_items_alone_are_searched(gallery: GalleryIndex) -> None:
    codes, ids, labels = items(500)
    rows = gallery.rows_where("array_has(labels, 'a') and id > 'folder/2'")
    assert gallery.ids_of(rows).tolist() == sorted(
        id for id, own in zip(ids, labels, strict=True) if own == ["a"] and id > "folder/2"
    )
    chosen = [ids.index(id) for id in gallery.ids_of(rows)]
    queries = items(6, seed=1)[0]
    found = gallery.search(queries, 7, among=rows)
    assert (found.distances.tolist(), found.ids.tolist()) == brute(
        (codes[chosen], [ids[i] for i in chosen], []), queries, 7
    )
    assert gallery.search(queries, 7, among=rows[:0]).ids.shape == (6, 0)


PANIC = "lpad(id, 300000000, 'x') = 'x'"  # more than a column may hold: LanceDB panics


@pytest.mark.parametrize("where", ["price < 3", "id = ", "1; DROP TABLE spaces", "", "pg_sleep(9) > 0", PANIC])
def test_another_condition_is_an_error(gallery: GalleryIndex, where: str) -> None:
    with pytest.raises(InputError, match=r"condition (over|on) the columns"):
        gallery.rows_where(where)


def test_no_queries_no_neighbours(gallery: GalleryIndex) -> None:
    found = gallery.search(np.zeros((0, 2), np.uint8), 3)
    assert found.ids.shape == found.distances.shape == found.rows.shape == (0, 3)


def test_everything_comes_back(gallery: GalleryIndex) -> None:
    codes, ids, labels = items(500)
    order = sorted(range(500), key=lambda i: ids[i].encode())
    opened = [open_gallery(gallery.uri, expected) for expected in (space_of(), space_of().id, None)]
    for one in (gallery, *opened, open_gallery(gallery.uri, None, TRAINING), open_gallery(gallery.uri, None, 2)):
        assert (one.space, len(one)) == (space_of(), 500)
        assert np.array_equal(one.centers, centers_of(16))
        assert np.array_equal(one.codes, codes[order])
        assert one.codes.dtype == np.uint8
        assert one.ids.to_pylist() == [ids[i] for i in order]
        assert one.labels.to_pylist() == [labels[i] for i in order]


def test_rows_and_columns_are_found_by_id(gallery: GalleryIndex) -> None:
    _, ids, labels = items(500)
    asked = [ids[7], ids[7], ids[499], ids[0]]
    rows = gallery.rows_of(asked)
    assert gallery.ids_of(rows).tolist() == asked
    found = gallery.columns(["labels", "source"], rows)
    assert found["labels"].to_pylist() == [labels[i] for i in (7, 7, 499, 0)]
    assert found["source"].null_count == 4
    assert gallery.columns(["labels"])["labels"].combine_chunks().equals(gallery.labels)
    for missing in ("", "zzz", "folder/7", "' OR 1=1 --"):
        with pytest.raises(InputError, match="an item of"):
            gallery.rows_of([ids[0], missing])


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_several_labels_come_back(tmp_path: Path, classes: int) -> None:
    codes, ids, _ = items(200)
    hot = np.random.default_rng(0).random((200, classes)) < 0.1  # many have none
    names = [f"class {c}" for c in range(classes)]
    gallery = made(tmp_path / "g", (codes, ids, named(hot, names)))
    rows = gallery.rows_of(ids)
    assert np.array_equal(gallery.class_labels(names, True)[rows], hot)
    if (hot.sum(1) > 1).any():
        with pytest.raises(InputError, match="one class for each item"):
            gallery.class_labels(names, False)


def test_labels_are_those_of_the_classes_that_are_asked_for(tmp_path: Path) -> None:
    labels: list[list[str] | None] = [["a"], None, [], ["c"], ["b"]]
    gallery = made(tmp_path / "g", (items(5)[0], list("12345"), labels))
    assert gallery.class_labels("ab", False).tolist() == [0, -1, -1, -1, 1]
    assert gallery.class_labels("cba", True).argmax(1).tolist() == [2, 0, 0, 0, 1]
    assert gallery.labels.to_pylist() == labels


def test_more_rows_than_any_default_limit(tmp_path: Path) -> None:
    codes, ids, labels = items(30_000)
    gallery = made(tmp_path / "g", (codes, ids, labels))
    assert np.array_equal(gallery.codes[gallery.rows_of(ids)], codes)


def test_the_table_is_readable_without_us(gallery: GalleryIndex) -> None:
    table = lancedb.connect(gallery.uri).open_table(TABLE)
    (row,) = table.search().where("id LIKE 'folder/3 %'").to_list()
    assert row["code"] == items(500)[0][3].tolist()
    assert json.loads(table.schema.metadata[SPACE_KEY])["id"] == space_of().id


def test_what_is_added_later_is_not_the_trainings(tmp_path: Path) -> None:
    made(tmp_path / "g", items(20))
    assert later_commits(tmp_path / "g") == 0
    store, space = GalleryStore(tmp_path / "g"), space_of().id
    store.put(space, pa.table({"id": ["new"], "code": code_array(np.zeros((1, 2), np.uint8))}))
    store.remove(space, items(20)[1][:5])
    assert len(open_gallery(tmp_path / "g")) == 20, "it is not published"
    store.publish(space)
    assert len(open_gallery(tmp_path / "g")) == 16
    assert len(open_gallery(tmp_path / "g", version=TRAINING)) == 20
    assert later_commits(tmp_path / "g") == 2
    assert later_commits(tmp_path / "nowhere") == 0


def test_a_gallery_is_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "g", items(20))
    made(tmp_path / "g", items(30))
    assert len(open_gallery(tmp_path / "g")) == 30
    monkeypatch.setattr("gallery.files._sync", lambda _: 1 / 0)  # fails after all is written, before the rename
    with pytest.raises(ZeroDivisionError):
        made(tmp_path / "g", items(40))
    assert len(open_gallery(tmp_path / "g")) == 30
    assert [p.name for p in tmp_path.iterdir()] == ["g"]


def test_a_moved_gallery_still_opens(tmp_path: Path) -> None:
    before = made(tmp_path / "g", items(20))
    shutil.move(tmp_path / "g", tmp_path / "elsewhere")
    assert np.array_equal(open_gallery(tmp_path / "elsewhere").codes, before.codes)


def test_a_folder_with_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("precious")
    for path in (tmp_path, tmp_path / "photo.jpg"):
        with pytest.raises(InputError, match="empty folder"):
            made(path, items(20))
    assert (tmp_path / "photo.jpg").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    assert len(made(tmp_path / "empty", items(20))) == 20


def test_a_gallery_of_another_space_is_an_error(gallery: GalleryIndex) -> None:
    for other in (space_of(teacher="other"), space_of(teacher="other").id):
        with pytest.raises(CodeSpaceMismatch, match="is stale") as caught:
            open_gallery(gallery.uri, other)
        assert space_of().id in str(caught.value)
    with pytest.raises(CodeSpaceMismatch, match="found none"):
        open_gallery(gallery.uri, "")


def test_another_version_or_tag_is_an_error(gallery: GalleryIndex) -> None:
    for version in (99, "no such tag"):
        with pytest.raises((CodeSpaceMismatch, CorruptFile)):
            open_gallery(gallery.uri, version=version)


def test_where_there_is_none_it_says_so_and_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="none at"):
            open_gallery(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def rewrite(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Another table in the place of that of the codes, with the same tags."""
    db = lancedb.connect(str(folder))
    rows = change(db.open_table(TABLE).to_arrow())
    db.drop_table(TABLE)
    table = db.create_table(TABLE, schema=rows.schema)
    table.add(rows)
    table.tags.create(TRAINING, 2)


@pytest.mark.parametrize("lost", [[SPACE_KEY], [CENTERS_KEY], [SCHEMA_KEY], [SPACE_KEY, CENTERS_KEY]], ids=str)
def test_a_table_without_a_code_space_is_rejected(tmp_path: Path, lost: list[bytes]) -> None:
    made(tmp_path / "g", items(20))
    rewrite(tmp_path / "g", lambda rows: rows.replace_schema_metadata(
        {key: value for key, value in rows.schema.metadata.items() if key not in lost}))  # fmt: skip
    with pytest.raises(CodeSpaceMismatch, match="code space"):
        open_gallery(tmp_path / "g")


EDITED = [
    (SPACE_KEY, text) for text in ("", "{", "[]", "[" * 5000, json.dumps({**space_of().to_dict(), "teacher": "x"}))
]
EDITED += [(CENTERS_KEY, text) for text in ("", "=", "AAAA", "A" * 7, "\u00fc")]


@pytest.mark.parametrize(("key", "text"), EDITED)
def test_an_edited_code_space_is_corrupt(tmp_path: Path, key: bytes, text: str) -> None:
    made(tmp_path / "g", items(20))
    rewrite(tmp_path / "g", lambda rows: rows.replace_schema_metadata({**rows.schema.metadata, key: text}))
    with pytest.raises(CorruptFile):
        open_gallery(tmp_path / "g")


def edited(column: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(rows: pa.Table) -> pa.Table:
        values = rows[column].to_pylist()
        values[3] = value
        field = rows.schema.field(column)
        return rows.set_column(rows.schema.get_field_index(column), field, pa.array(values, field.type))

    return change


@pytest.mark.parametrize("change", [
    edited("code", [255, 255]), edited("code", None), edited("code", [None, 0]), edited("id", "EVIL"), edited("id", ""),
    edited("labels", ["evil"]), edited("labels", [None]), edited("check", 1), edited("check", None),
], ids=range(9))  # fmt: skip
def test_edited_codes_ids_labels_and_checks_are_corrupt(tmp_path: Path, change: Callable[..., pa.Table]) -> None:
    made(tmp_path / "g", items(20))
    rewrite(tmp_path / "g", change)
    for version in (None, TRAINING):
        with pytest.raises(CorruptFile):
            open_gallery(tmp_path / "g", version=version)


@pytest.mark.parametrize("change", [
    lambda rows: rows.slice(1), lambda rows: rows.slice(0, 19), lambda rows: pa.concat_tables([rows, rows.slice(19)]),
    lambda rows: pa.concat_tables([rows.slice(1), rows.slice(19)]), lambda rows: rows.slice(0, 0),
], ids=["first row lost", "last row lost", "a row twice", "one for another", "none"])  # fmt: skip
def test_missing_or_repeated_rows_are_corrupt(tmp_path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    made(tmp_path / "g", items(20))
    rewrite(tmp_path / "g", change)
    for version in (None, TRAINING):
        with pytest.raises(CorruptFile):
            open_gallery(tmp_path / "g", version=version)


@pytest.mark.parametrize("column", ["id", "code", "labels", "check"])
def test_a_table_of_other_columns_is_corrupt(tmp_path: Path, column: str) -> None:
    made(tmp_path / "g", items(20))
    rewrite(tmp_path / "g", lambda rows: rows.drop_columns([column]))
    with pytest.raises(CorruptFile, match="the columns of the table"):
        open_gallery(tmp_path / "g")


@pytest.mark.parametrize("table", [TABLE, "spaces", "ledger"])
@pytest.mark.parametrize("pattern", ["data/*.lance", "_versions/*.manifest"])
@pytest.mark.parametrize("damage", ["truncated", "removed"])
def test_damaged_files_are_corrupt(tmp_path: Path, table: str, pattern: str, damage: str) -> None:
    made(tmp_path / "g", items(2000))
    for path in (tmp_path / "g" / f"{table}.lance").glob(pattern):
        if damage == "removed":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if table == "ledger":  # of no interest to readers
        assert len(open_gallery(tmp_path / "g")) == 2000
        with pytest.raises(CorruptFile, match="encode it again"):
            GalleryStore(tmp_path / "g").verify(space_of().id)
    else:
        with pytest.raises((CorruptFile, InputError)):
            open_gallery(tmp_path / "g")


CODES, IDS, LABELS = items(4)


@pytest.mark.parametrize("rows", [
    (CODES, IDS, LABELS[:3]), (CODES, IDS[:3], LABELS), (CODES[:0], [], []), (CODES[:, :1], IDS, LABELS),
    (CODES.astype(np.int8), IDS, LABELS), (CODES, [*IDS[:3], IDS[0]], LABELS), (CODES, IDS, [*LABELS[:3], [None]]),
    (CODES, IDS, [*LABELS[:3], ["a\0b"]]),
])  # fmt: skip
def test_rows_that_do_not_fit_together_are_rejected(tmp_path: Path, rows: Items) -> None:
    with pytest.raises(InputError):
        made(tmp_path / "g", rows)
    assert not list(tmp_path.iterdir())


def test_the_centers_of_another_space_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hash centers"):
        create_gallery(tmp_path / "g", space_of(), -centers_of(16), CODES, IDS, LABELS)


@pytest.mark.parametrize("id", ["caf\udce9.jpg", "\ud800", None, b"x", 3, "", "a\nb", "\x9b31m", "x" * 4097])
def test_ids_that_are_none_are_errors(tmp_path: Path, id: Any) -> None:
    with pytest.raises(InputError, match="ids of 1 to 4,096 bytes"):
        made(tmp_path / "g", (CODES, [*IDS[:3], id], LABELS))
    assert not list(tmp_path.iterdir())


def test_wrong_queries_are_errors(gallery: GalleryIndex) -> None:
    for wrong in (CODES.astype(np.float32), CODES[:, :1], CODES[0], np.zeros((2, 8), np.uint8)):
        with pytest.raises(InputError, match="packed uint8"):
            gallery.search(wrong, 3)
    with pytest.raises(InputError, match="k of at least 1"):
        gallery.search(CODES, 0)


def test_the_number_of_faiss_threads_is_put_back(gallery: GalleryIndex) -> None:
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    try:
        gallery.search(CODES, 2)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("k", [np.int64(3), np.uint8(3), np.int32(3)])
def test_whole_numbers_of_numpy_are_a_k(gallery: GalleryIndex, k: Any) -> None:
    assert gallery.search(CODES, k).ids.tolist() == gallery.search(CODES, 3).ids.tolist()


@pytest.mark.parametrize("k", [1.5, "3", None, np.float64(2.0)])
def test_another_k_is_an_error(gallery: GalleryIndex, k: Any) -> None:
    with pytest.raises(InputError, match="a whole number as k"):
        gallery.search(CODES, k)


def test_an_index_of_a_replaced_gallery_keeps_what_it_has_read(tmp_path: Path) -> None:
    old = made(tmp_path / "g", items(20))
    before = old.search(CODES, 3)
    made(tmp_path / "g", items(30, seed=5))
    assert np.array_equal(before.ids, old.search(CODES, 3).ids)
    with pytest.raises(CorruptFile):
        old.columns(["source"])
    assert len(open_gallery(tmp_path / "g")) == 30


def test_readers_outlive_replacements(tmp_path: Path) -> None:
    """Whoever opens the gallery while it is replaced gets one of the galleries, whole."""
    made(tmp_path / "g", items(20))
    stop, read = threading.Event(), 0

    def replace() -> None:
        try:
            for seed in range(8):
                made(tmp_path / "g", items(20 + seed, seed=seed))
        finally:
            stop.set()

    writer = threading.Thread(target=replace)
    writer.start()
    while not stop.is_set():
        gallery = open_gallery(tmp_path / "g")
        own = items(len(gallery), seed=len(gallery) - 20)
        assert np.array_equal(gallery.codes[gallery.rows_of(own[1])], own[0])
        read += 1
    writer.join()
    assert read


@pytest.mark.parametrize("pattern", ["data/*.lance", "_versions/*.manifest"])
def test_a_pipe_in_a_gallery_is_corrupt(tmp_path: Path, pattern: str) -> None:
    made(tmp_path / "g", items(20))
    path = sorted((tmp_path / "g" / f"{TABLE}.lance").glob(pattern))[0]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CorruptFile, match="pipe"):
        open_gallery(tmp_path / "g")
