"""CSV and Parquet manifests."""

from __future__ import annotations

import csv
import datetime
import io
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.data import DataConfig, Dataset, load, save_split, summarize
from distill.data.check import check_classes
from distill.data.manifest import list_manifest
from gallery.errors import InputError
from gallery.names import clean_label
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
    assert summarize(str(root / f"m.{suffix}")).image_size == 20


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
    (root / "m.csv").write_text("\n".join(["path,label,note", rows[0], "", ",,", " ,  ,\t", *rows[1:]]))
    assert len(opened(root / "m.csv").names) == 4
    (root / "m.csv").write_text("\n".join(["path,label", "", "x/000.png,"]))
    with pytest.raises(InputError, match=r"a label in row 3 of m\.csv"):
        opened(root / "m.csv")


INVALID = [
    ({"name": "x/000.png", "split": "train"}, "a column path .* found name, split"),
    ({"file": "x/000.png", "label": "a"}, "a column path .* found file, label|found label"),
    ({"path": "x/000.png", "label": "a", "labels": "b"}, "not both"),
    ({"path": "x/000.png", "label": ""}, "a label in row"),
    ({"path": "x/000.png", "labels": " ; "}, "a label in row"),
    ({"path": "x/000.png", "labels": "['a', 'b']"}, "labels separated by `;` in row"),
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
    ("kind", "labels", "expected"),
    [
        ("bytes", [b"cat", b"caf\xc3\xa9"], ["cat", "caf\u00e9"]),
        ("whole floats", [1.0, 2.0], ["1", "2"]),
        ("integers", [1, -2], ["1", "-2"]),
        ("categories", pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]),
    ],
)
def test_parquet_values_that_are_text(make_folder: MakeFolder, kind: str, labels: Any, expected: list[str]) -> None:
    root = make_folder({"x": 2})
    paths = pa.array([b"x/000.png", b"x/001.png"] if kind == "bytes" else ["x/000.png", "x/001.png"])
    pq.write_table(pa.table({"path": paths, "label": labels}), root / "m.parquet")
    assert list(list_manifest(root / "m.parquet").labels) == [(label,) for label in expected]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([b"a", b"\xff\xfe"], r"text in UTF-8 in row 2 of m\.parquet; found b'"),
        ([1.0, float("nan")], r"a label in row 2 of m\.parquet; found none"),
        ([1.0, None], r"a label in row 2 of m\.parquet; found none"),
        ([0.5, 1.0], r"text in row 1 of m\.parquet; found float 0\.5"),
        ([["a"], ["b", "c"]], r"text in row 1 of m\.parquet; found list .*`labels`"),
        ([{"a": 1}, {"a": 2}], r"text in row 1 of m\.parquet; found dict"),
        ([datetime.date(2026, 1, 1)] * 2, r"text in row 1 of m\.parquet; found date"),
    ],
)
def test_parquet_values_that_are_not(make_folder: MakeFolder, values: list[Any], message: str) -> None:
    root = make_folder({"x": 2})
    pq.write_table(pa.table({"path": ["x/000.png", "x/001.png"], "label": values}), root / "m.parquet")
    with pytest.raises(InputError, match=message):
        list_manifest(root / "m.parquet")


def test_few_bytes_that_stand_for_many(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder({"x": 2})
    monkeypatch.setattr("gallery.sources.manifest.MAX_BYTES", 1 << 20)
    table = pa.table({"path": ["x/000.png"] * 40, "label": pa.array(["z" * 100_000] * 40).dictionary_encode()})
    pq.write_table(table.cast(pa.schema([("path", pa.string()), ("label", pa.string())])), root / "m.parquet")
    assert (root / "m.parquet").stat().st_size < 1 << 18
    with pytest.raises(InputError, match="more than 1 MiB"):
        list_manifest(root / "m.parquet")
    (root / "m.csv").write_text("path,label\n" + "x/000.png,a\n" * 100_000)
    with pytest.raises(InputError, match="more than 1 MiB"):
        list_manifest(root / "m.csv")


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_path_in_unicodes_other_form_or_with_backslashes(make_folder: MakeFolder, forms: tuple[str, str]) -> None:
    asked, there = (normalize(form, "caf\u00e9/gar\u00e7on") for form in forms)
    root = make_folder({f"{there}": 2, "x": 2})
    rows = [{"path": f"{asked}/{i:03d}.png", "label": "ab"[i]} for i in range(2)]
    rows += [{"path": f"x\\{i:03d}.png", "label": "ab"[i]} for i in range(2)]
    data = opened(write(root / "m.csv", rows))
    assert data.skipped == ()
    assert data.names == tuple(sorted(str(path.relative_to(root)) for path in root.rglob("*.png")))
    with pytest.raises(InputError, match="a path inside"):
        list_manifest(write(root / "m.csv", [{"path": "..\\" * len(root.parts) + "etc\\passwd", "label": "a"}]))


def test_labels_that_look_the_same(make_folder: MakeFolder) -> None:
    root = make_folder({"x": 8})
    labels = ["caf\u00e9", "cafe\u0301", "cat", "cat\u200b", "\ufeffcat ", "Cat", "\u202egod", "a\x1b[2J"]
    data = opened(write(root / "m.csv", [{"path": f"x/{i:03d}.png", "label": label} for i, label in enumerate(labels)]))
    assert data.classes == ("Cat", "a\\x1b[2J", "caf\u00e9", "cat", "god")
    assert [sentence for sentence in data.warnings if "differ only in case" in sentence]


def test_a_split_under_another_name_is_said(make_folder: MakeFolder) -> None:
    root = make_folder({"x": 8})
    rows = [{"path": f"x/{i:03d}.png", "label": "ab"[i % 2], "Subset": "train" if i else "query"} for i in range(8)]
    assert "not read: Subset. If one holds the split" in opened(write(root / "m.csv", rows)).warnings[0]
    rows = [{**row, "split": "query" if i < 2 else "train"} for i, row in enumerate(rows)]
    assert opened(write(root / "m.csv", rows)).warnings == ()


def test_a_saved_split_holds_no_formula(make_folder: MakeFolder) -> None:
    labels = ["=cmd|' /C calc'!A1", "+1", "-1", "@SUM(A1)", "'=quoted", "plain"]
    root = make_folder(dict.fromkeys(labels, 3))
    data = load(str(root), [8], root.parent / "cache", DataConfig(seed=0))
    saved = save_split(data, root / "split.csv")
    with saved.open(newline="") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    assert not [cell for cell in cells if cell[0] in "=+-@\t\r"]
    again = opened(saved)
    assert (again.classes, again.names, again.labels.tolist()) == (data.classes, data.names, data.labels.tolist())


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
        ("m.csv", b"path,label\n", "found none"),
        ("m.csv", b"path,label,label\nx/000.png,a,b\n", "a column path"),
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


# An apostrophe first is what a spreadsheet puts before a formula: `test_a_saved_split_holds_no_formula`.
words = st.text(st.characters(codec="utf-8", exclude_characters="\0/\\;'"), min_size=1, max_size=6).map(str.strip)
words = words.filter(lambda text: text and text not in (".", "..") and clean_label(text))


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
    kept = {p: {clean_label(label) for label in (ls if multi else ls[:1])} for p, (ls, _) in rows.items()}
    assert got == {p: (tuple(sorted(kept[p])), {part}) for p, (_, part) in rows.items()}


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


def test_labels_that_are_values_of_other_software_are_said(make_folder: MakeFolder) -> None:
    root = make_folder({"x": 9})
    odd = "nan", "None", "b'cat'", "['cat']", "('a', 'b')", "dog", "b", "(other)", "[x]"
    rows = [f'x/{i:03d}.png,"{label}"' for i, label in enumerate(odd)] * 2
    (root / "m.csv").write_text(
        "\n".join(["path,label,split", *(f"{row},train" for row in rows)]) + "\nx/000.png,nan,query"
    )
    found = list(check_classes(*[list_manifest(root / "m.csv")] * 2))
    assert found == ["5 classes named like a missing value or a list: ('a', 'b'), None, ['cat'], b'cat', nan."]


@pytest.mark.parametrize("mark", [",", "|"])
def test_labels_separated_by_something_else_are_said(make_folder: MakeFolder, mark: str) -> None:
    root = make_folder({"x": 6})
    rows = [f'x/{i:03d}.png,"{mark.join("ab"[: i % 2 + 1])}"' for i in range(6)]
    (root / "m.csv").write_text("\n".join(["path,labels", *rows]))
    assert opened(root / "m.csv").warnings == (
        f"1 class with commas or bars, and no image with several: `;` separates labels: a{mark}b.",
    )
