"""A finished run's teacher as a function of pixels, checked before it hashes anything."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.config import TrainConfig, load_yaml
from gallery.codespace import CodeSpace
from gallery.console import log
from gallery.errors import InputError

Logits = NDArray[np.float32]
TEACHER = "teacher.safetensors"


def gallery_run(run: Path) -> Path:
    """Return the run folder that holds a run's gallery and teacher: its own, or that of the gallery it reuses."""
    path = run / "config.yaml"
    config = load_yaml(path, TrainConfig) if path.is_file() else None
    return config.reuse_gallery if config and config.reuse_gallery else run


def load_encoder(folder: Path, space: CodeSpace) -> Callable[[NDArray[np.uint8]], Logits]:
    """Return the teacher in a run folder, as a function of pixels uint8 `[n, S, S, 3]` to logits `[n, bits]`.

    The logits are those that training stores the signs of: of the same arithmetic, and checked by the golden logits.
    Raises `CodeSpaceMismatch` for the teacher of another code space, and for one whose logits are others here.
    """
    from distill.data.augment import ImageLoader
    from distill.infer import code_logits
    from distill.system import device, limit_threads
    from distill.teacher_golden import check_golden
    from distill.train_teacher import load_teacher

    if not (folder / TEACHER).is_file():
        fix = "Finish the run with distill/run.py, or restore the file."
        raise InputError(f"a finished run with its teacher in {folder}", f"no {TEACHER}", fix)
    threads = limit_threads()
    teacher = load_teacher(folder / TEACHER, space)
    check_golden(space.preprocessing, folder, space, teacher)
    log.info("  teacher %s of code space %s on %s, %d threads", space.teacher, space.id, device(), threads)
    logits, how = code_logits(teacher), space.preprocessing

    def encode(pixels: NDArray[np.uint8]) -> Logits:
        loader = ImageLoader(pixels, how.mean, how.std, device())
        return logits(loader.load(np.arange(len(pixels)))).float().cpu().numpy()

    return encode
