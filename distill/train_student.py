"""Distill the student with --distiller, from cached teacher outputs or with the teacher on the fly."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.checkpoint import load_network, read_checkpoint
from distill.codebook import hash_centers_of
from distill.context import RunContext
from distill.data.augment import fixed_crops, random_resized_crops
from distill.distillers import DISTILLERS
from distill.distillers.base import DistillBatch, DistillContext, Distiller
from distill.distributed import all_gather, shard
from distill.engine import Batches, Checkpoint, OptimizedModule, TrainSpec, fit
from distill.infer import Indices, Logits, forward_logits
from distill.models.hash_net import HashNet
from distill.reference_features import unlabeled_images, unlabeled_ratio
from distill.system import device
from distill.training_set import TrainingSet
from gallery.codespace import CodeSpace
from gallery.console import log
from gallery.errors import InputError


@dataclass(frozen=True)
class StudentBatch:
    """One step: this process's share of the images, and the indices of the whole batch, labeled ones first.

    teacher_logits: returns the teacher's logits of the same views, `[B, bits]`
    """

    images: Tensor
    index: Indices
    n_labeled: int
    teacher_logits: Callable[[], Tensor]


class StudentLoss(nn.Module):
    """The center loss by its weight, and the distiller's loss."""

    def __init__(self, center_loss_weight: float, distiller: Distiller) -> None:
        super().__init__()
        self.center_loss_weight, self.distiller = center_loss_weight, distiller

    def forward(self, data: TrainingSet, student: Tensor, teacher: Tensor, index: Indices) -> Tensor:
        """Return the loss of a batch, a scalar: the center loss is of the first rows, the labeled images at `index`.

        student, teacher: logits `[B, bits]` on the same views
        """
        loss: Tensor = self.distiller(DistillBatch(student, teacher, data.multi_hot[index]))
        if self.center_loss_weight and len(index):
            loss = self.center_loss_weight * data.center_loss(student[: len(index)], index) + loss
        return loss


def distill_student(context: RunContext, teacher: HashNet | None, space: CodeSpace, gallery_logits: Logits) -> HashNet:
    """Train the student and return it, or read it where it is finished.

    teacher: None where only the gallery's codes are known; gallery_logits: the teacher's, `[len(gallery), bits]`
    """
    run_dir, (info, size), views = context.run_dir, context.backbone("student"), context.resolved.student_cached_views
    path = run_dir.folder / "student.safetensors"
    if run_dir.is_done("student") and (found := read_checkpoint(path)[1].get("code_space")) != space.id:
        log.warning("  the student is of code space %s, the gallery of %s: distilling it again", found, space.id)
        run_dir.invalidate("student", "export", "evaluate")
    if not run_dir.is_done("student"):
        data = TrainingSet(context, "student")
        if not context.classes:
            data.set_reference(context.data.gallery, gallery_logits)
        loss = build_student_loss(context, data, gallery_logits)
        uses_teacher = loss.distiller.uses_teacher(loss.distiller.options)
        index, n_unlabeled = student_indices(context, teacher, uses_teacher)
        spec = context.train_spec("student", n_unlabeled)
        if teacher and not views:
            batches = batches_on_the_fly(context, teacher, data, index[len(data.train) :], n_unlabeled)
        else:
            source = "the teacher" if teacher else "the gallery's codes"
            what = f"caching outputs of {source}" if uses_teacher else "sampling crops"
            with run_dir.stage("views", f"{what} for {views} views of {len(index)} images"):
                crops, logits = cache_teacher_views(context, teacher, index, space, gallery_logits, uses_teacher)
            batches = batches_from_cache(data, index, crops, logits, n_unlabeled)
        what = f"distilling {info.name} at {size} px, {info.source}{views_by_apps(context)}"
        with run_dir.stage("student", what):
            model = context.build_model("student")
            train_student(model, data, batches, loss, spec, context.checkpoint("student", space.id))
            context.save_model("student", model, space.id)
    run_dir.delete("student.checkpoint.safetensors")
    return load_network(path, space)


def views_by_apps(context: RunContext) -> str:
    """Return what the log says of the share of views that are made as apps would make them."""
    share = context.config.student_train.app_augment
    return f"; {100 * share:g}% of its views as apps make them" if share else ""


def build_student_loss(context: RunContext, data: TrainingSet, gallery_logits: Logits) -> StudentLoss:
    """Return the student's loss at the start of its training; gallery_logits: the teacher's of the gallery's images.

    Without classes there is no center loss, and a distiller's centers are those of clusters of codes.
    """
    config, centers = context.config, data.centers
    if not context.classes:
        centers = torch.from_numpy(hash_centers_of(context).astype(np.float32)).to(device())
    task = DistillContext(centers, torch.from_numpy(gallery_logits).to(device()))
    distiller: Distiller = DISTILLERS.build(config.distiller, task, config.distiller_args)
    weight = config.student_train.center_loss_weight if context.classes else 0.0
    return StudentLoss(weight, distiller).to(device())


def train_student(
    model: HashNet, data: TrainingSet, batches: Batches, loss: StudentLoss, spec: TrainSpec, checkpoint: Checkpoint
) -> None:
    """Train all layers of the student, and the distiller's own parameters, in place."""
    forward, rates = forward_logits(model), (spec.lr, spec.weight_decay)

    def loss_fn(batch: StudentBatch) -> tuple[Tensor, Tensor]:
        logits, index = forward(batch.images), batch.index[: batch.n_labeled]
        teacher = batch.teacher_logits() if loss.distiller.uses_teacher(loss.distiller.options) else logits.detach()
        return loss(data, logits, teacher, index), metric(logits[: len(index)].detach(), index)

    own, metric = OptimizedModule("distiller", loss.distiller, *rates, averaged=False), data.accuracy
    if not len(data.centers):
        log.info("  accuracy is the share of bits that are the teacher's, of the whole image")
        metric = data.bit_agreement
    modules, validate = [OptimizedModule("student", model, *rates), own], data.make_validator(model, metric)
    fit(modules, batches, loss_fn, spec, checkpoint, validate)


def batches_from_cache(data: TrainingSet, index: Indices, crops: Tensor, logits: Tensor, n_unlabeled: int) -> Batches:
    """Return batches of `cache_teacher_views`: rows of train, and `n_unlabeled` sampled unlabeled images."""
    first, logits = len(data.train), logits.to(data.loader.device)

    def load(rows: NDArray[np.int64], generator: torch.Generator) -> StudentBatch:
        view = torch.randint(len(crops), (len(rows) + n_unlabeled,), generator=generator)
        row = torch.from_numpy(rows)
        if n_unlabeled:
            row = torch.cat([row, torch.randint(first, len(index), (n_unlabeled,), generator=generator)])
        images, teacher = index[row.numpy()], logits[view.to(logits.device), row.to(logits.device)]
        return StudentBatch(data.load_views(images, crops[view, row], generator), images, len(rows), lambda: teacher)

    return Batches(len(data.train), load)


def batches_on_the_fly(
    context: RunContext, teacher: HashNet, data: TrainingSet, unlabeled: Indices, n_unlabeled: int
) -> Batches:
    """Return batches of random crops of rows of train, and of `n_unlabeled` of the images `unlabeled`."""
    forward, loader, train = forward_logits(teacher.eval()), context.image_loader("teacher"), data.train
    scale = context.resolved.student_crop_min_scale

    def load(rows: NDArray[np.int64], generator: torch.Generator) -> StudentBatch:
        crops = random_resized_crops(len(rows) + n_unlabeled, scale, generator)
        sampled = torch.randint(max(1, len(unlabeled)), (n_unlabeled,), generator=generator).numpy()
        index = np.concatenate([train[rows], unlabeled[sampled]])
        large = loader.load(shard(index), shard(crops))

        def teacher_logits() -> Tensor:
            with torch.no_grad():
                return all_gather(forward(large))

        return StudentBatch(data.load_views(index, crops, generator), index, len(rows), teacher_logits)

    return Batches(len(train), load)


def student_indices(context: RunContext, teacher: HashNet | None, uses_teacher: bool) -> tuple[Indices, int]:
    """Return the images the student is trained on, those of train first, and how many rows of a batch are unlabeled."""
    data, options = context.data, context.config.student_train
    if teacher is None and not np.isin(data.train, data.gallery).all():
        fix = "Mark them as gallery too, or put teacher.safetensors beside its codes."
        raise InputError("training images that the gallery has codes of", "some that it has none of", fix)
    unlabeled = unlabeled_images(data, context.config.seed, "student", stored_only=teacher is None)
    if teacher is None and not context.resolved.student_cached_views:
        raise InputError("cached views for stored codes", "0", "Choose --student-train.cached-views of at least 1.")
    ratio = unlabeled_ratio(options.unlabeled_ratio, len(unlabeled), len(data.train))
    batch_size = min(options.batch_size, len(data.train))
    n_unlabeled = min(round(ratio * batch_size), batch_size - 2) if len(unlabeled) and uses_teacher else 0
    return np.concatenate([data.train, unlabeled if n_unlabeled else unlabeled[:0]]), n_unlabeled


def cache_teacher_views(
    context: RunContext, teacher: HashNet | None, index: Indices, space: CodeSpace, gallery_logits: Logits,
    uses_teacher: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return V fixed crops `[V, len(index), 4]` and the teacher's logits of them `[V, len(index), bits]`.

    The first crop is the whole image, whose logits are known where it is in the gallery.
    """
    resolved = context.resolved
    position = {image: row for row, image in enumerate(context.data.gallery.tolist())}
    known = np.array([position.get(image, -1) for image in index.tolist()])
    new = np.flatnonzero(known < 0)
    views, scale = max(1, resolved.student_cached_views), resolved.student_crop_min_scale
    crops = fixed_crops(len(index), views, scale, context.config.seed)
    logits = []
    for view in range(views):
        if not uses_teacher:
            logits.append(np.zeros((len(index), space.bits), np.float32))
        elif teacher is None or view == 0:  # without a teacher, the gallery's codes hold for every crop
            logits.append(gallery_logits[known])
            if len(new) and teacher:
                logits[-1][new] = context.infer_logits("teacher", teacher, index[new], "view 0", space.id)
        else:
            logits.append(context.infer_logits("teacher", teacher, index, f"view {view}", space.id, crops[view]))
    return crops, torch.from_numpy(np.stack(logits))
