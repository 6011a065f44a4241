"""Search in codes that look like a teacher's: the exact index against flat scans, inverted files and graphs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.trial import table
from gallery.codebook_index import CodebookIndex, Form
from gallery.codes import Codes, hamming, pack
from gallery.codespace import CENTERS
from gallery.console import log
from gallery.errors import InputError
from gallery.record import Record

K = 10, 100
NOISE, FLIPS, PART = 0.3, 300_000, 100_000
GRAPHS = 200_000  # items in the graphs: a million take minutes to build
OURS, FLAT = "CodebookIndex", "faiss flat"
Search = Callable[[Codes, int], tuple[NDArray[Any], NDArray[Any]]]
Built = tuple[Search, str, int]  # how to ask it, what it chose, and its bytes


class Timing(Record):
    """CPU time of a query in milliseconds, and in how many of the queries the answer is that of a flat scan."""

    k: int
    p50_ms: float
    p95_ms: float
    mean_ms: float
    exact_distances: int
    exact_rows: int


class IndexFigures(Record):
    """One index on one set of codes; without timings, `reason` says why.

    chosen: what CodebookIndex took itself; memory_mb: its size, with its own copy of the codes if any
    """

    method: str
    codes: str
    items: int
    classes: int
    queries: int
    chosen: str = ""
    reason: str = ""
    build_s: float = 0
    memory_mb: float = 0
    timings: tuple[Timing, ...] = ()


class CodeSet(NamedTuple):
    name: str
    codes: Codes
    centers: NDArray[np.int8]
    queries: Codes


class TeacherCodes:
    """Codes of any number made from the logits that a finished run's teacher gave its gallery, and the student's."""

    def __init__(self, run: Path, seed: int) -> None:
        self.gallery, self.student = (_logits(run / "cache" / name) for name in ("gallery", "student-queries"))
        self.centers: NDArray[np.int8] = np.load(run / CENTERS, allow_pickle=False)
        self.seed, self.rng = seed, np.random.default_rng(seed)

    def resampled(self, items: int, queries: int) -> CodeSet:
        """The logits of random images with Gaussian noise, and as queries the student's, of images not among them."""
        self.rng = np.random.default_rng((self.seed, items))
        codes = np.empty((items, self.centers.shape[1] // 8), np.uint8)
        for at in range(0, items, PART):
            part = codes[at : at + PART]
            logits = self.gallery[self.rng.integers(0, len(self.gallery), len(part))]
            part[:] = pack(logits + NOISE * self.rng.standard_normal(logits.shape, np.float32))
        asked = self.student[np.resize(self.rng.permutation(len(self.student)), queries)]
        return CodeSet(f"the run's {len(self.centers)} classes", codes, self.centers, pack(asked))

    def flipped(self, classes: int, items: int, queries: int) -> CodeSet:
        """Centers of more classes; each item has as many flips as an image of the run, at random places."""
        from distill.hash_centers.constructions import hash_centers

        bits, self.rng = self.centers.shape[1], np.random.default_rng((self.seed, items, classes))
        centers = hash_centers(classes, bits, 0).astype(np.int8)
        counts = self.rng.choice(hamming(pack(self.gallery), pack(self.centers)).min(1), FLIPS)
        flips = pack(self.rng.random((FLIPS, bits)).argsort(1).argsort(1) < counts[:, None])
        chosen = self.rng.integers(0, FLIPS, items + queries), self.rng.integers(0, classes, items + queries)
        codes = flips[chosen[0]] ^ pack(centers)[chosen[1]]
        return CodeSet(f"{classes:,} classes", codes[:items], centers, codes[items:])

    def uniform(self, items: int, queries: int) -> CodeSet:
        """Random bits, which have no clusters."""
        self.rng = np.random.default_rng((self.seed, items))
        codes = self.rng.integers(0, 256, (items + queries, self.centers.shape[1] // 8), np.uint8)
        return CodeSet("uniform bits", codes[:items], self.centers, codes[items:])


def measure(data: CodeSet) -> Iterator[IndexFigures]:
    """Build every index on one set of codes and ask it all queries one by one."""
    exact = {k: CodebookIndex(data.codes, None, "faiss").search(data.queries, k) for k in K}
    for name, build in methods(len(data.codes)).items():
        figures = IndexFigures(
            method=name, codes=data.name, items=len(data.codes), classes=len(data.centers), queries=len(data.queries)
        )
        start = time.process_time()
        try:
            search, chosen, size = build(data)
        except ImportError as error:
            yield figures.model_copy(update={"reason": f"not installed: {error.name}"})
            continue
        seconds = time.process_time() - start
        timings = tuple(timed(search, data.queries, k, exact[k]) for k in K)
        log.info("  %s, %s of %d: %s", name, data.name, len(data.codes), timings[0])
        yield figures.model_copy(
            update={
                "chosen": chosen,
                "build_s": round(seconds, 2),
                "memory_mb": round(size / 1e6, 1),
                "timings": timings,
            }
        )


def timed(search: Search, queries: Codes, k: int, exact: tuple[NDArray[Any], NDArray[Any]]) -> Timing:
    """Ask one query after the other, and compare each answer with that of a flat scan."""
    search(queries[:1], k)
    spent, distances, rows = [], 0, 0
    for i, query in enumerate(queries):
        start = time.process_time()
        found = search(query[None], k)
        spent.append((time.process_time() - start) * 1000)
        same = np.array_equal(found[0][0], exact[0][i])
        distances, rows = distances + same, rows + (same and np.array_equal(found[1][0], exact[1][i]))
    p50, p95 = np.percentile(spent, [50, 95])
    return Timing(
        k=k, p50_ms=round(p50, 4), p95_ms=round(p95, 4), mean_ms=round(float(np.mean(spent)), 4),
        exact_distances=distances, exact_rows=rows,
    )  # fmt: skip


def methods(items: int) -> dict[str, Callable[[CodeSet], Built]]:
    """What is measured, by name; graphs only on few items."""
    found: dict[str, Callable[[CodeSet], Built]] = {
        OURS: _codebook(None), f"{OURS}, buckets": _codebook("buckets"),
        FLAT: _codebook("faiss"), "numpy flat": _codebook("numpy"),
        **{f"faiss IVF, nprobe {probes or 'all'}": _inverted(probes) for probes in (1, 2, 4, 0)},
    }  # fmt: skip
    if items <= GRAPHS:
        found |= {"faiss HNSW16, ef 128": _hnsw, "usearch, ef 256": _usearch}
    return found


def _codebook(form: Form | None) -> Callable[[CodeSet], Built]:
    def build(data: CodeSet) -> Built:
        index = CodebookIndex(data.codes, data.centers, form)
        return index.search, index.form, index.nbytes

    return build


def _inverted(probes: int) -> Callable[[CodeSet], Built]:
    """Cells of the centers, as the codebook gives them; 0 probes are all."""

    def build(data: CodeSet) -> Built:
        import faiss

        faiss.omp_set_num_threads(1)
        bits = data.centers.shape[1]
        quantizer = faiss.IndexBinaryFlat(bits)
        quantizer.add(pack(data.centers))
        index = faiss.IndexBinaryIVF(quantizer, bits, len(data.centers))
        index.is_trained, index.nprobe = True, probes or len(data.centers)
        index.add(data.codes)
        return index.search, "", _faiss_bytes(index)

    return build


def _hnsw(data: CodeSet) -> Built:
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexBinaryHNSW(data.centers.shape[1], 16)
    index.hnsw.efSearch = 128
    index.add(data.codes)
    return index.search, "", _faiss_bytes(index)


def _usearch(data: CodeSet) -> Built:
    from usearch.index import Index

    index = Index(ndim=data.centers.shape[1], metric="hamming", dtype="b1", expansion_search=256)
    index.add(np.arange(len(data.codes)), data.codes, threads=1)

    def search(codes: Codes, k: int) -> tuple[NDArray[Any], NDArray[Any]]:
        found = index.search(codes, k, threads=1)
        return np.atleast_2d(found.distances), np.atleast_2d(found.keys).astype(np.int64)

    return search, "", index.memory_usage


def _faiss_bytes(index: Any) -> int:
    import faiss

    return int(faiss.serialize_index_binary(index).nbytes)


def _logits(folder: Path) -> NDArray[np.float32]:
    shards = sorted(folder.glob("*.npy"))
    if not shards:
        raise InputError(
            "a finished run with its logits", f"none in {folder}", "Run distill/run.py, or name one by --root."
        )
    return np.concatenate([np.load(shard, allow_pickle=False) for shard in shards])


def text(rows: Sequence[IndexFigures]) -> str:
    """Return a table for each set of codes."""
    parts = []
    for key in dict.fromkeys((row.codes, row.items) for row in rows):
        own = [row for row in rows if (row.codes, row.items) == key]
        columns = [
            "index",
            *(f"{what}, k = {k}" for k in K for what in ("exact distances / rows", "p50 / p95 / mean ms")),
        ]
        cells = [[row.method + (f" ({row.chosen})" if row.method == OURS else ""), *_cells(row)] for row in own]
        parts.append(f"#### {key[1]:,} codes, {key[0]}\n\n" + table([*columns, "memory, MB", "build, s"], cells))
    return "\n\n".join(parts)


def _cells(row: IndexFigures) -> list[str]:
    if row.reason:
        return [row.reason, *[""] * (2 * len(K) + 1)]
    cells = []
    for t in row.timings:
        cells += [f"{t.exact_distances:,} / {t.exact_rows:,}", f"{t.p50_ms:.3f} / {t.p95_ms:.3f} / {t.mean_ms:.3f}"]
    return [*cells, f"{row.memory_mb:.0f}", f"{row.build_s:.1f}"]
