"""Train the teacher with --loss: linear probe, fine-tuning, or one after the other."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.checkpoint import load_network
from distill.codebook import final_centers
from distill.context import RunContext
from distill.data.augment import color_jitter, fixed_crops, random_resized_crops
from distill.distributed import LossFn, is_main_process, main_process_first, shard
from distill.engine import Batches, Checkpoint, OptimizedModule, TrainSpec, fit
from distill.infer import Logits, extract_features, features_and_logits
from distill.losses import LOSSES
from distill.losses.base import HashLoss, HeadFit, LossBatch, LossContext, UnlabeledBatch
from distill.models.hash_net import HashNet
from distill.reference_features import ReferenceFeatures, reference_features
from distill.run_dir import LEARNED_CODES
from distill.system import device
from distill.teacher_golden import golden_logits, save_golden
from distill.training_set import MetricFn, TrainingSet
from gallery import codespace
from gallery.codespace import CodeSpace
from gallery.console import log
from gallery.errors import CodeSpaceMismatch, InputError
from gallery.files import atomic_path, sha256_of

SECOND_VIEW_SCALE, SECOND_VIEW_JITTER = 0.4, 0.2  # smallest area over the first view's; strength of the color jitter
MAX_FEATURE_BYTES = 1 << 30  # of cached features; fewer views where all would not fit
Rows = NDArray[np.int64]


class TeacherTask(NamedTuple):
    """What a teacher is trained by; reference: the pretrained backbone's features, for losses that use them."""

    model: HashNet
    loss: HashLoss
    data: TrainingSet
    reference: ReferenceFeatures


class TeacherBatch(NamedTuple):
    """One step: views of the images `rows` of train, in the first of them followed by unlabeled images.

    unlabeled: rows of the reference features, int `[U]`
    """

    views: list[Tensor]
    rows: Rows
    unlabeled: Tensor


def train_teacher(context: RunContext) -> tuple[HashNet, CodeSpace]:
    """Train the teacher and return it with its code space, or read them where they are finished."""
    run_dir, resolved, path = context.run_dir, context.resolved, context.run_dir.folder / "teacher.safetensors"
    learned = context.loss_class.learns_gallery_codes
    if not (run_dir.is_done("teacher") or learned) and run_dir.is_intact("teacher", path.name):
        with run_dir.stage("teacher", "making its code space again"):
            save_code_space(context, load_network(path), TrainingSet(context, "teacher"))
    if not run_dir.is_done("teacher"):
        info, how = resolved.teacher, resolved.teacher_finetune
        with run_dir.stage("teacher", f"training {info.name} at {resolved.teacher_img_size} px ({how}), {info.source}"):
            model, data = context.build_model("teacher"), TrainingSet(context, "teacher")
            loss, spec = build_loss(context, model, data), context.train_spec("teacher")
            task = TeacherTask(model, loss, data, reference_features(context, model, loss))
            if not loss.uses_labels:
                log.info(
                    "  accuracy is the share of images whose nearest of a batch is that by the pretrained features"
                )
                images = np.concatenate([data.train, data.validation])
                known = torch.cat([task.reference.train.cpu(), torch.from_numpy(cache_validation(context, model))])
                data.set_reference(images, (known - task.reference.mean.cpu()).numpy())
            if loss.is_fitted:
                set_head(model, loss.fit_head(task.reference.train))
            elif how != "full":
                options, stage = context.config.teacher_train, "teacher" if how == "linear_probe" else "head"
                probe = spec.model_copy(update={"epochs": options.linear_probe_epochs, "lr": options.linear_probe_lr,
                                                "model_ema_decay": 0.0, "early_stopping_patience": 0})  # fmt: skip
                features = cache_features(context, model), cache_validation(context, model)
                linear_probe(task, features, probe, context.checkpoint(stage))
            if how != "linear_probe":
                finetune(task, spec, context.checkpoint("teacher"), freeze_bn=how == "lp_ft")
            if (codes := loss.codes()) is not None and is_main_process():  # the gallery is made of them
                with atomic_path(run_dir.folder / LEARNED_CODES) as draft, draft.open("wb") as stream:
                    np.save(stream, codes.cpu().numpy().astype(np.int8), allow_pickle=False)
            save_teacher(context, model, data)
    run_dir.delete("head.checkpoint.safetensors", "teacher.checkpoint.safetensors", "pair.checkpoint.safetensors")
    space, _ = codespace.load(run_dir.folder)
    return load_teacher(path, space), space


def load_teacher(path: Path, space: CodeSpace) -> HashNet:
    """Read a teacher; raises `CodeSpaceMismatch` unless it is that of the code space."""
    if sha256_of(path) != space.teacher_sha256:
        raise CodeSpaceMismatch(f"the teacher of code space {space.id} at {path}", "another", "Restore or remove it.")
    return load_network(path)


def build_loss(context: RunContext, model: HashNet, data: TrainingSet) -> HashLoss:
    """Return the loss of a teacher at the start of its training."""
    config, how, spec = context.config, context.resolved.teacher_finetune, context.train_spec("teacher")
    probe_epochs = config.teacher_train.linear_probe_epochs
    task = LossContext(
        positive=data.multi_hot[data.train], gallery=data.multi_hot[context.data.gallery], centers=data.centers,
        target_codes=data.target_codes[data.train], multilabel=context.data.labels.ndim == 2,
        features=model.head.features, steps_per_epoch=spec.steps_per_epoch(len(data.train)), seed=config.seed,
        epochs=(how != "full") * probe_epochs + (how != "linear_probe") * spec.epochs,
    )  # fmt: skip
    loss: HashLoss = LOSSES.build(config.loss, task, config.loss_args)
    return loss.to(device())


def cache_features(context: RunContext, model: HashNet) -> Logits:
    """Return the pretrained backbone's features of fixed crops of the training images, `[views, len(train), D]`."""
    resolved, train, extract = context.resolved, context.data.train, extract_features(model.eval())
    features = [context.infer(extract, "teacher", train, "teacher features 0", "pretrained 0")]
    views = max(1, min(resolved.student_cached_views, MAX_FEATURE_BYTES // features[0].nbytes))
    crops = fixed_crops(len(train), views, resolved.teacher_crop_min_scale, context.config.seed)
    features += [context.infer(extract, "teacher", train, f"teacher features {v}", f"pretrained {v}", crops[v])
                 for v in range(1, views)]  # fmt: skip
    return np.stack(features)


def cache_validation(context: RunContext, model: HashNet) -> Logits:
    """Return the pretrained backbone's features of the validation images, `[len(validation), D]`."""
    extract, index = extract_features(model.eval()), context.data.validation
    if not len(index):
        return np.zeros((0, model.head.features), np.float32)
    return context.infer(extract, "teacher", index, "teacher features validation", "pretrained validation")


def linear_probe(task: TeacherTask, features: tuple[Logits, Logits], spec: TrainSpec, checkpoint: Checkpoint) -> None:
    """Train the hash head, and the loss's own parameters, in place on cached features: seconds.

    features: of the frozen backbone, `[views, len(train), D]` and `[len(validation), D]`; a step samples a view of each
    of its images
    """
    model, loss, data, reference = task
    cached, held_out = (torch.from_numpy(one).to(data.loader.device) for one in features)

    def load(rows: Rows, generator: torch.Generator) -> TeacherBatch:
        views = (torch.randint(len(cached), (len(rows),), generator=generator) for _ in range(loss.n_views))
        shown = [cached[view, torch.from_numpy(rows)] for view in views]
        others = reference.sample(generator)
        shown[0] = torch.cat([shown[0], reference.unlabeled[others]])
        return TeacherBatch(shown, rows, others)

    loss_fn = _loss_of_views(task, lambda features: (features, model.head(features)))

    def validate() -> float | None:
        model.head.eval()
        with torch.inference_mode():
            return data.score(model.head(held_out if len(held_out) else cached[0]), _train_metric(data, loss))

    batches = Batches(len(data.train), load, reference.per_step)
    fit(_with_loss("head", model.head, loss, spec), batches, loss_fn, spec, checkpoint, validate)
    model.eval()


def finetune(task: TeacherTask, spec: TrainSpec, checkpoint: Checkpoint, freeze_bn: bool = False) -> None:
    """Train all layers, and the loss's own parameters, in place on random crops.

    freeze_bn: batch norms of the backbone keep their running statistics
    """
    model, loss, data, reference = task
    infer_view = features_and_logits(model)

    def load(rows: Rows, generator: torch.Generator) -> TeacherBatch:
        index, scale = data.train[rows], spec.crop_min_scale
        crops, others = random_resized_crops(len(index), scale, generator), reference.sample(generator)
        harder = random_resized_crops(len(index), SECOND_VIEW_SCALE * scale, generator) if loss.n_views > 1 else None
        shown = np.concatenate([index, reference.images[others.numpy()]])
        crops = torch.cat([crops, random_resized_crops(len(others), scale, generator)])
        views = [data.loader.load(shard(shown), shard(crops))]
        if harder is not None:
            views.append(color_jitter(data.loader.load(shard(index), shard(harder)), SECOND_VIEW_JITTER, generator))
        return TeacherBatch(views, rows, others)

    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        model.backbone.train(not freeze_bn)
        return infer_view(images)

    modules, batches = _with_loss("teacher", model, loss, spec), Batches(len(data.train), load, reference.per_step)
    validate = data.make_validator(model, _train_metric(data, loss))
    fit(modules, batches, _loss_of_views(task, forward), spec, checkpoint, validate)


def _loss_of_views(task: TeacherTask, forward: Callable[[Tensor], tuple[Tensor, Tensor]]) -> LossFn:
    """Return the loss and the accuracy of a batch; forward: a view to features and logits."""
    _, loss, data, reference = task
    metric = _train_metric(data, loss)

    def loss_fn(batch: TeacherBatch) -> tuple[Tensor, Tensor]:
        (features, logits), *second = map(forward, batch.views)
        count, others = len(batch.rows), batch.unlabeled.to(reference.mean.device)
        rows = torch.from_numpy(batch.rows).to(logits.device)
        shown = LossBatch(
            logits[:count], features[:count], rows, second[0][1] if second else None,
            reference.train[rows] - reference.mean if len(reference.train) else None,
            UnlabeledBatch(logits[count:], reference.unlabeled[others] - reference.mean) if len(others) else None,
        )  # fmt: skip
        return loss(shown), metric(logits[:count].detach(), data.train[batch.rows])

    return loss_fn


def _with_loss(name: str, module: nn.Module, loss: HashLoss, spec: TrainSpec) -> list[OptimizedModule]:
    """Return a network with its loss, whose parameters are trained and whose buffers are kept in checkpoints."""
    rates = spec.lr, spec.weight_decay
    return [OptimizedModule(name, module, *rates), OptimizedModule("loss", loss, *rates, averaged=False)]


def _train_metric(data: TrainingSet, loss: HashLoss) -> MetricFn:
    """Return the accuracy for the training curves: by nearest centers, where the loss knows them, or without labels."""
    if not loss.uses_labels:
        return data.neighbor_agreement
    return data.accuracy if loss.centers else data.nearest_neighbor_accuracy


def set_head(model: HashNet, fit: HeadFit) -> None:
    """Set the hash head, the weights of its convolution and the statistics of its batch norm, in place."""
    values = {"0.weight": fit.weight[:, :, None, None], "1.running_mean": fit.mean, "1.running_var": fit.variance}
    model.head.load_state_dict(model.head.state_dict() | values)
    model.eval()


def save_teacher(context: RunContext, model: HashNet, data: TrainingSet) -> None:
    """Write the trained teacher and its code space."""
    context.save_model("teacher", model)
    save_code_space(context, model, data)


def save_code_space(context: RunContext, model: HashNet, data: TrainingSet) -> None:
    """Write the code space of a teacher that was saved."""
    centers, path = final_centers(context, model, data.hash_centers), context.run_dir.folder / "teacher.safetensors"
    with main_process_first() as first:
        if first:
            preprocessing = context.preprocessing("teacher")
            golden = golden_logits(load_network(path), preprocessing)  # of the network that everyone else will read
            if not np.isfinite(golden).all():
                fix = "Lower --teacher-train.lr, and give the run another --name."
                raise InputError("a teacher whose logits are finite", "one that has diverged", fix)
            space = CodeSpace(
                bits=context.config.bits, classes=context.classes, teacher=context.resolved.teacher.name,
                teacher_sha256=sha256_of(path), centers_sha256=codespace.hash_centers(centers),
                preprocessing=preprocessing, golden_sha256=save_golden(path.parent, golden),
            )  # fmt: skip
            codespace.save(path.parent, space, centers)
