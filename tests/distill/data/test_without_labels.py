"""Images without labels: a folder that holds images alone, splits that do, and a list without a column of labels."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from distill.data import DataConfig, Dataset, load, save_split, summarize
from gallery.errors import InputError
from tests.distill.data.factories import MakeFolder


def opened(path: Path, **options: float) -> Dataset:
    return load(str(path), [8], path.parent / "cache", DataConfig(**{"seed": 0, **options}))  # type: ignore[arg-type]


def test_a_folder_of_images_alone(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"": 20})
    data = load(str(root), [8], tmp_path / "cache", DataConfig(seed=0))
    assert summarize(str(root)) == (20, False)
    assert (data.classes, data.labels.tolist(), data.seen.tolist()) == ((), [-1] * 20, [])
    assert (len(data.query), len(data.validation)) == (4, 1)
    assert sorted([*data.train, *data.validation]) == data.gallery.tolist()
    assert not {*data.query} & {*data.gallery}
    assert data.class_names(data.gallery[:2]) == [None, None]
    assert "20% of all images sampled as queries by seed 0, no labels" in data.protocol
    assert data.skipped == data.warnings == ()
    other = load(str(root), [8], tmp_path / "cache", DataConfig(seed=1))
    assert other.query.tolist() != data.query.tolist()
    again = load(str(root), [8], tmp_path / "cache", DataConfig(seed=0))
    assert again.fingerprint == data.fingerprint != other.fingerprint


def test_loose_images_beside_class_folders_are_skipped_as_before(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"a": 6, "b": 6})
    (root / "loose.png").write_bytes((root / "a" / "000.png").read_bytes())
    data = load(str(root), [8], tmp_path / "cache", DataConfig(seed=0))
    assert data.classes == ("a", "b")
    assert [(skip.path, skip.reason) for skip in data.skipped] == [("loose.png", "not inside a class folder")]
    assert summarize(str(root)).labeled


def test_empty_folders_beside_loose_images_are_said(
    make_folder: MakeFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder({"": 10})
    (root / "cats").mkdir()
    with caplog.at_level(logging.WARNING, "twinhash"):
        assert load(str(root), [8], tmp_path / "cache", DataConfig(seed=0)).classes == ()
    assert "1 folder without an image: cats." in caplog.text


def test_splits_of_images_alone(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"train": 8, "query": 3, "gallery": 5})
    (root / "loose.png").write_bytes((root / "train" / "000.png").read_bytes())
    data = load(str(root), [8], tmp_path / "cache", DataConfig(seed=0, validation_fraction=0.0))
    assert data.classes == ()
    for part, count in (("train", 8), ("query", 3), ("gallery", 5)):
        assert {data.names[i].split("/")[0] for i in getattr(data, part)} == {part}
        assert len(getattr(data, part)) == count
    assert [(skip.path, skip.reason) for skip in data.skipped] == [("loose.png", "not inside the folder of a split")]


def test_one_class_is_no_collection_without_labels(make_folder: MakeFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 class \(photos\).*holds images alone"):
        load(str(make_folder({"photos": 9})), [8], tmp_path / "cache", DataConfig(seed=0))


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images(make_folder: MakeFolder, tmp_path: Path, count: int) -> None:
    with pytest.raises(InputError, match=r"query images|at least two train images"):
        load(str(make_folder({"": count})), [8], tmp_path / "cache", DataConfig(seed=0))


def test_classes_cannot_be_held_out(make_folder: MakeFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 of the 0 in train"):
        load(str(make_folder({"": 9})), [8], tmp_path / "cache", DataConfig(seed=0, num_unseen_classes=3))


def test_copies_are_in_one_split(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"": 12})
    for i in range(12):
        (root / f"copy{i}.png").write_bytes((root / f"{i:03d}.png").read_bytes())
    data = load(str(root), [8], tmp_path / "cache", DataConfig(seed=0))
    queries, others = ({(root / data.names[i]).read_bytes() for i in part} for part in (data.query, data.gallery))
    assert queries
    assert not queries & others


def test_a_list_without_labels_and_its_saved_split(
    make_folder: MakeFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder({"x": 12})
    (root / "m.csv").write_text("path,price,kind\n" + "".join(f"x/{i:03d}.png,{i},a\n" for i in range(12)))
    with caplog.at_level(logging.WARNING, "twinhash"):
        data = opened(root / "m.csv")
    assert (data.classes, len(data.query)) == ((), 2)
    assert "m.csv has no labels, and columns that are not read: price, kind." in caplog.text
    save_split(data, root / "split.csv")
    assert (root / "split.csv").read_text().splitlines()[0] == "path,split"
    again = opened(root / "split.csv")
    for part in ("train", "validation", "gallery", "query"):
        assert np.array_equal(getattr(again, part), getattr(data, part))
