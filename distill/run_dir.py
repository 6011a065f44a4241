"""The run folder: one process at a time, what is finished is not done again, and a log of all that was said."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from filelock import Timeout
from pydantic import BaseModel

from distill.config import StrictModel, load_yaml, to_yaml
from distill.distributed import barrier, is_main_process, main_process_first
from gallery.console import log, log_to
from gallery.errors import InputError, RunLocked
from gallery.files import acquire_lock, atomic_write, remove_partial, write_json

M = TypeVar("M", bound=StrictModel)


class RunDir:
    """An open run folder: `folder / "cache"` holds what only a resumed run needs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        self.cache.mkdir(parents=True, exist_ok=True)
        self._record = folder / "stages.json"
        self._stages: dict[str, dict[str, Any]] = json.loads(self._record.read_text()) if self._record.exists() else {}

    def is_done(self, stage: str) -> bool:
        """Whether `stage` was finished, here or by an earlier process."""
        return bool(self._stages.get(stage, {}).get("done"))

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage, summed over the processes that worked on it and were not killed."""
        return {name: round(stage["seconds"], 1) for name, stage in self._stages.items()}

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Announce a stage, time it, and mark it done if it ends without an exception."""
        log.info("[%s] %s", name, what)
        start, before, done = time.monotonic(), self._stages.get(name, {}).get("seconds", 0.0), False
        try:
            yield
            done = True
        finally:
            self._stages[name] = {"done": done, "seconds": before + time.monotonic() - start}
            self._save()

    def invalidate(self, *stages: str) -> None:
        """Mark stages as not done, so that they are done again."""
        self._stages = {name: stage for name, stage in self._stages.items() if name not in stages}
        self._save()

    def mark_done(self, stage: str) -> None:
        """Mark a stage as done that had no time of its own."""
        self._stages[stage] = {"done": True, "seconds": 0.0}
        self._save()

    def delete(self, *names: str) -> None:
        """Delete files of `cache` that are no longer needed."""
        for name in names:
            (self.cache / name).unlink(missing_ok=True)

    def _save(self) -> None:
        if is_main_process():
            write_json(self._record, self._stages)

    def load_or_save(self, name: str, kind: type[M], make: Callable[[], M]) -> M:
        """Return what an earlier process saved under `name`.yaml, or make and save it now."""
        path = self.folder / f"{name}.yaml"
        with main_process_first():
            if path.exists():
                return load_yaml(path, kind)
            value = make()
            atomic_write(path, to_yaml(value))
            return value

    def check_config(self, name: str, value: BaseModel, but: tuple[str, ...] = ()) -> set[str]:
        """Save `value` as `name`.yaml; raises `InputError` if the folder was made with another one.

        but: keys that may change; returns those that did.
        """
        path, new = self.folder / f"{name}.yaml", value.model_dump(mode="json")
        with main_process_first():
            defaults = type(value).model_construct().model_dump(mode="json")  # of options newer than the folder
            old = defaults | (yaml.safe_load(path.read_text()) or {}) if path.exists() else new
            changed = {key for key in new if new[key] != old.get(key)}
            if fixed := sorted(changed - set(but)):
                found = "; ".join(f"{key} {new[key]!r} instead of {old.get(key)!r}" for key in fixed)
                fix = "Give this run another --name, or delete the folder."
                raise InputError(f"the settings that {self.folder} was made with", found, fix)
            if changed or not path.exists():
                atomic_write(path, to_yaml(value))
            return changed


@contextmanager
def open_run(folder: Path) -> Iterator[RunDir]:
    """Open or make a run folder under its lock; raises `RunLocked` while another process holds it.

    Processes that train together are one: the first of them holds the lock, and it alone writes.
    """
    with ExitStack() as stack:
        with main_process_first() as first:
            if first:
                _lock(folder, stack)
            run = RunDir(folder)
        barrier()  # nobody changes what another has yet to read
        yield run


def _lock(folder: Path, stack: ExitStack) -> None:
    """Lock the folder and log into it until `stack` is closed."""
    owner = folder / ".pid"
    try:
        stack.enter_context(acquire_lock(folder / ".lock", "Choose another --output-dir or --name.", timeout=0))
    except Timeout as error:
        pid = owner.read_text() if owner.exists() else "?"
        fix = "Wait for it, or give this run another --name."
        raise RunLocked("a run folder that no other process holds", f"process {pid} in {folder}", fix) from error
    remove_partial(folder)
    owner.write_text(str(os.getpid()))
    stack.enter_context(log_to(folder / "log.txt"))
