"""The sizes of what is learned in tests of whole stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill import pipeline
from distill.config import StudentTrainConfig, TeacherTrainConfig, TrainConfig
from distill.context import RunContext, open_context
from distill.pipeline import TrainedModels
from distill.resolve import with_absolute_paths
from distill.run_dir import open_run

BITS, SIZE, EACH = 16, 32, 20
TEACHER = TeacherTrainConfig(finetune="full", epochs=1, batch_size=16)
STUDENT = StudentTrainConfig(epochs=1, batch_size=16, cached_views=2)
Learn = Callable[..., tuple[RunContext, TrainedModels]]


def learn_in(folder: Path, images: Path, name: str, **changes: Any) -> tuple[RunContext, TrainedModels]:
    """Train on `images / "labelled"` in the run `folder / name`."""
    small = {
        "teacher": "resnet10t",
        "student": "mobilenetv3_small",
        "teacher_img_size": SIZE,
        "student_img_size": SIZE,
        "data": str(images / "labelled"),
        "bits": BITS,
        "teacher_train": TEACHER,
        "student_train": STUDENT,
    }
    config = with_absolute_paths(TrainConfig(**{**small, **changes}))
    with open_run(folder / name) as run_dir:
        run_dir.check_config("config", config)
        context = open_context(run_dir, config, folder / "cache")
        return context, pipeline.train_all(context)
