"""Forward passes: of training in bf16 where that pays, of codes in fp32 alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill import distributed
from distill.models.hash_net import HashNet

ENCODE_BATCH = 128
Logits = NDArray[np.float32]
Indices = NDArray[np.int64]
ModelFn = Callable[[Tensor], Tensor]
_backends: Any = torch.backends  # torch's stubs lack some of their attributes


def evenly_spaced(index: Indices, count: int) -> Indices:
    """Return at most `count` of the indices."""
    return index[:: -(-len(index) // count)]


def code_logits(model: nn.Module) -> ModelFn:
    """Return `model` as a function of normalized images to logits whose signs may be stored, or compared with stored.

    They are computed in `gallery.codespace.ARITHMETIC`, so that every processor gives the same codes but for logits
    that are zero within rounding.  Measured on 2 cores of AMD EPYC with bf16 units, CPU seconds for the 7,000 embedded
    images: ViT-B at 32 px takes 76 in fp32 and 40 in bf16, EfficientNet-lite2 at 64 px 15 and 9.
    """

    def logits(images: Tensor) -> Tensor:
        with torch.inference_mode(), full_precision(images.device):
            out: Tensor = model(images)
        return out

    return logits


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in fp32 without autocast, TF32 and bf16 kernels, whatever the process has set, by deterministic kernels.

    cuDNN's convolutions are in TF32 unless they are told otherwise.
    """
    cudnn, mkldnn = _backends.cudnn, _backends.mkldnn
    operations = cudnn.conv, _backends.cuda.matmul, mkldnn.conv, mkldnn.matmul
    settings: list[tuple[Any, str, Any]] = [(operation, "fp32_precision", "ieee") for operation in operations]
    settings += [(cudnn, "deterministic", True), (cudnn, "benchmark", False)]
    before = [getattr(owner, name) for owner, name, _ in settings]
    try:
        for owner, name, value in settings:
            setattr(owner, name, value)
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for (owner, name, _), value in zip(settings, before, strict=True):
            setattr(owner, name, value)


def has_bf16_units() -> bool:
    """Whether this CPU multiplies bf16 faster than fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def extract_features(model: HashNet) -> ModelFn:
    """Return the backbone as a function of normalized images to `[B, D]` of their dtype, in bf16 where that pays.

    For training alone: bf16 changes up to 4 % of the code bits, so codes are made by `code_logits`.
    bf16 pays on GPUs, and on CPUs with bf16 units, but not for networks with hard swishes.
    Measured on 2 cores: ViT-B trains 2.4 times faster, EfficientNet-lite2 and MobileNetV2 1.6 times, MobileNetV3 1.4
    to 1.7 times slower.
    """
    on_cpu = has_bf16_units() and not any(isinstance(module, nn.Hardswish) for module in model.modules())

    def features(images: Tensor) -> Tensor:
        device = images.device.type
        with torch.autocast(device, torch.bfloat16, enabled=on_cpu or device == "cuda"):
            out: Tensor = model.backbone(images)
        return out.to(images.dtype)

    return features


def features_and_logits(model: HashNet) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return `model` as a function of normalized images to features and logits; the head never runs in bf16.

    In training among several processes each gives its own images and gets the outputs for all.
    """
    extract = extract_features(model)

    def both(images: Tensor) -> tuple[Tensor, Tensor]:
        features = extract(images)
        features = distributed.all_gather(features) if model.training else features
        return features, model.head(features)

    return both


def forward_logits(model: HashNet) -> ModelFn:
    """Return `model` as a function of normalized images to logits for training; see `features_and_logits`."""
    run = features_and_logits(model)
    return lambda images: run(images)[1]
