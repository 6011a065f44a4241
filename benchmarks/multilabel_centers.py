"""mAP of target codes on multi-label data, without any network: an upper bound of what a network can reach.

The target code of an image is the majority vote of the centers of its classes.  Centers are either as far apart as
they can be (separated) or optimised for shared labels (`distill/hash_centers/multilabel.py`).
"""

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.trial import Benchmark, Trial, mean_and_half_range, table
from gallery.console import log
from gallery.errors import InputError

Flags = NDArray[np.bool_]


class CenterTrial(Trial):
    """Centers for the labels of the training images; the queries' target codes search the training images' ones.

    separated, optimised: tie-aware mAP; distances: minimum distance of both sets of centers; seconds: of optimising
    """

    queries: int
    train: int
    classes: int
    separated: float
    optimised: float
    distances: tuple[int, int]
    seconds: float


class MultilabelCenters(Benchmark):
    """mAP of multi-label target codes, before and after optimising the hash centers."""

    name: str = "multilabel_centers"
    data: tuple[str, ...] = ("ucmerced_multi", "voc2012", "nuswide_21", "mirflickr", "coco")
    """Multi-label protocols; all but ucmerced_multi need the published lists only, no images."""
    bits: tuple[int, ...] = (32, 64)
    seeds: int = 3
    """Number of seeds, from 0."""
    root: Path | None = None
    """Folder of the data sets (default: TWINHASH_DATA)."""

    def trials(self) -> Iterator[CenterTrial]:
        """Build and measure the centers of all data sets, code lengths and seeds; nothing is kept between runs."""
        return itertools.starmap(self.trial, itertools.product(self.data, self.bits, range(self.seeds)))

    def trial(self, data: str, bits: int, seed: int) -> CenterTrial:
        """Build and optimise one set of centers, and measure both."""
        from distill.hash_centers.constructions import hash_centers, min_distance
        from distill.hash_centers.multilabel import optimise_centers

        train, query = self.labels(data, seed)
        before = hash_centers(train.shape[1], bits, seed)
        start = time.monotonic()
        after = optimise_centers(before, train)
        seconds = time.monotonic() - start
        scores = [target_code_map(centers, query, train) for centers in (before, after)]
        log.info("[%s, %d bits, seed %d] mAP of target codes %.4f, optimised %.4f", data, bits, seed, *scores)
        return CenterTrial(
            data=data, bits=bits, seed=seed, queries=len(query), train=len(train), classes=train.shape[1],
            separated=scores[0], optimised=scores[1], seconds=round(seconds, 2),
            distances=(min_distance(before), min_distance(after)),
        )  # fmt: skip

    def labels(self, name: str, seed: int) -> tuple[Flags, Flags]:
        """Return the multi-hot labels of the training images and of the queries, `[N, C]` and `[Q, C]`."""
        from distill import data
        from distill.data.dataset import QUERY, TRAIN
        from distill.data.list_files import listed_labels
        from distill.data.load import VARIABLE
        from distill.data.protocol_specs import PUBLISHED

        root = self.root or os.environ.get(VARIABLE)
        if name in PUBLISHED and root:
            return listed_labels(name, TRAIN, Path(root)), listed_labels(name, QUERY, Path(root))
        options = data.DataConfig(seed, data_root=self.root)
        images = data.load(name, {32}, self.runs / "cache", options)
        if images.labels.ndim == 1:
            raise InputError("multi-label data", f"{name}, with one label an image", "Choose another --data.")
        return images.labels[images.train], images.labels[images.query]

    def text(self, trials: Sequence[CenterTrial]) -> str:
        """Return a table with a row for each data set and length of code."""
        rows = []
        for (data, bits), group in itertools.groupby(trials, lambda trial: (trial.data, trial.bits)):
            own = list(group)
            scores = (mean_and_half_range([getattr(trial, key) for trial in own]) for key in ("separated", "optimised"))
            least = " to ".join(str(min(trial.distances[i] for trial in own)) for i in (0, 1))
            sizes, seconds = f"{own[0].queries:,} x {own[0].train:,}", np.mean([trial.seconds for trial in own])
            rows.append([data, own[0].classes, sizes, bits, *scores, least, f"{seconds:.1f}"])
        columns = "data", "classes", "queries x train", "bits", "separated", "optimised", "min. distance", "seconds"
        return (
            "mAP of the queries' target codes against those of the training images: what a network that gives every "
            "image its target code reaches. Centers as far apart as they can be, and the same optimised for the "
            "training images' labels. Means over seeds, and half of the distance between the largest and the smallest."
            f"\n\n{table(columns, rows)}"
        )


def target_code_map(centers: NDArray[np.int8], query: Flags, gallery: Flags) -> float:
    """Return the mAP of the queries' target codes against those of the gallery."""
    from distill.hash_centers.multilabel import target_codes
    from gallery.codes import pack
    from gallery.metrics import mean_average_precision

    codes = [pack(target_codes(labels, centers).astype(np.float32)) for labels in (query, gallery)]
    return mean_average_precision(codes[0], codes[1], query, gallery).map
