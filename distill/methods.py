"""What a run's teacher and student are trained by, made for its pictures."""

from __future__ import annotations

import torch

from distill.context import RunContext
from distill.distillers import DISTILLERS
from distill.distillers.base import DistillContext as StudentTask
from distill.distillers.base import Distiller
from distill.losses import LOSSES
from distill.losses.base import HashLoss, LossContext
from distill.models import pretrained
from distill.models.hash_net import HashNet
from distill.training_set import Logits


def objective_of(course: RunContext, net: HashNet) -> HashLoss:
    """The objective of a teacher `net`, as it begins."""
    data, learning, lesson = course.data, course.learning, course.teacher_lesson
    fit, mode = learning.teacher_train, course.plan.teacher_finetune
    epochs = (mode != "full") * fit.linear_probe_epochs + (mode != "linear_probe") * course.plan.teacher_epochs
    task = LossContext(
        positive=lesson.positive[data.train], gallery=lesson.positive[data.gallery], centers=lesson.words,
        target_codes=lesson.targets[data.train], multilabel=data.labels.ndim == 2, features=net.head.features,
        steps_per_epoch=course.schedule(fit, epochs).steps_in_epoch(len(data.train)), epochs=epochs, seed=learning.seed,
    )  # fmt: skip
    made: HashLoss = LOSSES.build(learning.loss, task, learning.loss_args)
    return made.to(pretrained.device())


def distiller_of(course: RunContext, gallery: Logits) -> Distiller:
    """The student's distiller as it begins; gallery: the teacher's logits of the gallery's pictures."""
    learning, device = course.learning, pretrained.device()
    task = StudentTask(course.student_lesson.words, torch.from_numpy(gallery).to(device), learning.seed)
    made: Distiller = DISTILLERS.build(learning.distiller, task, learning.distiller_args)
    return made.to(device)
