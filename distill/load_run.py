"""Open a finished run: its context, student and code space."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distill.checkpoint import load_network
from distill.config import TrainConfig, is_run
from distill.context import RunContext, load_context
from distill.models.hash_net import HashNet
from distill.run_dir import open_run
from gallery import codespace
from gallery.codespace import CodeSpace
from gallery.errors import CorruptFile, InputError


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
    """Open a finished run, locked inside of the block if it can be written; pretrained weights are not needed.

    Raises `InputError` unless distill/run.py has finished its networks and its gallery.
    """
    folder = Path(folder)
    no_run = InputError("a run folder", f"no config.yaml in {folder}", "Name a folder that distill/run.py made.")
    if not is_run(folder):
        raise no_run
    with open_run(folder, read_only=True) as run_dir:
        config = run_dir.load_settings("config", TrainConfig)
        if config is None:
            raise no_run
        needed, path = ("student",) if config.reuse_gallery else ("teacher", "gallery", "student"), folder.resolve()
        flags = f"distill/run.py --output-dir {path.parent} --name {path.name}, and its other flags"
        if missing := [stage for stage in needed if not run_dir.is_done(stage)]:
            found, fix = f"no finished {', '.join(missing)}", f"Finish it: {flags}."
            raise InputError(f"a finished run in {folder}", found, fix)
        if damaged := run_dir.damaged("student").get("student"):  # the others check themselves where they are read
            raise CorruptFile(f"a finished run in {folder}", f"a damaged {damaged[0]}", f"Make it again: {flags}.")
        context = load_context(run_dir, config, path.parent / "cache")
        try:
            space, _ = codespace.load(folder)
        except CorruptFile as error:
            raise CorruptFile(error.expected, error.found, f"Make it again: {flags}.") from error
        student = load_network(folder / "student.safetensors", space)
        yield FinishedRun(context, student, space, str((config.reuse_gallery or folder) / "gallery"))
