"""Encode the gallery with the teacher, or reuse the gallery of an earlier run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distill.checkpoint import load_network
from distill.context import RunContext
from distill.distributed import main_process_first
from distill.infer import Logits
from distill.models.hash_net import HashNet
from distill.system import device
from distill.train_teacher import LEARNED_CODES
from gallery import codespace
from gallery.codes import pack, unpack
from gallery.codespace import CodeSpace
from gallery.errors import CodeSpaceMismatch, InputError
from gallery.files import sha256_of
from gallery.index import GalleryIndex, create_gallery, open_gallery


def build_gallery(context: RunContext, teacher: HashNet, space: CodeSpace) -> tuple[GalleryIndex, Logits]:
    """Encode the gallery; return the index and what its codes are the signs of, `[len(gallery), bits]`: mostly logits.

    A loss that learns the gallery's codes has no logits: they are +-1 then.
    """
    run_dir, data, uri = context.run_dir, context.data, str(context.run_dir.folder / "gallery")
    learned, done = context.loss_class.learns_gallery_codes, run_dir.is_done("gallery")
    if done:
        index = open_gallery(uri, space)
        if learned:
            return index, codes_as_signs(index)
        return index, context.infer_logits("teacher", teacher, data.gallery, "gallery", space.id)
    with run_dir.stage("gallery", f"hashing {len(data.gallery)} images into {space.bits} bits each"):
        if learned:
            logits = np.load(run_dir.cache / LEARNED_CODES, allow_pickle=False).astype(np.float32)
        else:
            logits = context.infer_logits("teacher", teacher, data.gallery, "gallery", space.id)
        with main_process_first() as first:
            if first:
                names = [data.names[i] for i in data.gallery]
                create_gallery(uri, space, pack(logits), data.labels[data.gallery], names)
    return open_gallery(uri, space), logits


def reuse_gallery(context: RunContext, folder: Path) -> tuple[HashNet | None, CodeSpace, GalleryIndex, Logits]:
    """Return an earlier run's gallery, which must hold exactly this run's images, and its teacher where it exists."""
    space, centers = codespace.load(folder)
    gallery = open_gallery(str(folder / "gallery"), space)
    known, names = gallery.names(), [context.data.names[i] for i in context.data.gallery]
    if known != names:
        found = f"{len(names)} images, of which {len(set(known) & set(names))} are among its {len(known)}"
        fix = "Use the --data and --seed it was made with."
        raise InputError(f"the images of the gallery in {folder}", found, fix)
    if space.bits != context.config.bits or space.classes != context.classes:
        raise InputError(
            f"{space.bits} bits and {len(space.classes)} classes, as in {folder}",
            f"{context.config.bits} bits and {len(context.classes)} classes, or others",
            f"Use --bits {space.bits} and the data it was made with.",
        )
    path = folder / "teacher.safetensors"
    with main_process_first() as first:
        if first:
            codespace.save(context.run_dir.folder, space, centers)
    if not path.exists():
        return None, space, gallery, codes_as_signs(gallery)
    if sha256_of(path) != space.teacher_sha256:
        raise CodeSpaceMismatch(f"the teacher of code space {space.id} at {path}", "another", "Restore or remove it.")
    teacher = load_network(path).to(device())
    logits = context.infer_logits("teacher", teacher, context.data.gallery, "gallery", space.id)
    return teacher, space, gallery, np.copysign(logits, codes_as_signs(gallery))  # where they differ, the codes hold


def codes_as_signs(gallery: GalleryIndex) -> Logits:
    """Return the codes of a gallery as +-1, `[N, bits]`."""
    return np.where(unpack(gallery.codes()), np.float32(1), np.float32(-1))
