"""Hash centers of pictures with several classes: how well the words themselves tell who shares one, before any network.

Separated centers are only voters; elected ones have been moved to where their votes are right
(`distill/hash_centers/multilabel.py`).
With either, a network that gave every picture its true word would retrieve as well as those words do, measured here.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.csch import RESULTS, spread
from distill.config import Model
from gallery.console import log
from gallery.errors import InputError
from gallery.files import write_json, write_whole

Flags = NDArray[np.bool_]


class Cell(Model):
    """Centers by the labels of the training pictures, and the queries' true words sought among theirs.

    separated, elected: tie-aware mAP; distances: the least between two centers, of either; seconds: of the election
    """

    data: str
    bits: int
    seed: int
    queries: int
    train: int
    classes: int
    separated: float
    elected: float
    distances: tuple[int, int]
    seconds: float


class Votes(Model):
    """Centers of pictures with several classes: mAP of the true words, before and after their election."""

    data: tuple[str, ...] = ("ucmerced_multi", "voc2012", "nuswide_21", "mirflickr", "coco")
    """Protocols with several classes a picture; of all but ucmerced_multi the published lists are enough."""
    bits: tuple[int, ...] = (32, 64)
    seeds: int = 3
    """How many, from 0."""
    root: Path | None = None
    """Below which the data sets are, or else below TWINHASH_DATA."""
    runs: Path = Path("runs/bench")
    """Below which decoded pictures are kept."""

    def run(self) -> None:
        """Writes `votes.json` and `votes.md` in `benchmarks/results`."""
        from mobile_eval.system_info import describe

        cells = [self.cell(*key) for key in itertools.product(self.data, self.bits, range(self.seeds))]
        write_json(RESULTS / "votes.json", {
            "command": "python benchmarks/run.py votes", "machine": describe().model_dump(),
            "options": self.model_dump(mode="json", exclude={"root", "runs"}),
            "cells": [cell.model_dump(mode="json") for cell in cells],
        })  # fmt: skip
        write_whole(RESULTS / "votes.md", "\n".join(markdown(cells)) + "\n")

    def cell(self, data: str, bits: int, seed: int) -> Cell:
        """One election."""
        from distill.hash_centers.constructions import hash_centers, min_distance
        from distill.hash_centers.multilabel import elected

        train, query = self.labels(data, seed)
        before = hash_centers(train.shape[1], bits, seed)
        start = time.monotonic()
        after = elected(before, train)
        seconds = time.monotonic() - start
        scores = [retrieved(centers, query, train) for centers in (before, after)]
        log.info("[%s, %d bits, seed %d] mAP of the true words %.4f, elected %.4f", data, bits, seed, *scores)
        return Cell(data=data, bits=bits, seed=seed, queries=len(query), train=len(train), classes=train.shape[1],
                    separated=scores[0], elected=scores[1], seconds=round(seconds, 2),
                    distances=(min_distance(before), min_distance(after)))  # fmt: skip

    def labels(self, name: str, seed: int) -> tuple[Flags, Flags]:
        """The classes of the training pictures and of the queries, `[N, C]` and `[Q, C]`."""
        from distill import data
        from distill.data.dataset import QUERY, TRAIN
        from distill.data.list_files import listed_labels
        from distill.data.protocols import VARIABLE
        from distill.data.published import PUBLISHED

        root = self.root or os.environ.get(VARIABLE)
        if name in PUBLISHED and root:
            return listed_labels(name, TRAIN, Path(root)), listed_labels(name, QUERY, Path(root))
        pictures = data.load(name, {32}, self.runs / "cache", seed=seed, root=self.root)
        if pictures.labels.ndim == 1:
            raise InputError("pictures with several classes", f"{name}, with one each", "Choose another --data.")
        return pictures.labels[pictures.train], pictures.labels[pictures.query]


def retrieved(centers: NDArray[np.int8], query: Flags, known: Flags) -> float:
    """mAP of the true words of queries among those of known pictures."""
    from distill.hash_centers.multilabel import center_targets
    from gallery.codes import pack
    from gallery.metrics import mean_average_precision

    words = [pack(center_targets(labels, centers).astype(np.float32)) for labels in (query, known)]
    return mean_average_precision(words[0], words[1], query, known).map


def markdown(cells: Sequence[Cell]) -> Iterator[str]:
    """A row for each data set and length of code."""
    yield (
        "mAP of the true words of the queries among those of the training pictures: what a network that gives every "
        "picture its true word reaches. Centers as far apart as they can be, and the same after their election by the "
        "training pictures' labels. Means over seeds, and half of the distance between the largest and the smallest.\n"
    )
    yield "| data | classes | queries x train | bits | separated | elected | least distance | seconds |"
    yield "|---|---|---|---|---|---|---|---|"
    for (data, bits), group in itertools.groupby(cells, lambda cell: (cell.data, cell.bits)):
        own = list(group)
        scores = (spread([getattr(cell, key) for cell in own]) for key in ("separated", "elected"))
        least = " to ".join(str(min(cell.distances[i] for cell in own)) for i in (0, 1))
        yield (
            f"| {data} | {own[0].classes} | {own[0].queries:,} x {own[0].train:,} | {bits} | {' | '.join(scores)} "
            f"| {least} | {np.mean([cell.seconds for cell in own]):.1f} |"
        )
