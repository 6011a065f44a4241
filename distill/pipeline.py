"""The stages of training, each resumable: teacher, gallery, student."""

from __future__ import annotations

from distill.build_gallery import build_gallery, reuse_gallery
from distill.context import RunContext
from distill.infer import Logits
from distill.models.hash_net import HashNet
from distill.train_joint import train_both
from distill.train_student import distill_student
from distill.train_teacher import train_teacher
from distill.trained_models import TrainedModels
from gallery.codespace import CodeSpace
from gallery.index import GalleryIndex


def train_all(context: RunContext) -> TrainedModels:
    """Train teacher and student and build the gallery; a finished stage is read."""
    if context.config.reuse_gallery:
        teacher, space, gallery, logits = reuse_gallery(context, context.config.reuse_gallery)
    else:
        if context.config.distillation == "online":
            train_both(context)
        teacher, space, gallery, logits = train_teacher_and_gallery(context)
    return TrainedModels(teacher, distill_student(context, teacher, space, logits), space, gallery)


def train_teacher_and_gallery(context: RunContext) -> tuple[HashNet, CodeSpace, GalleryIndex, Logits]:
    """Return the teacher, its code space and gallery, and what the codes are the signs of, `[len(gallery), bits]`."""
    teacher, space = train_teacher(context)
    return teacher, space, *build_gallery(context, teacher, space)
