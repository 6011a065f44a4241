"""The run folder: one process at a time, what is finished and intact is not done again, and a log of all that was said.

`stages.json` records the checksums of what each stage made, and a copy of the folder's YAML files.  What is missing or
damaged is made again, and with it whatever depends on it, should it come out different.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import Timeout
from pydantic import Field, TypeAdapter, ValidationError

from distill.config import is_run, load_yaml, to_yaml
from distill.distributed import barrier, broadcast, is_main_process, main_process_first
from gallery import codespace
from gallery.console import log, log_to
from gallery.errors import InputError, RunLocked, TwinhashError
from gallery.files import (
    acquire_lock,
    atomic_write,
    is_desktop_file,
    is_writable,
    read_json,
    remove_partial,
    sha256_of,
    write_json,
)
from gallery.index import TRAINING, open_gallery
from gallery.names import some
from gallery.record import Record

NEIGHBORS = "neighbors.npy"  # true ones of the queries, where nothing is learned from labels
PRODUCTS = {  # what each stage leaves
    "teacher": ("teacher.safetensors", codespace.FILE, codespace.CENTERS, "teacher_golden.npy"),
    "gallery": ("gallery",),
    "student": ("student.safetensors",),
    "neighbors": (NEIGHBORS,),
    "export": ("bundle", "quantization.json"),
    "evaluate": ("results.json",),
}
DEPENDENTS = {  # a gallery's codes are the teacher's, and so is what the student learns
    "teacher": ("gallery", "student", "export", "evaluate"),
    "gallery": ("evaluate",),
    "student": ("export", "evaluate"),
    "neighbors": ("evaluate",),
    "export": ("evaluate",),
}
LEARNED_CODES = "cache/learned_codes.npy"  # of a teacher's loss that learns the gallery's codes: the gallery's stage
RECORD = "stages.json"
SETTINGS, SETTINGS_DIGEST = "settings", "settings_sha256"  # the copy of the YAML files, beside the stages
OTHER_NAME = "Choose another --output-dir or --name."
M = TypeVar("M", bound=Record)


class StageRecord(Record):
    """What is known of a stage.  products: the checksums of what it made when it was last done, by name."""

    done: bool = False
    seconds: float = Field(0.0, ge=0, allow_inf_nan=False)
    products: dict[str, str] = Field(default_factory=dict)


def gallery_digest(folder: Path) -> str:
    """Return a hash of what the training left in a gallery: its table is stored in other bytes each time."""
    index = open_gallery(folder, None, TRAINING)
    digest = hashlib.sha256(index.space.id.encode() + index.codes.tobytes())
    digest.update(json.dumps([index.ids.to_pylist(), index.labels.to_pylist()]).encode())
    return digest.hexdigest()


def json_digest(value: Any) -> str:
    """Return a hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class RunDir:
    """An open run folder: `folder / "cache"` holds what only a resumed run needs.

    digests: how products are hashed that have a check of their own; it raises for what is damaged
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        if is_writable(folder):
            self.cache.mkdir(parents=True, exist_ok=True)
        self.digests: dict[str, Callable[[Path], str]] = {"gallery": gallery_digest}
        self._settings: dict[str, dict[str, Any]] = {}
        self._stages: dict[str, StageRecord] = {}
        self._doubted: set[str] = set()  # the YAML files of which it was said that their copy holds
        if (folder / RECORD).exists():
            self._read_record(folder / RECORD)
        elif (folder / "config.yaml").exists():
            log.warning("%s is missing, so it is not known what is finished: all is made again", folder / RECORD)

    def _read_record(self, path: Path) -> None:
        try:
            record = read_json(path, dict)
            settings, digest = record.pop(SETTINGS, {}), record.pop(SETTINGS_DIGEST, "")
            self._stages = TypeAdapter(dict[str, StageRecord]).validate_python(record)
            self._settings = settings if digest == json_digest(settings) else {}
        except (OSError, ValueError) as error:
            problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            log.warning("%s is damaged (%s), so it is not known what is finished: all is made again", path, problem)

    def is_done(self, stage: str) -> bool:
        """Whether `stage` was finished, here or by an earlier process; see `verify`."""
        return stage in self._stages and self._stages[stage].done

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage, summed over the processes that worked on it and were not killed."""
        return {name: round(stage.seconds, 1) for name, stage in self._stages.items()}

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Announce a stage, time it, and mark it done if it ends without an exception.

        A stage that refuses its input leaves no trace.
        """
        log.info("[%s] %s", name, what)
        start, before = time.monotonic(), self._stages.get(name, StageRecord())
        try:
            yield
        except TwinhashError:
            raise
        except BaseException:
            seconds = before.seconds + time.monotonic() - start
            self._stages[name] = before.model_copy(update={"done": False, "seconds": seconds})
            self._save()
            raise
        self.mark_done(name, before.seconds + time.monotonic() - start)

    def mark_done(self, stage: str, seconds: float = 0.0) -> None:
        """Mark a stage as done; what depends on it is not, unless it made the same bytes as before."""
        before, made = self._stages.get(stage, StageRecord()), self._digests(stage)
        self._stages[stage] = StageRecord(done=True, seconds=seconds, products=made)
        later = DEPENDENTS.get(stage, ()) if made != before.products else ()
        if stale := [name for name in later if self.is_done(name)]:
            log.warning("  %s came out different: making %s again too", stage, ", ".join(stale))
            self.invalidate(*stale)
        self._save()

    def invalidate(self, *stages: str) -> None:
        """Mark stages as not done, so that they are done again."""
        known = [name for name in stages if name in self._stages]
        for name in known:
            self._stages[name] = StageRecord(products=self._stages[name].products)
        if known:
            self._save()

    def verify(self) -> None:
        """Mark as not done each stage whose products are missing or not as they were made, and say so once."""
        with main_process_first() as first:
            found = self.damaged(*PRODUCTS) if first else {}
        if found := broadcast(found):
            names = ", ".join(name for products in found.values() for name in products)
            log.warning("missing or damaged in %s: %s.  Making again: %s", self.folder, names, ", ".join(found))
            self.invalidate(*found)

    def damaged(self, *stages: str) -> dict[str, list[str]]:
        """Return, of each stage that is done but not intact, the products that are missing or damaged."""
        found = {stage: self._damaged_products(stage) for stage in stages if self.is_done(stage)}
        return {stage: products for stage, products in found.items() if products}

    def _damaged_products(self, stage: str) -> list[str]:
        noted, names = self._stages[stage].products, [*PRODUCTS.get(stage, ())]
        if stage == "teacher" and LEARNED_CODES in noted and (not self.is_done("gallery") or self.damaged("gallery")):
            names.append(LEARNED_CODES)
        return [name for name in names if not noted.get(name) or self._digest(name) != noted[name]]

    def is_intact(self, stage: str, name: str) -> bool:
        """Whether a product of a stage, which may not be done any more, is as it was made."""
        noted = self._stages.get(stage, StageRecord()).products.get(name)
        with main_process_first() as first:
            found = first and bool(noted) and self._digest(name) == noted
        return bool(broadcast(found))

    def _digests(self, stage: str) -> dict[str, str]:
        names = [*PRODUCTS.get(stage, ())]
        with main_process_first() as first:
            if stage == "teacher" and (self.folder / LEARNED_CODES).exists():
                names.append(LEARNED_CODES)
            made = {name: self._digest(name) for name in names} if first else {}
        result: dict[str, str] = broadcast(made)
        return result

    def _digest(self, name: str) -> str:
        """Return the checksum of a product, empty where it is missing or cannot be read."""
        path = self.folder / name
        try:
            return self.digests.get(name, sha256_of)(path) if path.is_file() or path.is_dir() else ""
        except (MemoryError, PermissionError):  # not for want of soundness
            raise
        except Exception as error:  # noqa: BLE001 - whatever a reader meets in a damaged file: it is made again
            log.debug("%s: %s", path, error)
            return ""

    def delete(self, *names: str) -> None:
        """Delete files of `cache` that are no longer needed."""
        for name in names:
            (self.cache / name).unlink(missing_ok=True)

    def _save(self) -> None:
        if is_main_process() and is_writable(self.folder):
            stages = {name: stage.model_dump() for name, stage in self._stages.items()}
            settings = {SETTINGS: self._settings, SETTINGS_DIGEST: json_digest(self._settings)}
            write_json(self.folder / RECORD, {**stages, **settings})

    def load_settings(self, name: str, kind: type[M]) -> M | None:
        """Return what was saved as `name`: the copy in stages.json, or `name`.yaml; None where there is neither.

        Raises `InputError` for a damaged file without a copy.
        """
        path, copy = self.folder / f"{name}.yaml", self._copy(name, kind)
        try:
            saved: M | None = load_yaml(path, kind) if path.exists() else None
        except InputError:
            if copy is None and (name == "config" or any(stage.done for stage in self._stages.values())):
                raise
            saved = None
        if copy is not None and saved != copy and name not in self._doubted:
            log.warning("%s is missing, damaged or edited: its copy in %s holds", path, RECORD)
            self._doubted.add(name)
        return saved if copy is None else copy

    def _copy(self, name: str, kind: type[M]) -> M | None:
        try:
            return kind.model_validate(self._settings[name])
        except (KeyError, ValidationError, RecursionError):
            return None

    def save_settings(self, values: Mapping[str, Record]) -> None:
        """Save settings by name, where they are not saved yet."""
        texts = {name: to_yaml(value) for name, value in values.items()}
        copies = {name: value.model_dump(mode="json") for name, value in values.items()}
        for name, text in texts.items() if is_main_process() else ():
            path = self.folder / f"{name}.yaml"
            if name in self._doubted or self._settings.get(name) != copies[name] or not path.exists():
                atomic_write(path, text)
        if any(self._settings.get(name) != copy for name, copy in copies.items()):
            self._settings |= copies
            self._save()

    def check_config(self, name: str, value: Record, but: tuple[str, ...] = ()) -> set[str]:
        """Raise `InputError` if the folder was made with other settings; nothing is written.

        but: keys that may change; returns those that did.
        """
        changed: dict[str, str] = {}
        with main_process_first() as first:
            if first and (stored := self.load_settings(name, type(value))) is not None:
                new, old = (dict(_flat(one.model_dump(mode="json"))) for one in (value, stored))
                keys = [key for key in new | old if new.get(key) != old.get(key)]
                changed = {key: f"{key} {new.get(key)!r} instead of {old.get(key)!r}" for key in keys}
            if fixed := sorted(key for key in changed if key.partition(".")[0] not in but):
                found = "; ".join(changed[key] for key in fixed)
                fix = "Give this run another --name, or delete the folder."
                raise InputError(f"the settings that {self.folder} was made with", found, fix)
        return {key.partition(".")[0] for key in broadcast(changed)}


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        yield from _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]


@contextmanager
def open_run(folder: Path, read_only: bool = False) -> Iterator[RunDir]:
    """Open or make a run folder under its lock; raises `RunLocked` while another process holds it.

    Processes that train together are one: the first of them holds the lock, and it alone writes.
    read_only: a folder that cannot be written is opened without a lock
    """
    if re.search("[\x00-\x1f\x7f]", str(folder.absolute())):  # LanceDB takes no such path
        raise InputError("a run folder without control characters in its path", repr(str(folder)), OTHER_NAME)
    with ExitStack() as stack:
        with main_process_first() as first:
            if first and (is_writable(folder) or not read_only):
                _lock(folder, "Wait for it." if read_only else f"Wait for it.  {OTHER_NAME}", stack)
            run = RunDir(folder)
        barrier()  # nobody changes what another has yet to read
        yield run


def _lock(folder: Path, fix: str, stack: ExitStack) -> None:
    """Lock the folder and log into it until `stack` is closed."""
    owner, lock = folder / ".pid", folder / ".lock"
    if folder.is_dir() and not (lock.exists() or is_run(folder)):  # its files would be taken for products, and replaced
        own = sorted(name for name in os.listdir(folder) if not name.startswith(".") and not is_desktop_file(name))
        if own:
            raise InputError("a new or empty folder, or that of a run", f"{some(own)} in {folder}", OTHER_NAME)
    try:
        stack.enter_context(acquire_lock(lock, fix, timeout=0))
    except Timeout as error:
        pid = owner.read_text(errors="replace")[:20] if owner.is_file() else "?"
        raise RunLocked("a run folder that no other process holds", f"process {pid} in {folder}", fix) from error
    remove_partial(folder)
    atomic_write(owner, str(os.getpid()))
    stack.enter_context(log_to(folder / "log.txt"))
