"""What a run's teacher and student are trained by, made for its pictures."""

from __future__ import annotations

import torch

from distill import weights
from distill.course import Course
from distill.distillers import DISTILLERS
from distill.distillers.base import Distiller
from distill.distillers.base import Task as StudentTask
from distill.lesson import Logits
from distill.models import HashNet
from distill.objectives import OBJECTIVES
from distill.objectives.base import Objective, Task


def objective_of(course: Course, net: HashNet) -> Objective:
    """The objective of a teacher `net`, as it begins."""
    data, learning, lesson = course.data, course.learning, course.teacher_lesson
    fit, mode = learning.teacher_fit, course.plan.teacher_mode
    epochs = (mode != "full") * fit.head_epochs + (mode != "quick") * course.plan.teacher_epochs
    task = Task(
        positive=lesson.positive[data.train], gallery=lesson.positive[data.gallery], words=lesson.words,
        targets=lesson.targets[data.train], several=data.labels.ndim == 2, features=net.head.features,
        steps=course.schedule(fit, epochs).steps_in_epoch(len(data.train)), epochs=epochs, seed=learning.seed,
    )  # fmt: skip
    made: Objective = OBJECTIVES.make(learning.objective, task, learning.objective_options)
    return made.to(weights.device())


def distiller_of(course: Course, gallery: Logits) -> Distiller:
    """The student's distiller as it begins; gallery: the teacher's logits of the gallery's pictures."""
    learning, device = course.learning, weights.device()
    task = StudentTask(course.student_lesson.words, torch.from_numpy(gallery).to(device), learning.seed)
    options = learning.student_fit.terms() if learning.distiller == "csch" else learning.distiller_options
    made: Distiller = DISTILLERS.make(learning.distiller, task, options)
    return made.to(device)
