"""What is exported is queried as its README shows, and finds what the gallery finds; duplicates are all found."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gallery import codespace
from gallery.codes import hamming, unpack
from gallery.codespace import CodeSpace, Preprocessing, hash_centers
from gallery.database import code_array
from gallery.duplicates import duplicate_groups, find_duplicates
from gallery.errors import InputError
from gallery.exports import export_gallery
from gallery.index import GalleryIndex, open_gallery
from gallery.store import GalleryStore

BITS, COUNT = 64, 300
CENTERS = np.where(np.random.default_rng(0).random((3, BITS)) < 0.5, np.int8(-1), np.int8(1))
SPACE = CodeSpace(
    BITS, ("a", "b", "c"), "none", "0" * 64, hash_centers(CENTERS), Preprocessing(8, (0.5,) * 3, (0.5,) * 3)
)
ODD = ["a\\b", "it's", 'q"t', "größe/π.png", "{x,y}", "\u2028", "'; DROP TABLE items; --", "x" * 600, "NULL", "\\N"]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> GalleryIndex:
    folder, rng = tmp_path_factory.mktemp("g") / "gallery", np.random.default_rng(1)
    ids = [*ODD, *(f"{number:03}" for number in range(COUNT - len(ODD)))]
    own = pa.schema([("price", pa.float64()), ("day", pa.date32()), ("sold", pa.bool_()), ("order", pa.string())])
    store = GalleryStore(folder, create=True)
    store.add_space(SPACE, CENTERS, own)
    rows = pa.table({
        "id": ids, "code": code_array(rng.integers(0, 256, (COUNT, 8), np.uint8)),
        "labels": pa.array([None if n % 3 else ["a b", 'c"\\d'] for n in range(COUNT)], pa.list_(pa.string())),
        "source": pa.array([f"/x/{id}" for id in ids]), "sha256": pa.array(["f" * 64] * COUNT),
        "price": pa.array([None if n % 5 == 0 else n / 4 for n in range(COUNT)], pa.float64()),
        "day": pa.array([date(2026, 1, 1 + n % 28) for n in range(COUNT)]), "sold": [n % 2 == 0 for n in range(COUNT)],
        "order": pa.array([f"line\nbreak\t{n}\r" if n % 7 == 0 else None for n in range(COUNT)], pa.string()),
    })  # fmt: skip
    store.put(SPACE.id, rows)
    store.publish(SPACE.id)
    return open_gallery(folder)


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.mark.parametrize("to", ["parquet", "faiss", "sqlite", "site"])
def test_the_readme_queries_what_was_written(index: GalleryIndex, tmp_path: Path, to: str) -> None:
    export_gallery(index, tmp_path / "out", to)
    assert codespace.load(tmp_path / "out")[0] == index.space
    (code,) = re.findall("```python\n(.+?)```", (tmp_path / "out" / "README.md").read_text(), re.S)
    for row in (0, 7, 299):
        said = io.StringIO()
        with inside(tmp_path / "out"), contextlib.redirect_stdout(said):
            exec(code, {"query": index.codes[row].tobytes()})
        wanted = index.search(index.codes[row : row + 1], 10)
        assert eval(said.getvalue()) == list(zip(wanted.ids[0], wanted.distances[0].tolist(), strict=True))


def test_sqlite_vec_queries_what_was_written(index: GalleryIndex, tmp_path: Path) -> None:
    apsw, sqlite_vec = pytest.importorskip("apsw"), pytest.importorskip("sqlite_vec")
    export_gallery(index, tmp_path / "out", "sqlite")
    text = (tmp_path / "out" / "README.md").read_text()
    (query,) = re.findall("```sql\n(.+?)```", text, re.S)
    (virtual,) = re.findall(r"`(CREATE VIRTUAL TABLE near .+?)`", text)
    database = apsw.Connection(str(tmp_path / "out" / "items.sqlite"))
    database.enable_load_extension(True)
    database.load_extension(sqlite_vec.loadable_path())
    database.execute(virtual)
    database.execute("INSERT INTO near (rowid, code) SELECT row_number() OVER (ORDER BY id), vec_bit(code) FROM items")
    stored = b"".join(code for (code,) in database.execute("SELECT code FROM items ORDER BY id"))
    assert stored == index.codes.tobytes()
    for row in (0, 7, 299):
        wanted, code = index.search(index.codes[row : row + 1], 10), index.codes[row].tobytes()
        assert list(database.execute(query, (code,))) == list(zip(wanted.ids[0], wanted.distances[0], strict=True))
        near = database.execute("SELECT distance FROM near WHERE code MATCH vec_bit(?) AND k = 10", (code,))
        assert sorted(distance for (distance,) in near) == wanted.distances[0].tolist()
        (id,) = next(database.execute("SELECT id FROM items ORDER BY id LIMIT 1 OFFSET ?", (row,)))
        assert id == index.ids[row].as_py()


def test_nothing_is_written_over(index: GalleryIndex, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InputError, match="a new or empty folder"):
        export_gallery(index, tmp_path, "parquet")


def copied(text: str) -> str | None:
    """Read a field of COPY's text format, by PostgreSQL's rules."""
    if text == "\\N":
        return None
    escapes = {"t": "\t", "n": "\n", "r": "\r", "b": "\b", "f": "\f", "v": "\v"}
    return re.sub(r"\\(.)", lambda match: escapes.get(match[1], match[1]), text, flags=re.S)


def array(text: str) -> list[str]:
    """Read PostgreSQL's text[], of quoted elements."""
    assert (text[0], text[-1]) == ("{", "}")
    return next(csv.reader([text[1:-1]], escapechar="\\", doublequote=False), [])


def test_the_script_for_postgres_is_a_table_and_its_rows(index: GalleryIndex, tmp_path: Path) -> None:
    export_gallery(index, tmp_path / "out", "pgvector")
    text = (tmp_path / "out" / "items.sql").read_text("utf-8")
    head, _, rows = text.partition("FROM stdin;\n")
    assert "code bit(64) NOT NULL" in head
    assert '"order" text' in head
    assert rows.endswith("\n\\.\n")
    lines = [line.split("\t") for line in rows.removesuffix("\\.\n").removesuffix("\n").split("\n")]
    told = index.columns(["id", "labels", "price", "sold", "order"]).to_pylist()
    for line, row, code in zip(lines, told, unpack(index.codes), strict=True):
        id, bits, labels, _, price, _, sold, order = map(copied, line)
        assert id == row["id"]
        assert [bit == "1" for bit in bits or ""] == code.tolist()
        assert (None if labels is None else array(labels)) == row["labels"]
        assert (None if price is None else float(price), sold == "true", order) == (
            row["price"],
            row["sold"],
            row["order"],
        )


def test_the_lines_for_elasticsearch_are_pairs(index: GalleryIndex, tmp_path: Path) -> None:
    export_gallery(index, tmp_path / "out", "elasticsearch")
    lines = [json.loads(line) for line in (tmp_path / "out" / "items.ndjson").read_text("utf-8").split("\n")[:-1]]
    actions, documents = lines[::2], lines[1::2]
    assert [document["id"] for document in documents] == index.ids.to_pylist()
    assert np.array_equal(np.array([one["code"] for one in documents], np.int8).view(np.uint8), index.codes)
    keys = [action["index"]["_id"] for action in actions]
    assert len(set(keys)) == len(keys)
    assert all(len(key.encode()) <= 512 for key in keys)
    for engine in ("elasticsearch", "opensearch"):
        properties = json.loads((tmp_path / "out" / f"mapping.{engine}.json").read_text())["mappings"]["properties"]
        assert set(documents[0]) <= set(properties)
        assert properties["code"].get("dims", properties["code"].get("dimension")) == BITS


def slow_groups(codes: np.ndarray, within: int) -> list[int]:
    near, groups = hamming(codes, codes) <= within, list(range(len(codes)))
    while (again := [min(groups[j] for j in np.flatnonzero(row)) for row in near]) != groups:
        groups = again
    return groups


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1 << 30), st.integers(1, 60), st.integers(0, 4), st.sampled_from([1, 2, 8]))
def test_groups_are_those_of_a_slow_twin(seed: int, count: int, within: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, (count, width), np.uint8)
    centers = np.where(rng.random((2, width * 8)) < 0.5, np.int8(-1), np.int8(1))
    assert duplicate_groups(codes, centers, within).tolist() == slow_groups(codes, within)


def test_equal_codes_and_equal_bytes_are_told_apart(tmp_path: Path) -> None:
    store = GalleryStore(tmp_path / "g", create=True)
    store.add_space(SPACE, CENTERS)
    codes = np.zeros((5, 8), np.uint8)
    codes[3:, 0], codes[4, 1:] = 1, 255
    rows: dict[str, Any] = {"id": list("abcde"), "code": code_array(codes), "sha256": ["x", "x", "y", "z", "w"]}
    store.put(SPACE.id, pa.table(rows))
    store.publish(SPACE.id)
    index = open_gallery(tmp_path / "g")
    found = find_duplicates(index, 0).to_pylist()
    assert [(row["group"], row["id"], row["same_bytes"]) for row in found] == [
        (0, "a", True),
        (0, "b", True),
        (0, "c", False),
    ]
    assert [(row["id"], row["distance"]) for row in find_duplicates(index, 1).to_pylist()][-1] == ("d", 1)
