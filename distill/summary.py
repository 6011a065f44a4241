"""A finished run in figures: logits for evaluation, model summaries, hash centers and training curves."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from distill.codebook import center_assignment, center_construction, hash_centers_of, optimises_multilabel_centers
from distill.context import Role, RunContext, multi_hot
from distill.hash_centers.assignment import class_means, class_similarity, gram_correlation, is_equidistant
from distill.infer import Logits
from distill.metrics_log import read_metrics
from distill.models.hash_net import HashNet
from distill.pipeline import TrainedModels
from gallery.codes import unpack
from gallery.files import sha256_of
from gallery.results import ModelSummary
from gallery.training_results import HashCenterSummary, TrainingCurve

MAX_CENTERS = 64  # classes whose centers the report shows


class PairLogits(NamedTuple):
    """Logits `[images, bits]` beside the gallery's codes; the teacher's are None where only its codes are known.

    student_gallery: in the order of the gallery's index
    """

    teacher_queries: Logits | None
    student_queries: Logits
    student_gallery: Logits


def pair_logits(context: RunContext, models: TrainedModels) -> PairLogits:
    """Return both networks on the queries, and the student on the gallery: what all retrieval pairs need."""
    queries, space, teacher, student = context.data.query, models.space.id, models.teacher, models.student
    return PairLogits(
        context.infer_logits("teacher", teacher, queries, "teacher queries", space) if teacher else None,
        student_logits(context, student, space, "queries"),
        student_logits(context, student, space, "gallery")[context.gallery_order],
    )  # fmt: skip


def student_logits(context: RunContext, student: HashNet, space_id: str, part: Literal["queries", "gallery"]) -> Logits:
    """Return the student's logits of `data.query` or `data.gallery`, `[images, bits]`."""
    key = f"{space_id} {sha256_of(context.run_dir.folder / 'student.safetensors')}"
    index = context.data.query if part == "queries" else context.data.gallery
    return context.infer_logits("student", student, index, f"student {part}", key)


def model_summaries(context: RunContext, models: TrainedModels) -> Iterator[ModelSummary]:
    """Return the networks in figures."""
    steps = {point.stage: point.step for point in read_metrics(context.run_dir.folder / "train.jsonl")}
    roles: tuple[tuple[Role, HashNet | None], ...] = ("teacher", models.teacher), ("student", models.student)
    for role, model in roles:
        if model is not None:
            info, size = context.backbone(role)
            yield ModelSummary(
                role=role, name=info.name, size=size, weights=info.source, random=info.random,
                parameters=sum(p.numel() for p in model.parameters()),
                seconds=context.run_dir.seconds.get(role, 0.0), steps=steps.get(role, steps.get("pair", 0)),
            )  # fmt: skip


def hash_center_summary(context: RunContext, models: TrainedModels) -> HashCenterSummary | None:
    """Return the distances between hash centers beside class similarities, of at most `MAX_CENTERS` classes.

    None without classes.
    """
    classes, reused = context.classes, context.config.reuse_gallery is not None
    if not classes:
        return None
    shown = np.unique(np.linspace(0, len(classes) - 1, min(MAX_CENTERS, len(classes)), dtype=int))
    codes = np.where(unpack(models.gallery.codes), 1.0, -1.0)
    means = class_means(codes, multi_hot(context.labels[context.indexed_images], len(classes)))[shown]
    centers = hash_centers_of(context)[shown].astype(int)
    built: str = center_construction(context) if context.loss_class.centers else "the majority of a class's codes"
    if optimises_multilabel_centers(context):
        built = "far apart, then optimised for majority-vote targets that tell which images share a class"
    return HashCenterSummary(
        classes=tuple(classes[c] for c in shown), similarity_of="the teacher's codes of the gallery",
        distance=tuple(map(tuple, ((centers.shape[1] - centers @ centers.T) // 2).tolist())),
        similarity=tuple(map(tuple, class_similarity(means).round(3).tolist())),
        construction="of the earlier run" if reused else built,
        assignment="of the earlier run" if reused else center_assignment(context),
        correlation=None if is_equidistant(centers) else gram_correlation(centers, means),
    )  # fmt: skip


def training_curves(context: RunContext) -> Iterator[TrainingCurve]:
    """Return the training curve of each stage."""
    points = read_metrics(context.run_dir.folder / "train.jsonl")
    for stage in dict.fromkeys(point.stage for point in points):
        own = [point for point in points if point.stage == stage]
        steps, loss, accuracy = zip(*((p.step, p.loss, p.accuracy) for p in own), strict=True)
        validation = tuple((p.step, p.validation) for p in own if p.validation is not None)
        yield TrainingCurve(stage=stage, steps=steps, loss=loss, accuracy=accuracy, validation=validation)
