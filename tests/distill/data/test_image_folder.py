"""Image folders: what is listed, ignored, skipped and rejected."""

from __future__ import annotations

import io
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distill.data import DataConfig, image_folder, load, summarize
from distill.data.image_folder import list_folder, split_role
from gallery import decode
from gallery.decode import to_square
from gallery.errors import InputError
from gallery.results import Skipped
from tests.distill.data.factories import MakeFolder, noise


def test_class_folders(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"dog": 10, "cat/indoors": 5, "cat/outdoors/night": 5})
    data = load(str(root), [16, 8], tmp_path / "cache", DataConfig(seed=3))
    assert (data.name, data.classes, data.skipped) == ("images", ("cat", "dog"), ())
    assert data.names == tuple(sorted(p.relative_to(root).as_posix() for p in root.rglob("*.png")))
    assert [data.classes[label] for label in data.labels] == [name.split("/")[0] for name in data.names]
    assert data.labels.dtype == np.int64
    assert list(data.pixels) == [8, 16]
    for size, pixels in data.pixels.items():
        assert isinstance(pixels, np.memmap)
        for name, square in zip(data.names, pixels, strict=True):
            np.testing.assert_array_equal(square, to_square(Image.open(root / name), size))
    np.testing.assert_array_equal(data.gallery, np.setdiff1d(np.arange(20), data.query))
    np.testing.assert_array_equal(np.union1d(data.train, data.validation), data.gallery)
    assert np.bincount(data.labels[data.query]).tolist() == [2, 2]
    assert "20% of each class" in data.protocol
    assert "seed 3" in data.protocol


def test_a_split_on_the_first_level(make_folder: MakeFolder, tmp_path: Path) -> None:
    counts = {"train/a": 4, "train/b": 4, "query/a": 2, "query/b": 1}
    data = load(str(make_folder(counts)), [8], tmp_path / "cache", DataConfig(seed=0, validation_fraction=0.25))
    assert {data.names[i].split("/")[0] for i in data.query} == {"query"}
    assert {data.names[i].split("/")[0] for i in data.gallery} == {"train"}
    assert (len(data.train), len(data.validation), len(data.gallery), len(data.query)) == (6, 2, 8, 3)
    data = load(
        str(make_folder({**counts, "gallery/a": 3, "gallery/b": 3}, "more")),
        [8],
        tmp_path / "cache",
        DataConfig(seed=0),
    )
    assert {data.names[i].split("/")[0] for i in data.gallery} == {"gallery"}
    assert data.classes == ("a", "b")
    assert "first level" in data.protocol


@pytest.mark.parametrize(
    ("train", "gallery", "query"),
    [("Train", "GALLERY", "Query"), ("training", "database", "queries"), ("seg_train", "gallery_images", "query-set")],
)
def test_a_split_may_be_spelled_in_other_ways(
    make_folder: MakeFolder, tmp_path: Path, train: str, gallery: str, query: str
) -> None:
    root = make_folder({f"{train}/a": 4, f"{train}/b": 4, f"{gallery}/a": 2, f"{gallery}/b": 2, f"{query}/a": 2,
                        "val2017/b": 3})  # fmt: skip
    (root / "annotations").mkdir()
    (root / "annotations" / "x.json").touch()
    make_folder({"@eaDir/SYNO": 1, "__MACOSX/train": 1}, "images")
    data = load(str(root), [8], tmp_path / "cache", DataConfig(seed=0))
    assert data.classes == ("a", "b")
    splits = {
        part: {data.names[i].split("/")[0] for i in getattr(data, part)} for part in ("train", "gallery", "query")
    }
    assert splits == {"train": {train}, "gallery": {gallery}, "query": {query}}
    assert {data.names[i].split("/")[0] for i in data.validation} == {"val2017"}
    assert len(data.warnings) == 2
    assert "1 folder without an image: annotations." in data.warnings


def refused(root: Path) -> str:
    with pytest.raises(InputError, match="class folders, or train, query and perhaps gallery") as caught:
        list_folder(root)
    return caught.value.found


def test_a_foreign_split_is_not_taken_for_classes(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"train/a": 2, "train/b": 2, "test/a": 2, "test/b": 2})
    with pytest.raises(InputError, match=r"train, query.*found test, train in .*Rename"):
        load(str(root), [8], tmp_path / "cache", DataConfig(seed=0))
    lone = make_folder({"seg_train/a": 2, "seg_train/b": 2}, "lone")
    with pytest.raises(InputError, match=r"Give that folder itself as --data"):
        list_folder(lone)
    assert list_folder(lone / "seg_train").labels == (("a",), ("a",), ("b",), ("b",))
    assert "query, train in" in refused(make_folder({"train/a": 2, "query/a": 2, "extra/a": 2}, "three"))
    assert "test" in refused(make_folder({"a": 2, "b": 2, "test/a": 2, "test/b": 2}, "beside"))
    assert "Train, query, train2" in refused(make_folder({"Train/a": 2, "train2/b": 2, "query/a": 1}, "twice"))
    assert "seg_test, seg_train" in refused(make_folder({"seg_train/a": 2, "seg_test/a": 2, "seg_pred": 2}, "intel"))
    assert "bounding_box_train, query" in refused(make_folder({"bounding_box_train": 2, "query": 2, "x": 1}, "market"))
    assert "a/test, a/train" in refused(make_folder({"a/train": 2, "a/test": 2, "b/train": 2, "b/test": 2}, "inside"))
    assert "set/query, set/train" in refused(make_folder({"set/train/a": 2, "set/query/a": 2}, "above"))
    vehicles = make_folder({"train": 2, "bus": 2, "car": 2}, "vehicles")  # COCO has a class of that name
    assert load(str(vehicles), [8], tmp_path / "cache", DataConfig(seed=0)).classes == ("bus", "car", "train")


WORDS = ("train", "Training", "query", "gallery", "val", "test", "TEST_images", "cat", "dog", "train station", "@eaDir")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(["", *WORDS[:7], "a", "b"])), min_size=1, max_size=7))
def test_no_name_of_a_split_becomes_a_class_beside_another(folders: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        for folder in folders:
            Path(root, *folder).mkdir(parents=True, exist_ok=True)
            Path(root, *folder, "1.png").touch()
        try:
            listed = list_folder(Path(root))
        except InputError:
            return
    classes, names = {label for row in listed.labels for label in row}, listed.names
    tops = {name.split("/")[0] for name in listed.names}
    if any(listed.splits):
        assert all(split_role(top) for top in tops)
        assert {"train", "query"} <= {split_role(top) for top, _ in folders}
        assert all(
            splits == {split_role(name.split("/")[0])} for name, splits in zip(names, listed.splits, strict=True)
        )
    else:
        assert classes == tops
        assert sum(split_role(top) is not None for top in tops) <= 1
    assert "@eaDir" not in tops


def test_folders_of_other_software_are_passed_over_and_counted(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"a": 5, "b": 5})
    plain = load(str(root), [8], tmp_path / "cache", DataConfig(seed=0))
    junk = [
        "a/@eaDir/000.png",
        "b/.@__thumb",
        "__MACOSX/a",
        "$RECYCLE.BIN/S-1-5-21",
        "#recycle",
        "a/@Recycle",
        "lost+found",
    ]
    make_folder(dict.fromkeys(junk, 2), "images")
    for name in ("000.png:Zone.Identifier", "Icon\r", "IMG_1.AAE", "000.png@SynoEAStream"):
        (root / "a" / name).write_bytes(b"x")
    (root / "lost+found").chmod(0)
    data = load(str(root), [8], tmp_path / "cache", DataConfig(seed=0))
    (root / "lost+found").chmod(0o755)
    assert (data.names, data.fingerprint, data.skipped) == (plain.names, plain.fingerprint, ())
    assert len(data.warnings) == 1
    assert data.warnings[0].startswith("7 folders of thumbnails, trash or snapshots passed over")


def test_classes_of_waste_are_no_trash(make_folder: MakeFolder) -> None:
    assert list_folder(make_folder({"paper": 1, "recycled": 1})).labels == (("paper",), ("recycled",))


def test_classes_that_vanish_are_counted(
    make_folder: MakeFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder({"a": 3, "b": 3, "c": 2, "d/deep": 1, "e/@eaDir": 1})
    for path in (*(root / "c").iterdir(), *(root / "d" / "deep").iterdir()):
        path.write_bytes(b"broken")
    (root / "empty" / "er").mkdir(parents=True)
    with caplog.at_level(logging.WARNING, "twinhash"):
        data = load(str(root), [8], tmp_path / "cache", DataConfig(seed=0))
    assert data.classes == ("a", "b")
    assert data.warnings[1:] == (
        "2 folders without an image: e, empty.", "2 classes without an image that can be read: c, d.",
    )  # fmt: skip
    assert all(caplog.text.count(sentence) == 1 for sentence in data.warnings)


def test_names_that_look_the_same_are_one_class_and_said(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder(
        {"caf\u00e9": 3, "cafe\u0301": 3, "cat": 2, "cat\u200b ": 2, "Cat": 2, "\u202egod": 2, "x\x1b[2J": 2}
    )
    data = load(str(root), [8], tmp_path / "cache", DataConfig(seed=0))
    assert data.classes == ("Cat", "caf\u00e9", "cat", "god", "x\\x1b[2J")
    assert np.bincount(data.labels).tolist() == [2, 6, 4, 2, 2]
    assert data.warnings[0].startswith("2 classes in several folders whose names look the same: 'caf")
    assert "1 group of classes whose names differ only in case, blanks" in data.warnings[1]
    assert "'Cat', 'cat'" in data.warnings[1]


def test_hostile_names_do_not_reach_log_or_report(
    make_folder: MakeFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder({"a": 3, "b": 3})
    (root / "a" / "\x1b[2J\rVerdict: passed\n\u202egnp.png").write_bytes(b"x")
    with caplog.at_level(logging.INFO, "twinhash"):
        data = load(str(root), [8], tmp_path / "cache", DataConfig(seed=0))
    shown = "a/\\x1b[2J Verdict: passed \\u202egnp.png"
    assert [skip.path for skip in data.skipped] == [shown]
    assert all(shown in record.message and record.message.isprintable() for record in caplog.records)
    with pytest.raises(InputError) as caught:
        load(str(root), [8], tmp_path / "cache", DataConfig(seed=0, strict=True))
    assert str(caught.value).isprintable()


def test_the_better_message_comes_first(make_folder: MakeFolder) -> None:
    flat = make_folder({"x": 3}) / "x"
    (flat / "m.csv").write_text("path,label\n" + "".join(f"wrong/{i}.png,a\n" for i in range(9)))
    with pytest.raises(InputError, match=r"9 of 9 that cannot be used: wrong/0\.png: No such file"):
        summarize(str(flat / "m.csv"))


def spoil(root: Path) -> dict[str, str]:
    """Put what is no image into class a; return the names to be skipped, each with a part of its reason."""
    buffer = io.BytesIO()
    noise(0).save(buffer, "JPEG")
    (root / "a" / "cut.jpg").write_bytes(buffer.getvalue()[:400])
    (root / "a" / "empty.png").touch()
    (root / "a" / "text.jpg").write_text("no image")
    (root / "a" / "odd.dat").write_bytes(b"\0\1\2")
    os.mkfifo(root / "a" / "pipe.jpg")
    (root / "a" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    (root / "loose.png").write_bytes(b"x")
    for ignored in (".DS_Store", "Thumbs.db", "notes.TXT", "._000.png", "labels.csv"):
        (root / "a" / ignored).write_bytes(b"x")
    (root / ".hidden").mkdir()
    noise(1).save(root / ".hidden" / "a.png")
    return {
        "a/cut.jpg": "truncated",
        "a/empty.png": "empty",
        "a/text.jpg": "not an image",
        "a/odd.dat": "not an image",
        "a/pipe.jpg": "not a regular file",
        "a/gone.jpg": "No such file",
        "loose.png": "class folder",
    }


def test_what_is_skipped(make_folder: MakeFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_folder({"a": 5, "b": 5})
    expected = spoil(root)
    noise(77).save(root / "a" / "no_suffix", "PNG")
    with caplog.at_level(logging.WARNING, "twinhash"):
        cold = load(str(root), [8], tmp_path / "cache", DataConfig(seed=0))
    found = {s.path: s.reason for s in cold.skipped}
    assert found.keys() == expected.keys()
    assert all(expected[name].lower() in reason.lower() for name, reason in found.items())
    assert len(cold.names) == len(cold.pixels[8]) == 11
    assert "a/no_suffix" in cold.names
    assert "skipped 7 of 18" in caplog.text
    warm = load(str(root), [8], tmp_path / "cache", DataConfig(seed=0))
    assert (warm.skipped, warm.fingerprint) == (cold.skipped, cold.fingerprint)
    assert isinstance(warm.skipped[0], Skipped)


def test_strict(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"a": 5, "b": 5})
    load(str(root), [8], tmp_path / "cache", DataConfig(seed=0, strict=True))
    spoil(root)
    with pytest.raises(InputError, match=r"7 of 17 that cannot be used: .*; \.\.\.") as caught:
        load(str(root), [8], tmp_path / "cache", DataConfig(seed=0, strict=True))
    assert caught.value.found.count(": ") == 6  # the first five, each with its reason


def test_a_broken_image_changes_no_other_classs_split(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"a": 20, "b": 20})
    before = load(str(root), [8], tmp_path / "cache", DataConfig(seed=0))
    (root / "a" / "000.png").write_bytes(b"broken")
    make_folder({"c": 5})
    after = load(str(root), [8], tmp_path / "cache", DataConfig(seed=0))
    for part in ("train", "validation", "query"):
        kept = [[d.names[i] for i in getattr(d, part) if d.names[i][0] == "b"] for d in (before, after)]
        assert kept[0] == kept[1]


def test_a_class_without_a_readable_image_is_none(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"a": 3, "b": 3, "c": 1})
    (root / "c" / "000.png").write_bytes(b"broken")
    assert load(str(root), [8], tmp_path / "cache", DataConfig(seed=0)).classes == ("a", "b")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "0 classes, 0 images|found none"),
        ({"a": 4}, r"1 class \(a\), 4 images"),
        ({"a": 1, "b": 1}, "query images"),
        ({"train/a": 3, "query/a": 1, "query/b": 1}, "at least two classes among the train images"),
    ],
)
def test_too_little(make_folder: MakeFolder, tmp_path: Path, counts: dict[str, int], message: str) -> None:
    make_folder({"": 0})
    with pytest.raises(InputError, match=message):
        load(str(make_folder(counts) if counts else tmp_path / "images"), [8], tmp_path / "cache", DataConfig(seed=0))


def test_nothing_but_broken_images(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"a": 2, "b": 2}, "broken")
    for path in root.rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(InputError, match=r"4 of 4 that cannot be used: a/000\.png: not an image"):
        load(str(root), [8], tmp_path / "cache", DataConfig(seed=0))


def test_a_queried_class_that_is_not_in_the_gallery(
    make_folder: MakeFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder({"train/a": 3, "train/b": 3, "query/a": 1, "query/zebra": 1})
    with caplog.at_level(logging.WARNING, "twinhash"):
        data = load(str(root), [8], tmp_path / "cache", DataConfig(seed=0))
    assert data.classes == ("a", "b", "zebra")
    assert "1 class queried but not in the gallery: zebra." in caplog.text


def test_links(make_folder: MakeFolder, tmp_path: Path) -> None:
    elsewhere = make_folder({"dogs": 4}, "elsewhere")
    root = make_folder({"cat": 4})
    (root / "dog").symlink_to(elsewhere / "dogs")
    (root / "cat" / "link.png").symlink_to(elsewhere / "dogs" / "000.png")
    (root / "cat" / "up").symlink_to(root)
    data = load(str(root), [8], tmp_path / "cache", DataConfig(seed=0))
    assert np.bincount(data.labels).tolist() == [5, 4]
    assert data.skipped == (Skipped(path="cat/up", reason="a link to a folder that is listed already"),)


def test_names_that_are_not_utf_8(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"a": 3, "b": 3})
    os.rename(os.fsencode(root / "a"), os.fsencode(root) + b"/caf\xe9")
    data = load(str(root), [8], tmp_path / "cache", DataConfig(seed=0))
    assert data.classes == ("b", "caf\\xe9")
    assert all(name.encode() for name in data.names)


def test_an_unreadable_folder(make_folder: MakeFolder, tmp_path: Path) -> None:
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as open_to_all:  # pytest's own folders are closed to the user below
        os.chmod(open_to_all, 0o755)
        root = Path(shutil.copytree(make_folder({"a": 3, "b": 3, "c": 3}), Path(open_to_all, "images")))
        (root / "b").chmod(0)
        cache = Path(open_to_all, "cache")
        cache.mkdir()
        cache.chmod(0o777)
        try:
            if user == 0:
                os.seteuid(65534)  # root may read everything
            data = load(str(root), [8], cache, DataConfig(seed=0))
            reason = "a folder that cannot be read: Permission denied"
            assert (data.classes, data.skipped) == (("a", "c"), (Skipped(path="b", reason=reason),))
            with pytest.raises(InputError, match=f"1 of 7 that cannot be used: b: {reason}"):
                load(str(root), [8], cache, DataConfig(seed=0, strict=True))
            with pytest.raises(InputError, match=r"a readable folder .*b; found Permission denied"):
                load(str(root / "b"), [8], cache, DataConfig(seed=0))
        finally:
            os.seteuid(user)
            (root / "b").chmod(0o755)


@pytest.mark.parametrize("source", ["nowhere", "nul\0", "x" * 5000, __file__, "/dev/null"])
def test_what_is_no_source(tmp_path: Path, source: str) -> None:
    with pytest.raises(InputError, match="embedded, fashion_mnist, an image folder, or a manifest"):
        load(source, [8], tmp_path, DataConfig(seed=0))


@pytest.mark.parametrize(
    "wrong",
    [{"sizes": []}, {"sizes": [0, 8]}, {"sizes": [10**6]}, {"query_fraction": 0.0}, {"query_fraction": 1.0},
     {"validation_fraction": 1.0}, {"validation_fraction": -0.1}],
)  # fmt: skip
def test_impossible_requests(make_folder: MakeFolder, tmp_path: Path, wrong: dict[str, Any]) -> None:
    root = make_folder({"a": 3, "b": 3})
    with pytest.raises(InputError):
        load(str(root), wrong.pop("sizes", [8]), tmp_path / "cache", DataConfig(**{"seed": 0, **wrong}))


def test_the_median_image_size(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 3}, width=50, height=30)
    make_folder({"b": 2}, width=90, height=70)
    (root / "a" / "broken.png").write_bytes(b"x")
    assert summarize(str(root)).image_size == 30
    make_folder({"c": 4}, width=64, height=200)
    assert summarize(str(root)).image_size == 64
    assert summarize("embedded") == summarize("fashion_mnist") == (28, True)


def test_summarize_reads_headers_of_a_bounded_sample(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder({"a": 1000, "b": 1}, width=8, height=8)
    for path in root.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])  # a header is left, the pixels are not
    opened: list[Path] = []

    def shorter_side(path: Path) -> int:
        opened.append(path)
        return decode.shorter_side(path)

    monkeypatch.setattr(image_folder, "shorter_side", shorter_side)
    assert summarize(str(root)).image_size == 8
    assert len(set(opened)) == len(opened) == 200
    assert opened[-1] == root / "b" / "000.png"


def test_summarize_of_nothing(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 1})
    (root / "a" / "000.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"1 of 1 that cannot be used: a/000\.png: not an image"):
        summarize(str(root))
    (root / "a" / "000.png").unlink()
    with pytest.raises(InputError, match="found none, nor a file"):
        summarize(str(root))


@pytest.mark.skipif("TWINHASH_DATA" not in os.environ, reason="TWINHASH_DATA is not set")
def test_uc_merced_unpacked(tmp_path: Path) -> None:
    scenes = Path(os.environ["TWINHASH_DATA"], "ucmerced", "UCMerced_LandUse", "Images")
    for folder in sorted(scenes.iterdir())[:10]:
        (tmp_path / "ucmerced" / folder.name).mkdir(parents=True)
        for k, path in enumerate(sorted(folder.iterdir())[:10]):
            shutil.copy(path, tmp_path / "ucmerced" / folder.name / f"{k:04d}.img")
    source = str(tmp_path / "ucmerced")
    assert summarize(source).image_size == 128
    loaded = load(source, [64, 128], tmp_path / "cache", DataConfig(seed=0, strict=True))
    assert len(loaded.names) == 100
    assert len(loaded.classes) == 10
    assert np.bincount(loaded.labels[loaded.query]).tolist() == [2] * 10
    for i in (0, 57, 99):
        raw = Path(source, loaded.names[i])
        np.testing.assert_array_equal(loaded.pixels[128][i], to_square(Image.open(raw).convert("RGB"), 128))


@pytest.mark.parametrize("outer", [("fold1", "fold2", "fold3"), ("images", "masks"), ("trainA", "trainB")])
def test_the_same_folders_in_every_class_are_said(make_folder: MakeFolder, outer: tuple[str, ...]) -> None:
    root = make_folder({f"{first}/{second}": 2 for first in outer for second in ("cat", "dog")})
    (sentence,) = list_folder(root).warnings
    assert sentence.startswith(f"The same folders (cat, dog) are inside of the classes ({', '.join(outer)})")
    assert list_folder(make_folder({"a/x": 1, "a/y": 1, "b/x": 1, "c": 1}, "views")).warnings == ()


def test_copies_that_software_leaves_beside_images_are_passed_over(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 2, "a/thumbs": 2, "_thumbnails/a": 2, "b/iPod Photo Cache": 2, "b/c": 1})
    for name in ("000.png~", "000.png_original", "MVI_1.THM", "001.png.bak", "001.png.crdownload"):
        shutil.copy(root / "a" / "000.png", root / "a" / name)
    listed = list_folder(root)
    assert listed.names == ("a/000.png", "a/001.png", "b/c/000.png")
    assert "_thumbnails, b/iPod Photo Cache, a/thumbs" in listed.warnings[0]


def test_other_sizes_of_the_same_image_are_said(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"a": 4, "b": 4})
    for stem in ("000-150x150", "000-scaled-300x200", "001_thumb", "002@2x", "009-10x10", "bus-small"):
        noise(len(stem)).save(root / "a" / f"{stem}.jpg")
    data = load(str(root), [8], tmp_path / "cache", DataConfig(seed=0))
    what = "4 images named like other sizes of others, which they find"
    assert data.warnings == (f"{what}: a/000-150x150.jpg, a/000.png.",)


def test_classes_without_a_query_are_named(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"a": 4, "b": 4, "rare": 1})
    assert ", 1 class without a query (rare): " in load(str(root), [8], tmp_path / "c", DataConfig(seed=0)).protocol
