"""The stages of training, each resumable: teacher, gallery, student."""

import os
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from distill.context import RunContext
from distill.distributed import main_process_first
from distill.infer import Logits
from distill.models.hash_net import HashNet
from distill.neighbors import make_neighbors
from distill.run_dir import LEARNED_CODES
from distill.teacher_golden import check_golden
from distill.train_joint import train_both
from distill.train_student import distill_student
from distill.train_teacher import load_teacher, train_teacher
from gallery import codespace
from gallery.codes import pack, unpack
from gallery.codespace import CodeSpace
from gallery.console import log
from gallery.errors import CorruptFile, InputError, TwinhashError
from gallery.index import TRAINING, GalleryIndex, create_gallery, later_commits, open_gallery


@dataclass(frozen=True)
class TrainedModels:
    """The networks of a run; `teacher` is None where only the codes of its gallery are known."""

    teacher: HashNet | None
    student: HashNet
    space: CodeSpace
    gallery: GalleryIndex


def train_all(context: RunContext) -> TrainedModels:
    """Train teacher and student and build the gallery; a finished stage is read, unless what it made is damaged."""
    context.run_dir.verify()
    make_neighbors(context)
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
    check_golden(context.preprocessing("teacher"), context.run_dir.folder, space, teacher)
    return teacher, space, *build_gallery(context, teacher, space)


def build_gallery(context: RunContext, teacher: HashNet, space: CodeSpace) -> tuple[GalleryIndex, Logits]:
    """Encode the gallery; return the index and what its codes are the signs of, `[len(gallery), bits]`: mostly logits.

    A loss that learns the gallery's codes has no logits: they are +-1 then.
    """
    run_dir, data, uri = context.run_dir, context.data, str(context.run_dir.folder / "gallery")
    learned = context.loss_class.learns_gallery_codes
    if not run_dir.is_done("gallery"):
        if later := later_commits(run_dir.folder / "gallery"):
            found, fix = f"{later} later commits", "Move the folder away, or delete it; then run the command again."
            raise InputError(f"a gallery of the training images alone in {uri}, to be made again", found, fix)
        with run_dir.stage("gallery", f"hashing {len(data.gallery)} images into {space.bits} bits each"):
            codes = run_dir.folder / LEARNED_CODES
            logits = np.load(codes, allow_pickle=False) if learned else infer_gallery(context, teacher, space)
            with main_process_first() as first:
                if first:
                    _move_damaged(Path(uri))
                    centers, labels = codespace.load(run_dir.folder)[1], data.class_names(data.gallery)
                    create_gallery(uri, space, centers, pack(logits), context.gallery_ids, labels)
    index = open_gallery(uri, space, TRAINING)
    return index, codes_as_signs(context, index) if learned else infer_gallery(context, teacher, space)


def _move_damaged(folder: Path) -> None:
    """Move what stands in the gallery's place and cannot be opened aside, with what its owner may have added to it."""
    try:
        open_gallery(folder, None, TRAINING)
    except TwinhashError as error:
        if not os.path.lexists(folder):
            return
        names = (f"{folder.name}.damaged{f'-{number}' if number else ''}" for number in count())
        aside = next(path for path in map(folder.with_name, names) if not os.path.lexists(path))
        folder.rename(aside)
        log.warning("  the gallery is damaged and was moved to %s: %s", aside, error)


def reuse_gallery(context: RunContext, folder: Path) -> tuple[HashNet | None, CodeSpace, GalleryIndex, Logits]:
    """Return an earlier run's gallery, which must hold exactly this run's images, and its teacher where it exists."""
    try:
        space, centers = codespace.load(folder)
        gallery = open_gallery(str(folder / "gallery"), space, TRAINING)
    except CorruptFile as error:
        fix = f"Run the command of {folder} again, which makes what is damaged again."
        raise CorruptFile(error.expected, error.found, fix) from error
    known, own = set(gallery.ids.to_pylist()), set(context.gallery_ids)
    if known != own:
        found = f"{len(own)} images, of which {len(known & own)} are among its {len(known)}"
        fix = "Use the --data and --seed it was made with."
        raise InputError(f"the images of the gallery in {folder}", found, fix)
    bits, classes = context.config.bits, context.classes
    if (space.bits, space.classes) != (bits, classes):
        expected, found = (f"{b} bits and {len(c)} classes" for b, c in ((space.bits, space.classes), (bits, classes)))
        fix = f"Use --bits {space.bits} and the data it was made with."
        raise InputError(f"{expected}, as in {folder}", f"{found}, or others", fix)
    path = folder / "teacher.safetensors"
    with main_process_first() as first:
        if first:
            codespace.save(context.run_dir.folder, space, centers)
    if not path.exists():
        return None, space, gallery, codes_as_signs(context, gallery)
    teacher = load_teacher(path, space)
    check_golden(context.preprocessing("teacher"), folder, space, teacher)
    logits = infer_gallery(context, teacher, space)
    return (
        teacher,
        space,
        gallery,
        np.copysign(logits, codes_as_signs(context, gallery)),
    )  # where they differ, the codes hold


def infer_gallery(context: RunContext, teacher: HashNet, space: CodeSpace) -> Logits:
    """Return the teacher's logits of the gallery, `[len(gallery), bits]`."""
    return context.infer_logits("teacher", teacher, context.data.gallery, "gallery", space.id)


def codes_as_signs(context: RunContext, gallery: GalleryIndex) -> Logits:
    """Return the codes of a gallery as +-1, `[N, bits]`, in the order of `data.gallery`."""
    signs = np.empty((len(gallery), gallery.space.bits), np.float32)
    signs[context.gallery_order] = np.where(unpack(gallery.codes), np.float32(1), np.float32(-1))
    return signs
