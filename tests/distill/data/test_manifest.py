"""CSV and Parquet manifests."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.data import DataConfig, Dataset, load, median_image_size
from distill.data.manifest import list_manifest
from gallery.errors import InputError
from tests.distill.data.factories import MakeFolder, noise


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as CSV, lists joined by `;`, or as Parquet."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows({k: ";".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def opened(path: Path, **options: Any) -> Dataset:
    return load(str(path), [8], path.parent / "cache", DataConfig(seed=0, **options))


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_labels_and_splits(make_folder: MakeFolder, suffix: str) -> None:
    root = make_folder({"x": 12})
    rows = [{"path": f"x/{i:03d}.png", "label": "ab"[i % 2], "split": "train", "price": 3} for i in range(4)]
    rows += [{"path": f"x/{i:03d}.png", "label": "ab"[i % 2], "split": "Gallery ", "price": 3} for i in range(2, 6)]
    rows += [{"path": f"x/{i:03d}.png", "label": "ab"[i % 2], "split": "train;gallery", "price": 3} for i in (6, 7)]
    rows += [{"path": f"x/{i:03d}.png", "label": "ab"[i % 2], "split": "query", "price": 3} for i in (8, 9)]
    data = opened(write(root / f"m.{suffix}", rows), validation_fraction=0.0)
    assert (data.name, data.classes, data.names) == ("m", ("a", "b"), tuple(f"x/{i:03d}.png" for i in range(10)))
    assert data.labels.tolist() == [0, 1] * 5
    assert data.train.tolist() == [0, 1, 2, 3, 6, 7]
    assert data.gallery.tolist() == [2, 3, 4, 5, 6, 7]
    assert data.query.tolist() == [8, 9]
    assert data.validation.tolist() == []
    assert "manifest" in data.protocol
    assert median_image_size(str(root / f"m.{suffix}")) == 20


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_without_a_split_it_is_sampled_and_row_order_does_not_matter(make_folder: MakeFolder, suffix: str) -> None:
    root = make_folder({"x": 20})
    rows = [{"path": f"x/{i:03d}.png", "label": i % 2 + 9} for i in range(20)]
    data = opened(write(root / f"m.{suffix}", rows))
    assert data.classes == ("10", "9")  # by name
    assert [data.classes[label] for label in data.labels] == [str(i % 2 + 9) for i in range(20)]
    assert np.bincount(data.labels[data.query]).tolist() == [2, 2]
    again = opened(write(root / f"m.{suffix}", rows[::-1]))
    assert again.fingerprint == data.fingerprint


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_multi_label(make_folder: MakeFolder, suffix: str) -> None:
    root = make_folder({"x": 10})
    sets = [["sea", "sky"], ["sky"], ["dune", "sea", "sky"], ["dune"], ["sky", "sea", "sky"]] * 2
    data = opened(write(root / f"m.{suffix}", [{"path": f"x/{i:03d}.png", "labels": s} for i, s in enumerate(sets)]))
    assert data.classes == ("dune", "sea", "sky")
    assert data.labels.dtype == bool
    assert data.labels.tolist() == [[c in s for c in data.classes] for s in sets]
    assert len(data.query) == 2
    assert "20% of all images" in data.protocol


def test_parquet_takes_joined_labels_and_listed_splits(make_folder: MakeFolder) -> None:
    root = make_folder({"x": 4})
    rows = [
        {"path": f"x/{i:03d}.png", "labels": "a; b" if i else "b;", "split": ["train", "gallery"]} for i in range(3)
    ]
    rows.append({"path": "x/003.png", "labels": "a", "split": ["query"]})
    data = opened(write(root / "m.parquet", rows), validation_fraction=0)
    assert data.labels.tolist() == [[False, True], [True, True], [True, True], [True, False]]
    assert (data.train.tolist(), data.gallery.tolist(), data.query.tolist()) == ([0, 1, 2], [0, 1, 2], [3])


def test_excels_csv(make_folder: MakeFolder) -> None:
    root = make_folder({"x": 4})
    lines = [" Path ,LABEL,split", *(f"x/{i:03d}.png,{'ab'[i % 2]},{'train' if i < 3 else 'query'}" for i in range(4))]
    (root / "m.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, "", ""]).encode())
    assert opened(root / "m.csv").classes == ("a", "b")


def test_blank_rows_count_but_are_passed_over_and_a_field_may_be_long(make_folder: MakeFolder) -> None:
    root = make_folder({"x": 4})
    rows = [f"x/{i:03d}.png,{'ab'[i % 2]},{'n' * 200_000}" for i in range(4)]
    (root / "m.csv").write_text("\n".join(["path,label,note", rows[0], "", ",,", *rows[1:]]))
    assert len(opened(root / "m.csv").names) == 4
    (root / "m.csv").write_text("\n".join(["path,label", "", "x/000.png,"]))
    with pytest.raises(InputError, match=r"a label in row 3 of m\.csv"):
        opened(root / "m.csv")


INVALID = [
    ({"path": "x/000.png", "name": "a"}, "columns path, label .* found path, name"),
    ({"file": "x/000.png", "label": "a"}, "columns path, label .* found file, label|found label"),
    ({"path": "x/000.png", "label": "a", "labels": "b"}, "not both"),
    ({"path": "x/000.png", "label": ""}, "a label in row"),
    ({"path": "x/000.png", "labels": " ; "}, "a label in row"),
    ({"path": "", "label": "a"}, "a path inside"),
    ({"path": ".", "label": "a"}, "a path inside"),
    ({"path": "../secret.png", "label": "a"}, "a path inside .*'../secret.png'.*folder above its images"),
    ({"path": "x/../../secret.png", "label": "a"}, "a path inside"),
    ({"path": "/etc/passwd", "label": "a"}, "a path inside"),
    ({"path": "away/secret.png", "label": "a"}, "a path inside .*cp -rL"),
    ({"path": "leak.png", "label": "a"}, "a path inside"),
    (
        {"path": "x/000.png", "label": "a", "split": "test"},
        "train, validation, gallery or query as split in row .*'test'",
    ),
    ({"path": "x/000.png", "label": "a", "split": ""}, "train, validation, gallery or query"),
    ({"path": "x/000.png", "label": "a", "split": "train;query"}, "queries that are in no other split"),
]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(("row", "message"), INVALID)
def test_invalid_rows(make_folder: MakeFolder, tmp_path: Path, suffix: str, row: dict[str, Any], message: str) -> None:
    root = make_folder({"x": 4})
    noise(0).save(tmp_path / "secret.png")
    (root / "away").symlink_to(tmp_path)
    (root / "leak.png").symlink_to(tmp_path / "secret.png")
    other = {
        **row,
        "path": "x/001.png",
        "label": "b",
        "labels": "b",
        "split": "query",
        "name": "b",
        "file": "x/001.png",
    }
    rows = [row, {key: other[key] for key in row}]
    with pytest.raises(InputError, match=message):
        opened(write(root / f"m.{suffix}", rows))


def test_paths_that_stay_inside(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"x": 4})
    (root / "alias.png").symlink_to(root / "x" / "000.png")
    (tmp_path / "alias").symlink_to(root)
    paths = [str(root / "x" / "001.png"), "x/../x/002.png", "./x//003.png", "alias.png"]
    write(root / "m.csv", [{"path": path, "label": "ab"[i % 2]} for i, path in enumerate(paths)])
    expected = ("alias.png", "x/001.png", "x/002.png", "x/003.png")
    assert opened(root / "m.csv").names == expected
    assert opened(tmp_path / "alias" / "m.csv").names == expected


def test_conflicting_rows_and_missing_files(make_folder: MakeFolder) -> None:
    root = make_folder({"x": 4})
    rows = [{"path": f"x/{i:03d}.png", "label": "ab"[i % 2]} for i in range(4)]
    with pytest.raises(InputError, match=r"a and b for x/000\.png"):
        opened(write(root / "m.csv", [*rows, {"path": "x/000.png", "label": "b"}]))
    data = opened(write(root / "m.csv", [*rows, rows[0], {"path": "x/gone.png", "label": "b"}]))
    assert len(data.names) == 4
    assert [(s.path, s.reason) for s in data.skipped] == [("x/gone.png", "No such file or directory")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", b"", "found Empty CSV file"),
        ("m.csv", b"path;label\nx/000.png;a\n", "found path;label"),
        ("m.csv", b"path,label\nx/000.png,a,b\n", "Row #2: Expected 2 columns, got 3.* quote fields"),
        ("m.csv", b'path,label\n"x/000.png,a\n', "Row #2: Expected 2 columns, got 1"),
        ("m.csv", "path,label\nx/000.png,caf\u00e9\n".encode("latin-1"), "UTF-8"),
        ("m.csv", "path,label\nx/000.png,a\n".encode("utf-16"), "UTF-8"),
        ("m.csv", b"path,label\nx/\0.png,a\n", "CSV file in UTF-8|a path inside"),
        ("m.csv", b"path,label\n", "0 of 0"),
        ("m.csv", b"path,label,label\nx/000.png,a,b\n", "columns path"),
        ("m.parquet", b"", "Parquet"),
        ("m.parquet", b"PAR1 not really PAR1", "Parquet"),
    ],
)
def test_damaged_manifests(make_folder: MakeFolder, name: str, content: bytes, message: str) -> None:
    path = make_folder({"x": 1}) / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        opened(path)


def test_a_cut_parquet_file(make_folder: MakeFolder) -> None:
    path = write(make_folder({"x": 1}) / "m.parquet", [{"path": f"x/{i}.png", "label": "a"} for i in range(5000)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    with pytest.raises(InputError, match="Parquet"):
        opened(path)
    path.write_bytes(whole[:8] + bytes(len(whole) // 2) + whole[8 + len(whole) // 2 :])
    with pytest.raises(InputError, match="Parquet"):
        opened(path)


words = st.text(st.characters(codec="utf-8", exclude_characters="\0/\\;"), min_size=1, max_size=6).map(str.strip)
words = words.filter(lambda text: text and text not in (".", ".."))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(words, st.tuples(st.lists(words, min_size=1, max_size=3), st.sampled_from(["train", "query"])),
                       min_size=1, max_size=6), st.sampled_from(["m.csv", "m.parquet"]), st.booleans())  # fmt: skip
def test_what_is_written_is_read(tmp_path: Path, rows: dict[str, Any], name: str, multi: bool) -> None:
    labels = {path: (labels if multi else labels[0]) for path, (labels, _) in rows.items()}
    column = "labels" if multi else "label"
    table = [{"path": path, column: labels[path], "split": part} for path, (_, part) in rows.items()]
    listing = list_manifest(write(tmp_path / name, table))
    assert listing.multi == multi
    got = dict(zip(listing.names, zip(listing.labels, listing.splits, strict=True), strict=True))
    assert got == {p: (tuple(sorted(set(ls if multi else ls[:1]))), {part}) for p, (ls, part) in rows.items()}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80) | st.text(max_size=60).map(lambda text: f"path,label,split\n{text}".encode()))
def test_any_bytes_give_a_listing_or_an_input_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.csv").write_bytes(content)
    try:
        listing = list_manifest(tmp_path / "m.csv")
    except InputError:
        return
    for path in listing.source.paths:  # type: ignore[attr-defined]
        assert path.resolve().is_relative_to(tmp_path.resolve())
    assert io.StringIO(content.decode("utf-8-sig")).readline()
