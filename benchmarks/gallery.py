"""The gallery at work: its index, and what is written to it and asked of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from benchmarks import gallery_index
from benchmarks.gallery_index import CodeSet, IndexFigures, TeacherCodes
from benchmarks.trial import RECORD, Benchmark, Trial
from gallery.console import log
from gallery.files import write_json

INDEX_NOTE = """Exact k nearest neighbors among {bits}-bit codes, CPU time of one thread for one query after another, \
{queries:,} of them. Exact: of how many the answer is that of a flat scan, in distances, and in rows too (ties go to \
the lower row). Codes of "the run's" classes are the teacher's logits of random gallery images of a finished run with \
noise of {noise}; queries are the student's codes of images that are not in it. "100 classes": hash centers with as \
many flips as images of the run have. faiss IVF has the hash centers as its cells. Memory is that of the \
index, beside the codes. The machine was shared (load {load}): compare the rows of a table."""


class GalleryTrial(Trial):
    """One measurement, in the field of its kind; `load` is that of the machine before it."""

    kind: Literal["index", "ingest", "service"]
    load: float
    index: IndexFigures | None = None


class GalleryBenchmark(Benchmark):
    """Measure the exact index against other ones."""

    name: str = "gallery"
    root: Path = Path("runs/vit_b-mobilenetv3-embedded-64")
    """A finished run: its teacher's logits make the codes."""
    items: tuple[int, ...] = (gallery_index.GRAPHS, 1_000_000, 10_000_000)
    """Sizes of the gallery; graphs are built for the least only."""
    queries: int = 1000
    seed: int = 0

    def trials(self) -> Iterator[GalleryTrial]:
        """Yield the trials of every kind."""
        yield from self.index_trials()

    def index_trials(self) -> Iterator[GalleryTrial]:
        """Measure every index on every set of codes; what is measured is read."""
        codes = TeacherCodes(self.root, self.seed)
        for items in self.items:
            makers: dict[str, Callable[[], CodeSet]] = {"run": partial(codes.resampled, items, self.queries)}
            makers["100"] = partial(codes.flipped, 100, items, self.queries)
            if items == 1_000_000:
                makers |= {"1000": partial(codes.flipped, 1000, items, self.queries)}
                makers |= {"uniform": partial(codes.uniform, items, self.queries)}
            for name, make in makers.items():
                yield from self._measured(f"index-{name}-{items}", make, codes.centers.shape[1])

    def _measured(self, name: str, make: Callable[[], CodeSet], bits: int) -> Iterator[GalleryTrial]:
        record = self.runs / f"gallery-{name}-{self.queries}-{self.seed}" / RECORD
        if not record.exists():
            log.info("[%s]", name)
            found, data = [], make()
            for figures in gallery_index.measure(data):
                load = round(os.getloadavg()[0], 1)
                found.append(
                    GalleryTrial(
                        data=data.name, bits=bits, seed=self.seed, kind="index", load=load, index=figures
                    ).model_dump(mode="json")
                )
            record.parent.mkdir(parents=True, exist_ok=True)
            write_json(record, found)
        yield from map(GalleryTrial.model_validate, json.loads(record.read_text()))

    def text(self, trials: Sequence[GalleryTrial]) -> str:
        """Return the tables of each kind."""
        index = [trial for trial in trials if trial.index]
        if not index:
            return ""
        loads = [trial.load for trial in index]
        load = f"{min(loads):.0f} to {max(loads):.0f}"
        note = INDEX_NOTE.format(bits=index[0].bits, queries=self.queries, noise=gallery_index.NOISE, load=load)
        return "### Index\n\n" + note + "\n\n" + gallery_index.text([trial.index for trial in index if trial.index])
