"""What all stages of one run share: its configuration, data and folder."""

from collections.abc import Collection
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill import data
from distill.checkpoint import save_network
from distill.config import BackboneInfo, OptimizerConfig, ResolvedConfig, TrainConfig
from distill.data import Dataset
from distill.data.augment import ImageLoader
from distill.data.split_changes import describe_changes
from distill.distributed import broadcast, main_process_first
from distill.engine import Checkpoint, TrainSpec
from distill.infer import ENCODE_BATCH, Indices, Logits, ModelFn, code_logits, forward_logits
from distill.losses import LOSSES
from distill.losses.base import HashLoss
from distill.models import pretrained
from distill.models.hash_net import HashNet, build
from distill.resolve import resolve
from distill.run_dir import RunDir
from distill.system import device
from gallery import codespace
from gallery.codespace import Preprocessing
from gallery.console import log
from gallery.encode import ShardCache, encode
from gallery.errors import InputError
from gallery.record import Record
from gallery.row_checks import item_id

Role = Literal["teacher", "student"]
SPLIT = "split.csv"


class DatasetFingerprint(Record):
    """The fingerprint of a run's data set, which cannot change after its start."""

    images: str


def resolve_config(run_dir: RunDir, config: TrainConfig) -> ResolvedConfig:
    """Resolve every "auto" once for the life of the run folder, and log why; nothing is written.

    A run that has begun needs its pretrained weights only where it builds a network anew.
    """

    def make() -> ResolvedConfig:
        (image_size, labeled), asked = data.summarize(config.data, config.data_root), config
        if config.reuse_gallery:
            space, _ = codespace.load(config.reuse_gallery)
            labeled = labeled and bool(space.classes)
            source = f"the run {config.reuse_gallery}"
            teacher = pretrained.describe(space.teacher, source, False, space.preprocessing)
            asked = config.model_copy(update={"teacher_img_size": space.preprocessing.size})
        else:
            teacher = pretrained.backbone_info(pretrained.find_pretrained(config.teacher, config.teacher_weights))
        student = pretrained.backbone_info(pretrained.find_pretrained(config.student, config.student_weights))
        return resolve(asked, teacher, student, image_size, device().type == "cuda", labeled)

    with main_process_first() as first:
        found = (run_dir.load_settings("resolved_config", ResolvedConfig) or make()) if first else None
    resolved: ResolvedConfig = broadcast(found)
    for reason in resolved.reasons:
        log.info("  %s", reason)
    for role, backbone in (("teacher", resolved.teacher), ("student", resolved.student)):
        if backbone.random:
            log.warning("The %s starts from RANDOM weights: found none for %s.", role, backbone.name)
    return resolved


@dataclass(frozen=True, eq=False)
class RunContext:
    """One run: its folder, configuration and data, and inference that is cached in the folder.

    config: as it was given, but for the loss, which is that of `resolved`
    """

    run_dir: RunDir
    config: TrainConfig
    resolved: ResolvedConfig
    data: Dataset

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes that are trained on: those of the training images; none for a loss that does not use labels."""
        return tuple(self.data.classes[c] for c in self._seen)

    @cached_property
    def labels(self) -> NDArray[Any]:
        """Labels of all images in terms of `classes`: int `[N]`, -1 for another class, or multi-hot `[N, C]`."""
        if self.data.labels.ndim == 2:
            return self.data.labels[:, self._seen]
        position = np.full(len(self.data.classes) + 1, -1)  # the last is for label -1
        position[self._seen] = np.arange(len(self._seen))
        return position[self.data.labels]

    @cached_property
    def _seen(self) -> Indices:
        return self.data.seen if self.loss_class.uses_labels else np.zeros(0, np.int64)

    @cached_property
    def gallery_ids(self) -> tuple[str, ...]:
        """The ids of the gallery's images, in the order of `data.gallery`."""
        return tuple(item_id(self.data.names[i]) for i in self.data.gallery)

    @cached_property
    def gallery_order(self) -> Indices:
        """The places in `data.gallery` of the rows of the gallery's index, which is in the order of the ids."""
        return np.array(sorted(range(len(self.gallery_ids)), key=self.gallery_ids.__getitem__), np.int64)

    @cached_property
    def indexed_images(self) -> Indices:
        """The images of the rows of the gallery's index: `data.gallery` in the order of the ids."""
        return self.data.gallery[self.gallery_order]

    @property
    def loss_class(self) -> type[HashLoss]:
        """The class of the teacher's loss."""
        found: type[HashLoss] = LOSSES.find(self.config.loss)
        return found

    @property
    def protocol(self) -> str:
        """What is searched where, and whether the gallery's codes were learned from labels."""
        name, loss, said = self.config.loss, self.loss_class, ""
        if loss.learns_gallery_codes:
            said = f" The gallery's codes are {name}'s own, learned from the labels of its images."
        if not loss.uses_labels:
            said = f" Nothing was learned from labels (loss {name})."
        return self.data.protocol + said

    def backbone(self, role: Role) -> tuple[BackboneInfo, int]:
        """Return the initialisation of a network, and the side of its input."""
        return getattr(self.resolved, role), getattr(self.resolved, f"{role}_img_size")

    def preprocessing(self, role: Role) -> Preprocessing:
        """Return how an image becomes a network's input."""
        info, size = self.backbone(role)
        return Preprocessing(size, info.mean, info.std)

    def image_loader(self, role: Role) -> ImageLoader:
        """Return the loader of a network's input."""
        info, size = self.backbone(role)
        by_apps = self.data.app_pixels if role == "student" else None
        return ImageLoader(self.data.pixels[size], info.mean, info.std, device(), by_apps)

    def build_model(self, role: Role) -> HashNet:
        """Return a network as its training starts, with pretrained weights where there are any."""
        config, (info, size) = self.config, self.backbone(role)
        found = pretrained.find_pretrained(getattr(config, role), getattr(config, f"{role}_weights"))
        if (found.name, found.source) != (info.name, info.source):
            expected, fix = f"({info.name}, {info.source})", "Bring them back, or start a run under another --name."
            raise InputError(f"the weights this run started from {expected}", f"{found.name}, {found.source}", fix)
        model = build(info.name, size, config.bits, config.seed)
        pretrained.load_pretrained(model.backbone, found)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub forgets this one
        return model.to(device())

    def save_model(self, role: Role, model: HashNet, space: str = "") -> Path:
        """Write a trained network, in the main process, and return its path; space: the id of a student's space."""
        path, (info, size) = self.run_dir.folder / f"{role}.safetensors", self.backbone(role)
        with main_process_first() as first:
            if first:
                save_network(path, model, info.name, size, self.config.bits, space)
        return path

    def train_spec(self, role: Role, n_unlabeled: int = 0) -> TrainSpec:
        """Return how a network is trained: in batches of at most `len(train)` images, `n_unlabeled` of them others."""
        options = getattr(self.config, f"{role}_train").model_dump(include=set(OptimizerConfig.model_fields))
        options |= {name: getattr(self.resolved, f"{role}_{name}") for name in ("epochs", "lr", "crop_min_scale")}
        options["batch_size"] = min(options["batch_size"], len(self.data.train))
        return TrainSpec(**options, seed=self.config.seed, n_unlabeled=n_unlabeled)

    def checkpoint(self, stage: str, key: str = "") -> Checkpoint:
        """Return where a stage keeps its state, which is valid for this data set and `key`."""
        return Checkpoint(self.run_dir.cache, stage, " ".join(filter(None, (self.data.fingerprint, key))))

    def pixel_logits(self, role: Role, model: HashNet, pixels: NDArray[np.uint8]) -> Logits:
        """Return logits `[n, bits]` of images `[n, S, S, 3]` that are not of the data, in the arithmetic of codes."""
        info, _ = self.backbone(role)
        loader, run = ImageLoader(pixels, info.mean, info.std, device()), code_logits(model.eval())
        parts = np.array_split(np.arange(len(pixels)), -(-len(pixels) // ENCODE_BATCH))
        return np.concatenate([run(loader.load(part)).float().cpu().numpy() for part in parts])

    def infer(
        self, model_fn: ModelFn, role: Role, index: Indices, label: str, key: str, crops: Tensor | None = None
    ) -> Logits:
        """Return the outputs for images, or for one crop of each; what was computed under `key` is read.

        model_fn: a function of a network in eval mode, at the input size of `role`
        """
        loader = self.image_loader(role)
        cache = ShardCache(self.run_dir.cache / label.replace(" ", "-"), label, f"{key} {self.data.fingerprint}")

        def encoder(rows: Indices) -> Logits:
            with torch.inference_mode():
                out = model_fn(loader.load(index[rows], None if crops is None else crops[rows]))
            return out.float().cpu().numpy()

        with main_process_first():
            return encode(encoder, np.arange(len(index)), ENCODE_BATCH, cache)

    def infer_logits(
        self, role: Role, model: HashNet, index: Indices, label: str, key: str, crops: Tensor | None = None
    ) -> Logits:
        """Return logits `[len(index), bits]` of images, in the arithmetic of stored codes, or of one crop of each.

        Logits of crops are for training alone, in bf16 where that pays: they are never compared with stored codes.
        """
        model.eval()
        model_fn = code_logits(model) if crops is None else forward_logits(model)
        return self.infer(model_fn, role, index, label, key, crops)


def multi_hot(labels: NDArray[Any], classes: int) -> NDArray[np.bool_]:
    """Return the classes of each image, `[N, C]`, from labels that are int `[N]` (-1: none) or multi-hot."""
    return labels if labels.ndim == 2 else labels[:, None] == np.arange(classes)


def open_context(run_dir: RunDir, config: TrainConfig, cache: Path, stale: Collection[str] = ()) -> RunContext:
    """Resolve the configuration and load the data; then save what both are, and mark `stale` stages as not done.

    cache: the folder of decoded images.  Raises `InputError`, with nothing changed, where the data are others.
    """
    context = load_context(run_dir, config, cache)
    run_dir.invalidate(*stale)
    fingerprint = DatasetFingerprint(images=context.data.fingerprint)
    with main_process_first() as first:
        run_dir.save_settings(
            {"config": config, "resolved_config": context.resolved, "dataset_fingerprint": fingerprint}
        )
        if first:
            data.save_split(context.data, run_dir.folder / SPLIT)
    return context


def load_context(run_dir: RunDir, config: TrainConfig, cache: Path) -> RunContext:
    """Resolve the configuration and load the data, which must be those of the folder; nothing is written to it."""
    resolved = resolve_config(run_dir, config)
    with run_dir.stage("data", f"reading {config.data}"), main_process_first() as first:
        sizes = {resolved.teacher_img_size, resolved.student_img_size}
        options = {field.name: getattr(config, field.name) for field in fields(data.DataConfig)}
        app_size = resolved.student_img_size if config.student_train.app_augment else None
        dataset = data.load(config.data, sizes, cache, data.DataConfig(**options), app_size)
        stored = run_dir.load_settings("dataset_fingerprint", DatasetFingerprint) if first else None
        if stored is not None and stored.images != dataset.fingerprint:
            found = describe_changes(run_dir.folder / SPLIT, dataset)
            fix = "Bring them back, or give this run another --name."
            raise InputError(f"the images, labels and splits that {run_dir.folder} was made with", found, fix)
    return RunContext(run_dir, config.model_copy(update={"loss": resolved.loss}), resolved, dataset)
