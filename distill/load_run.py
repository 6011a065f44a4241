"""Open a finished run: its context, student and code space."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distill.checkpoint import load_network
from distill.config import TrainConfig, load_yaml
from distill.context import RunContext, open_context
from distill.models.hash_net import HashNet
from distill.run_dir import open_run
from gallery import codespace
from gallery.codespace import CodeSpace
from gallery.errors import InputError


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run whose networks are trained.

    student: in eval mode on the device; gallery: the address of its index, an earlier run's where that is reused
    """

    context: RunContext
    student: HashNet
    space: CodeSpace
    gallery: str


@contextmanager
def load_run(folder: str | Path) -> Iterator[FinishedRun]:
    """Open a finished run, which stays locked inside of the block; pretrained weights are not needed.

    Raises `InputError` unless distill/run.py has finished its networks and its gallery.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise InputError("a run folder", f"no config.yaml in {folder}", "Name a folder that distill/run.py made.")
    config: TrainConfig = load_yaml(folder / "config.yaml", TrainConfig)
    with open_run(folder) as run_dir:
        needed = ("student",) if config.reuse_gallery else ("teacher", "gallery", "student")
        if missing := [stage for stage in needed if not run_dir.is_done(stage)]:
            path = folder.resolve()
            fix = f"Finish it: distill/run.py --output-dir {path.parent} --name {path.name}, and its other flags."
            raise InputError(f"a finished run in {folder}", f"no finished {', '.join(missing)}", fix)
        context = open_context(run_dir, config, folder.resolve().parent / "cache")
        student, (space, _) = load_network(folder / "student.safetensors"), codespace.load(folder)
        yield FinishedRun(context, student, space, str((config.reuse_gallery or folder) / "gallery"))
