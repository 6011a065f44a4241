"""The gallery at work: its index, and what is written to it and asked of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks import gallery_index, gallery_ingest, gallery_service
from benchmarks.gallery_index import CodeSet, IndexFigures, TeacherCodes
from benchmarks.gallery_ingest import IngestFigures
from benchmarks.gallery_service import ServiceFigures
from benchmarks.trial import RECORD, Benchmark, Trial
from gallery.console import log
from gallery.files import write_json

INDEX_NOTE = """Exact k nearest neighbors among {bits}-bit codes, CPU time of one thread for one query after another, \
{queries:,} of them. Exact: of how many the answer is that of a flat scan, in distances, and in rows too (ties go to \
the lower row). Codes of "the run's" classes are the teacher's logits of random gallery images of a finished run with \
noise of {noise}; queries are the student's codes of images that are not in it. "100 classes": hash centers with as \
many flips as images of the run have. faiss IVF has the hash centers as its cells. Memory is that of the \
index, beside the codes. The machine was shared (load {load}): compare the rows of a table."""

ASKED = 10_000  # different queries to the service


class GalleryTrial(Trial):
    """One measurement, in the field of its kind; `load` is that of the machine before it."""

    kind: Literal["index", "ingest", "service"]
    load: float
    index: IndexFigures | None = None
    ingest: IngestFigures | None = None
    service: ServiceFigures | None = None


class GalleryBenchmark(Benchmark):
    """Measure the exact index against other ones, what it takes to write a gallery, and the service under load."""

    name: str = "gallery"
    root: Path = Path("runs/vit_b-mobilenetv3-embedded-64")
    """A finished run: its teacher's logits make the codes."""
    items: tuple[int, ...] = (gallery_index.GRAPHS, 1_000_000, 10_000_000)
    """Sizes of the gallery; graphs are built for the least only."""
    queries: int = 1000
    written: int = 1_000_000
    """Codes of the gallery that is written to; 0: leave that out."""
    served: int = 1_000_000
    """Codes of the service's gallery; 0: leave the service out."""
    seed: int = 0

    def trials(self) -> Iterator[GalleryTrial]:
        """Yield the trials of every kind."""
        yield from self.index_trials()
        if self.written:
            yield from self.ingest_trials()
        if self.served:
            yield from self.service_trials()

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
                name = f"index-{name}-{items}-{self.queries}"
                yield from self._measured("index", name, partial(lambda make: gallery_index.measure(make()), make))

    def ingest_trials(self) -> Iterator[GalleryTrial]:
        """Write a gallery of the run's classes, and encode images by its teacher; what is measured is read."""
        folder = self.runs.resolve() / "gallery-ingest"

        def measure() -> Iterator[IngestFigures]:
            data = TeacherCodes(self.root, self.seed).resampled(self.written, self.queries)
            return gallery_ingest.measure(data, self.root, folder)

        yield from self._measured("ingest", f"ingest-{self.written}", measure)

    def service_trials(self) -> Iterator[GalleryTrial]:
        """Measure the service of a gallery of the run's classes; what is measured is read."""
        folder = self.runs.resolve() / "gallery-service"

        def measure() -> Iterator[ServiceFigures]:
            return gallery_service.measure(TeacherCodes(self.root, self.seed).resampled(self.served, ASKED), folder)

        yield from self._measured("service", f"service-{self.served}", measure)

    def _measured(self, kind: str, name: str, measure: Callable[[], Iterable[Any]]) -> Iterator[GalleryTrial]:
        record = self.runs / f"gallery-{name}-{self.seed}" / RECORD
        if not record.exists():
            log.info("[%s]", name)
            bits, found = TeacherCodes(self.root, self.seed).centers.shape[1], []
            for figures in measure():
                about = {"data": figures.codes, "bits": bits, "seed": self.seed, "load": round(os.getloadavg()[0], 1)}
                trial = GalleryTrial.model_validate({**about, "kind": kind, kind: figures})
                found.append(trial.model_dump(mode="json"))
            record.parent.mkdir(parents=True, exist_ok=True)
            write_json(record, found)
        yield from map(GalleryTrial.model_validate, json.loads(record.read_text()))

    def text(self, trials: Sequence[GalleryTrial]) -> str:
        """Return the tables of each kind."""
        index = [trial for trial in trials if trial.index]
        parts = [self._index_text(index)] if index else []
        if written := [(trial.load, trial.ingest) for trial in trials if trial.ingest]:
            loads = [load for load, _ in written]
            load = f"{min(loads):.0f} to {max(loads):.0f}"
            parts.append("### Writing\n\n" + gallery_ingest.text([one for _, one in written], load))
        if served := [trial.service for trial in trials if trial.service]:
            parts.append("### Service\n\n" + gallery_service.text(served))
        return "\n\n".join(parts)

    def _index_text(self, index: Sequence[GalleryTrial]) -> str:
        loads = [trial.load for trial in index]
        load = f"{min(loads):.0f} to {max(loads):.0f}"
        note = INDEX_NOTE.format(bits=index[0].bits, queries=self.queries, noise=gallery_index.NOISE, load=load)
        return "### Index\n\n" + note + "\n\n" + gallery_index.text([trial.index for trial in index if trial.index])
