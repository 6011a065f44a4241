"""What it takes to write a gallery: commits, verification, publication, loading, and images encoded a second."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gallery_index import CodeSet
from benchmarks.trial import table
from gallery import codespace
from gallery.codespace import CodeSpace, Preprocessing, hash_centers
from gallery.console import log
from gallery.errors import TwinhashError
from gallery.record import Record

COMMITS, REPEATS, CHANGED, IMAGES = (256, 1024, 4096), 5, 10_000, 2000
ROOT = Path(__file__).parents[1]
NOTE = """A gallery of {items:,} codes in a folder. CPU time is that of all threads (of the engine ray, of its driver \
alone); of several commits of a size, the median. Each commit is an upsert of new items with its line of the ledger. \
Images are {images:,} new ones of 160 x 160 pixels; seconds are of the whole command, images a second without what it \
takes to load the network or to start Ray. The machine was shared (load {load})."""


class IngestFigures(Record):
    """One operation on a gallery. rows: that it writes or reads; rate: images encoded a second, of `add` alone"""

    codes: str
    items: int
    operation: str
    rows: int
    cpu_s: float = 0
    wall_s: float = 0
    rate: float = 0
    reason: str = ""


def measure(data: CodeSet, run: Path, folder: Path) -> Iterator[IngestFigures]:
    """Write a gallery in `folder`, which is deleted, change it, read it, and encode images with both engines."""
    from gallery.index import open_gallery
    from gallery.store import GalleryStore

    classes, bits = data.centers.shape
    how = Preprocessing(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    space = CodeSpace(bits, tuple(map(str, range(classes))), "benchmark", "0" * 64, hash_centers(data.centers), how)
    shutil.rmtree(folder, ignore_errors=True)
    items = len(data.codes)

    def figures(operation: str, rows: int, *actions: Callable[[], object]) -> IngestFigures:
        spent = [timed(action) for action in actions]
        cpu, wall = np.median(np.array(spent), 0)
        made = IngestFigures(codes=data.name, items=items, operation=operation, rows=rows)
        made = made.model_copy(update={"cpu_s": round(float(cpu), 4), "wall_s": round(float(wall), 4)})
        log.info("  %s", made)
        return made

    try:
        store = GalleryStore(folder, create=True)
        store.add_space(space, data.centers)
        yield figures("add all, one commit", items, lambda: store.put(space.id, rows_of("item", data.codes)))
        for count in COMMITS:
            several = [rows_of(f"new-{count}-{i}", data.codes[:count]) for i in range(REPEATS)]
            yield figures("add", count, *(lambda rows=rows: store.put(space.id, rows) for rows in several))
        yield figures("replace", CHANGED, lambda: store.put(space.id, rows_of("item", data.codes[-CHANGED:])))
        ids = [f"item-{i:08}" for i in range(CHANGED)]
        yield figures("remove", CHANGED, lambda: store.remove(space.id, ids))
        yield figures("verify", items, lambda: store.verify(space.id))
        yield figures("publish (verifies)", items, lambda: store.publish(space.id))
        yield figures("load for searching", items, lambda: open_gallery(folder))
        shutil.rmtree(folder)
        for engine in ("local", "ray"):
            yield encoded(IngestFigures(codes=data.name, items=items, operation="", rows=IMAGES), engine, run, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of CPU and of wall time that an action takes."""
    cpu, wall = time.process_time(), time.monotonic()
    action()
    return time.process_time() - cpu, time.monotonic() - wall


def rows_of(prefix: str, codes: Any) -> Any:
    """Return codes as rows of a gallery."""
    import pyarrow as pa

    from gallery.database import code_array

    return pa.table({"id": [f"{prefix}-{i:08}" for i in range(len(codes))], "code": code_array(codes)})


def encoded(figures: IngestFigures, engine: str, run: Path, folder: Path) -> IngestFigures:
    """Add images with an engine to a new gallery in `folder`."""
    try:
        teacher = codespace.load(run)[0].teacher
    except TwinhashError as error:
        return figures.model_copy(update={"operation": f"add images, engine {engine}", "reason": str(error)})
    figures = figures.model_copy(update={"operation": f"add images, engine {engine}, {teacher}"})
    images = make_images(folder / "images")
    command: list[str | Path] = [sys.executable, "gallery/run.py", "add", folder.resolve() / engine, images.resolve()]
    start, before = time.monotonic(), os.times()
    done = subprocess.run(
        [*command, "--run", run.resolve(), "--json", "--engine", engine],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    after = os.times()
    if done.returncode:
        return figures.model_copy(update={"reason": done.stderr.strip().splitlines()[-1]})
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    found = figures.model_copy(update={
        "cpu_s": round(spent, 1), "wall_s": round(time.monotonic() - start, 1),
        "rate": json.loads(done.stdout)[0]["images_per_second"],
    })  # fmt: skip
    log.info("  %s", found)
    return found


def make_images(folder: Path) -> Path:
    """Write images of smooth noise, 160 pixels a side, as JPEG."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for i in range(IMAGES):
        small = Image.fromarray(np.random.default_rng(i).integers(0, 256, (10, 10, 3), np.uint8))
        small.resize((160, 160), Image.Resampling.BICUBIC).save(folder / f"{i:05}.jpg")
    return folder


def text(figures: Sequence[IngestFigures], load: str) -> str:
    """Return the table of the operations, in Markdown."""
    note = NOTE.format(items=figures[0].items, images=IMAGES, load=load)
    rows = [[one.operation, f"{one.rows:,}", *_cells(one)] for one in figures]
    return note + "\n\n" + table(["operation", "rows", "CPU s", "seconds", "images/s"], rows)


def _cells(one: IngestFigures) -> list[str]:
    if one.reason:
        return [one.reason, "", ""]
    return [f"{one.cpu_s:.3g}", f"{one.wall_s:.3g}", f"{one.rate:,.0f}" if one.rate else ""]
