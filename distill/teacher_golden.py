"""Golden logits: whether this machine hashes images as the one did that trained the teacher."""

import hashlib
import platform
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from distill.data.augment import ImageLoader
from distill.data.fashion_mnist import SUBSET
from distill.infer import Logits, code_logits
from distill.models.hash_net import HashNet
from distill.system import device
from gallery.codespace import ARITHMETIC, CodeSpace, Preprocessing
from gallery.decode import to_square
from gallery.errors import CodeSpaceMismatch, CorruptFile
from gallery.files import atomic_path, open_array

FILE = "teacher_golden.npy"
NUM_IMAGES, ENLARGED = 16, 16
MAX_BYTES = 1 << 20  # of the file: sixteen codes of 16,000 bits
# Of a logit, times their root mean square.  Measured on four networks: fp32 with other instructions, threads and batch
# sizes differs by up to 5e-5, bf16 by 0.06 to 0.6.
TOLERANCE = 1e-3


def golden_images() -> list[Image.Image]:
    """Return images made of the embedded ones: three are the channels of one, two of these side by side, enlarged.

    They are coloured, wider than high and mostly larger than a network's input, to tell one preprocessing from another.
    """
    with np.load(SUBSET, allow_pickle=False) as file:
        grey = file["images"]
    pairs = grey[:: len(grey) // (6 * NUM_IMAGES)][: 6 * NUM_IMAGES].reshape(NUM_IMAGES, 2, 3, *grey.shape[1:])
    colored = pairs.transpose(0, 3, 1, 4, 2).reshape(NUM_IMAGES, grey.shape[1], -1, 3)
    return [Image.fromarray(np.ascontiguousarray(i.repeat(ENLARGED, 0).repeat(ENLARGED, 1))) for i in colored]


def golden_logits(teacher: HashNet, preprocessing: Preprocessing) -> Logits:
    """Return a teacher's logits of the golden images, `[NUM_IMAGES, bits]`."""
    pixels = np.stack([to_square(image, preprocessing.size) for image in golden_images()])
    loader = ImageLoader(pixels, preprocessing.mean, preprocessing.std, device())
    return np.asarray(code_logits(teacher.eval())(loader.load(np.arange(len(pixels)))).cpu().numpy(), np.float32)


def save_golden(folder: Path, logits: Logits) -> str:
    """Write golden logits and return their SHA-256."""
    with atomic_path(folder / FILE) as draft, draft.open("wb") as stream:
        np.save(stream, logits, allow_pickle=False)
    return _sha256(logits)


def check_golden(preprocessing: Preprocessing, folder: Path, space: CodeSpace, teacher: HashNet) -> None:
    """Raise `CodeSpaceMismatch` unless a teacher hashes the golden images here as when `folder` was made.

    On another machine logits may differ by rounding, `TOLERANCE`: all bits beyond it are the same then.
    """
    if space.arithmetic != ARITHMETIC:
        fix = "Use the version of Twinhash that made it."
        raise CodeSpaceMismatch(f"codes computed in {ARITHMETIC}", f"code space {space.id} in {space.arithmetic}", fix)
    found = golden_logits(teacher, preprocessing)
    if _sha256(found) == space.golden_sha256:
        return
    expected = _load(folder, space)
    tolerance = TOLERANCE * float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))
    worst = float(np.abs(found - expected).max())
    if not worst <= tolerance:
        flips, dtype = int(((found > 0) != (expected > 0)).sum()), next(teacher.parameters()).dtype
        here = f"{platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
        here = torch.cuda.get_device_name() if torch.cuda.is_available() else here
        raise CodeSpaceMismatch(
            f"the golden logits of the teacher of code space {space.id} within {tolerance:.1g}",
            f"others by up to {worst:.1g}, {flips} of {found.size} bits, on {here} in {dtype}",
            "Use the package versions that trained it, or train another teacher under another --name.",
        )


def _load(folder: Path, space: CodeSpace) -> Logits:
    path = folder / FILE
    fix = "Restore it, or use the machine that trained the teacher, which can do without."
    try:
        logits: Logits = np.array(open_array(path, MAX_BYTES))
    except (OSError, ValueError) as error:
        raise CorruptFile(f"golden logits at {path}", str(error), fix) from error
    sound = logits.shape == (NUM_IMAGES, space.bits) and logits.dtype == np.float32
    if not sound or _sha256(logits) != space.golden_sha256:
        raise CorruptFile(f"the golden logits of code space {space.id} in {path}", "others", fix)
    return logits


def _sha256(logits: Logits) -> str:
    return hashlib.sha256(np.ascontiguousarray(logits, "<f4").tobytes()).hexdigest()
