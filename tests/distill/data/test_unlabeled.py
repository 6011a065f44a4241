"""Images without labels, classes held out of train, and the saved split."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.config import TrainConfig
from distill.data import DataConfig, Dataset, load, save_split
from gallery.decode import to_square
from gallery.errors import InputError
from tests.distill.data.factories import MakeFolder, encoded, photo

LABELED = {"a": 20, "b": 20, "c": 20}
PARTS = ("train", "validation", "gallery", "query")


def opened(root: Path, **options: Any) -> Dataset:
    return load(str(root), [8], root.parent / "cache", DataConfig(seed=4, **options))


def test_they_come_after_the_labeled_ones_and_change_no_split(make_folder: MakeFolder) -> None:
    root, more = make_folder(LABELED), make_folder({"": 3, "deep/down": 4}, "more", width=30)
    alone, both = opened(root), opened(root, unlabeled_data=[more])
    assert (len(alone.unlabeled), alone.unlabeled.dtype) == (0, np.int64)
    assert both.names[:60] == alone.names
    assert both.names[60:63] == tuple(f"unlabeled/more/00{i}.png" for i in range(3))
    assert both.unlabeled.tolist() == list(range(60, 67))
    assert both.labels.tolist() == [*alone.labels, *[-1] * 7]
    assert all(np.array_equal(getattr(both, part), getattr(alone, part)) for part in PARTS)
    assert both.protocol == alone.protocol
    assert len(both.pixels[8]) == 67
    assert {alone.fingerprint, opened(root, unlabeled_data=()).fingerprint} == {alone.fingerprint}
    np.testing.assert_array_equal(both.seen, [0, 1, 2])


def test_their_contents_are_in_the_fingerprint(make_folder: MakeFolder) -> None:
    root, more = make_folder(LABELED), make_folder({"": 3}, "more", width=30)
    first = opened(root, unlabeled_data=[str(more)])
    (more / "001.png").write_bytes(encoded(5))
    assert opened(root, unlabeled_data=[more]).fingerprint != first.fingerprint != opened(root).fingerprint
    np.testing.assert_array_equal(opened(root, unlabeled_data=[more]).pixels[8][61], to_square(photo(5), 8))


def test_a_file_is_taken_once(make_folder: MakeFolder, caplog: pytest.LogCaptureFixture) -> None:
    root, more = make_folder(LABELED), make_folder({"x": 3}, "more", width=30)
    os.link(root / "a" / "000.png", more / "hard.png")
    (more / "soft.png").symlink_to(root / "b" / "000.png")
    (more / "self.png").symlink_to(more / "x" / "000.png")
    with caplog.at_level(logging.INFO, "twinhash"):
        both = opened(root, unlabeled_data=[more, more / "x", root])
    assert len(both.unlabeled) == 3
    assert "60 that are listed already" in caplog.text
    assert opened(more.parent / "images", unlabeled_data=[more.parent / "images"]).unlabeled.size == 0


def test_copies_of_queries_are_left_out(make_folder: MakeFolder) -> None:
    root, more = make_folder(LABELED), make_folder({"": 2}, "more", width=30)
    plain = opened(root)
    asked, learned = plain.names[plain.query[0]], plain.names[plain.train[0]]
    shutil.copy(root / asked, more / "leak.png")
    shutil.copy(root / learned, more / "harmless.png")
    both = opened(root, unlabeled_data=[more])
    assert [both.names[i].split("/")[-1] for i in both.unlabeled] == ["000.png", "001.png", "harmless.png"]
    assert both.warnings == ("1 unlabeled image left out: copies of queries.",)


def test_multi_label_sets_get_empty_rows(make_folder: MakeFolder) -> None:
    root, more = make_folder(LABELED), make_folder({"": 3}, "more", width=30)
    rows = [f"{s}/{i:03d}.png,{s};{'abc'[i % 3]}" for s in "abc" for i in range(20)]
    (root / "m.csv").write_text("\n".join(["path,labels", *rows]))
    both = opened(root / "m.csv", unlabeled_data=[more])
    assert both.labels.shape == (63, 3)
    assert both.labels.any(1).tolist() == [True] * 60 + [False] * 3
    assert both.unlabeled.tolist() == [60, 61, 62]
    assert "without a label" not in both.protocol
    assert not np.isin(both.unlabeled, np.concatenate([getattr(both, part) for part in PARTS])).any()


def test_broken_ones_are_skipped(make_folder: MakeFolder) -> None:
    root, more = make_folder(LABELED), make_folder({"": 3}, "more", width=30)
    (more / "001.png").write_bytes(b"x")
    (more / "gone.png").symlink_to("nowhere")
    (more / "lost.png").symlink_to("nowhere")
    data = opened(root, unlabeled_data=[more])
    assert [skip.path for skip in data.skipped] == [f"unlabeled/more/{n}.png" for n in ("001", "gone", "lost")]
    assert len(data.unlabeled) == 2
    with pytest.raises(InputError, match="3 of 65 that cannot be used"):
        opened(root, unlabeled_data=[more], strict=True)


def test_what_is_no_folder(make_folder: MakeFolder) -> None:
    with pytest.raises(InputError, match="a folder of unlabeled images at nowhere"):
        opened(make_folder(LABELED), unlabeled_data=["nowhere"])
    empty = make_folder({"@eaDir": 2, "a": 0}, "more")
    with pytest.raises(InputError, match="images in the folder of unlabeled images"):
        opened(empty.parent / "images", unlabeled_data=[empty])


@pytest.mark.parametrize("seed", range(5))
def test_unseen_classes(make_folder: MakeFolder, seed: int) -> None:
    root = make_folder(dict.fromkeys("abcdefg", 10))
    plain, held = (
        load(str(root), [8], root.parent / "cache", DataConfig(seed=seed, num_unseen_classes=k)) for k in (0, 3)
    )
    assert plain.unseen == ()
    assert len(set(held.unseen)) == 3 == 7 - len(held.seen)
    assert held.classes == plain.classes
    assert [held.classes[c] for c in held.seen] == [c for c in held.classes if c not in held.unseen]
    for part in ("train", "validation"):
        assert not {held.classes[c] for c in held.labels[getattr(held, part)]} & set(held.unseen)
    for part in ("gallery", "query"):
        np.testing.assert_array_equal(getattr(held, part), getattr(plain, part))
    left = {i for i in plain.gallery if held.classes[held.labels[i]] not in held.unseen}
    assert {*held.train, *held.validation} == left
    assert f"3 classes held out of train by seed {seed}: 32 train, 56 gallery, 14 query" in held.protocol
    assert held.fingerprint != plain.fingerprint


def test_which_are_unseen_depends_on_the_seed(make_folder: MakeFolder) -> None:
    root = make_folder(dict.fromkeys("abcdefg", 4))
    sampled = {
        load(str(root), [8], root.parent / "cache", DataConfig(seed=seed, num_unseen_classes=3)).unseen
        for seed in range(8)
    }
    assert len(sampled) > 3


def test_unseen_classes_of_multi_label_images(make_folder: MakeFolder) -> None:
    root = make_folder(dict.fromkeys("abcd", 20))
    rows = [f"{s}/{i:03d}.png,{s};{'abcd'[i % 4]}" for s in "abcd" for i in range(20)]
    (root / "m.csv").write_text("\n".join(["path,labels", *rows]))
    data = opened(root / "m.csv", num_unseen_classes=1)
    hidden = data.classes.index(data.unseen[0])
    assert not data.labels[np.union1d(data.train, data.validation), hidden].any()
    assert data.labels[data.gallery, hidden].any()
    assert data.seen.tolist() == [c for c in range(4) if c != hidden]


@pytest.mark.parametrize("unseen", [-1, 2, 3])
def test_too_many_unseen_classes(make_folder: MakeFolder, unseen: int) -> None:
    with pytest.raises(InputError, match=rf"two are left to learn; found {unseen} of the 3 in train"):
        opened(make_folder(LABELED), num_unseen_classes=unseen)


def test_a_saved_split_is_read_back(make_folder: MakeFolder) -> None:
    root, more = make_folder({"a": 20, 'c, "d"': 20, "e": 20}), make_folder({"": 2}, "more", width=30)
    (root / "a" / "000.png").rename(root / "a" / "0\r0.png")
    rows = [f"a/{i:03d}.png,{'x;y' if i % 2 else 'y'},{'gallery' if i > 9 else 'train'}" for i in range(1, 20)]
    (root / "m.csv").write_text("\n".join(["path,labels,split", *rows, "e/000.png,,gallery", "e/001.png,x,query"]))
    for source, options in ((root, {"unlabeled_data": [more], "num_unseen_classes": 1}), (root / "m.csv", {})):
        data = opened(source, **options)
        again = load(str(save_split(data, root / "split.csv")), [8], root.parent / "cache", DataConfig(seed=9))
        for part in (*PARTS, "validation"):
            indices = [[one.names[i] for i in getattr(one, part)] for one in (data, again)]
            assert indices[0] == indices[1], part
        assert again.classes == data.classes
        assert np.array_equal(again.labels, data.labels[: len(again.labels)])
        assert len(again.validation)
        assert "held out for validation." in again.protocol


def test_a_slash_at_the_end_changes_nothing(make_folder: MakeFolder) -> None:
    root = make_folder(LABELED)
    assert load(f"{root}/", [8], root.parent / "cache", DataConfig(seed=4)).fingerprint == opened(root).fingerprint
    assert TrainConfig(data="some/DIR/").data == TrainConfig(data="some/DIR").data == "some/DIR"


def test_the_embedded_fingerprint_stays(tmp_path: Path) -> None:
    found = load("embedded", [28], tmp_path, DataConfig(seed=0)).fingerprint
    assert found == "2a1220e3eacde1e70a973b73ca030977ffe833737c5b24d348b3b073d27ac2af"
