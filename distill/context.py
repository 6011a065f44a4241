"""One run's learning: the plan, the pictures, and what all stages share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill import data
from distill.config import BackboneInfo, OptimizerConfig, ResolvedConfig, StrictModel, TrainConfig, resolve
from distill.data import Dataset
from distill.data.augment import ImageLoader
from distill.distillers import DISTILLERS
from distill.distillers.base import DistillerArgs
from distill.distributed import main_process_first
from distill.engine import TrainSpec, features, forward, read_journal
from distill.hash_centers.assignment import (
    QUADRATIC_MOST,
    Assignment,
    assign,
    class_means,
    class_similarity,
    gram_correlation,
    is_equidistant,
)
from distill.hash_centers.constructions import Centers, Construction, hash_centers
from distill.hash_centers.multilabel import optimise_centers
from distill.losses import LOSSES
from distill.losses.base import HashLoss
from distill.models import pretrained as weights_of
from distill.models.hash_net import HashNet, build
from distill.run_dir import RunDir
from distill.training_set import Indices, Logits, Look, TrainingSet, look_at, multi_hot
from gallery import codespace
from gallery.codes import Codes, pack, unpack
from gallery.codespace import CodeSpace, Preprocessing
from gallery.console import log
from gallery.encode import ShardCache
from gallery.errors import InputError
from gallery.files import sha256_of

if TYPE_CHECKING:
    from distill.pipeline import TrainedModels

Role = Literal["teacher", "student"]
DATA_OPTIONS = {"seed", "query_fraction", "validation_fraction", "strict"}
MAPPED = 64  # classes whose centers the report shows
GOLDEN = 8  # pictures of the bundle with known codes
CALIBRATION = 256  # pictures that 8-bit ranges are taken from, and as many at most to choose layers on


class DatasetFingerprint(StrictModel):
    """What a run began with and cannot change under way."""

    pictures: str
    """Fingerprint of the data set."""


class Cells(NamedTuple):
    """Logits `[pictures, bits]` beside the gallery's codes; the teacher's are None where only its codes are at hand."""

    teacher_queries: Logits | None
    student_queries: Logits
    student_gallery: Logits


def settle(run: RunDir, learning: TrainConfig, picture_size: int) -> ResolvedConfig:
    """Every "auto" resolved, once for the life of the run folder, and said aloud."""
    student = weights_of.backbone_info(weights_of.find_pretrained(learning.student, learning.student_weights))
    if learning.reuse_gallery:
        space, _ = codespace.load(learning.reuse_gallery)
        teacher = weights_of.backbone_info_of(space, f"the run {learning.reuse_gallery}")
        learning = learning.model_copy(update={"teacher_img_size": space.preprocessing.size})
    else:
        teacher = weights_of.backbone_info(weights_of.find_pretrained(learning.teacher, learning.teacher_weights))
    gpu = weights_of.device().type == "cuda"
    plan = run.load_or_save("resolved_config", resolve(learning, teacher, student, picture_size, gpu))
    for reason in plan.reasons:
        log.info("  %s", reason)
    for role, start in (("teacher", plan.teacher), ("student", plan.student)):
        if start.random:
            log.warning("The %s starts from RANDOM weights: none for %s could be had here.", role, start.name)
    return plan


def begin(run: RunDir, learning: TrainConfig, cache: Path) -> RunContext:
    """Settles the plan and reads the pictures; `cache` is the folder of decoded ones."""
    plan = settle(run, learning, data.native_size(learning.data, learning.data_root))
    with run.stage("data", f"reading {learning.data}"), main_process_first() as first:
        sizes = {plan.teacher_img_size, plan.student_img_size}
        pictures = data.load(learning.data, sizes, cache, root=learning.data_root,
                             unlabelled=learning.unlabeled_data, unseen=learning.num_unseen_classes,
                             **learning.model_dump(include=DATA_OPTIONS))  # fmt: skip
        if first:
            data.save_split(pictures, run.folder / "split.csv")
    return RunContext(run, learning, plan, pictures)


@dataclass(frozen=True)
class RunContext:
    """One run's learning: what all stages share."""

    run: RunDir
    learning: TrainConfig
    plan: ResolvedConfig
    data: Dataset

    def __post_init__(self) -> None:
        self.run.check_config("dataset_fingerprint", DatasetFingerprint(pictures=self.data.fingerprint))

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The classes that have a center: those of the training pictures."""
        return tuple(self.data.classes[c] for c in self.data.seen)

    @cached_property
    def labels(self) -> NDArray[Any]:
        """Labels of all pictures in terms of `classes`: int `[N]`, -1 for another class, or multi-hot `[N, C]`."""
        if self.data.labels.ndim == 2:
            return self.data.labels[:, self.data.seen]
        place = np.full(len(self.data.classes) + 1, -1)  # the last is for label -1
        place[self.data.seen] = np.arange(len(self.data.seen))
        return place[self.data.labels]

    @property
    def centers(self) -> Centers:
        """Hash centers `[classes, bits]`, in class order: those of the code space once there is one."""
        for folder in (self.learning.reuse_gallery, self.run.folder):
            if folder and (folder / codespace.FILE).exists():
                return codespace.load(folder)[1]
        return self._drawn

    @cached_property
    def _drawn(self) -> Centers:
        """The centers a teacher's training begins with."""
        learning, kind = self.learning, self.construction
        words, how = hash_centers(len(self.classes), learning.bits, learning.seed, kind), self.assignment
        if how != "none":
            role: Role = "student" if how == "csch" else "teacher"
            log.info("  assigning centers to classes by the features of the %s (%s)", role, how)
            words = words[assign(words, how, self._features(role), self._positive(self.data.train), learning.seed)]
        if self.elects:
            log.info("  moving centers to where their votes tell which pictures share a class")
            words = optimise_centers(words, self._positive(self.data.train))
        return words

    @property
    def assignment(self) -> Assignment:
        """How centers are assigned to classes: left to us, quadratically, unless there is little to choose.

        With no more classes than bits, all distances are about bits / 2; random features know no classes.  The other
        methods assign none.
        """
        if self.learning.center_assignment != "auto":
            return self.learning.center_assignment
        if self.learning.loss != "csch":
            return "none"
        worth_it = self.learning.bits < len(self.classes) <= QUADRATIC_MOST and not self.plan.teacher.random
        return "quadratic" if worth_it else "none"

    @property
    def construction(self) -> Construction:
        """How centers are constructed: left to us, as the objective wants them."""
        asked, wanted = self.learning.hash_centers, self.method.centers
        return wanted if asked == "auto" and wanted else asked

    @property
    def elects(self) -> bool:
        """Whether centers move to where their votes tell who shares a class: left to us, of pictures with several."""
        return (self.learning.loss, self.learning.hash_centers) == ("csch", "auto") and self.data.labels.ndim == 2

    @property
    def method(self) -> type[HashLoss]:
        """The teacher's objective."""
        found: type[HashLoss] = LOSSES.find(self.learning.loss)
        return found

    @property
    def uses_teacher(self) -> bool:
        """Whether the student's loss uses the teacher's logits."""
        args: DistillerArgs = DISTILLERS.parse(self.learning.distiller, self.learning.distiller_args)
        return args.uses_teacher

    @property
    def protocol(self) -> str:
        """What was searched for where, and what else the gallery's codes know than pictures."""
        known = f" The gallery's codes are {self.learning.loss}'s own, learned from the labels of its pictures."
        return self.data.protocol + (known if self.method.learns_gallery_codes else "")

    def _features(self, role: Role) -> NDArray[np.float32]:
        """A pretrained backbone's features of the training pictures, `[len(train), D]`."""
        net, train = self.beginning(role), self.data.train
        return self.look(features(net), net, self.lens(role), train, f"{role} features 0", "pretrained 0")

    def _positive(self, index: Indices) -> NDArray[np.bool_]:
        """The classes of pictures, `[len(index), C]`."""
        return multi_hot(self.labels[index], len(self.classes))

    def side(self, role: Role) -> tuple[BackboneInfo, int]:
        """Where a network begins, and the side of its input."""
        plan = self.plan
        return (plan.teacher, plan.teacher_img_size) if role == "teacher" else (plan.student, plan.student_img_size)

    def lens(self, role: Role) -> ImageLoader:
        """The pictures as the teacher or the student sees them."""
        start, size = self.side(role)
        return ImageLoader(self.data.pixels[size], start.mean, start.std, weights_of.device())

    @cached_property
    def teacher_lesson(self) -> TrainingSet:
        """What the teacher learns from."""
        return TrainingSet(self.lens("teacher"), self.labels, self.centers, self.data.train, self.data.validation)

    @cached_property
    def student_lesson(self) -> TrainingSet:
        """What the student learns from."""
        return TrainingSet(self.lens("student"), self.labels, self.centers, self.data.train, self.data.validation)

    def beginning(self, role: Role) -> HashNet:
        """The teacher's or the student's network as it begins."""
        learning, (start, size) = self.learning, self.side(role)
        name, path = (learning.teacher, learning.teacher_weights)
        if role == "student":
            name, path = (learning.student, learning.student_weights)
        found = weights_of.find_pretrained(name, path)
        if (found.name, found.source) != (start.name, start.source):
            raise InputError(
                f"the weights this run began with ({start.name}, {start.source})",
                f"{found.name}, {found.source}",
                "Bring them back, or start a run under another --name.",
            )
        net = build(start.name, size, learning.bits, learning.seed)
        weights_of.load_pretrained(net.backbone, found)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub forgets this one
        return net.to(weights_of.device())

    def preprocessing(self, start: BackboneInfo, size: int) -> Preprocessing:
        """How a picture becomes the input of a network with this start."""
        return Preprocessing(size, start.mean, start.std)

    def words_of(self, net: HashNet) -> Centers:
        """The centers of a teacher's space: those it was drawn to, or the majority of each class's own codes."""
        if self.method.centers:
            return self._drawn
        logits = self.logits("teacher", net, self.data.train, "teacher train", self.data.fingerprint)
        means = class_means(np.sign(logits), self._positive(self.data.train))
        return np.where(means > 0, np.int8(1), np.int8(-1))

    def space(self, teacher_sha256: str, centers: Centers) -> CodeSpace:
        """The code space of a teacher."""
        plan = self.plan
        return CodeSpace(
            bits=self.learning.bits,
            classes=self.classes,
            teacher=plan.teacher.name,
            teacher_sha256=teacher_sha256,
            centers_sha256=codespace.hash_centers(centers),
            preprocessing=self.preprocessing(plan.teacher, plan.teacher_img_size),
        )

    def schedule(self, fit: OptimizerConfig, epochs: int, spare: int = 0) -> TrainSpec:
        """The schedule of one network; batches shrink to the pictures there are, and by `spare` of each."""
        batch = min(fit.batch_size, len(self.data.train)) - spare
        return TrainSpec(
            epochs,
            batch,
            fit.warmup_ratio,
            fit.clip_grad,
            self.learning.seed,
            fit.model_ema_decay,
            fit.early_stopping_patience,
        )

    def look(
        self,
        run: Look,
        net: HashNet,
        lens: ImageLoader,
        index: Indices,
        label: str,
        key: str,
        crops: Tensor | None = None,
    ) -> Logits:
        """What `run` says of pictures, or of one crop of each; what an earlier process computed under `key` is read."""
        folder = self.run.cache / label.replace(" ", "-")
        with main_process_first():
            return look_at(run, net, lens, index, ShardCache(folder, label, f"{key} {self.data.fingerprint}"), crops)

    def logits(
        self, role: Role, net: HashNet, index: Indices, label: str, key: str, crops: Tensor | None = None
    ) -> Logits:
        """Logits `[len(index), bits]` of pictures, or of one crop of each; the student's in fp32, as in its files."""
        return self.look(forward(net) if role == "teacher" else net, net, self.lens(role), index, label, key, crops)

    @property
    def held(self) -> Indices:
        """Pictures to choose an 8-bit network by: those of validation, never queries.

        Where there are none, those of train, on which such a network looks better than it is.
        """
        return _spread(self.data.validation if len(self.data.validation) else self.data.train[1:], CALIBRATION)

    def calibration(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Pictures to quantize by, uint8 `[n, S, S, 3]`: of those the student has seen, and `held`."""
        pixels = self.data.pixels[self.plan.student_img_size]
        return np.asarray(pixels[_spread(self.data.train, CALIBRATION)]), np.asarray(pixels[self.held])

    def golden(self, student: HashNet) -> tuple[NDArray[np.uint8], Codes, Logits]:
        """A few queries with the float student's codes and logits: the bundle's own test."""
        index = _spread(self.data.query, GOLDEN)
        with torch.inference_mode():
            logits = student(self.student_lesson.lens.look(index)).float().cpu().numpy()
        return np.asarray(self.data.pixels[self.plan.student_img_size][index]), pack(logits), logits

    def cells(self, networks: TrainedModels) -> Cells:
        """Both networks on the queries, and the student on the gallery: what the four cells need."""
        data, space, teacher = self.data, networks.space.id, networks.teacher
        key = f"{space} {sha256_of(self.run.folder / 'student.safetensors')}"
        return Cells(
            self.logits("teacher", teacher, data.query, "teacher queries", space) if teacher else None,
            self.logits("student", networks.student, data.query, "student queries", key),
            self.logits("student", networks.student, data.gallery, "student gallery", key),
        )

    def portraits(self, networks: TrainedModels) -> Iterator[dict[str, Any]]:
        """The networks at hand in figures, for the record."""
        steps = {point.stage: point.step for point in read_journal(self.run.folder / "train.jsonl")}
        sides: tuple[tuple[Role, HashNet | None], ...] = ("teacher", networks.teacher), ("student", networks.student)
        for role, net in sides:
            if net is None:
                continue
            start, size = self.side(role)
            yield {
                "role": role, "name": start.name, "size": size, "weights": start.source, "random": start.random,
                "parameters": sum(p.numel() for p in net.parameters()),
                "seconds": self.run.seconds.get(role, 0.0), "steps": steps.get(role, steps.get("pair", 0)),
            }  # fmt: skip

    def center_map(self, networks: TrainedModels) -> dict[str, Any]:
        """The distances between hash centers beside the likeness of classes, of at most `MAPPED` classes."""
        shown = np.unique(np.linspace(0, len(self.classes) - 1, min(MAPPED, len(self.classes)), dtype=int))
        codes = np.where(unpack(networks.gallery.codes()), 1.0, -1.0)
        means = class_means(codes, self._positive(self.data.gallery))[shown]
        words = self.centers[shown].astype(int)
        built: str = self.construction if self.method.centers else "the majority of a class's codes"
        if self.elects:
            built = "far apart, then moved to where their votes tell which pictures share a class"
        return {
            "classes": tuple(self.classes[c] for c in shown),
            "distance": tuple(map(tuple, ((words.shape[1] - words @ words.T) // 2).tolist())),
            "similarity": tuple(map(tuple, class_similarity(means).round(3).tolist())),
            "similarity_of": "the teacher's codes of the gallery",
            "construction": "of the earlier run" if self.learning.reuse_gallery else built,
            "assignment": "of the earlier run" if self.learning.reuse_gallery else self.assignment,
            "correlation": None if is_equidistant(words) else gram_correlation(words, means),
        }  # fmt: skip

    def curves(self) -> Iterator[dict[str, Any]]:
        """The training curves, one a stage."""
        points = read_journal(self.run.folder / "train.jsonl")
        for stage in dict.fromkeys(point.stage for point in points):
            own = [point for point in points if point.stage == stage]
            yield {
                "stage": stage,
                "steps": tuple(p.step for p in own),
                "loss": tuple(p.loss for p in own),
                "accuracy": tuple(p.accuracy for p in own),
                "validation": tuple((p.step, p.validation) for p in own if p.validation is not None),
            }


def _spread(index: Indices, count: int) -> Indices:
    """At most `count` of them, evenly spaced."""
    return index[:: -(-len(index) // count)]
