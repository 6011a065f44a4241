"""Real images in real folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distill.data.factories import MakeFolder, noise


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """`make_folder({"cat": 3, "train/dog": 2})` writes so many images into these folders and returns their root."""

    def make(counts: dict[str, int], root: str = "images", **size: int) -> Path:
        seed = 0
        for folder, count in counts.items():
            (tmp_path / root / folder).mkdir(parents=True)
            for i in range(count):
                noise(seed := seed + 1, **size).save(tmp_path / root / folder / f"{i:03d}.png")
        return tmp_path / root

    return make
