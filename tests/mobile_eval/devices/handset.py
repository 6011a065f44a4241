"""A student for the devices, its images and its exported models."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distill.models.hash_net import build
from export.artifact import ExportedModel
from export.exporter import export_all
from gallery.codespace import Preprocessing
from tests.export.factories import request_of

torch.set_num_threads(1)
SIZE, BITS, TOLERANCE = 96, 64, 1e-3
HALF = Preprocessing(SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
FORMS = ("onnx-fp32", "litert-fp32")


@dataclass(frozen=True)
class Handset:
    """files by variant; images uint8 `[6, S, S, 3]`; logits: of torch, float32 `[6, bits]`."""

    files: dict[str, ExportedModel]
    images: NDArray[np.uint8]
    logits: NDArray[np.float32]


def exported(folder: Path) -> Handset:
    """An untrained MobileNetV3-small whose batch norms have seen noise, so that its logits differ by image."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (38, 12, 12, 3), np.uint8)
    images = coarse.repeat(SIZE // 12, 1).repeat(SIZE // 12, 2)
    net, inputs = build("mobilenetv3_small_100", SIZE, BITS, seed=0), _normalised(images)
    with torch.no_grad():
        net.train()
        for _ in range(8):
            net(inputs[6:])
        net.head[1].weight.mul_(36)  # logits of about 1
        net.eval()
        logits = net(inputs[:6]).numpy()
    made = export_all(request_of(net, "mobilenetv3_small_100", HALF), FORMS, folder)
    files = {one.variant: one for one in made if isinstance(one, ExportedModel)}
    assert set(files) == set(FORMS), made
    return Handset(files, images[:6], logits)


def kill_worker_in(folder: Path, number: int) -> None:
    """Waits for a process that works in that folder, and kills it."""
    for _ in range(600):
        time.sleep(0.1)
        for process in Path("/proc").glob("[0-9]*"):
            try:
                ours = os.readlink(process / "cwd") == str(folder.resolve())
                if ours and "images.npy" in (process / "maps").read_text():
                    os.kill(int(process.name), number)
                    return
            except OSError:
                continue


def _normalised(images: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(images / 127.5 - 1).float().permute(0, 3, 1, 2)
