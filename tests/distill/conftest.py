"""A few real images in a folder, and a whole training on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distill.context import RunContext
from distill.data import DataConfig, load
from distill.models.hash_net import build
from distill.pipeline import TrainedModels
from tests.distill.factories import BITS, EACH, SIZE, Learn, learn_in


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of twenty, and beside them a folder without labels."""
    folder = tmp_path_factory.mktemp("images")
    data = load("embedded", {32}, folder / "cache", DataConfig(seed=0))
    for label in (0, 1, 8, 9):
        for place, i in enumerate(data.query[data.labels[data.query] == label][: EACH + 5]):
            home = folder / ("labelled" if place < EACH else "loose") / data.classes[label].replace("/", "-")
            home.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.pixels[32][i]).save(home / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of "pretrained" weights: the network as it happens to begin."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("weights") / "resnet10t.safetensors"
    save_file(build("resnet10t", SIZE, BITS, seed=7).backbone.state_dict(), path)
    return path


@pytest.fixture
def learn(image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Learn:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("TWINHASH_WEIGHTS", raising=False)

    def run(name: str = "run", **changes: Any) -> tuple[RunContext, TrainedModels]:
        return learn_in(tmp_path, image_folder, name, **changes)

    return run
