"""Published protocols of CIFAR-10, teacher and student, beside the figures that others report with their backbones.

A part at a time, in any order: `python benchmarks/run.py protocols --data cifar10-1 --bits 64 --rows csch`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np

from benchmarks.published import CIFAR, CIFAR_2, CIFAR_APART, CIFAR_ZS, PUBLISHED
from benchmarks.trial import GrowingBenchmark, Trial, data_source, share_features, table
from distill.config import StudentTrainConfig, TeacherTrainConfig, TrainConfig
from gallery.console import log
from gallery.record import Record
from gallery.results import STUDENT_GALLERY, TEACHER_TEACHER

if TYPE_CHECKING:
    from distill.context import RunContext

ALL = "all@all"
BOTH = TEACHER_TEACHER, STUDENT_GALLERY
OURS, LABELED = "csch", "csch-labeled"


class Schedule(NamedTuple):
    """Epochs of the linear probe, of all layers of the teacher, and of the student; cached views an image."""

    probe: int
    teacher: int
    student: int
    views: int


FEW, MANY = Schedule(30, 3, 4, 2), Schedule(6, 1, 1, 1)  # of 5,000 training images, and of 40,000 or more
SCHEDULES = {"cifar10": FEW, "cifar10-1": FEW, "cifar10-2": MANY, "cifar10-zs": MANY}
DATA = {"cifar10": CIFAR_APART, "cifar10-1": CIFAR, "cifar10-2": CIFAR_2}  # as in the published figures
NOTE = (
    "csch: both networks learn from the gallery's other images too, without labels, as by default; csch-labeled: from "
    "the training images alone, as the published methods do (in cifar10-2 the gallery has no others). One seed. "
    "Tie-aware mAP, and in brackets with the literature's denominator, the relevant images among the first R (the same "
    "where R is the whole gallery). Nothing was chosen by the queries; published figures are of the best epoch by the "
    "queries' own mAP. cifar10 and cifar10-1 have 5,000 training images, the others 40,000 and 50,000: the epochs of "
    "each are in the table. Seconds are wall-clock time on a shared machine, without what the trials of a protocol "
    "share."
)


class ProtocolMap(Record):
    """queries: which of which database, e.g. unseen@all; retrieved: with the literature's denominator."""

    pair: str
    queries: str
    map: float
    retrieved: float


class ProtocolTrial(Trial):
    """A teacher and a student on a published protocol; top_k: R of its mAP@R, None for the whole gallery."""

    row: str
    top_k: int | None
    maps: tuple[ProtocolMap, ...]
    epochs: tuple[int, int, int]
    """Of the linear probe, of all layers, and of the student."""
    seconds: dict[str, float]
    protocol: str


class Protocols(GrowingBenchmark):
    """CIFAR-10 in its published protocols, one of them with unseen classes."""

    parts: ClassVar[frozenset[str]] = frozenset({"data", "bits", "rows"})
    trial_type: ClassVar[type[Trial]] = ProtocolTrial
    name: str = "protocols"
    data: tuple[str, ...] = tuple(SCHEDULES)
    """cifar10, cifar10-1, cifar10-2, cifar10-zs."""
    bits: tuple[int, ...] = (16, 32, 64)
    rows: tuple[Literal["csch-labeled", "csch"], ...] = ("csch-labeled", "csch")
    """From the training images alone, and from the gallery's other images too, without labels."""
    seed: int = 0
    teacher: str = "efficientnet_lite2"
    student: str = "mobilenetv3_small"
    size: int = 96
    """Input size of both networks, pixels."""

    def trials(self) -> Iterator[ProtocolTrial]:
        """Yield the trials by data, length of code and row."""
        for key in itertools.product(self.data, self.bits, self.rows):
            if key[0] == "cifar10-2" and key[2] == OURS:  # whose gallery is its training images
                continue
            trial = self.measured(ProtocolTrial, self.learning(*key), self.folder(*key), partial(self.score, key[2]))
            said = (f"{one.pair} {one.queries} {one.map:.4f}" for one in trial.maps)
            log.info("[%s, %d bits] %s: %s", *key, ", ".join(said))
            yield trial

    def key(self, trial: Any) -> tuple[Any, ...]:
        """Return data, bits and row."""
        return trial.data, trial.bits, (LABELED, OURS).index(trial.row)

    def folder(self, data: str, *key: object) -> Path:
        """Return the run folder of a trial, or the folder of what the trials of a protocol share."""
        epochs = "_".join(map(str, self.schedule(data)))
        parts = "protocol", data, *key, self.seed, self.teacher, self.student, self.size, epochs
        return self.runs / "-".join(map(str, parts))

    def schedule(self, data: str) -> Schedule:
        """Return how long both networks are trained on a protocol."""
        return SCHEDULES.get(data, FEW)

    def learning(self, data: str, bits: int, row: str) -> TrainConfig:
        """Return the configuration of one trial."""
        own, labeled = self.schedule(data), row == LABELED
        return TrainConfig(
            teacher=self.teacher, student=self.student, data=data_source(data), bits=bits, seed=self.seed,
            teacher_img_size=self.size, student_img_size=self.size,
            loss_args={"similarity_weight": 0.0} if labeled else {},
            teacher_train=TeacherTrainConfig(finetune="lp_ft", linear_probe_epochs=own.probe, epochs=own.teacher),
            student_train=StudentTrainConfig(
                epochs=own.student, cached_views=own.views, unlabeled_ratio=0.0 if labeled else "auto"
            ),
        )  # fmt: skip

    def score(self, row: str, context: RunContext) -> ProtocolTrial:
        """Train both networks of a trial and measure them."""
        from distill.pipeline import train_all
        from distill.summary import pair_logits
        from gallery.codes import pack

        config, data, own = context.config, context.data, self.schedule(context.config.data)
        names = *(f"features-{view}" for view in range(own.views)), "features-validation", "features-unlabeled"
        share_features(context, self.folder(config.data, "features"), names)
        models = train_all(context)
        pairs = pair_logits(context, models)
        assert pairs.teacher_queries is not None  # every trial trains a teacher
        logits = dict(zip(BOTH, (pairs.teacher_queries, pairs.student_queries), strict=True))
        maps = (one for name, queries in logits.items()
                for one in protocol_maps(name, context, pack(queries), models.gallery.codes))  # fmt: skip
        return ProtocolTrial(
            data=data.name, bits=config.bits, seed=config.seed, row=row, top_k=data.top_k, maps=tuple(maps),
            epochs=(own.probe, own.teacher, own.student), seconds=context.run_dir.seconds, protocol=context.protocol,
        )  # fmt: skip

    def text(self, trials: Sequence[ProtocolTrial]) -> str:
        """Return a table for each protocol, and below it the published figures."""
        parts = [f"{self.teacher} and {self.student}, pretrained, at {self.size} px. {NOTE}"]
        for data in dict.fromkeys(trial.data for trial in trials):
            own = [trial for trial in trials if trial.data == data]
            parts += [f"### {data}", own[0].protocol, _table(own)]
            if published := _published(data):
                parts += ["Published, with other backbones and larger images:", published]
        return "\n\n".join(parts)


def protocol_maps(pair: str, context: RunContext, queries: Any, gallery: Any) -> Iterator[ProtocolMap]:
    """Yield the mAP of all queries in the whole gallery; with unseen classes, in the four protocols instead.

    queries, gallery: packed codes, uint8 `[n, bits / 8]`, the gallery's in the order of its index
    """
    from gallery.metrics import mean_average_precision
    from gallery.open_world import open_world_protocols

    data = context.data
    asked, known = data.labels[data.query], data.labels[context.indexed_images]
    every = np.ones(len(asked), bool), np.ones(len(known), bool)
    for name, (q, g) in (open_world_protocols(asked, known, data.seen) if data.unseen else {ALL: every}).items():
        found = mean_average_precision(queries[q], gallery[g], asked[q], known[g], data.top_k)
        yield ProtocolMap(pair=pair, queries=name.replace("_", "@"), map=found.map, retrieved=found.map_retrieved)


def _table(own: Sequence[ProtocolTrial]) -> str:
    names = dict.fromkeys(one.queries for one in own[0].maps)
    columns = [(pair, queries) for pair in BOTH for queries in names]
    rows = []
    for trial in own:
        maps = {(one.pair, one.queries): f"{one.map:.3f} ({one.retrieved:.3f})" for one in trial.maps}
        epochs, seconds = " + ".join(map(str, trial.epochs)), sum(trial.seconds.values())
        rows.append([trial.bits, trial.row, *(maps[key] for key in columns), epochs, f"{seconds:.0f}"])
    heads = [pair if queries == ALL else f"{pair}, {queries}" for pair, queries in columns]
    return table(["bits", "row", *heads, "epochs: probe + all layers + student", "seconds"], rows)


def _published(data: str) -> str:
    if data == "cifar10-zs":
        names = "seen@seen", "seen@all", "unseen@unseen", "unseen@all"
        rows = [(name, one.bits, *(f"{value:.3f}" for value in one[:4]), *one[5:])
                for name, several in CIFAR_ZS.items() for one in several]  # fmt: skip
        return table(["loss", "bits", *names, "backbone", "source"], rows)
    figures = [(name, one.bits, f"{one.map:.3f}", one.backbone, one.source)
               for name, several in PUBLISHED.items() for one in several if one.data == DATA.get(data)]  # fmt: skip
    return table(["loss", "bits", "mAP", "backbone", "source"], figures) if figures else ""
