"""Published protocols: small trees in each set's true layout, list files of their true form, and the real lists."""

from __future__ import annotations

import lzma
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.data import DataConfig, Dataset, list_files, load, summarize
from distill.data.list_files import list_published
from distill.data.load import PROTOCOLS
from distill.data.protocol_specs import PUBLISHED
from gallery.decode import decode, to_square
from gallery.errors import InputError
from tests.distill.data.factories import encoded

PARTS = {"test": range(20), "train": range(20, 60), "database": range(60, 100)}
COLUMNS = {"imagenet100": 2, "coco": 80, "coco_csq": 80, "nuswide_21": 21, "nuswide_21_m": 21, "nuswide_81_m": 81,
           "mirflickr": 38, "voc2012": 20}  # fmt: skip
# Names as the real lists have them, and places as the real archives unpack.
FORMS = {
    "coco": ("./data/coco/train2014/COCO_train2014_{i:012d}.jpg", "coco/train2014/COCO_train2014_{i:012d}.jpg"),
    "coco_csq": ("./data/coco/train2014/COCO_train2014_{i:012d}.jpg", "coco/train2014/COCO_train2014_{i:012d}.jpg"),
    "nuswide_21": ("images/0484_{i}.jpg", "NUS-WIDE/images/0484_{i}.jpg"),
    "nuswide_21_m": ("images/83796_{i}_276c55a843_m.jpg", "nus_wide_m/images/83796_{i}_276c55a843_m.jpg"),
    "nuswide_81_m": ("images/36051_{i}_ab0704971e_m.jpg", "nus_wide_m/images/36051_{i}_ab0704971e_m.jpg"),
    "mirflickr": ("im{i}.jpg", "mirflickr/im{i}.jpg"),
    "voc2012": (
        "VOCdevkit/VOC2012/JPEGImages/2008_{i:06d}.jpg", "voc2012/VOCdevkit/VOC2012/JPEGImages/2008_{i:06d}.jpg",
    ),
    "imagenet100": ("./data/imagenet/image/n0000000{c}_{i}.JPEG", "imagenet/train/n0000000{c}/n0000000{c}_{i}.JPEG"),
    "imagenet100 test": (
        "./data/imagenet/val_image/ILSVRC2012_val_{i:08d}.JPEG", "imagenet/val/ILSVRC2012_val_{i:08d}.JPEG",
    ),
}  # fmt: skip


def classes_of(name: str, i: int) -> set[int]:
    """Columns that are 1 for image i; image 3 (a query) and 70 of MIRFLICKR have none."""
    if name == "imagenet100":
        return {i % 2}
    return set() if name == "mirflickr" and i in (3, 70) else {i % COLUMNS[name], i * 7 % COLUMNS[name]}


def form(name: str, i: int, kind: int) -> str:
    """What a list calls image i (kind 0), or where it lies (1)."""
    key = f"{name} test" if i in PARTS["test"] and f"{name} test" in FORMS else name
    return FORMS[key][kind].format(i=i, c=i % 2)


def listed(name: str, part: str) -> list[int]:
    """ImageNet's database lists hold train, COCO's the queries."""
    more = {"imagenet100": "train", "coco": "test", "coco_csq": "test"}.get(name) if part == "database" else None
    return [*PARTS[part], *(PARTS[more] if more else ())]


def rows(name: str, part: str) -> list[str]:
    bits = ([str(int(c in classes_of(name, i))) for c in range(COLUMNS[name])] for i in listed(name, part))
    return [" ".join([form(name, i, 0), *own]) for i, own in zip(listed(name, part), bits, strict=True)]


def make(root: Path, name: str, layout: str | None = None) -> Path:
    """A data root with the set's images, and its lists as they are published."""
    for part in PARTS:
        path = root / "splits" / f"{PUBLISHED[name].lists}_{part}.txt.xz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress("\n".join(rows(name, part)).encode()))
    for i in range(100):
        place = root / (layout.format(i=i, c=i % 2) if layout else form(name, i, 1))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(i, "JPEG"))
    return root


def opened(name: str, root: Path, **options: Any) -> Dataset:
    return load(name, [28], root / "cache", DataConfig(seed=1, data_root=root, **options))


@pytest.mark.parametrize("name", COLUMNS)
def test_lists_and_images_in_the_true_layout(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    data = opened(name, make(tmp_path, name))
    number = {form(name, i, 1).split("/", 1)[1]: i for i in range(100)}
    at = [number[path] for path in data.names]
    assert sorted(at) == list(range(100))
    bare = {3} if name == "mirflickr" else set()
    assert {at[k] for k in data.query} == set(PARTS["test"]) - bare
    assert {at[k] for k in np.union1d(data.train, data.validation)} == set(PARTS["train"])
    gallery = set(listed(name, "database")) | set(PARTS["train"] if name == "coco_csq" else ())
    assert {at[k] for k in data.gallery} == gallery - set(PARTS["test"])
    hot = data.labels if data.labels.ndim == 2 else np.eye(2, dtype=bool)[data.labels]
    assert hot.shape == (100, COLUMNS[name])
    assert [set(np.flatnonzero(row)) for row in hot] == [classes_of(name, i) for i in at]
    for k in (0, 50, 99):
        square = to_square(decode(tmp_path / form(name, at[k], 1)), 28)
        np.testing.assert_array_equal(data.pixels[28][k], square)
    assert data.top_k == (1000 if name == "imagenet100" else None if name in ("mirflickr", "voc2012") else 5000)
    assert f"(mAP@{data.top_k or 'all'})" in data.protocol
    assert f"{len(PARTS['train'])} train, {len(data.gallery)} gallery, {len(data.query)} query" in data.protocol
    assert f"40 train images here, {PUBLISHED[name].sizes[0]} published" in caplog.text
    assert summarize(name, tmp_path).image_size == 28


@pytest.mark.parametrize(
    ("name", "unseen"), [("imagenet100-zs5", 5), ("imagenet100-zs15", 15), ("imagenet100-zs25", 25)]
)
def test_no_image_of_an_unseen_class_is_trained_on(tmp_path: Path, name: str, unseen: int) -> None:
    spec, classes = PUBLISHED[name], unseen + 3
    assert spec.unseen == unseen
    for part, offset in (("train", 0), ("database", 10), ("test", 20)):
        lines = []
        for c, i in ((c, i) for c in range(classes) for i in range(4)):
            file = f"image/n000000{c:02d}_{offset + i}.JPEG"
            kind = file if part != "test" else f"val_image/ILSVRC2012_val_{4 * c + i:08d}.JPEG"
            lines.append(" ".join([f"./data/imagenet/{kind}", *(str(int(c == k)) for k in range(classes))]))
            layout = (
                file.replace("image/", f"train/n000000{c:02d}/") if part != "test" else kind.replace("val_image", "val")
            )
            place = tmp_path / "imagenet" / layout
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(encoded(100 * c + offset + i, "JPEG"))
        path = tmp_path / "splits" / f"{spec.lists}_{part}.txt.xz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(lzma.compress("\n".join(lines).encode()))
    data = opened(name, tmp_path, validation_fraction=0.3)
    assert data.unseen == tuple(f"n000000{c:02d}" for c in range(3, classes))
    learned = np.concatenate([data.train, data.validation])
    assert set(data.labels[learned]) == {0, 1, 2}
    assert len(learned) == 12
    assert len(data.validation)
    assert set(data.labels[data.query]) == set(data.labels[data.gallery]) == set(range(classes))
    assert f"of train without the last {unseen} of 100 classes, as in DSH_Analysis (mAP@1000)" in data.protocol


def test_what_the_sentence_says_of_queries(tmp_path: Path) -> None:
    assert "less 20 queries in its database" in opened("coco", make(tmp_path, "coco")).protocol
    flickr = opened("mirflickr", make(tmp_path, "mirflickr"))
    assert "less 1 queries and 0 of train without a label" in flickr.protocol
    lone = flickr.names.index("im70.jpg")
    assert lone in flickr.gallery
    assert not flickr.labels[lone].any()


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("coco", "coco/val2017/{i:012d}.jpg"),
        ("imagenet100", "imagenet/image/n0000000{c}_{i}.JPEG"),
        ("mirflickr", "mirflickr/mirflickr/im{i}.jpg"),
    ],
)
def test_other_layouts(tmp_path: Path, name: str, layout: str) -> None:
    make(tmp_path, name, layout)
    if name == "imagenet100":  # validation images by class
        for i in PARTS["test"]:
            place = tmp_path / f"imagenet/val/n0000000{i % 2}/ILSVRC2012_val_{i:08d}.JPEG"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(encoded(i, "JPEG"))
    data = opened(name, tmp_path, strict=True)
    assert (len(data.names), len(data.skipped)) == (100, 0)
    assert all((tmp_path / PUBLISHED[name].dataset.folder / path).is_file() for path in data.names)


def test_a_list_beside_the_published_ones_counts_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "voc2012")
    (tmp_path / "voc2012" / "test.txt").write_text("\n".join(rows("voc2012", "test")[:9]) + "\n\n")
    assert len(opened("voc2012", tmp_path).query) == 9
    monkeypatch.setenv("TWINHASH_DATA", str(tmp_path))
    assert len(load("voc2012", [28], tmp_path / "cache", DataConfig(seed=1)).query) == 9


def test_the_database_of_nus_wide_is_built_from_its_own_lists(tmp_path: Path) -> None:
    make(tmp_path, "nuswide_21")
    (tmp_path / "splits" / "deephash_pytorch_nuswide_21_database.txt.xz").unlink()
    with pytest.raises(InputError, match=r"NUS-WIDE in .*; found no database_img\.txt\. Download NUS-WIDE\.tar\.gz"):
        opened("nuswide_21", tmp_path)
    every = [row.split(" ", 1) for part in PARTS for row in rows("nuswide_21", part)]
    home = tmp_path / "NUS-WIDE"
    for part, own in (("database", every[10:]), ("test", every[:10])):  # another split than the protocol's
        (home / f"{part}_img.txt").write_text("".join(f"{path}\n" for path, _ in own))
        (home / f"{part}_label_onehot.txt").write_text("".join(f"{bits}\n" for _, bits in own))
    data = opened("nuswide_21", tmp_path)
    assert (len(data.gallery), len(data.query)) == (80, 20)
    assert not np.intersect1d(data.gallery, data.query).size
    assert np.isin(data.train, data.gallery).all()
    (home / "test_img.txt").write_text("images/0484_1.jpg\n")
    with pytest.raises(InputError, match=r"1 rows in test_img\.txt, 10 in test_label_onehot\.txt"):
        opened("nuswide_21", tmp_path)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_set_that_is_missing(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TWINHASH_DATA", raising=False)
    home = PROTOCOLS[name][0]
    told = re.escape(f"Download {home.source}, and put it there as {home.layout}.  Licence: {home.licence}.")
    where = re.escape(f"{home.title} in {tmp_path}/{home.folder}; found none. ")
    with pytest.raises(InputError, match=where + told):
        opened(name, tmp_path)
    (tmp_path / home.folder).mkdir()
    if name not in PUBLISHED:
        with pytest.raises(InputError, match=where + told):
            opened(name, tmp_path)
    with pytest.raises(InputError, match="neither --data-root nor TWINHASH_DATA is given.*" + told):
        load(name, [28], tmp_path / "cache", DataConfig(seed=1))


def test_lists_without_images(tmp_path: Path) -> None:
    for path in make(tmp_path, "coco").rglob("*.jpg"):
        path.unlink()
    with pytest.raises(InputError, match=r"COCO 2014 .*found none of its images.*train2014\.zip"):
        opened("coco", tmp_path)


@pytest.mark.parametrize(
    ("name", "part", "words"),
    [
        ("coco", "test", r"hashnet_coco_test\.txt\.xz; found none\. Take it from https://github\.com/thuml/HashNet"),
        ("voc2012", "train", r"voc2012/train\.txt or .*swuxyj/DeepHash-pytorch"),
        ("nuswide_81_m", "database", "Its only known copy is the one in the archive"),
    ],
)
def test_a_list_that_is_missing(tmp_path: Path, name: str, part: str, words: str) -> None:
    (make(tmp_path, name) / "splits" / f"{PUBLISHED[name].lists}_{part}.txt.xz").unlink()
    with pytest.raises(InputError, match=f"the {part} list of {name} at .*{words}"):
        opened(name, tmp_path)


def test_an_image_that_is_missing_or_broken_is_skipped(tmp_path: Path) -> None:
    make(tmp_path, "voc2012")
    (tmp_path / form("voc2012", 5, 1)).unlink()
    (tmp_path / form("voc2012", 30, 1)).write_bytes(b"x")
    data = opened("voc2012", tmp_path)
    assert [skip.path[-15:] for skip in data.skipped] == ["2008_000005.jpg", "2008_000030.jpg"]
    assert (len(data.names), len(data.query), len(data.train) + len(data.validation)) == (98, 19, 39)
    with pytest.raises(InputError, match="2 of 100 that cannot be used"):
        opened("voc2012", tmp_path, strict=True)


@pytest.mark.parametrize(
    "wrong",
    [
        "../../etc/passwd" + " 1" * 20,
        "/etc/passwd" + " 1" * 20,
        "VOCdevkit/VOC2012/JPEGImages/../../../2008_000001.jpg" + " 1" * 20,
        "./data/../VOCdevkit/VOC2012/JPEGImages/2008_000001.jpg" + " 1" * 20,
        "VOCdevkit/VOC2012/JPEGImages/2008_{0}.jpg" + " 1" * 20,
        "VOCdevkit/VOC2012/JPEGImages/2008_000001.jpg" + " 1" * 19,
        "VOCdevkit/VOC2012/JPEGImages/2008_000001.jpg" + " 1" * 21,
        "VOCdevkit/VOC2012/JPEGImages/2008_000001.jpg" + " 2" * 20,
        "VOCdevkit/VOC2012/JPEGImages/2008_000001.jpg",
    ],
)
def test_lines_that_are_none_of_the_list(tmp_path: Path, wrong: str) -> None:
    make(tmp_path, "voc2012")
    (tmp_path / "voc2012" / "test.txt").write_text("\n".join([rows("voc2012", "test")[0], wrong]))
    with pytest.raises(InputError, match=r"20 labels, each 0 or 1, in line 2 of test\.txt.*; found .* labels"):
        opened("voc2012", tmp_path)


def test_two_labels_where_an_image_has_one(tmp_path: Path) -> None:
    make(tmp_path, "imagenet100")
    path = tmp_path / "imagenet100" / "test.txt"
    path.parent.mkdir()
    path.write_text("image/n00000000_20.JPEG 1 1\n")
    with pytest.raises(InputError, match="and one of them 1, in line 1"):
        opened("imagenet100", tmp_path)


def test_lists_that_contradict_each_other(tmp_path: Path) -> None:
    make(tmp_path, "coco")
    path = tmp_path / "coco" / "test.txt"
    first = rows("coco", "test")[1]
    path.write_text(first.replace(" 0", " 1", 1) + "\n")
    with pytest.raises(InputError, match=r"the same labels wherever .*COCO_train2014_000000000001\.jpg"):
        opened("coco", tmp_path)


@pytest.mark.parametrize("damage", [b"\xfd7zXZ\0broken", b"\xff\xfe\xff"])
def test_damaged_list_files(tmp_path: Path, damage: bytes) -> None:
    make(tmp_path, "voc2012")
    ending = "txt.xz" if b"xz" in damage.lower() else "txt"
    (tmp_path / "voc2012" / f"test.{ending}").write_bytes(damage)
    with pytest.raises(InputError, match=rf"a list of images at .*voc2012/test\.{ending}; found .*Download it again"):
        opened("voc2012", tmp_path)


def test_a_list_that_unpacks_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "voc2012")
    monkeypatch.setattr(list_files, "MAX_BYTES", 1 << 20)
    (tmp_path / "voc2012" / "test.txt.xz").write_bytes(lzma.compress(bytes((1 << 20) + 1)))
    with pytest.raises(InputError, match="more than 1 MiB"):
        opened("voc2012", tmp_path)


REAL = Path(os.environ.get("TWINHASH_DATA", "")) / "splits"


@pytest.mark.skipif("TWINHASH_DATA" not in os.environ, reason="TWINHASH_DATA is not set")
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_real_lists_have_the_published_sizes(tmp_path: Path, name: str) -> None:
    spec = PUBLISHED[name]
    (tmp_path / "splits").symlink_to(REAL)
    with lzma.open(REAL / f"{spec.lists}_train.txt.xz", "rt") as stream:
        first = stream.readline().split()[0].split("/")[-1]
    layout = spec.layouts[0]
    fields = re.compile(spec.path.split("/")[-1]).fullmatch(first)
    assert fields
    place = tmp_path / spec.dataset.folder / layout.format(**fields.groupdict(), label=first.split("_")[0])
    place.parent.mkdir(parents=True)
    place.write_bytes(encoded(0, "JPEG"))
    if name.startswith("nuswide"):  # no database list: the other two, and an empty one
        (tmp_path / name).mkdir()
        (tmp_path / name / "database.txt").touch()
    listing = list_published(name, tmp_path, 0)
    found = [sum(part in own for own in listing.splits) for part in ("train", "gallery", "query")]
    assert found == [spec.sizes[0], 0 if name.startswith("nuswide") else spec.sizes[1], spec.sizes[2]]
    assert len(listing.classes or ()) == (100 if name.startswith("imagenet100") else COLUMNS[name])
    assert len(listing.unseen) == spec.unseen
    bare = {part: sum(part in own and not row for own, row in zip(listing.splits, listing.labels, strict=True))
            for part in ("train", "gallery", "query")}  # fmt: skip
    assert bare == ({"train": 72, "gallery": 328, "query": 19} if name == "mirflickr" else dict.fromkeys(bare, 0))
    if name == "imagenet100":
        pairs = zip(listing.names, listing.labels, strict=True)
        assert all(path.split("/")[-1].startswith((*own, "ILSVRC")) for path, own in pairs)
    if name == "voc2012":  # the set's own totals: people are in 4,087 of its images, cows in 303
        count = {c: sum(c in own for own in listing.labels) for c in ("person", "cow", "sheep", "tvmonitor")}
        assert count == {"person": 4087, "cow": 303, "sheep": 325, "tvmonitor": 575}


@pytest.mark.skipif("TWINHASH_DATA" not in os.environ, reason="TWINHASH_DATA is not set")
def test_hashnets_lists_make_csqs_gallery_of_coco() -> None:
    lists = {}
    for split in ("train", "test", "database"):
        lines = list_files._read_lines(REAL / f"hashnet_coco_{split}.txt.xz")
        lists[split] = {line.split()[0] for _, line in lines}
    assert [len(lists[split]) for split in ("train", "test", "database")] == [10_000, 5_000, 112_218]
    assert not lists["train"] & lists["database"]
    assert lists["test"] <= lists["database"]
    assert len((lists["train"] | lists["database"]) - lists["test"]) == 117_218
