"""What stored views save: distillation with the teacher's outputs stored, and with the teacher looking at each crop."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distill.config import Learning, Model, StudentTrainConfig
from gallery.console import log
from gallery.files import write_json

if TYPE_CHECKING:
    from distill.context import RunContext
    from distill.train_student import Prepare

RESULTS = Path(__file__).with_name("results")


class Views(Model):
    """An epoch's time with stored views and without, in turns; the weights are random, which time does not mind."""

    data: str = "ucmerced"
    teacher: str = "vit_b"
    student: str = "mobilenetv3"
    teacher_size: int = 224
    student_size: int = 128
    batch: int = 64
    steps: int = 4
    """Of an epoch that is timed."""
    rounds: int = 3
    runs: Path = Path("runs/bench")
    name: str = "views"

    def run(self) -> None:
        """Writes `benchmarks/results/<name>.json`."""
        from distill.context import begin
        from distill.engine import keep_freed_memory, limit_threads
        from distill.run_dir import open_run
        from mobile_eval.system_info import describe

        limit_threads()
        keep_freed_memory()
        learning = Learning(data=self.data, teacher=self.teacher, student=self.student, teacher_size=self.teacher_size,
                            student_size=self.student_size, validation_fraction=0.0)  # fmt: skip
        with tempfile.TemporaryDirectory() as folder, open_run(Path(folder) / "run") as run:
            course = begin(run, learning, self.runs / "cache")
            rounds = [{name: self.epoch(course, name) for name in ("stored", "online")} for _ in range(self.rounds)]
        ratio = float(np.median([one["online"]["seconds"] / one["stored"]["seconds"] for one in rounds]))
        waiting = max(one["stored"]["waited"] / one["stored"]["seconds"] for one in rounds)
        log.info("stored views: %.1f times faster an epoch; at most %.1f %% of it waiting", ratio, 100 * waiting)
        write_json(RESULTS / f"{self.name}.json", {
            "command": f"python benchmarks/run.py {self.name}", "machine": describe().model_dump(),
            "options": self.model_dump(mode="json", exclude={"runs"}), "rounds": rounds,
            "online_over_stored": ratio, "largest_share_waiting": waiting,
        })  # fmt: skip

    def epoch(self, course: RunContext, name: str) -> dict[str, float]:
        """Seconds of one epoch, and those of them spent waiting for pictures."""
        from distill.distillers.base import DistillContext
        from distill.distillers.csch import CSCHDistiller
        from distill.metrics_log import read_journal
        from distill.train_student import train_student

        folder = course.run.work / f"{name}-{time.monotonic_ns()}" / "work"
        folder.mkdir(parents=True)
        lesson = replace(course.student_lesson, train=course.data.train[: self.batch * self.steps])
        terms = StudentTrainConfig(batch=self.batch)
        prepare = self.stored(course) if name == "stored" else self.online(course)
        net, schedule = course.beginning("student"), replace(course.schedule(terms, 1), batch=self.batch)
        start = time.monotonic()
        train_student(
            net,
            lesson,
            prepare,
            terms.center_weight,
            CSCHDistiller(DistillContext(lesson.words, lesson.words, 0)),
            schedule,
            (1e-3, 0.05),
            folder,
            "timed",
        )
        seconds = time.monotonic() - start
        return {"seconds": seconds, "waited": sum(p.waited for p in read_journal(folder.parent / "train.jsonl"))}

    def stored(self, course: RunContext) -> Prepare:
        """Batches of stored views; what the teacher said of them is random, which time does not mind either."""
        import torch

        from distill.data.augment import stored
        from distill.train_student import Views as Stored
        from distill.train_student import from_views

        index = course.data.train[: self.batch * self.steps]
        lesson, crops = replace(course.student_lesson, train=index), stored(len(index), 8, 0.3, 0)
        said = torch.randn(8, len(index), course.learning.bits, generator=torch.Generator().manual_seed(0))
        return from_views(lesson, Stored(index, crops, said), 0)

    def online(self, course: RunContext) -> Prepare:
        """Batches of fresh crops, the teacher looking at each."""
        from distill.train_student import from_teacher

        lesson = replace(course.student_lesson, train=course.data.train[: self.batch * self.steps])
        teacher = course.beginning("teacher").eval()
        return from_teacher(lesson, teacher, course.teacher_lesson, 0.3, lesson.train[:0], 0)
