"""A student that was trained elsewhere, and a folder of images to calibrate and check it with."""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.checkpoint import CheckpointHeader, read_checkpoint
from distill.config import BackboneInfo
from distill.data.check import check_bits
from distill.data.decode_cache import decode_all
from distill.data.image_folder import ImageFiles
from distill.models import pretrained
from distill.models.hash_net import build, timm_names
from gallery.codes import hamming
from gallery.console import log, plain
from gallery.errors import CorruptFile, InputError
from gallery.sources.folder import name_of, walk

SMALLEST, LARGEST = 16, 2048  # side of an input, pixels
MOST = 520  # images that are read of a folder: 8 golden ones, and as many to calibrate by as a run takes


class CustomModel(NamedTuple):
    """A network in eval mode, its backbone's properties, and the side of its input in pixels."""

    net: nn.Module
    start: BackboneInfo
    size: int


def load_custom_model(path: Path, student: str | None, side: int | None, bits: int) -> CustomModel:
    """Load a user's network with `bits` outputs; `student` and `side` are optional where the file's header has them.

    Takes a run's student, the same tensors without its header, and timm's own network with `bits` outputs.
    Raises `InputError` naming the tensors that are missing, surplus, or of another shape.
    """
    fix = "Give a .safetensors file; others are saved so by safetensors.torch.save_file(net.state_dict(), path)."
    tensors, header = read_checkpoint(path, fix)
    try:
        saved = CheckpointHeader.model_validate(header) if header else None
    except ValueError as error:
        raise CorruptFile(f"a network's header in {path}", str(error), fix) from error
    name, size = student or (saved and saved.name), side or (saved and saved.size)
    if not (name and size):
        raise InputError("--student and --img-size with a file that names neither", "one or both left out", "Add them.")
    if saved and (saved.name not in timm_names(name) or saved.bits != bits):
        found = f"{saved.name} with {saved.bits}, as its header says"
        raise InputError(f"{name} with {bits} bits in {path}", found, "Name its own network and code space.")
    if not SMALLEST <= size <= LARGEST:
        raise InputError(f"an --img-size from {SMALLEST} to {LARGEST}", str(size), "Give the side it was trained at.")
    start = pretrained.backbone_info(pretrained.find_pretrained(saved.name if saved else name, path))
    net: Any = build(start.name, size, bits, seed=0)
    if not any(key.startswith("backbone.") for key in tensors):
        net = net.backbone
        net.reset_classifier(bits)
    load_strict(net, tensors, f"{start.name} with {bits} outputs at {size} px, in {path}")
    log.info("%s: %s, %d bits, input of %d px", path, start.name, bits, size)
    return CustomModel(net.eval(), start, size)


def load_strict(net: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Load all tensors; raises `InputError` naming those that do not fit."""
    own, shared = net.state_dict(), net.state_dict().keys() & tensors.keys()
    needed = {key for key in own if not key.endswith(".num_batches_tracked")}  # of no use here, and often left out
    shapes = {k: (list(tensors[k].shape), list(own[k].shape)) for k in sorted(shared)}
    wrong = {
        "missing": sorted(needed - tensors.keys()),
        "surplus": sorted(tensors.keys() - own.keys()),
        "of another shape": [f"{k} {found} for {wanted}" for k, (found, wanted) in shapes.items() if found != wanted],
    }
    if any(wrong.values()):
        few = (f"{len(k)} {how} ({', '.join(k[:4])}{', ...' if len(k) > 4 else ''})" for how, k in wrong.items() if k)
        fix = "Name the network they are of; its last layer must put out the code space's bits."
        raise InputError(f"the {len(own)} tensors of {what}", "; ".join(few), fix)
    net.load_state_dict(tensors, strict=False)


def read_images(folder: Path, size: int) -> NDArray[np.uint8]:
    """Up to `MOST` squares uint8 `[n, size, size, 3]`, evenly of all that are below `folder`; others are named."""
    contents = walk(folder)
    found = sorted(contents.paths)
    paths = found[:: -(-len(found) // MOST) or 1]
    with tempfile.TemporaryDirectory() as cache:
        made = decode_all(ImageFiles(folder, paths), [name_of(path, folder) for path in paths], [size], Path(cache))
        pixels = np.array(made.pixels[size])
    for sentence in (*contents.warnings, *check_bits(made.bits)):
        log.warning("%s", sentence)
    for one in (*contents.skipped, *made.skipped):
        log.warning("  skipped %s: %s", plain(one.path), plain(one.reason))
    if not len(pixels):
        raise InputError(f"images in {folder}", f"none among {len(paths)} files", "Name another folder.")
    log.info("%d images, of %d files in %s", len(pixels), len(found), folder)
    return pixels


def warn_if_foreign_space(codes: NDArray[np.uint8], centers: NDArray[np.uint8]) -> None:
    """Warn if the codes are no closer to the hash centers than random codes (wrong code space)."""
    chance = np.random.default_rng(0).integers(0, 256, (1024, codes.shape[1]), dtype=np.uint8)
    found, expected = (hamming(some, centers).min(axis=1).mean() for some in (codes, chance))
    log.info("codes lie %.1f bits from the nearest center; random ones would lie %.1f", found, expected)
    if found > 0.75 * expected:  # students of trained runs: 0.02 to 0.4 of it; one in another run's space: 0.94
        fix = "check the code space, the mean and the std"
        log.warning("The codes are hardly closer to the centers than random ones: %s.", fix)
