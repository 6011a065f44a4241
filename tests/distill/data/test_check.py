"""What is said about copies, contradictory labels and images that use few of their bits."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from PIL import Image

from distill.data import DataConfig, Dataset, load
from distill.data.check import check_bits, check_classes
from distill.data.splits import SplitConfig, encode_labels, split
from gallery.errors import InputError
from tests.distill.data.factories import MakeFolder, noise
from tests.distill.data.test_splits import listing


def opened(root: Path, seed: int = 0) -> Dataset:
    return load(str(root), [8], root.parent / "cache", DataConfig(seed=seed))


def test_copies_of_queries_in_a_given_split(make_folder: MakeFolder) -> None:
    root = make_folder({f"{part}/{c}": 4 for part in ("train", "gallery", "query") for c in "ab"})
    assert opened(root).warnings == ()
    shutil.copy(root / "query" / "a" / "000.png", root / "train" / "a" / "same.png")
    shutil.copy(root / "query" / "a" / "000.png", root / "gallery" / "a" / "same.png")
    shutil.copy(root / "query" / "a" / "001.png", root / "gallery" / "a" / "other.png")
    where = "copied, byte for byte, in"
    assert opened(root).warnings == (
        f"2 of 8 queries {where} gallery, where they find themselves: query/a/001.png, gallery/a/other.png.",
        f"1 of 8 queries {where} train, where they find themselves: query/a/000.png, train/a/same.png.",
    )


def test_one_image_with_two_labels(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 4, "b": 4})
    shutil.copy(root / "a" / "000.png", root / "b" / "same.png")
    (sentence,) = opened(root).warnings
    assert sentence == "1 image listed several times, with different labels: a/000.png, b/same.png."
    several = {"a": "x", "b": "x;y"}
    rows = [f"{path.relative_to(root)},{several[path.parent.name]}" for path in sorted(root.rglob("*.png"))]
    (root / "m.csv").write_text("\n".join(["path,labels", *rows]))
    assert "with different labels" in opened(root / "m.csv").warnings[0]


@pytest.mark.parametrize("seed", range(3))
def test_a_drawn_split_keeps_copies_together(make_folder: MakeFolder, seed: int) -> None:
    root = make_folder({"a": 20, "b": 20, "c": 2})
    for path in sorted(root.rglob("*.png")):
        if path.stem < "010":
            shutil.copy(path, path.with_name(f"copy of {path.name}"))
    data = opened(root, seed)
    assert data.warnings == ()
    assert np.bincount(data.labels[data.query]).tolist() == [6, 6, 2]
    assert "20% of each class" in data.protocol


def test_a_class_of_copies_that_were_left_leaves_the_others_as_they_are() -> None:
    """All of b are copies of images of a, none of them drawn; what is drawn of c is its own share."""
    images = listing([("a",)] * 10 + [("b",)] * 2 + [("c",)] * 10)
    digests = [bytes([i]) for i in (*range(10), 0, 1, *range(20, 30))]
    for seed in range(10):
        own = split(images, encode_labels(images), SplitConfig(seed), digests)
        assert sum(own.query >= 12) == 2


def test_a_placeholder_may_stand_for_many_images() -> None:
    """What is done for a set of copies once must not be done for each of them: that took hours."""
    images = listing([("a",)] * 200_000 + [("b",)] * 10)
    digests = [b"placeholder"] * 199_990 + [bytes([i]) for i in range(20)]
    own = split(images, encode_labels(images), SplitConfig(0), digests)
    assert own.query[0] >= 199_990


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=4, max_size=60), st.integers(0, 9),
    st.sampled_from([0.1, 0.2, 0.5]), st.booleans(),
)  # fmt: skip
def test_no_query_has_a_copy_elsewhere(rows: list[tuple[int, int]], seed: int, share: float, multi: bool) -> None:
    rows += [(0, 100), (0, 101), (1, 102), (1, 103)]
    images = listing([(f"c{label}",) for label, _ in rows], multi=multi)
    digests, different = [bytes([digest]) for _, digest in rows], [bytes([i]) for i in range(len(rows))]
    try:
        own, plain, same = (split(images, encode_labels(images), SplitConfig(seed, share, 0.2), d)
                            for d in (digests, (), different))  # fmt: skip
    except InputError as error:  # what is left, of all images together or of few that are copied, may be of one class
        assert error.expected.startswith("at least two classes among the train images")  # noqa: PT017
        reject()
    queries, others = ({digests[i] for i in part} for part in (own.query, own.gallery))
    held_out, learned = ({digests[i] for i in part} for part in (own.validation, own.train))
    assert len(own.query)
    assert not queries & others
    assert not held_out & learned
    assert all(np.array_equal(getattr(plain, p), getattr(same, p)) for p in ("train", "validation", "gallery", "query"))


def deep(root: Path, bits: int, count: int) -> Path:
    """A folder of 16-bit images whose values take so many bits."""
    for name in "ab":
        (root / name).mkdir(parents=True)
        for i in range(count):
            values = np.random.default_rng([i, ord(name)]).integers(0, 1 << bits, (16, 16)).astype(np.uint16)
            Image.fromarray(values).save(root / name / f"{i}.{'tiff' if i % 2 else 'png'}")
    return root


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_images_that_use_few_of_their_16_bits(tmp_path: Path, bits: int) -> None:
    root = deep(tmp_path / "images", bits, 3)
    for data in (opened(root), opened(root)):  # the second is read from the cache
        assert len(data.warnings) == 1
        assert data.warnings[0].startswith(f"6 of 6 images with 16 bits a channel have values of {bits} bits or less")
    assert opened(deep(tmp_path / "full", 16, 3)).warnings == ()


def test_a_few_dark_ones_among_many_are_no_reason_to_worry() -> None:
    assert list(check_bits([16] * 50 + [12] * 5)) == list(check_bits([12, 12])) == list(check_bits([])) == []
    assert len(list(check_bits([16] * 500 + [12] * 20))) == len(list(check_bits([16] * 3 + [12] * 3))) == 1


def test_images_that_are_transparent_throughout(tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / "images" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        noise(i).convert("RGBA").save(tmp_path / "images" / "ab"[i % 2] / f"{i}.png")
    assert opened(tmp_path / "images").warnings == ()
    for path in (tmp_path / "images").rglob("*.png"):
        image = Image.open(path)
        image.putalpha(0)
        image.save(path)
    assert opened(tmp_path / "images").warnings[0].startswith("6 of 6 images looked at are nearly black or white")


def test_masks_are_no_photographs(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            mask = np.random.default_rng([i, ord(name)]).integers(0, 3, (16, 16, 3), np.uint8)
            Image.fromarray(mask * (90 if i == 0 else 1)).save(tmp_path / "images" / name / f"{i}.png")
    assert opened(tmp_path / "images").warnings[0].startswith("6 of 8 images looked at are nearly black or white")


def test_classes_of_a_split_in_their_names(make_folder: MakeFolder) -> None:
    root = make_folder({"cat_train": 3, "cat-test": 3, "Test tube": 3, "bullet train": 3})
    sentence = "1 group of classes whose names differ only in the name of a split: 'cat-test', 'cat_train'."
    assert opened(root).warnings == (sentence,)
    numbered = listing([("train 401",), ("train 402",), ("Test 4 a",), ("Test 5 a",)])
    assert not list(check_classes(numbered, numbered))


def test_classes_that_are_not_learned_are_named(make_folder: MakeFolder) -> None:
    root = make_folder({f"{part}/{c}": 3 for part in ("train", "gallery", "query") for c in "abcd"})
    assert "alone" not in opened(root).protocol
    shutil.rmtree(root / "train" / "d")
    assert "1 class in gallery or query alone (d): " in opened(root).protocol
