"""A small real bundle with its gallery, and ways to tamper with one so that its manifest fits again."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from export.bundle import MANIFEST, Golden, Manifest, write_bundle
from export.exporter import export_all
from gallery.codes import pack
from gallery.codespace import CodeSpace, Preprocessing, hash_centers
from gallery.files import sha256_of, size_of, write_json
from gallery.index import create_gallery
from tests.export.factories import request_of
from tests.gallery.galleries import named, numbered

torch.set_num_threads(1)
Call = Callable[..., tuple[int, str]]  # the command line: its arguments to exit code and log
SIZE, BITS, GOLDEN, GALLERY = 24, 16, 24, 60
SEEN = Preprocessing(SIZE, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
CENTERS = np.random.default_rng(1).choice([-1, 1], (4, BITS)).astype(np.int8)
SPACE = CodeSpace(BITS, tuple("abcd"), "t", "0" * 64, hash_centers(CENTERS), SEEN)
VARIANTS = ("onnx-fp32", "onnx-fp16")  # LiteRT's converter alone takes half a minute to load


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.head = nn.Conv2d(16, BITS, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise(F.hardswish(self.conv(x))))
        return 9 * self.head(x.mean((2, 3), keepdim=True)).flatten(1)


@dataclass(frozen=True)
class Good:
    """net: what the bundle was made of; pixels, logits, labels: more images than the golden ones."""

    folder: Path
    manifest: Manifest
    gallery: Path
    net: nn.Module
    pixels: NDArray[np.uint8]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]


def tiny() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Tiny().eval()


def images(count: int, seed: int) -> NDArray[np.uint8]:
    """Coarse coloured blocks: colours and their order matter to a network, as with photographs."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 3, 3, 3), np.uint8)
    return coarse.repeat(SIZE // 3, 1).repeat(SIZE // 3, 2)


def logits_of(net: nn.Module, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    scaled = (pixels / 255 - np.array(SEEN.mean)) / np.array(SEEN.std)
    with torch.no_grad():
        found: NDArray[np.float32] = net(torch.from_numpy(scaled.transpose(0, 3, 1, 2).astype(np.float32))).numpy()
    return found


def good_bundle(folder: Path) -> Good:
    """`folder`/bundle, and beside it `gallery`."""
    net = tiny()
    pixels = images(40, 0)
    logits = logits_of(net, pixels)
    manifest = bundle_of(net, SEEN, VARIANTS, folder, pixels[:GOLDEN], logits[:GOLDEN])
    codes = pack(logits_of(net, images(GALLERY, 1)))
    labels = named(np.arange(GALLERY) % 4, SPACE.classes)
    create_gallery(folder / "gallery", SPACE, CENTERS, codes, numbered(GALLERY), labels)
    return Good(folder / "bundle", manifest, folder / "gallery", net, pixels, logits, np.arange(40) % 4)


def bundle_of(
    net: nn.Module, seen: Preprocessing, variants: tuple[str, ...], folder: Path,
    golden: NDArray[np.uint8], logits: NDArray[np.float32],
) -> Manifest:  # fmt: skip
    made = export_all(request_of(net, "tiny", seen, space=SPACE), variants, folder / "made")
    return write_bundle(folder / "bundle", made, SPACE, CENTERS, Golden(golden, pack(logits), logits))


def in_bgr(net: nn.Module) -> nn.Module:
    """The same network for images whose channels are in the other order."""
    other = copy.deepcopy(net)
    assert isinstance(other, Tiny)
    other.conv.weight.data = other.conv.weight.data.flip(1)
    return other


def refit(bundle: Path, *names: str) -> None:
    """Makes the manifest agree with files that were changed."""
    record = json.loads((bundle / MANIFEST).read_text("utf-8"))
    for name in names:
        record["files"][name] |= {"sha256": sha256_of(bundle / name), "bytes": size_of(bundle / name)}
    write_json(bundle / MANIFEST, record)
