"""The stages of learning, each resumable: settle the plan, teacher, gallery, student.  `run.py` calls them in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from distill import weights as weights_of
from distill.centers import Centers, hash_centers
from distill.checkpoint import load_network, save_network
from distill.config import Fit, Learning, Model, Resolved, Start, resolve
from distill.data import Dataset
from distill.engine import Schedule, read_journal
from distill.models import HashNet, build
from distill.runfolder import Run
from distill.student import train_student
from distill.teacher import Lesson, look_at, train_teacher
from distill.views import Lens, stored
from gallery import codespace
from gallery.codes import Codes, pack
from gallery.codespace import CodeSpace, Preprocessing
from gallery.console import log
from gallery.errors import InputError
from gallery.files import sha256_of
from gallery.index import LanceGallery, create_gallery, open_gallery

Logits = NDArray[np.float32]
GOLDEN = 8  # pictures of the bundle with known codes


class Began(Model):
    """What a run began with and cannot change under way."""

    pictures: str
    """Fingerprint of the data set."""


@dataclass(frozen=True)
class Networks:
    """What a run has learned."""

    teacher: HashNet
    student: HashNet
    space: CodeSpace
    gallery: LanceGallery


class Cells(NamedTuple):
    """Logits `[pictures, bits]` beside the gallery's codes."""

    teacher_queries: Logits
    student_queries: Logits
    student_gallery: Logits


def settle(run: Run, learning: Learning, picture_size: int) -> Resolved:
    """The plan of this run: made once, then read back, so that a resumed run repeats it."""
    teacher = weights_of.start(weights_of.find(learning.teacher, learning.teacher_weights))
    student = weights_of.start(weights_of.find(learning.student, learning.student_weights))
    gpu = weights_of.device().type == "cuda"
    plan = run.remember("plan", resolve(learning, teacher, student, picture_size, gpu))
    for reason in plan.reasons:
        log.info("  %s", reason)
    for role, start in (("teacher", plan.teacher), ("student", plan.student)):
        if start.random:
            log.warning("The %s starts from RANDOM weights: none for %s could be had here.", role, start.name)
    return plan


@dataclass(frozen=True)
class Class:
    """One run's learning: what all stages share."""

    run: Run
    learning: Learning
    plan: Resolved
    data: Dataset

    def __post_init__(self) -> None:
        self.run.require_same("began", Began(pictures=self.data.fingerprint))

    @cached_property
    def centers(self) -> Centers:
        """Hash centers `[classes, bits]`, in class order."""
        return hash_centers(len(self.data.classes), self.learning.bits, self.learning.seed)

    @cached_property
    def teacher_lesson(self) -> Lesson:
        """The training pictures as the teacher sees them."""
        return self._lesson(self.plan.teacher, self.plan.teacher_size)

    @cached_property
    def student_lesson(self) -> Lesson:
        """The training pictures as the student sees them."""
        return self._lesson(self.plan.student, self.plan.student_size)

    def _lesson(self, start: Start, size: int) -> Lesson:
        lens = Lens(self.data.pixels[size], start.mean, start.std, weights_of.device())
        return Lesson(lens, self.data.labels, self.centers, self.data.train, self.data.validation)

    def preprocessing(self, start: Start, size: int) -> Preprocessing:
        """How a picture becomes the input of a network with this start."""
        return Preprocessing(size, start.mean, start.std)

    def schedule(self, fit: Fit, epochs: int, lr: float) -> Schedule:
        """The schedule of one network; batches shrink to the pictures there are."""
        batch = min(fit.batch, len(self.data.train))
        return Schedule(epochs, batch, lr, fit.weight_decay, fit.warmup, fit.clip, self.learning.seed)

    def look(
        self, net: HashNet, lesson: Lesson, index: NDArray[np.int64], label: str, key: str,
        crops: torch.Tensor | None = None,
    ) -> Logits:  # fmt: skip
        """Logits of pictures, or of one crop of each; what an earlier process computed under `key` is read back."""
        folder = self.run.work / label.replace(" ", "-")
        return look_at(net, lesson.lens, index, folder, label, f"{key} {self.data.fingerprint}", crops)

    def golden(self, student: HashNet) -> tuple[NDArray[np.uint8], Codes, Logits]:
        """A few queries with the float student's codes and logits: the bundle's own test."""
        index = self.data.query[:: max(1, len(self.data.query) // GOLDEN)][:GOLDEN]
        with torch.inference_mode():
            logits = student(self.student_lesson.lens.look(index)).float().cpu().numpy()
        return np.asarray(self.data.pixels[self.plan.student_size][index]), pack(logits), logits

    def cells(self, networks: Networks) -> Cells:
        """Both networks on the queries, and the student on the gallery: what the four cells need."""
        data, space = self.data, networks.space.id
        key = f"{space} {sha256_of(self.run.folder / 'student.safetensors')}"
        return Cells(
            self.look(networks.teacher, self.teacher_lesson, data.query, "teacher queries", space),
            self.look(networks.student, self.student_lesson, data.query, "student queries", key),
            self.look(networks.student, self.student_lesson, data.gallery, "student gallery", key),
        )

    def portraits(self, networks: Networks) -> Iterator[dict[str, Any]]:
        """Both networks in figures, for the record."""
        steps = {point.stage: point.step for point in read_journal(self.run.folder / "train.jsonl")}
        for role, net, start, size in (
            ("teacher", networks.teacher, self.plan.teacher, self.plan.teacher_size),
            ("student", networks.student, self.plan.student, self.plan.student_size),
        ):
            yield {
                "role": role, "name": start.name, "size": size, "weights": start.source, "random": start.random,
                "parameters": sum(p.numel() for p in net.parameters()),
                "seconds": self.run.seconds.get(role, 0.0), "steps": steps.get(role, 0),
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


def learn(lesson: Class) -> Networks:
    """Teacher, gallery, student, in that order; each is read back where it was finished."""
    teacher, space = _teacher(lesson)
    gallery, gallery_logits = _gallery(lesson, teacher, space)
    student = _student(lesson, teacher, space, gallery_logits)
    return Networks(teacher, student, space, gallery)


def _teacher(lesson: Class) -> tuple[HashNet, CodeSpace]:
    run, plan, learning = lesson.run, lesson.plan, lesson.learning
    path = run.folder / "teacher.safetensors"
    if not run.done("teacher"):
        with run.stage("teacher", f"training {plan.teacher.name} at {plan.teacher_size} px, {plan.teacher.source}"):
            net = _beginning(plan.teacher, plan.teacher_size, learning, learning.teacher, learning.teacher_weights)
            schedule = lesson.schedule(learning.teacher_fit, plan.teacher_epochs, plan.teacher_lr)
            train_teacher(net, lesson.teacher_lesson, schedule, plan.teacher_crop, run.work, lesson.data.fingerprint)
            save_network(path, net, plan.teacher.name, plan.teacher_size, learning.bits)
            codespace.save(run.folder, _space(lesson, sha256_of(path)), lesson.centers)
        (run.work / "teacher.checkpoint.safetensors").unlink(missing_ok=True)
    space, _ = codespace.load(run.folder)
    return load_network(path).to(weights_of.device()), space


def _gallery(lesson: Class, net: HashNet, space: CodeSpace) -> tuple[LanceGallery, Logits]:
    """The teacher's codes of the gallery as a table, and its logits `[len(gallery), bits]`."""
    run, data, uri = lesson.run, lesson.data, str(lesson.run.folder / "gallery")
    if run.done("gallery"):
        return open_gallery(uri, space), lesson.look(net, lesson.teacher_lesson, data.gallery, "gallery", space.id)
    with run.stage("gallery", f"hashing {len(data.gallery)} pictures into {space.bits} bits each"):
        logits = lesson.look(net, lesson.teacher_lesson, data.gallery, "gallery", space.id)
        create_gallery(uri, space, pack(logits), data.labels[data.gallery], [data.names[i] for i in data.gallery])
    return open_gallery(uri, space), logits


def _student(lesson: Class, teacher: HashNet, space: CodeSpace, gallery_logits: Logits) -> HashNet:
    run, plan, learning = lesson.run, lesson.plan, lesson.learning
    path, fit = run.folder / "student.safetensors", lesson.learning.student_fit
    if not run.done("student"):
        crops = stored(len(lesson.data.train), plan.views, plan.student_crop, learning.seed)
        with run.stage("views", f"showing the teacher {plan.views} views of {len(lesson.data.train)} pictures"):
            taught = _taught(lesson, teacher, crops, space, gallery_logits)
        with run.stage("student", f"distilling {plan.student.name} at {plan.student_size} px, {plan.student.source}"):
            net = _beginning(plan.student, plan.student_size, learning, learning.student, learning.student_weights)
            schedule = lesson.schedule(fit, plan.student_epochs, plan.student_lr)
            key = f"{lesson.data.fingerprint} {space.id}"
            weights = fit.center_weight, fit.instance_weight
            train_student(net, lesson.student_lesson, crops, taught, *weights, schedule, run.work, key)
            save_network(path, net, plan.student.name, plan.student_size, learning.bits)
        (run.work / "student.checkpoint.safetensors").unlink(missing_ok=True)
    return load_network(path).to(weights_of.device())


def _taught(lesson: Class, net: HashNet, crops: torch.Tensor, space: CodeSpace, gallery_logits: Logits) -> torch.Tensor:
    """The teacher's logits on the stored views, `[views, len(train), bits]`; it saw whole pictures in the gallery."""
    train = lesson.data.train
    place = {picture: row for row, picture in enumerate(lesson.data.gallery.tolist())}
    rows = [place.get(picture) for picture in train.tolist()]
    views = []
    for view in range(len(crops)):
        if view == 0 and None not in rows:
            views.append(gallery_logits[np.array(rows)])
        else:
            views.append(lesson.look(net, lesson.teacher_lesson, train, f"view {view}", space.id, crops[view]))
    return torch.from_numpy(np.stack(views))


def _beginning(start: Start, size: int, learning: Learning, name: str, path: Path | None) -> HashNet:
    found = weights_of.find(name, path)
    if (found.name, found.source) != (start.name, start.source):
        raise InputError(
            f"the weights this run began with ({start.name}, {start.source})",
            f"{found.name}, {found.source}",
            "Bring them back, or start a run under another --name.",
        )
    net = build(start.name, size, learning.bits, learning.seed)
    weights_of.load(net.backbone, found)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub forgets this one
    return net.to(weights_of.device())


def _space(lesson: Class, teacher_sha256: str) -> CodeSpace:
    plan = lesson.plan
    return CodeSpace(
        bits=lesson.learning.bits,
        classes=lesson.data.classes,
        teacher=plan.teacher.name,
        teacher_sha256=teacher_sha256,
        centers_sha256=codespace.hash_centers(lesson.centers),
        preprocessing=lesson.preprocessing(plan.teacher, plan.teacher_size),
    )
