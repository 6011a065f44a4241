"""Measure speed, memory and exactness of `gallery.metrics.mean_average_precision` against per-query argsort loops.

Writes benchmarks/results/metric.json; exit code 1 if a threshold is missed.
Two baselines run in the same process, in turns with it.  `literature` is the loop of published deep hashing code: +-1
float32 codes, one-hot integer labels, `np.dot`, `np.argsort`, the mean of counts over ranks.  `packed` is the fastest
argsort loop we could write: xor and popcount of 64-bit words, a stable (radix) argsort of bytes, `np.cumsum`.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # two threads wait for each other on a shared machine: slower loops
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from numpy.typing import NDArray

from gallery.codes import Codes, pack, unpack, words
from gallery.files import write_json
from gallery.metrics import MapResult, mean_average_precision
from gallery.results import now
from mobile_eval.system_info import describe

RESULTS = Path(__file__).with_name("results") / "metric.json"
QUERIES, GALLERY, BITS, SEED = 10_000, 60_000, 64, 0
ROUNDS = 5
ORDER_QUERIES, ORDERS = 200, 25
THRESHOLDS = {"speedup_over_literature": 50.0, "peak_extra_mb": 500.0, "difference_to_random_orders": 1e-3}


@dataclass(frozen=True, eq=False)
class Case:
    """Codes and labels of both sides; `loop_queries` of the queries go through the loops, whose time is scaled up."""

    name: str
    query_codes: Codes
    gallery_codes: Codes
    query_labels: NDArray[Any]
    gallery_labels: NDArray[Any]
    loop_queries: int = QUERIES

    @property
    def arrays(self) -> tuple[Codes, Codes, NDArray[Any], NDArray[Any]]:
        return self.query_codes, self.gallery_codes, self.query_labels, self.gallery_labels


def cases() -> list[Case]:
    """Random codes; codes around 10 centers; several of 80 labels and codes around the mean of their centers."""
    rng = np.random.default_rng(SEED)
    labels = [rng.integers(0, 10, n) for n in (QUERIES, GALLERY)]
    uniform = [rng.integers(0, 256, (n, BITS // 8), dtype=np.uint8) for n in (QUERIES, GALLERY)]
    centers = rng.choice([-1.0, 1.0], (10, BITS))
    clustered = [pack(centers[which] * rng.choice([1, -1], (len(which), BITS), p=[0.9, 0.1])) for which in labels]
    several = [rng.random((n, 80)) < 3 / 80 for n in (QUERIES, GALLERY)]
    many = rng.choice([-1.0, 1.0], (80, BITS))
    mixed = [pack(hot @ many + rng.normal(size=(len(hot), BITS))) for hot in several]
    return [
        Case("uniform codes, 10 classes", uniform[0], uniform[1], labels[0], labels[1]),
        Case("clustered codes, 10 classes", clustered[0], clustered[1], labels[0], labels[1]),
        Case("several of 80 labels", mixed[0], mixed[1], several[0], several[1], 1000),
    ]


def literature(case: Case) -> Callable[[int], float]:
    """One query's AP as published evaluation code computes it; the conversions are made beforehand."""
    q, g = (unpack(codes).astype(np.float32) * 2 - 1 for codes in (case.query_codes, case.gallery_codes))
    one_hot = np.eye(80, dtype=np.int64)
    ql, gl = (one_hot[v] if v.ndim == 1 else v.astype(np.int64) for v in (case.query_labels, case.gallery_labels))
    if case.query_labels.ndim == 1:
        ql, gl = ql[:, :10].copy(), gl[:, :10].copy()

    def ap(i: int) -> float:
        hit = (np.dot(ql[i], gl.transpose()) > 0).astype(np.float32)
        hit = hit[np.argsort(0.5 * (BITS - np.dot(q[i], g.transpose())))]
        found = int(hit.sum())
        return float(np.mean(np.linspace(1, found, found) / (np.asarray(np.where(hit == 1)) + 1.0))) if found else 0.0

    return ap


def packed(case: Case) -> Callable[[int], float]:
    """One query's AP by the fastest argsort loop: a stable argsort of bytes is a radix sort."""
    q, g = words(case.query_codes)[:, 0].copy(), words(case.gallery_codes)[:, 0].copy()
    ql, gl = case.query_labels, case.gallery_labels
    by_class = np.ascontiguousarray(gl.T)

    def ap(i: int) -> float:
        relevant = gl == ql[i] if gl.ndim == 1 else by_class[ql[i]].any(0)
        hit = relevant[np.argsort(np.bitwise_count(g ^ q[i]), kind="stable")]
        places = np.flatnonzero(hit) + 1
        return float((np.cumsum(hit)[places - 1] / places).mean()) if len(places) else 0.0

    return ap


def compare(case: Case) -> dict[str, Any]:
    """Runs the loops over their queries in `ROUNDS` parts, ours once after each part."""
    loops = {"literature": literature(case), "packed": packed(case)}
    spent, aps = dict.fromkeys(loops, 0.0), dict.fromkeys(loops, 0.0)
    ours, core = [], 0.0
    for part in range(ROUNDS):
        for name, ap in loops.items():
            start = time.perf_counter()
            aps[name] += sum(ap(i) for i in range(part, case.loop_queries, ROUNDS))
            spent[name] += time.perf_counter() - start
        start, start_core = time.perf_counter(), time.process_time()
        score = mean_average_precision(*case.arrays)
        ours.append(time.perf_counter() - start)
        core += time.process_time() - start_core
    seconds, scale = float(np.median(ours)), QUERIES / case.loop_queries
    return {
        "name": case.name, "seconds": seconds, "seconds_of_rounds": ours, "core_seconds": core / ROUNDS,
        "map": score.map, "map_retrieved": score.map_retrieved, "unanswerable": score.unanswerable,
        "loops": {name: {"seconds": spent[name] * scale, "queries_run": case.loop_queries,
                         "speedup": spent[name] * scale / seconds, "map": aps[name] / case.loop_queries}
                  for name in loops},
        "random_orders": random_orders(case, score),
    }  # fmt: skip


def random_orders(case: Case, score: MapResult) -> dict[str, Any]:
    """Mean AP of the first queries over shuffled galleries with a stable sort, beside the closed form."""
    rng, total = np.random.default_rng(SEED + 1), 0.0
    for _ in range(ORDERS):
        shuffle = rng.permutation(GALLERY)
        ap = packed(Case("", case.query_codes[:ORDER_QUERIES], case.gallery_codes[shuffle],
                         case.query_labels[:ORDER_QUERIES], case.gallery_labels[shuffle]))  # fmt: skip
        total += sum(ap(i) for i in range(ORDER_QUERIES)) / ORDER_QUERIES
    closed = float(score.per_query[:ORDER_QUERIES].mean())
    return {"queries": ORDER_QUERIES, "orders": ORDERS, "mean": total / ORDERS, "closed_form": closed,
            "difference": abs(total / ORDERS - closed)}  # fmt: skip


def peak_extra_mb(case: Case) -> float:
    """Growth of the peak resident memory of a fresh process that has loaded its inputs, over one call."""
    with tempfile.TemporaryDirectory() as folder:
        for number, array in enumerate(case.arrays):
            np.save(Path(folder) / f"{number}.npy", array)
        command = [sys.executable, __file__, "--memory", folder]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _memory(folder: Path) -> None:
    queries, gallery, query_labels, gallery_labels = (np.load(folder / f"{number}.npy") for number in range(4))
    before = _peak_mb()
    mean_average_precision(queries, gallery, query_labels, gallery_labels)
    print(_peak_mb() - before)


def _peak_mb() -> float:
    """Of this process; Linux lets ru_maxrss begin at what the parent had."""
    if Path("/proc/self/status").exists():
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class MetricBenchmark:
    """Speed, memory and exactness of mAP, in a process of its own that allows one thread to BLAS."""

    def run(self) -> int:
        """Write `metric.json` to `benchmarks/results`; return 1 if a threshold is missed."""
        return subprocess.call([sys.executable, __file__])


def main() -> int:
    """Measure all cases, write the results, and report which thresholds hold."""
    load = os.getloadavg()[0]
    mean_average_precision(*cases()[0].arrays)  # imports are not part of the time
    rows = [{**compare(case), "peak_extra_mb": peak_extra_mb(case)} for case in cases()]
    worst = {
        "speedup_over_literature": min(row["loops"]["literature"]["speedup"] for row in rows),
        "peak_extra_mb": max(row["peak_extra_mb"] for row in rows),
        "difference_to_random_orders": max(row["random_orders"]["difference"] for row in rows),
    }
    passed = {name: worst[name] >= threshold if name.startswith("speedup") else worst[name] < threshold
              for name, threshold in THRESHOLDS.items()}  # fmt: skip
    write_json(RESULTS, {
        "command": "python benchmarks/run.py metric", "created": now(),
        "machine": describe().model_dump(), "load_before": load, "queries": QUERIES, "gallery": GALLERY,
        "bits": BITS, "top_k": None, "seed": SEED, "blas_threads": 1, "cases": rows,
        "memory_how": " ".join((peak_extra_mb.__doc__ or "").split()) + " It includes the imports of torch and scipy.",
        "thresholds": THRESHOLDS, "worst": worst, "passed": passed,
    })  # fmt: skip
    for row in rows:
        speed = ", ".join(f"{loop['speedup']:.0f}x {name}" for name, loop in row["loops"].items())
        print(
            f"{row['name']}: {row['seconds']:.2f} s, {speed}; {row['peak_extra_mb']:.0f} MB; mAP {row['map']:.4f}, "
            f"random orders differ by {row['random_orders']['difference']:.1e}"
        )
    print(" ".join(f"{name} {'passed' if ok else 'MISSED'} ({worst[name]:.3g})" for name, ok in passed.items()))
    return 0 if all(passed.values()) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        _memory(Path(sys.argv[2]))
        sys.exit(0)
    sys.exit(main())
