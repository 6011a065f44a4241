"""Online distillation: teacher and student trained at once, CSCH's simultaneous schedule."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.context import RunContext
from distill.data.augment import random_resized_crops
from distill.distributed import shard
from distill.engine import Batches, OptimizedModule, fit
from distill.infer import Indices, features_and_logits, forward_logits
from distill.losses.base import LossBatch
from distill.train_student import build_student_loss, views_by_apps
from distill.train_teacher import build_loss, save_teacher
from distill.training_set import TrainingSet
from gallery import codespace


def train_both(context: RunContext) -> None:
    """Train both networks on the same crops, as CSCH's paper does; the stages that follow find both done.

    Unless the instance loss is the joint one, no gradient of the student reaches the teacher: it ends bit for bit as
    `finetune` would have left it.
    """
    run_dir, resolved = context.run_dir, context.resolved
    if run_dir.is_done("teacher") and run_dir.is_done("student"):
        return
    run_dir.invalidate("teacher", "student")  # one is nothing without the other
    what = f"training {resolved.teacher.name} and {resolved.student.name} at once{views_by_apps(context)}"
    with run_dir.stage("teacher", what):
        teacher, student = context.build_model("teacher"), context.build_model("student")
        teacher_data, data = TrainingSet(context, "teacher"), TrainingSet(context, "student")
        data.hash_centers = teacher_data.hash_centers
        spec, own = context.train_spec("teacher"), context.train_spec("student")
        teacher_loss = build_loss(context, teacher, teacher_data)
        loss = build_student_loss(context, data, np.zeros((0, context.config.bits), np.float32))
        teacher_fn, student_fn = features_and_logits(teacher), forward_logits(student)

        def load(rows: Indices, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
            index = data.train[rows]
            crops = random_resized_crops(len(rows), spec.crop_min_scale, generator)
            larger = teacher_data.loader.load(shard(index), shard(crops))
            return larger, data.load_views(index, crops, generator), torch.from_numpy(rows)

        def loss_fn(batch: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
            larger, smaller, rows = batch
            index, (features, teacher_logits) = data.train[rows], teacher_fn(larger)
            student_logits = student_fn(smaller)
            total = teacher_loss(LossBatch(teacher_logits, features, rows.to(teacher_logits.device)))
            total = total + loss(data, student_logits, teacher_logits, index)
            return total, data.accuracy(student_logits.detach(), index)

        modules = [OptimizedModule("teacher", teacher, spec.lr, spec.weight_decay),
                   OptimizedModule("student", student, own.lr, own.weight_decay)]  # fmt: skip
        checkpoint, validate = context.checkpoint("pair"), data.make_validator(student)
        fit(modules, Batches(len(data.train), load), loss_fn, spec, checkpoint, validate)
        save_teacher(context, teacher, teacher_data)
        context.save_model("student", student, codespace.load(run_dir.folder)[0].id)
    run_dir.mark_done("student")
