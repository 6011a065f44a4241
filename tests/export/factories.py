"""Students to export: briefly trained networks, their images, and their exported files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.models.hash_net import build
from export.artifact import ExportedModel
from export.exporter import ExportRequest, export_all
from gallery.codes import pack
from gallery.codespace import CodeSpace, Preprocessing, hash_centers

torch.set_num_threads(1)
SIZE, BITS, CLASSES = 32, 64, 8
IMAGENET = Preprocessing(SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


CENTERS = np.random.default_rng(1).choice([-1, 1], (CLASSES, BITS)).astype(np.int8)
SPACE = CodeSpace(BITS, tuple("abcdefgh"), "t", "0" * 64, hash_centers(CENTERS), IMAGENET)


@dataclass(frozen=True)
class Student:
    """A network and its logits for 96 images it was not trained on."""

    name: str
    net: nn.Module
    space: CodeSpace
    centers: NDArray[np.int8]
    images: NDArray[np.uint8]
    logits: NDArray[np.float32]


@dataclass(frozen=True)
class Exports:
    student: Student
    files: dict[str, ExportedModel]


def synthetic_images(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Coloured stripes, one direction and colour a class, with noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    stripes = [np.sin((rows * np.cos(c) + columns * np.sin(c)) / 2) for c in range(CLASSES)]
    tint = np.random.default_rng(0).uniform(0.3, 1, (CLASSES, 3))
    clean = np.stack([(128 + 100 * stripes[label])[..., None] * tint[label] for label in labels])
    return np.clip(clean + rng.normal(0, 25, clean.shape), 0, 255).astype(np.uint8), labels


def normalised(images: NDArray[np.uint8]) -> Tensor:
    """The long way round, in float64: scale to 0..1, subtract, divide."""
    scaled = (images / 255.0 - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    return torch.from_numpy(scaled.transpose(0, 3, 1, 2).astype(np.float32))


def train_student(name: str) -> Student:
    """Train a student until most logits are clear of zero; the global random state is left as it was."""
    net = build(name, SIZE, BITS, seed=0)
    centers = np.random.default_rng(1).choice([-1, 1], (CLASSES, BITS)).astype(np.int8)
    images, labels = synthetic_images(256, seed=2)
    inputs, targets = normalised(images), torch.from_numpy(centers[labels].astype(np.float32))
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net.train()
        for step in range(24):
            batch = slice(step % 8 * 32, step % 8 * 32 + 32)
            optimiser.zero_grad()
            (net(inputs[batch]) - targets[batch]).square().mean().backward()
            optimiser.step()
    net.eval()
    queries, _ = synthetic_images(96, seed=3)
    with torch.no_grad():
        logits = net(normalised(queries)).numpy()
    space = CodeSpace(BITS, tuple("abcdefgh"), "t", "0" * 64, hash_centers(centers), IMAGENET)
    return Student(name, net, space, centers, queries, logits)


def request_of(net: nn.Module, name: str, preprocessing: Preprocessing, **options: Any) -> ExportRequest:
    """An export request in the code space `SPACE` unless told otherwise, without images to calibrate by."""
    none, logits = np.empty((0, SIZE, SIZE, 3), np.uint8), np.empty((0, BITS), np.float32)
    fields = {"space": SPACE, "centers": CENTERS, "calibration": (none, none), "golden": (none, pack(logits), logits)}
    return ExportRequest(net, name, preprocessing, **{**fields, **options})


def request_for(student: Student, **options: Any) -> ExportRequest:
    return request_of(student.net, student.name, IMAGENET, space=student.space, **options)


def export_student(student: Student, variants: tuple[str, ...], folder: Path) -> Exports:
    exported = export_all(request_for(student), variants, folder)
    files = {one.variant: one for one in exported if isinstance(one, ExportedModel)}
    assert set(files) == set(variants), exported
    return Exports(student, files)
