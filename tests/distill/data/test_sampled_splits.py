"""Protocols whose splits are sampled here, from sets in their true layouts."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data import DataConfig, Dataset, load, summarize
from distill.data.cifar import (
    CIFAR10_CLASSES,
    CIFAR10_FILES,
    CIFAR100_CLASSES,
    CIFAR100_FILES,
    CIFAR_PROTOCOLS,
    ZERO_SHOT,
)
from distill.data.sampled_splits import sample_splits
from gallery.decode import to_square
from gallery.errors import CorruptFile, InputError
from tests.distill.data.factories import encoded, photo

SCENES = ("agricultural", "airplane", "beach")
TABLE = "IMAGE\\LABEL\tfield\tsand\twater\n"


def opened(name: str, root: Path, seed: int = 1, **options: Any) -> Dataset:
    return load(name, [28], root / "cache", DataConfig(seed=seed, data_root=root, **options))


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.integers(1, 20), min_size=1), st.integers(0, 9), st.integers(0, 9))
def test_sample_splits(sizes: dict[str, int], queries: int, train: int) -> None:
    groups = [group for group, size in sizes.items() for _ in range(size)]
    parts = sample_splits(groups, 5, queries, train, frozenset({"train"}))
    for group, size in sizes.items():
        own = Counter(part for place, (part,) in zip(groups, map(tuple, parts), strict=True) if place == group)
        wanted = {"query": min(queries, size), "train": min(train, max(0, size - queries))}
        assert own == Counter({**wanted, "gallery": size - sum(wanted.values())})
    alone = sample_splits(["x"] * 8, 5, queries, train)
    assert sample_splits(["x"] * 8 + ["y"] * 5, 5, queries, train)[:8] == alone  # other classes change nothing
    assert all(part in ({"query"}, {"train", "gallery"}) for part in sample_splits(groups, 5, queries, None))


def cifar(root: Path, records: int = 200) -> Path:
    """The binary version, smaller: a label byte, then 32 x 32 red, green and blue bytes."""
    folder = root / "cifar10" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "batches.meta.txt").write_text("\n".join(CIFAR10_CLASSES))
    for batch, name in enumerate(CIFAR10_FILES):
        raw = b""
        for i in range(records):
            tinted = np.array(photo(batch * records + i).resize((32, 32)))
            tinted[..., 2] //= 2  # or channels could be swapped without being seen
            raw += bytes([i % 10]) + tinted.transpose(2, 0, 1).tobytes()
        (folder / f"{name}.bin").write_bytes(raw)
    return root


@pytest.mark.parametrize(
    ("name", "counts", "sizes"),
    [("cifar10", (20, 30), (300, 700)), ("cifar10-1", (20, 30), (300, 1000)), ("cifar10-2", (20, 100), (1000, 1000))],
)
def test_cifar10_binary(
    tmp_path: Path, name: str, counts: tuple[int, int], sizes: tuple[int, int],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    published = CIFAR_PROTOCOLS[name][2:]
    monkeypatch.setitem(CIFAR_PROTOCOLS, name, (*counts, *published))  # 120 images a class here, not 6,000
    data = opened(name, cifar(tmp_path))
    assert (len(data.train) + len(data.validation), len(data.gallery), len(data.query)) == (*sizes, 200)
    assert np.isin(data.train, data.gallery).all() == (name != "cifar10")
    assert np.bincount(data.labels[data.query]).tolist() == [20] * 10
    assert data.classes == CIFAR10_CLASSES
    k = data.names.index("data_batch_2/00007")
    assert data.labels[k] == 7
    tinted = np.array(photo(207).resize((32, 32)))
    tinted[..., 2] //= 2
    np.testing.assert_array_equal(
        load(name, [32], tmp_path / "cache", DataConfig(seed=1, data_root=tmp_path)).pixels[32][k], tinted
    )
    assert f"20 queries and {counts[1]} of train a class sampled here by seed 1 (in the literature" in data.protocol
    differ = zip(sizes, ("train", "gallery"), published[1], strict=False)
    assert ", ".join(f"{here} {part} images here, {there} published" for here, part, there in differ) in caplog.text
    assert summarize(name, tmp_path).image_size == 32
    assert not np.array_equal(opened(name, tmp_path, seed=2).query, data.query)


def cifar100(root: Path, records: int = 300) -> Path:
    """The binary version, smaller: a coarse label byte that is not used, a fine one, then the image."""
    folder = root / "cifar100" / "cifar-100-binary"
    folder.mkdir(parents=True)
    for k, name in enumerate(CIFAR100_FILES):
        images = np.random.default_rng(k).integers(0, 256, (records, 3072), np.uint8)
        labels = np.stack([np.arange(records) % 20, np.arange(records) % 100], 1).astype(np.uint8)
        np.concatenate([labels, images], 1).tofile(folder / f"{name}.bin")
    return root


@pytest.mark.parametrize("name", ZERO_SHOT)
def test_cifar_with_unseen_classes(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    hundred = name.startswith("cifar100")
    data = opened(name, cifar100(tmp_path) if hundred else cifar(tmp_path, 60))
    classes, count = (CIFAR100_CLASSES if hundred else CIFAR10_CLASSES), ZERO_SHOT[name]
    gallery, queries = (300, 300) if hundred else (300, 60)
    train = gallery * (len(classes) - count) // len(classes)
    assert data.classes == classes
    assert data.unseen == classes[-count:]
    assert data.top_k == 1000
    assert (len(data.train) + len(data.validation), len(data.gallery), len(data.query)) == (train, gallery, queries)
    assert all(data.names[i].startswith(("test/", "test_batch/")) for i in data.query)
    assert len(data.validation)
    first = len(classes) - count  # of the unseen classes, which are in gallery and query, and nowhere else
    assert data.labels[np.concatenate([data.train, data.validation])].max() < first
    assert data.seen.tolist() == list(range(first))
    assert set(data.labels[data.gallery]) == set(data.labels[data.query]) == set(range(len(classes)))
    assert np.isin(data.train, data.gallery).all()
    other = opened(name, tmp_path, seed=2)
    np.testing.assert_array_equal(other.query, data.query)  # nothing but validation is sampled
    said = f"its train set as gallery, of train without the last {count} of {len(classes)} classes, as in DSH_Analysis"
    assert said in data.protocol
    assert "gallery or query alone" not in data.protocol
    assert f"{train} train images here, {50_000 - count * (50_000 // len(classes))} published" in caplog.text
    more = opened(name, tmp_path, num_unseen_classes=2)  # of the others
    assert len(set(more.unseen)) == count + 2
    assert len(more.seen) == first - 2


def test_cifar100_has_two_labels_of_which_the_fine_one_counts(tmp_path: Path) -> None:
    data = load("cifar100-zs5", [32], tmp_path / "cache", DataConfig(seed=1, data_root=cifar100(tmp_path)))
    k = data.names.index("test/00123")
    assert data.classes[data.labels[k]] == CIFAR100_CLASSES[23]
    image = np.random.default_rng(1).integers(0, 256, (300, 3072), np.uint8)[123]
    np.testing.assert_array_equal(data.pixels[32][k], image.reshape(3, 32, 32).transpose(1, 2, 0))
    path = tmp_path / "cifar100" / "cifar-100-binary" / "train.bin"
    path.write_bytes(b"\0\x64" + bytes(3072))
    with pytest.raises(CorruptFile, match=r"labels below 100 in .*; found 100"):
        opened("cifar100-zs5", tmp_path)
    path.write_bytes(bytes(3073))
    with pytest.raises(CorruptFile, match="CIFAR-100's binary version"):
        opened("cifar100-zs5", tmp_path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (None, "No such file"),
        (b"\0" * 3072, "cannot reshape"),
        (b"\x0a" * 3073, r"labels below 10 in .*; found 10"),
    ],
)
def test_damaged_cifar10(tmp_path: Path, damage: bytes | None, words: str) -> None:
    path = cifar(tmp_path, 1) / "cifar10" / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(CorruptFile, match=f"(?s){words}.*Unpack it again"):
        opened("cifar10", tmp_path)


def ucmerced(root: Path, multi: bool = False) -> Path:
    table = TABLE
    for k, scene in enumerate(SCENES):
        folder = root / "ucmerced" / "UCMerced_LandUse" / "Images" / scene
        folder.mkdir(parents=True)
        for i in range(25):
            (folder / f"{scene}{i:02d}.tif").write_bytes(encoded(100 * k + i, "TIFF"))
            table += f"{scene}{i:02d}\t{k % 2}\t{i % 2}\t1\n"
    if multi:
        (root / "ucmerced" / "LandUse_Multilabeled.txt").write_text(table)
    return root


def test_ucmerced_unpacked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = opened("ucmerced", ucmerced(tmp_path, multi=True), strict=True)
    assert data.classes == SCENES
    assert (len(data.query), len(data.gallery)) == (60, 15)
    np.testing.assert_array_equal(np.union1d(data.train, data.validation), data.gallery)
    assert "20 queries a scene class sampled here by seed 1 (in the literature mAP@all): 15 train = g" in data.protocol
    assert "15 train images here, 1680 published" in caplog.text
    k = data.names.index("beach/beach07.tif")
    np.testing.assert_array_equal(data.pixels[28][k], to_square(photo(207), 28))
    several = opened("ucmerced_multi", tmp_path)
    assert several.classes == ("field", "sand", "water")
    assert several.labels[several.names.index("airplane/airplane03.tif")].tolist() == [True, True, True]
    assert several.labels[several.names.index("airplane/airplane04.tif")].tolist() == [True, False, True]
    assert [several.names[i] for i in several.query] == [data.names[i] for i in data.query]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (None, "No such file.*multilabels.zip"),
        (TABLE, r"labels of agricultural/agricultural00\.tif"),
        (TABLE + "beach00\t1\t0\n", "3 labels of 0 or 1 for 'beach00'"),
        (TABLE + "beach00 1 0 1\n", "separated by tabs"),
        (TABLE + "beach00\t1\t0\t5\n", "3 labels of 0 or 1 for 'beach00'"),
        ("", r"labels of agricultural/agricultural00\.tif"),
    ],
)
def test_multi_labels_that_cannot_be_read(tmp_path: Path, rows: str | None, words: str) -> None:
    ucmerced(tmp_path)
    if rows is not None:
        (tmp_path / "ucmerced" / "LandUse_Multilabeled.txt").write_text(rows)
    with pytest.raises(InputError, match=words):
        opened("ucmerced_multi", tmp_path)


@pytest.mark.skipif("TWINHASH_DATA" not in os.environ, reason="TWINHASH_DATA is not set")
@pytest.mark.parametrize(
    ("name", "classes", "sizes"),
    [
        ("ucmerced", 21, (1680, 1680, 420)),
        ("ucmerced_multi", 17, (1680, 1680, 420)),
        ("imagenet20/manifest.csv", 20, (2000, 4900, 1000)),
        ("cifar10", 10, (5000, 54_000, 1000)),
        ("cifar10-zs", 10, (40_000, 50_000, 10_000)),
    ],
)
def test_real_sets(tmp_path: Path, name: str, classes: int, sizes: tuple[int, ...]) -> None:
    folder = Path(os.environ["TWINHASH_DATA"], name)
    data = load(str(folder) if folder.suffix else name, [8], tmp_path / "cache", DataConfig(seed=0, strict=True))
    assert len(data.classes) == len(data.seen) + len(data.unseen) == classes
    assert data.unseen == (("ship", "truck") if name == "cifar10-zs" else ())
    found = (len(data.train) + len(data.validation), len(data.gallery), len(data.query))
    assert found == sizes
    assert data.name == name.split("/")[0]
    if data.labels.ndim == 1:
        assert len(set(np.bincount(data.labels[data.query]))) == 1
