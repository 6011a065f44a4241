"""The gallery of a run: its order, and what its owner adds later."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from distill.run_dir import gallery_digest
from gallery.codes import pack, unpack
from gallery.database import code_array
from gallery.errors import InputError
from gallery.index import TRAINING, open_gallery
from gallery.store import GalleryStore
from tests.distill.factories import Learn


def add(folder: Path, space: Any) -> None:
    """An item of the owner's, and one that is no more."""
    store = GalleryStore(folder)
    store.put(space.id, pa.table({"id": ["new"], "code": code_array(np.zeros((1, space.bits // 8), np.uint8))}))
    store.remove(space.id, open_gallery(folder).ids[:1].to_pylist())
    store.publish(space.id)


def test_rows_of_the_index_are_in_the_order_of_the_ids(learn: Learn) -> None:
    context, models = learn()
    data, index = context.data, models.gallery
    assert index.ids.to_pylist() == sorted(context.gallery_ids, key=str.encode)
    assert index.ids.to_pylist() == [data.names[i] for i in context.indexed_images]
    assert np.array_equal(index.class_labels(data.classes, False), data.labels[context.indexed_images])
    logits = context.infer_logits("teacher", models.teacher, data.gallery, "gallery", models.space.id)
    assert np.array_equal(index.codes, pack(logits)[context.gallery_order])
    assert (unpack(index.codes) == (logits > 0)[context.gallery_order]).all()


def test_what_an_owner_adds_changes_no_run_and_is_never_destroyed(learn: Learn, tmp_path: Path) -> None:
    context, models = learn()
    folder, before = tmp_path / "run" / "gallery", models.gallery
    digest = gallery_digest(folder)
    add(folder, models.space)
    assert gallery_digest(folder) == digest
    assert not context.run_dir.damaged("gallery")
    _, again = learn()
    assert again.gallery.ids.equals(before.ids)
    _, reused = learn("second", reuse_gallery=tmp_path / "run")
    assert reused.gallery.ids.equals(before.ids)
    context.run_dir.invalidate("gallery")
    with pytest.raises(InputError, match="2 later commits"):
        learn()
    assert "new" in open_gallery(folder).ids.to_pylist()
    assert len(open_gallery(folder, version=TRAINING)) == len(before)
    shutil.move(folder, tmp_path / "mine")  # as the error says
    _, anew = learn()
    assert anew.gallery.ids.equals(before.ids)


def test_a_gallery_whose_ledger_is_damaged_is_moved_aside(
    learn: Learn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, models = learn()
    folder = tmp_path / "run" / "gallery"
    for name in ("gallery.damaged", "gallery.damaged-1"):
        add(folder, models.space)
        shutil.rmtree(folder / "ledger.lance")
        with caplog.at_level(logging.WARNING):
            context, again = learn()
        assert again.gallery.ids.equals(models.gallery.ids)
        assert not context.run_dir.damaged("gallery")
        assert str(folder.with_name(name)) in caplog.text
        assert any((folder.with_name(name) / f"codes_{models.space.id}.lance" / "data").iterdir())
