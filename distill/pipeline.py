"""The stages of learning, each resumable: teacher, gallery, student, or both networks at once and then the gallery."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from distill.checkpoint import load_network, save_network
from distill.context import RunContext
from distill.data.augment import stored
from distill.distributed import main_process_first
from distill.engine import features
from distill.losses.base import HashLoss
from distill.methods import distiller_of, objective_of
from distill.models import pretrained as weights_of
from distill.models.hash_net import HashNet
from distill.train_student import Prepare, Views, from_teacher, from_views, train_pair, train_student
from distill.train_teacher import train_head, train_teacher
from distill.training_set import Indices, Logits
from gallery import codespace
from gallery.codes import pack, unpack
from gallery.codespace import CodeSpace
from gallery.console import log
from gallery.errors import CodeSpaceMismatch, InputError
from gallery.files import atomic_path, sha256_of
from gallery.index import GalleryIndex, create_gallery, open_gallery

LARGEST_SHARE = 0.5  # of a batch, for pictures without labels; half costs the seen classes nothing (unseen.md)
MOST_OTHERS = 4  # times the pictures of train: more would cost the teacher looks that the student seldom takes
LEARNED = "learned_codes.npy"
HEAD_BYTES = 1 << 30  # of stored features; fewer views where all would not fit


@dataclass(frozen=True)
class TrainedModels:
    """What a run has learned; `teacher` is None where only the codes of its gallery are at hand."""

    teacher: HashNet | None
    student: HashNet
    space: CodeSpace
    gallery: GalleryIndex


def learn(course: RunContext) -> TrainedModels:
    """Teacher, gallery, student, in that order; each is read back where it was finished."""
    if course.learning.reuse_gallery:
        teacher, space, gallery, logits = _existing(course, course.learning.reuse_gallery)
    else:
        if course.learning.distillation == "online":
            _pair(course)
        teacher, space, gallery, logits = teach(course)
    return TrainedModels(teacher, _student(course, teacher, space, logits), space, gallery)


def teach(course: RunContext) -> tuple[HashNet, CodeSpace, GalleryIndex, Logits]:
    """The teacher and its gallery; with them, what the gallery's codes are the signs of, `[len(gallery), bits]`."""
    teacher, space = _teacher(course)
    return teacher, space, *_gallery(course, teacher, space)


def _existing(course: RunContext, folder: Path) -> tuple[HashNet | None, CodeSpace, GalleryIndex, Logits]:
    """An earlier run's gallery, which must hold just the pictures of this one, and its teacher where it is there."""
    space, centers = codespace.load(folder)
    gallery = open_gallery(str(folder / "gallery"), space)
    known, names = gallery.names(), [course.data.names[i] for i in course.data.gallery]
    if known != names:
        found = f"{len(names)} pictures, of which {len(set(known) & set(names))} are among its {len(known)}"
        fix = "Use the --data and --seed it was made with."
        raise InputError(f"the pictures of the gallery in {folder}", found, fix)
    if space.bits != course.learning.bits or space.classes != course.classes:
        raise InputError(
            f"{space.bits} bits and {len(space.classes)} classes, as in {folder}",
            f"{course.learning.bits} bits and {len(course.classes)} classes, or others",
            f"Use --bits {space.bits} and the data it was made with.",
        )
    path, run = folder / "teacher.safetensors", course.run
    with main_process_first() as first:
        if first:
            codespace.save(run.folder, space, centers)
    if not path.exists():
        return None, space, gallery, _as_logits(gallery)
    if sha256_of(path) != space.teacher_sha256:
        raise CodeSpaceMismatch(f"the teacher of code space {space.id} at {path}", "another", "Restore or remove it.")
    teacher = load_network(path).to(weights_of.device())
    said = course.logits("teacher", teacher, course.data.gallery, "gallery", space.id)
    return teacher, space, gallery, np.copysign(said, _as_logits(gallery))  # where they differ, the stored codes hold


def _pair(course: RunContext) -> None:
    """Teacher and student trained at once; the stages that follow find both done."""
    run, plan, learning, fit = course.run, course.plan, course.learning, course.learning.teacher_train
    if run.is_done("teacher") and run.is_done("student"):
        return
    with run.stage("teacher", f"training {plan.teacher.name} and {plan.student.name} at once"):
        nets = {role: course.beginning(role) for role in ("teacher", "student")}
        rates = {"teacher": (plan.teacher_lr, fit.weight_decay),
                 "student": (plan.student_lr, learning.student_train.weight_decay)}  # fmt: skip
        train_pair(
            nets["teacher"], nets["student"], course.teacher_lesson, course.student_lesson,
            learning.student_train.center_loss_weight, distiller_of(course, np.zeros((0, learning.bits), np.float32)),
            course.schedule(fit, plan.teacher_epochs), rates, plan.teacher_crop, run.cache, course.data.fingerprint,
        )  # fmt: skip
        _save_teacher(course, nets["teacher"])
        _save_student(course, nets["student"])
        run.mark_done("student")


def _teacher(course: RunContext) -> tuple[HashNet, CodeSpace]:
    run, plan = course.run, course.plan
    if not run.is_done("teacher"):
        start = plan.teacher
        what = f"training {start.name} at {plan.teacher_img_size} px ({plan.teacher_finetune}), {start.source}"
        with run.stage("teacher", what):
            net = course.beginning("teacher")
            objective = objective_of(course, net)
            if plan.teacher_finetune != "full":
                _head(course, net, objective)
            if plan.teacher_finetune != "linear_probe":
                _all_layers(course, net, objective)
            if (codes := objective.codes()) is not None:
                _save_codes(course, codes)
            _save_teacher(course, net)
    run.delete("head.checkpoint.safetensors", "teacher.checkpoint.safetensors", "pair.checkpoint.safetensors")
    space, _ = codespace.load(run.folder)
    return load_network(run.folder / "teacher.safetensors").to(weights_of.device()), space


def _head(course: RunContext, net: HashNet, objective: HashLoss) -> None:
    """The hash head on stored features of stored views: seconds, once the features are there."""
    plan, fit, train = course.plan, course.learning.teacher_train, course.data.train
    lens, run = course.lens("teacher"), features(net)
    seen = [course.look(run, net, lens, train, "teacher features 0", "pretrained 0")]
    views = max(1, min(plan.cached_views, HEAD_BYTES // seen[0].nbytes))
    crops = stored(len(train), views, plan.teacher_crop, course.learning.seed)
    seen += [course.look(run, net, lens, train, f"teacher features {v}", f"pretrained {v}", crops[v])
             for v in range(1, views)]  # fmt: skip
    stage = "teacher" if plan.teacher_finetune == "linear_probe" else "head"
    schedule = replace(course.schedule(fit, fit.linear_probe_epochs), ema=0.0, patience=0)
    rates, key = (fit.linear_probe_lr, fit.weight_decay), course.data.fingerprint
    train_head(stage, net, objective, course.teacher_lesson, np.stack(seen), schedule, rates, course.run.cache, key)


def _all_layers(course: RunContext, net: HashNet, objective: HashLoss) -> None:
    plan, fit = course.plan, course.learning.teacher_train
    schedule, rates = course.schedule(fit, plan.teacher_epochs), (plan.teacher_lr, fit.weight_decay)
    frozen = plan.teacher_finetune == "lp_ft"
    lesson, key = course.teacher_lesson, course.data.fingerprint
    train_teacher(net, objective, lesson, schedule, rates, plan.teacher_crop, course.run.cache, key, frozen)


def _save_teacher(course: RunContext, net: HashNet) -> None:
    path, plan, centers = course.run.folder / "teacher.safetensors", course.plan, course.words_of(net)
    with main_process_first() as first:
        if first:
            save_network(path, net, plan.teacher.name, plan.teacher_img_size, course.learning.bits)
            codespace.save(course.run.folder, course.space(sha256_of(path), centers), centers)


def _save_codes(course: RunContext, codes: torch.Tensor) -> None:
    """Keeps the gallery's codes that the objective has learned until they are in the gallery."""
    with main_process_first() as first:
        if first:
            with atomic_path(course.run.cache / LEARNED) as draft, draft.open("wb") as stream:
                np.save(stream, codes.cpu().numpy().astype(np.int8), allow_pickle=False)


def _save_student(course: RunContext, net: HashNet) -> None:
    path, plan = course.run.folder / "student.safetensors", course.plan
    with main_process_first() as first:
        if first:
            save_network(path, net, plan.student.name, plan.student_img_size, course.learning.bits)


def _gallery(course: RunContext, net: HashNet, space: CodeSpace) -> tuple[GalleryIndex, Logits]:
    """The codes of the gallery as a table, and what they are the signs of, `[len(gallery), bits]`: mostly logits."""
    run, data, uri, learned = (
        course.run,
        course.data,
        str(course.run.folder / "gallery"),
        course.method.learns_gallery_codes,
    )
    if run.is_done("gallery"):
        table = open_gallery(uri, space)
        return table, _as_logits(table) if learned else course.logits("teacher", net, data.gallery, "gallery", space.id)
    with run.stage("gallery", f"hashing {len(data.gallery)} pictures into {space.bits} bits each"):
        if learned:
            logits = np.load(run.cache / LEARNED, allow_pickle=False).astype(np.float32)
        else:
            logits = course.logits("teacher", net, data.gallery, "gallery", space.id)
        with main_process_first() as first:
            if first:
                names = [data.names[i] for i in data.gallery]
                create_gallery(uri, space, pack(logits), data.labels[data.gallery], names)
    return open_gallery(uri, space), logits


def _as_logits(gallery: GalleryIndex) -> Logits:
    """The codes of a gallery as +-1, `[N, bits]`."""
    return np.where(unpack(gallery.codes()), np.float32(1), np.float32(-1))


def _student(course: RunContext, teacher: HashNet | None, space: CodeSpace, gallery_logits: Logits) -> HashNet:
    run, plan, terms = course.run, course.plan, course.learning.student_train
    if not run.is_done("student"):
        asks = course.uses_teacher
        index, spare = _pupils(course, teacher)
        prepare: Prepare
        if teacher and not plan.cached_views:
            prepare = from_teacher(course.student_lesson, teacher, course.teacher_lesson, plan.student_crop,
                                   index[len(course.data.train):], spare)  # fmt: skip
        else:
            whom = "no teacher" if not asks else "the teacher" if teacher else "the gallery's codes"
            with run.stage("views", f"asking {whom} about {plan.cached_views} views of {len(index)} pictures"):
                views = _taught(course, teacher, index, space, gallery_logits)
            prepare = from_views(course.student_lesson, views, spare)
        what = f"distilling {plan.student.name} at {plan.student_img_size} px, {plan.student.source}"
        with run.stage("student", what):
            net = course.beginning("student")
            schedule, rates = course.schedule(terms, plan.student_epochs, spare), (plan.student_lr, terms.weight_decay)
            key = f"{course.data.fingerprint} {space.id}"
            distiller = distiller_of(course, gallery_logits)
            train_student(net, course.student_lesson, prepare, terms.center_loss_weight, distiller, schedule, rates,
                          run.cache, key, asks)  # fmt: skip
            _save_student(course, net)
    run.delete("student.checkpoint.safetensors")
    return load_network(run.folder / "student.safetensors").to(weights_of.device())


def _pupils(course: RunContext, teacher: HashNet | None) -> tuple[Indices, int]:
    """The pictures the student learns from, those of train first, and how many of a batch are from the others.

    The others have no label, or none that is used: the gallery but for the validation pictures, and --unlabeled-data;
    at most `MOST_OTHERS` times as many as those of train.
    """
    data, fit = course.data, course.learning.student_train
    others = np.setdiff1d(data.gallery, np.concatenate([data.train, data.validation]))
    if teacher is None and not np.isin(data.train, data.gallery).all():
        fix = "Mark them as gallery too, or put teacher.safetensors beside its codes."
        raise InputError("training pictures that the gallery has codes of", "some that it has none of", fix)
    others = np.concatenate([others, data.unlabelled]) if teacher else others
    if len(others) > (most := MOST_OTHERS * len(data.train)):
        log.info("  %d of %d pictures without labels teach the student", most, len(others))
        others = np.sort(np.random.default_rng(course.learning.seed).choice(others, most, replace=False))
    if teacher is None and not course.plan.cached_views:
        raise InputError("cached views for stored codes", "0", "Choose --student-train.cached-views of at least 1.")
    twice = min(LARGEST_SHARE, 2 * len(others) / (len(others) + len(data.train)))
    share = twice if fit.unlabeled_ratio == "auto" else float(fit.unlabeled_ratio)
    batch = min(fit.batch_size, len(data.train))
    spare = min(round(share * batch), batch - 2) if len(others) and course.uses_teacher else 0
    return np.concatenate([data.train, others if spare else others[:0]]), spare


def _taught(
    course: RunContext, teacher: HashNet | None, index: Indices, space: CodeSpace, gallery_logits: Logits
) -> Views:
    """Stored views of the pictures at `index`; the first is the whole picture, known where that is in the gallery."""
    plan, place = course.plan, {picture: row for row, picture in enumerate(course.data.gallery.tolist())}
    rows = [place.get(picture, -1) for picture in index.tolist()]
    known, new = np.array(rows), np.flatnonzero(np.array(rows) < 0)
    crops = stored(len(index), max(1, plan.cached_views), plan.student_crop, course.learning.seed)
    logits = []
    for view in range(len(crops)):
        if not course.uses_teacher:
            logits.append(np.zeros((len(index), space.bits), np.float32))
        elif teacher is None or view == 0:  # without a teacher, the gallery's codes hold for every crop
            logits.append(gallery_logits[known])
            if len(new) and teacher:
                logits[-1][new] = course.logits("teacher", teacher, index[new], "view 0", space.id)
        else:
            logits.append(course.logits("teacher", teacher, index, f"view {view}", space.id, crops[view]))
    return Views(index, crops, torch.from_numpy(np.stack(logits)))
