"""What the training of a run leaves."""

from __future__ import annotations

from dataclasses import dataclass

from distill.models.hash_net import HashNet
from gallery.codespace import CodeSpace
from gallery.index import GalleryIndex


@dataclass(frozen=True)
class TrainedModels:
    """The networks of a run; `teacher` is None where only the codes of its gallery are known."""

    teacher: HashNet | None
    student: HashNet
    space: CodeSpace
    gallery: GalleryIndex
