"""The gallery against brute force, and galleries that are stale, tampered with or not there."""

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
from gallery.codespace import CodeSpace, Preprocessing
from gallery.errors import CodeSpaceMismatch, CorruptFile, GalleryReplaced, InputError
from gallery.index import SPACE_KEY, SUMS_KEY, GalleryIndex, create_gallery, open_gallery


def space_of(bits: int = 16, teacher: str = "vit_tiny") -> CodeSpace:
    return CodeSpace(bits, ("a", "b"), teacher, "ab" * 32, "cd" * 32, Preprocessing(64, (0.5,) * 3, (0.2,) * 3))


def items(n: int, bits: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Few distinct codes, so that nearly everything is a tie."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, (n, bits // 8)).astype(np.uint8)
    return codes, rng.integers(0, 3, n), [f"folder/{i} gr\u00fcn.jpg" for i in range(n)]


def brute(codes: np.ndarray, queries: np.ndarray, k: int) -> tuple[list[list[int]], list[list[int]]]:
    distance = hamming(queries, codes).tolist()
    order = [sorted((d, i) for i, d in enumerate(row))[:k] for row in distance]
    return [[d for d, _ in row] for row in order], [[i for _, i in row] for row in order]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> GalleryIndex:
    return create_gallery(tmp_path_factory.mktemp("x") / "gallery", space_of(), *items(500))


def check(gallery: GalleryIndex, codes: np.ndarray, queries: np.ndarray, k: int) -> None:
    distances, ids = gallery.search(queries, k)
    assert (distances.dtype, ids.dtype) == (np.uint16, np.int64)
    assert (distances.tolist(), ids.tolist()) == brute(codes, queries, k)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from([8, 16, 24, 64, 128, 256]), st.integers(1, 300), st.integers(1, 400))
def test_any_gallery_equals_brute_force_with_ties(seed: int, bits: int, n: int, k: int) -> None:
    codes, labels, names = items(n, bits, seed)
    check(create_gallery("memory://", space_of(bits), codes, labels, names), codes, items(5, bits, seed + 1)[0], k)


@pytest.mark.parametrize("k", [1, 2, 7, 40, 499, 500, 9999])
def test_a_folder_equals_brute_force_with_ties(gallery: GalleryIndex, k: int) -> None:
    check(gallery, items(500)[0], items(6, seed=1)[0], k)


def test_shuffled_rows_make_no_difference(tmp_path: Path) -> None:
    gallery = create_gallery(tmp_path / "g", space_of(), *items(300))
    rewrite(tmp_path / "g", lambda rows: rows.take(np.random.default_rng(0).permutation(300)))
    shuffled = open_gallery(tmp_path / "g")
    assert np.array_equal(shuffled.codes, gallery.codes)
    check(shuffled, items(300)[0], items(6, seed=1)[0], 10)


def test_no_queries_no_neighbours(gallery: GalleryIndex) -> None:
    found = gallery.search(np.zeros((0, 2), np.uint8), 3)
    assert found.ids.shape == found.distances.shape == (0, 3)


def test_everything_comes_back(gallery: GalleryIndex) -> None:
    codes, labels, names = items(500)
    opened = [open_gallery(gallery.uri, expected) for expected in (space_of(), space_of().id)]
    for one in (gallery, *opened):
        assert one.space == space_of()
        assert len(one) == 500
        assert np.array_equal(one.codes, codes)
        assert one.codes.dtype == np.uint8
        assert np.array_equal(one.labels, labels)
        assert one.labels.dtype == np.int64
        assert one.names == names


@pytest.mark.parametrize("classes", [1, 3, 80])
def test_several_labels_come_back(tmp_path: Path, classes: int) -> None:
    codes, _, names = items(200)
    labels = np.random.default_rng(0).random((200, classes)) < 0.1  # many have none
    labels[-1] = False
    gallery = create_gallery(tmp_path / "g", space_of(), codes, labels, names)
    for one in (gallery, open_gallery(tmp_path / "g")):
        assert one.labels.dtype == np.bool_
        assert np.array_equal(one.labels, labels)


def test_more_rows_than_any_default_limit(tmp_path: Path) -> None:
    codes, labels, names = items(30_000)
    gallery = create_gallery(tmp_path / "g", space_of(), codes, labels, names)
    assert np.array_equal(gallery.codes, codes)
    assert gallery.names[-1] == names[-1]


def test_the_table_is_readable_without_us(gallery: GalleryIndex) -> None:
    table = lancedb.connect(gallery.uri).open_table("gallery")
    row = table.search().where("id = 3").to_list()[0]
    assert row["code"] == items(500)[0][3].tolist()
    assert json.loads(table.schema.metadata[SPACE_KEY])["id"] == space_of().id


def test_a_gallery_is_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_gallery(tmp_path / "g", space_of(), *items(20))
    create_gallery(tmp_path / "g", space_of(), *items(30))
    assert len(open_gallery(tmp_path / "g")) == 30
    monkeypatch.setattr("gallery.files._sync", lambda _: 1 / 0)  # fails after all is written, before the rename
    with pytest.raises(ZeroDivisionError):
        create_gallery(tmp_path / "g", space_of(), *items(40))
    assert len(open_gallery(tmp_path / "g")) == 30
    assert [p.name for p in tmp_path.iterdir()] == ["g"]


def test_a_moved_gallery_still_opens(tmp_path: Path) -> None:
    create_gallery(tmp_path / "g", space_of(), *items(20))
    shutil.move(tmp_path / "g", tmp_path / "elsewhere")
    assert np.array_equal(open_gallery(tmp_path / "elsewhere").codes, items(20)[0])


def test_a_folder_with_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("precious")
    with pytest.raises(InputError, match="empty folder"):
        create_gallery(tmp_path, space_of(), *items(20))
    with pytest.raises(InputError, match="empty folder"):
        create_gallery(tmp_path / "photo.jpg", space_of(), *items(20))
    assert (tmp_path / "photo.jpg").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    assert len(create_gallery(tmp_path / "empty", space_of(), *items(20))) == 20


def test_a_gallery_of_another_space_is_an_error(gallery: GalleryIndex) -> None:
    for other in (space_of(teacher="other"), space_of(teacher="other").id):
        with pytest.raises(CodeSpaceMismatch, match="is stale") as caught:
            open_gallery(gallery.uri, other)
        assert space_of().id in str(caught.value)
    with pytest.raises(CodeSpaceMismatch, match="found none"):
        open_gallery(gallery.uri, "")


def test_where_there_is_none_it_says_so_and_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "file"):
        with pytest.raises(InputError, match="none at"):
            open_gallery(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def rewrite(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    db = lancedb.connect(str(folder))
    db.create_table("gallery", data=change(db.open_table("gallery").to_arrow()), mode="overwrite")


@pytest.mark.parametrize("lost", [[SPACE_KEY], [SUMS_KEY], [SPACE_KEY, SUMS_KEY]], ids=str)
def test_a_table_without_a_code_space_is_rejected(tmp_path: Path, lost: list[bytes]) -> None:
    create_gallery(tmp_path / "g", space_of(), *items(20))
    rewrite(tmp_path / "g", lambda rows: rows.replace_schema_metadata(
        {key: value for key, value in rows.schema.metadata.items() if key not in lost}))  # fmt: skip
    with pytest.raises(CodeSpaceMismatch, match="code space"):
        open_gallery(tmp_path / "g")


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({**space_of().to_dict(), "teacher": "other"})])
def test_an_edited_code_space_is_corrupt(tmp_path: Path, text: str) -> None:
    create_gallery(tmp_path / "g", space_of(), *items(20))
    rewrite(tmp_path / "g", lambda rows: rows.replace_schema_metadata({**rows.schema.metadata, SPACE_KEY: text}))
    with pytest.raises(CorruptFile):
        open_gallery(tmp_path / "g")


def test_edited_codes_labels_and_names_are_corrupt(tmp_path: Path) -> None:
    codes, labels, names = items(20)
    changed = {
        "label": pa.array(labels + 1), "code": pa.FixedSizeListArray.from_arrays(pa.array((codes ^ 1).ravel()), 2),
        "name": pa.array(["EVIL", *names[1:]]),
    }  # fmt: skip
    for column, values in changed.items():
        gallery = create_gallery(tmp_path / "g", space_of(), codes, labels, names)
        rewrite(tmp_path / "g", lambda rows, c=column, v=values: rows.set_column(rows.schema.names.index(c), c, v))
        gallery = open_gallery(tmp_path / "g")
        with pytest.raises(CorruptFile, match="was made with"):
            _ = gallery.codes, gallery.labels, gallery.names


@pytest.mark.parametrize("sums", ["", "3", "[]", "{}", '{"classes": 2}', '{"classes": 3, "labels": "x", "codes": ""}'])
def test_edited_checksums_are_corrupt(tmp_path: Path, sums: str) -> None:
    codes, _, names = items(20)
    create_gallery(tmp_path / "g", space_of(), codes, np.eye(3, dtype=bool)[np.arange(20) % 3], names)
    rewrite(tmp_path / "g", lambda rows: rows.replace_schema_metadata({**rows.schema.metadata, SUMS_KEY: sums}))
    for name in ("labels", "codes"):
        with pytest.raises(CorruptFile):
            getattr(open_gallery(tmp_path / "g"), name)


@pytest.mark.parametrize("change", [
    lambda rows: rows.slice(1), lambda rows: rows.slice(0, 19), lambda rows: pa.concat_tables([rows, rows.slice(19)]),
], ids=["first row lost", "last row lost", "a row twice"])  # fmt: skip
def test_missing_or_repeated_rows_are_corrupt(tmp_path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    create_gallery(tmp_path / "g", space_of(), *items(20))
    rewrite(tmp_path / "g", change)
    with pytest.raises(CorruptFile):
        _ = open_gallery(tmp_path / "g").codes


@pytest.mark.parametrize("pattern", ["data/*.lance", "_versions/*.manifest"])
@pytest.mark.parametrize("damage", ["truncated", "removed"])
def test_damaged_files_are_corrupt(tmp_path: Path, pattern: str, damage: str) -> None:
    create_gallery(tmp_path / "g", space_of(), *items(2000))
    for path in (tmp_path / "g" / "gallery.lance").glob(pattern):
        if damage == "removed":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CorruptFile, match="encode the gallery again"):
        _ = open_gallery(tmp_path / "g").codes


CODES, LABELS, NAMES = items(4)


@pytest.mark.parametrize("rows", [
    (CODES, LABELS[:3], NAMES), (CODES, LABELS, NAMES[:3]), (CODES[:0], LABELS[:0], []), (CODES[:, :1], LABELS, NAMES),
    (CODES.astype(np.int8), LABELS, NAMES), (CODES, LABELS.astype(float), NAMES), (CODES, LABELS[:, None], NAMES),
])  # fmt: skip
def test_rows_that_do_not_fit_together_are_rejected(tmp_path: Path, rows: tuple[Any, ...]) -> None:
    with pytest.raises(InputError):
        create_gallery(tmp_path / "g", space_of(), *rows)
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


@pytest.mark.parametrize("edit", [
    lambda table: table.update(where="id = 3", values={"code": [0, 0]}), lambda table: table.delete("id = 3"),
], ids=["a code", "a row"])  # fmt: skip
def test_a_gallery_that_was_edited_is_not_searched(tmp_path: Path, edit: Callable[[Any], Any]) -> None:
    codes, labels, names = items(20)
    create_gallery(tmp_path / "g", space_of(), codes | 1, labels, names)
    edit(lancedb.connect(str(tmp_path / "g")).open_table("gallery"))
    with pytest.raises(CorruptFile):
        open_gallery(tmp_path / "g").search(np.zeros((1, 2), np.uint8), 1)


@pytest.mark.parametrize("k", [np.int64(3), np.uint8(3), np.int32(3)])
def test_whole_numbers_of_numpy_are_a_k(gallery: GalleryIndex, k: Any) -> None:
    assert gallery.search(CODES, k).ids.tolist() == gallery.search(CODES, 3).ids.tolist()


@pytest.mark.parametrize("k", [1.5, "3", None, np.float64(2.0)])
def test_another_k_is_an_error(gallery: GalleryIndex, k: Any) -> None:
    with pytest.raises(InputError, match="a whole number as k"):
        gallery.search(CODES, k)


@pytest.mark.parametrize("name", ["caf\udce9.jpg", "\ud800", None, b"x", 3])
def test_names_that_are_no_text_are_errors(tmp_path: Path, name: Any) -> None:
    with pytest.raises(InputError, match="names that are text"):
        create_gallery(tmp_path / "g", space_of(), CODES, LABELS, [*NAMES[:3], name])
    assert not list(tmp_path.iterdir())


def test_a_handle_on_a_replaced_gallery_says_so_and_keeps_what_it_has_read(tmp_path: Path) -> None:
    codes, labels, names = items(20)
    old = create_gallery(tmp_path / "g", space_of(), codes, labels, names)
    before = old.search(CODES, 3)
    create_gallery(tmp_path / "g", space_of(), *items(30, seed=5))
    after = old.search(CODES, 3)
    assert np.array_equal(before.ids, after.ids)
    assert len(old) == 20
    with pytest.raises(GalleryReplaced, match="Open it again"):
        _ = old.names
    assert open_gallery(tmp_path / "g").names == items(30, seed=5)[2]


def test_readers_outlive_replacements(tmp_path: Path) -> None:
    """Whoever opens the gallery while it is replaced gets one of the galleries, or is told to open it again."""
    create_gallery(tmp_path / "g", space_of(), *items(20))
    stop, told, read = threading.Event(), 0, 0

    def replace() -> None:
        for seed in range(15):
            create_gallery(tmp_path / "g", space_of(), *items(20 + seed, seed=seed))
        stop.set()

    writer = threading.Thread(target=replace)
    writer.start()
    while not stop.is_set():
        gallery = open_gallery(tmp_path / "g")
        try:
            assert np.array_equal(gallery.codes, items(len(gallery), seed=len(gallery) - 20)[0])
            read += 1
        except GalleryReplaced:
            told += 1
    writer.join()
    assert read


@pytest.mark.parametrize("pattern", ["data/*.lance", "_versions/*.manifest"])
def test_a_pipe_in_a_gallery_is_corrupt(tmp_path: Path, pattern: str) -> None:
    create_gallery(tmp_path / "g", space_of(), *items(20))
    [path] = (tmp_path / "g" / "gallery.lance").glob(pattern)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CorruptFile, match="pipe"):
        open_gallery(tmp_path / "g")
