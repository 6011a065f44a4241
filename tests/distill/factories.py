"""The sizes of what is learned in tests of whole stages."""

from __future__ import annotations

from collections.abc import Callable

from distill.config import StudentTrainConfig, TeacherTrainConfig
from distill.context import RunContext
from distill.pipeline import TrainedModels

BITS, SIZE, EACH = 16, 32, 20
TEACHER = TeacherTrainConfig(finetune="full", epochs=1, batch_size=16)
STUDENT = StudentTrainConfig(epochs=1, batch_size=16, cached_views=2)
Learn = Callable[..., tuple[RunContext, TrainedModels]]
