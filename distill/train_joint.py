"""Online distillation: teacher and student trained at once, CSCH's simultaneous schedule."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from distill.context import Role, RunContext
from distill.data.augment import random_resized_crops
from distill.distributed import shard
from distill.engine import Batches, Checkpoint, OptimizedModule, TrainSpec, fit
from distill.infer import Indices, forward_logits
from distill.models.hash_net import HashNet
from distill.train_student import StudentLoss, build_student_loss, save_student
from distill.train_teacher import save_teacher
from distill.training_set import TrainingSet


class ModelAndData(NamedTuple):
    """A network in joint training, its images, and its own learning rate and weight decay."""

    model: HashNet
    data: TrainingSet
    lr: float
    weight_decay: float

    @classmethod
    def of(cls, context: RunContext, role: Role) -> ModelAndData:
        """Return the teacher or the student of a run at the start of its training."""
        spec = context.train_spec(role)
        return cls(context.build_model(role), TrainingSet.of(context, role), spec.lr, spec.weight_decay)


def train_both(context: RunContext) -> None:
    """Train teacher and student at once; the stages that follow find both done."""
    run_dir, resolved = context.run_dir, context.resolved
    if run_dir.is_done("teacher") and run_dir.is_done("student"):
        return
    with run_dir.stage("teacher", f"training {resolved.teacher.name} and {resolved.student.name} at once"):
        teacher, student = ModelAndData.of(context, "teacher"), ModelAndData.of(context, "student")
        loss = build_student_loss(context, student.data, np.zeros((0, context.config.bits), np.float32))
        train_joint(teacher, student, loss, context.train_spec("teacher"), context.checkpoint("pair"))
        save_teacher(context, teacher.model, teacher.data)
        save_student(context, student.model)
        run_dir.mark_done("student")


def train_joint(
    teacher: ModelAndData, student: ModelAndData, loss: StudentLoss, spec: TrainSpec, checkpoint: Checkpoint
) -> None:
    """Train both networks in place on the same crops, as CSCH's paper does.

    Unless the instance loss is the joint one, no gradient of the student reaches the teacher: it ends bit for bit as
    `finetune` would have left it.
    """
    teacher_fn, student_fn = forward_logits(teacher.model), forward_logits(student.model)

    def load(rows: Indices, generator: torch.Generator) -> tuple[Tensor, Tensor, Indices]:
        index, crops = student.data.train[rows], shard(random_resized_crops(len(rows), spec.crop_min_scale, generator))
        return teacher.data.loader.load(shard(index), crops), student.data.loader.load(shard(index), crops), index

    def loss_fn(batch: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        larger, smaller, index = batch
        teacher_logits, student_logits = teacher_fn(larger), student_fn(smaller)
        total = teacher.data.center_loss(teacher_logits, index)
        total = total + loss(student.data, student_logits, teacher_logits, index)
        return total, student.data.accuracy(student_logits.detach(), index)

    modules = [
        OptimizedModule("teacher", teacher.model, teacher.lr, teacher.weight_decay),
        OptimizedModule("student", student.model, student.lr, student.weight_decay),
    ]
    validate = student.data.make_validator(student.model)
    fit(modules, Batches(len(student.data.train), load), loss_fn, spec, checkpoint, validate)
