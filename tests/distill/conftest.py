"""A few real images in a folder, and a whole training on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from distill import pipeline
from distill.config import TrainConfig
from distill.context import RunContext, open_context
from distill.data import DataConfig, load
from distill.models.hash_net import build
from distill.pipeline import TrainedModels
from distill.resolve import with_absolute_paths
from distill.run_dir import open_run
from tests.distill.factories import BITS, EACH, SIZE, STUDENT, TEACHER, Learn


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
        small = {
            "teacher": "resnet10t",
            "student": "mobilenetv3_small",
            "teacher_img_size": SIZE,
            "student_img_size": SIZE,
            "data": str(image_folder / "labelled"),
            "bits": BITS,
            "teacher_train": TEACHER,
            "student_train": STUDENT,
        }
        config = with_absolute_paths(TrainConfig(**{**small, **changes}))
        with open_run(tmp_path / name) as run_dir:
            run_dir.check_config("config", config)
            context = open_context(run_dir, config, tmp_path / "cache")
            return context, pipeline.train_all(context)

    return run
