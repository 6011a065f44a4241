"""Containers: what they hold comes out, and what is damaged is refused before a picture is opened."""

from __future__ import annotations

import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data import Dataset, load, native_size
from distill.data.container import PackedImages, list_container
from distill.data.decode import to_square
from gallery.errors import InputError
from tests.distill.data.factories import encoded, pack, photo

PICTURES = [encoded(i) for i in range(20)]
SINGLE: dict[str, Any] = {"labels": np.arange(20, dtype=np.uint8) % 2, "classes": np.array(["no", "yes"])}
MULTI: dict[str, Any] = {
    "multilabels": (np.arange(60).reshape(20, 3) % 4 < 2).astype(np.uint8),
    "multilabel_classes": np.array(["a", "b", "c"]),
}


def opened(path: Path, **options: Any) -> Dataset:
    return load(str(path), [28], path.parent / "cache", seed=0, **options)


def test_single_and_multi_labels(tmp_path: Path) -> None:
    single = opened(pack(tmp_path / "single.npz", PICTURES, **SINGLE))
    assert (single.name, single.classes, single.names[:2]) == ("single", ("no", "yes"), ("00000", "00001"))
    assert single.labels.tolist() == [0, 1] * 10
    for i in range(20):
        np.testing.assert_array_equal(single.pixels[28][i], to_square(photo(i), 28))
    multi = opened(pack(tmp_path / "multi.npz", PICTURES, **MULTI))
    np.testing.assert_array_equal(multi.labels, MULTI["multilabels"].astype(bool))
    both = pack(tmp_path / "both.npz", PICTURES, **SINGLE, **MULTI)
    assert opened(both).labels.ndim == 1
    assert list_container(both, multi=True).labels[0] == ("a", "b")
    assert native_size(str(both)) == 28


def test_pictures_are_not_read_before_they_are_wanted(tmp_path: Path) -> None:
    listing = list_container(pack(tmp_path / "c.npz", PICTURES, **SINGLE))
    assert isinstance(listing.pictures, PackedImages)
    assert isinstance(listing.pictures.data, np.memmap)
    assert listing.pictures.data[:8].tobytes() == PICTURES[0][:8]
    assert listing.pictures.read(7)[0].tobytes() == photo(7).tobytes()


def test_a_broken_picture_is_skipped(tmp_path: Path) -> None:
    data = opened(pack(tmp_path / "c.npz", [*PICTURES[:5], b"broken", b"", *PICTURES[7:]], **SINGLE))
    assert [(skip.name, skip.reason.split(" in ")[0]) for skip in data.skipped] == [
        ("00005", "not a picture"), ("00006", "an empty file"),
    ]  # fmt: skip
    assert len(data.names) == 18


def test_a_changed_container_is_decoded_again(tmp_path: Path) -> None:
    first = opened(pack(tmp_path / "c.npz", PICTURES, **SINGLE))
    other = opened(pack(tmp_path / "c.npz", PICTURES[::-1], **SINGLE))
    assert first.fingerprint != other.fingerprint
    np.testing.assert_array_equal(first.pixels[28][0], other.pixels[28][19])


RISING = np.cumsum([0, *map(len, PICTURES)]).astype(np.int64)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("offsets", RISING.astype(np.int32), "offsets of int32"),
        ("offsets", RISING[:-1], r"offsets of int64\(20,\) for 20 names"),
        ("offsets", RISING + 1, "offsets that do not rise"),
        ("offsets", RISING - 1, "offsets that do not rise"),
        ("offsets", np.sort(RISING)[[0, 2, 1, *range(3, 21)]], "offsets that do not rise"),
        ("labels", np.full(20, 2, np.uint8), "labels from 2 to 2 for 2 classes"),
        ("labels", np.full(20, -1), "labels from -1"),
        ("labels", np.zeros(19, np.uint8), r"labels of uint8\(19,\)"),
        ("labels", np.zeros(20), "labels of float64"),
        ("labels", np.array([None] * 20), "allow_pickle=False"),
        ("names", np.array([None] * 20), "allow_pickle=False"),
        ("names", np.array([b"\xff"] * 20), "ascii"),
        ("names", np.arange(20), "names of int64"),
        ("classes", np.array(["no", "no"]), "named twice"),
        ("data", np.zeros((2, 5), np.uint8), r"data of uint8\(2, 5\)"),
        ("data", np.zeros(50_000, np.int16), "data of int16"),
        ("data", np.array([None]), "data of object"),
    ],
)
def test_columns_that_cannot_be(tmp_path: Path, column: str, value: Any, words: str) -> None:
    path = pack(tmp_path / "c.npz", PICTURES, **{**SINGLE, column: value})
    with pytest.raises(InputError, match=rf"a container of pictures at .*c\.npz; found .*{words}.*numpy\.savez"):
        opened(path)


def test_multi_labels_that_cannot_be(tmp_path: Path) -> None:
    for wrong, words in ((MULTI["multilabels"] * 2, "labels from 0 to 2"), (MULTI["multilabels"][:, :2], "labels of")):
        with pytest.raises(InputError, match=words):
            opened(pack(tmp_path / "c.npz", PICTURES, **{**MULTI, "multilabels": wrong}))


@pytest.mark.parametrize("missing", ["data", "offsets", "names", "classes"])
def test_a_column_that_is_missing(tmp_path: Path, missing: str) -> None:
    path = pack(tmp_path / "c.npz", PICTURES, **SINGLE)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "d.npz", "w") as new:
        for member in old.namelist():
            if member != f"{missing}.npy":
                new.writestr(member, old.read(member))
    with pytest.raises(InputError, match=missing):
        opened(tmp_path / "d.npz")


def test_compressed_data(tmp_path: Path) -> None:
    with np.load(pack(tmp_path / "c.npz", PICTURES, **SINGLE)) as file:
        np.savez_compressed(tmp_path / "d.npz", **file)
    with pytest.raises(InputError, match=r"compressed data, which cannot be memory-mapped.*numpy\.savez"):
        opened(tmp_path / "d.npz")


@settings(max_examples=100, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cut=st.none() | st.floats(0, 1))
def test_any_damage_gives_pictures_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, at: float, value: int, cut: float | None
) -> None:
    path = pack(tmp_path_factory.mktemp("damaged") / "c.npz", PICTURES[:4], labels=np.arange(4) % 2, classes=["a", "b"])
    raw = bytearray(path.read_bytes())
    raw[int(at * len(raw))] = value
    path.write_bytes(raw[: None if cut is None else int(cut * len(raw))])
    try:
        listing = list_container(path)
    except InputError:
        return
    assert len(listing.names) == len(listing.labels)
    for i in range(len(listing.names)):
        with suppress(InputError):
            assert listing.pictures.read(i)[0].mode == "RGB"


@pytest.mark.skipif("TWINHASH_DATA" not in os.environ, reason="TWINHASH_DATA is not set")
def test_coco256(tmp_path: Path) -> None:
    listing = list_container(Path(os.environ["TWINHASH_DATA"]) / "coco256" / "coco256.npz")
    assert (len(listing.names), len(listing.classes or ()), listing.multi) == (256, 80, True)
    assert sum(not labels for labels in listing.labels) == 2
