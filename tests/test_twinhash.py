"""The public API: complete, lazy, and enough for the README's search."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

import twinhash
from gallery.index import create_gallery
from tests.gallery.galleries import centers_of, named, numbered, space_of

SPACE = space_of(16)


def test_importing_it_loads_no_framework() -> None:
    code = "import sys, twinhash; assert not {'torch', 'numpy', 'lancedb'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)


def test_every_name_is_there() -> None:
    assert all(callable(getattr(twinhash, name)) for name in twinhash.__all__)


def test_search_by_the_public_api(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(20, 16))
    codes = twinhash.pack(logits)
    assert np.array_equal(twinhash.unpack(codes), logits > 0)
    labels = named(np.arange(20) % 2, "ab")
    create_gallery(tmp_path / "gallery", SPACE, centers_of(16), codes, numbered(20), labels)
    index = twinhash.open_gallery(tmp_path / "gallery", SPACE)
    found = index.search(codes[:3], k=5)
    assert found.ids.shape == (3, 5)
    assert np.array_equal(found.distances[:, 0], np.zeros(3))
    assert np.array_equal(np.sort(twinhash.hamming(codes[:3], codes), axis=1)[:, :5], found.distances)
    assert twinhash.mean_average_precision(codes[:3], codes, np.arange(3) % 2, index.class_labels("ab", False)).map > 0
