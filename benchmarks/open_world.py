"""What codes find of classes that came after training, in four protocols, beside float features and ITQ of them.

A part at a time, in any order: `python benchmarks/run.py open-world --data imagenet20 --bits 64 --seeds 0`.
"""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from pydantic import ValidationInfo, field_validator

from benchmarks.trial import GrowingBenchmark, Trial, data_source, mean_and_half_range, panels, share_features, table
from distill.config import StudentTrainConfig, TeacherTrainConfig, TrainConfig
from distill.losses import LOSSES
from gallery.console import log
from gallery.files import atomic_path
from gallery.open_world import OpenWorldMaps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from distill.context import RunContext

UNSEEN = {"imagenet20": 5, "ucmerced": 6, "cifar10_6k": 3}  # classes without labels
SLICE = 100, 200, 500  # of each class of CIFAR-10: queries, training images, and gallery images, which hold these
INDUCTIVE, TRANSDUCTIVE, LABEL_FREE = "inductive", "transductive", "label-free"
OURS, OLD, FLOAT, ITQ_TRAIN = "csch", "csch-no-similarity", "float-cosine", "itq-of-train"
BASELINES = {  # of pretrained features
    FLOAT: f"{INDUCTIVE}, {LABEL_FREE}", ITQ_TRAIN: f"{INDUCTIVE}, {LABEL_FREE}",
    "itq-of-gallery": f"{TRANSDUCTIVE}, {LABEL_FREE}",
}  # fmt: skip
SHARED = (  # what the pretrained teacher computes for several of the trials of a draw
    *(f"features-{part}" for part in (*range(8), "validation", "unlabeled", "gallery", "queries")),
    *(f"float-features-{part}" for part in ("gallery", "queries")),
)  # fmt: skip
PUBLISHED_SCALE, EARLIER_STUDENT_LR = 8.0, 1e-3  # of CSCH; the default when its row was measured
CURVE_BITS = 64  # at which the weights of the similarity term are compared
COLUMNS = {name: name.replace("_", "@") for name in OpenWorldMaps.model_fields}
NOTE = (
    "csch-no-similarity: without the term on unlabeled images, at CSCH's own scale of 8, the student at a rate of "
    "1e-3 for 3e-4; csch-labeled-student: the student without such images, in as many steps; csch-0.1: another weight "
    "of the term. Inductive: the teacher knew nothing of the unseen classes. Transductive: their images, without "
    "labels, are in the gallery that it was trained on. Label-free: it used no label at all. The students of all "
    "other rows are trained on the gallery's unlabeled images too, so that student->gallery is transductive there. "
    "float-cosine, itq-of-train and itq-of-gallery are of the teacher's pretrained features; itq is ITQ of train as a "
    "teacher, with its student. Tie-aware mAP over all; means over draws of the unseen classes, and half of the "
    "distance between the largest and the smallest, where there are several; seconds are wall-clock time on a shared "
    "machine, without what the trials of a draw share."
)


class Row(NamedTuple):
    """A teacher's loss and its options; what it knows of the unseen classes; the student's options."""

    loss: str
    setting: str
    args: Mapping[str, Any] = MappingProxyType({})
    student: Mapping[str, Any] = MappingProxyType({})
    base: str = ""
    """The row whose teacher and gallery it reuses."""


ROWS = {
    OURS: Row("csch", TRANSDUCTIVE),
    OLD: Row("csch", INDUCTIVE, {"similarity_weight": 0.0, "scale": PUBLISHED_SCALE}, {"lr": EARLIER_STUDENT_LR}),
    "csch-labeled-student": Row("csch", TRANSDUCTIVE, student={"unlabeled_ratio": 0.0}, base=OURS),
    **{loss: Row(loss, INDUCTIVE) for loss in ("csq", "hybridhash", "unihash")},
    "similarity": Row("similarity", f"{TRANSDUCTIVE}, {LABEL_FREE}"),
    "itq": Row("itq", f"{INDUCTIVE}, {LABEL_FREE}"),
}
WEIGHTS = {f"csch-{w:g}": Row("csch", TRANSDUCTIVE, {"similarity_weight": w}) for w in (0.03, 0.1, 1.0)}


class OpenWorldTrial(Trial):
    """A teacher and its student, or a baseline on pretrained features; mAP in the four protocols.

    weight: of the similarity term, where the loss has one; unseen: the unseen classes
    """

    row: str
    setting: str
    weight: float | None = None
    teacher_teacher: OpenWorldMaps
    student_gallery: OpenWorldMaps | None = None
    student_steps: int = 0
    unseen: tuple[str, ...]
    seconds: dict[str, float]
    protocol: str


class OpenWorld(GrowingBenchmark):
    """Losses and baselines on seen and unseen classes: teacher and student, and the weight of the similarity term."""

    parts: ClassVar[frozenset[str]] = frozenset({"data", "bits", "seeds", "rows"})
    trial_type: ClassVar[type[Trial]] = OpenWorldTrial
    name: str = "open_world"
    data: tuple[str, ...] = tuple(UNSEEN)
    """imagenet20, ucmerced, cifar10_6k (100 queries and 500 gallery images a class, 200 of them for training)."""
    bits: tuple[int, ...] = (32, 64)
    seeds: tuple[int, ...] = (0, 1, 2)
    """Draws of the unseen classes."""
    rows: tuple[str, ...] = (*BASELINES, *ROWS, *WEIGHTS)
    """Baselines, losses, and weights of the similarity term, which are measured at 64 bits alone."""
    teacher: str = "efficientnet_lite2"
    student: str = "mobilenetv3_small"
    size: int = 96
    """Input size of both networks, pixels."""
    epochs: int = 4
    """Epochs of all layers of the teacher, after the linear probe."""
    student_epochs: int = 6
    views: int = 2
    """Cached views an image."""

    @field_validator("data", "rows")
    @classmethod
    def _are_known(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        known = UNSEEN if info.field_name == "data" else [*BASELINES, *ROWS, *WEIGHTS]
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"{', '.join(unknown)} is none of {', '.join(known)}")
        return names

    def trials(self) -> Iterator[OpenWorldTrial]:
        """Yield the trials by data, draw, length of code and row."""
        for data, seed, bits, row in itertools.product(self.data, self.seeds, self.bits, self.rows):
            if row in WEIGHTS and bits != CURVE_BITS:
                continue
            trial = self.trial(data, bits, seed, row)
            maps = trial.student_gallery or trial.teacher_teacher
            log.info("[%s, %d bits, draw %d] %s: %s", data, bits, seed, row, " ".join(cells([maps])))
            yield trial

    def key(self, trial: Any) -> tuple[Any, ...]:
        """Return data, bits, row and draw."""
        order = [*BASELINES, *ROWS, *WEIGHTS]
        return trial.data, trial.bits, order.index(trial.row), trial.seed

    def trial(self, data: str, bits: int, seed: int, row: str) -> OpenWorldTrial:
        """Measure one trial, or read it."""
        learning, folder = self.learning(data, bits, seed, row), self.folder(data, seed, bits, row)
        return self.measured(OpenWorldTrial, learning, folder, partial(self.score, data, row))

    def folder(self, data: str, seed: int, *key: object) -> Path:
        """Return the run folder of a trial, or the folder of what the trials of a draw share."""
        networks = f"{self.teacher}-{self.student}-{self.size}-{self.epochs}-{self.student_epochs}-{self.views}"
        name = "-".join(str(part).replace(", ", "-").replace(" ", "_") for part in ("open", data, seed, *key, networks))
        return self.runs / name

    def learning(self, data: str, bits: int, seed: int, row: str) -> TrainConfig:
        """Return the configuration of one trial; a baseline's decides about the data alone."""
        own = (ROWS | WEIGHTS).get(row, ROWS[OURS])
        source = str(cifar_slice(self.runs / data)) if data == "cifar10_6k" else data_source(data)
        taught: dict[str, Any] = {"loss": own.loss, "loss_args": dict(own.args)}
        if not LOSSES.find(own.loss).is_fitted:
            taught["teacher_train"] = TeacherTrainConfig(finetune="lp_ft", epochs=self.epochs)
        if own.base:
            self.trial(data, bits, seed, own.base)
            taught = {"reuse_gallery": self.folder(data, seed, bits, own.base)}
        # Half of each batch is unlabeled in the other rows: as many steps without them take twice the epochs.
        epochs = self.student_epochs * (2 if own.student.get("unlabeled_ratio") == 0 else 1)
        return TrainConfig(
            teacher=self.teacher, student=self.student, data=source, bits=bits, seed=seed,
            num_unseen_classes=UNSEEN[data], teacher_img_size=self.size, student_img_size=self.size,
            student_train=StudentTrainConfig(epochs=epochs, cached_views=self.views, **own.student),
            **taught,
        )  # fmt: skip

    def score(self, name: str, row: str, context: RunContext) -> OpenWorldTrial:
        """Train both networks of a trial, or none for a baseline, and measure them."""
        config, data = context.config, context.data
        share_features(context, self.folder(name, config.seed, "features"), SHARED)
        maps = score_baseline(row, context) if row in BASELINES else score_networks(context)
        options = LOSSES.parse(config.loss, config.loss_args)
        return OpenWorldTrial(
            data=name, bits=config.bits, seed=config.seed, row=row, protocol=context.protocol, unseen=data.unseen,
            setting=BASELINES.get(row) or (ROWS | WEIGHTS)[row].setting, seconds=context.run_dir.seconds,
            weight=None if row in BASELINES else getattr(options, "similarity_weight", None), **maps,
        )  # fmt: skip

    def text(self, trials: Sequence[OpenWorldTrial]) -> str:
        """Return how to read the tables, and one for each data set and length of code, with comparisons."""
        parts = [
            f"{self.teacher} (a linear probe, then all layers for {self.epochs} epochs) and {self.student} "
            f"({self.student_epochs} epochs, {self.views} cached views), pretrained, at {self.size} px. {NOTE}"
        ]
        for data, bits in dict.fromkeys((trial.data, trial.bits) for trial in trials):
            own = by_row([trial for trial in trials if (trial.data, trial.bits) == (data, bits)])
            several = [trial for group in own.values() for trial in group]
            protocol = next(trial.protocol for trial in several if trial.seed == min(t.seed for t in several))
            parts += [f"### {data}, {bits} bits", f"Of draw {min(t.seed for t in several)}: {protocol}", _table(own)]
            parts.append("\n".join(compare(own)))
        return "\n\n".join(filter(None, parts))

    def plot(self, trials: Sequence[OpenWorldTrial], path: Path) -> None:
        """Plot unseen@unseen over seen@seen of the longest codes; the weights of the similarity term are joined."""
        import matplotlib

        longest = [trial for trial in trials if trial.bits == max(one.bits for one in trials)]
        datasets, names = ([*dict.fromkeys(getattr(t, key) for t in longest)] for key in ("data", "row"))
        colors = matplotlib.colormaps["tab20"]
        with panels(path, datasets, (1 + 4.2 * len(datasets), 5.2)) as (figure, axes):
            handles = {}
            for axis, data in zip(axes, datasets, strict=True):
                own = by_row([trial for trial in longest if trial.data == data])
                _plot_curve(axis, own)
                for name, group in own.items():
                    marker = "s" if name in BASELINES else "o"
                    (handles[name],) = axis.plot(
                        *_point(group), marker, color=colors(names.index(name) % 20), label=name
                    )  # fmt: skip
                axis.set_xlabel("seen@seen")
            axes[0].set_ylabel("unseen@unseen, student->gallery")
            figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8)


def score_networks(context: RunContext) -> dict[str, Any]:
    """Train both networks; return the maps of both against the teacher's gallery, and the student's steps."""
    from distill.metrics_log import read_metrics
    from distill.pipeline import train_all
    from distill.summary import pair_logits
    from gallery.codes import pack
    from gallery.open_world import open_world_maps

    models, data = train_all(context), context.data
    pairs, labels = pair_logits(context, models), (data.labels[data.query], data.labels[context.indexed_images])
    assert pairs.teacher_queries is not None  # every trial trains or reuses a teacher with its weights
    both = (open_world_maps(pack(queries), models.gallery.codes, *labels, data.seen)
            for queries in (pairs.teacher_queries, pairs.student_queries))  # fmt: skip
    points = read_metrics(context.run_dir.folder / "train.jsonl")
    steps = max(point.step for point in points if point.stage == "student")
    return {**dict(zip(("teacher_teacher", "student_gallery"), both, strict=True)), "student_steps": steps}


def score_baseline(row: str, context: RunContext) -> dict[str, Any]:
    """Return the maps of the pretrained teacher's float features, or of ITQ codes of them."""
    from distill.itq import fit_itq
    from distill.open_world import baseline_features
    from gallery.codes import pack
    from gallery.open_world import open_world_float, open_world_maps

    data, features = context.data, baseline_features(context)
    queries, gallery = features(data.query), features(context.indexed_images)
    labels = data.labels[data.query], data.labels[context.indexed_images]
    if row == FLOAT:
        return {"teacher_teacher": open_world_float(queries, gallery, *labels, data.seen)}
    fitted = fit_itq(features(data.train) if row == ITQ_TRAIN else gallery, context.config.bits, context.config.seed)
    codes = pack(fitted.logits(queries)), pack(fitted.logits(gallery))
    return {"teacher_teacher": open_world_maps(*codes, *labels, data.seen)}


def cifar_slice(folder: Path) -> Path:
    """Write a part of CIFAR-10 that a CPU can train on, `SLICE`, as images and a manifest; return the manifest's path.

    Raises `InputError` without CIFAR-10 in TWINHASH_DATA.
    """
    from distill.data.cifar import list_cifar
    from distill.data.load import VARIABLE
    from distill.data.protocol_specs import CIFAR10
    from distill.data.sampled_splits import GALLERY_ONLY, TRAIN_AND_GALLERY, sample_splits

    manifest, root = folder / "manifest.csv", os.environ.get(VARIABLE)
    if manifest.exists():
        return manifest
    if not root:
        raise CIFAR10.missing_error("<data root>", f"no {VARIABLE}")
    images, (queries, train, gallery) = list_cifar("cifar10", Path(root), 0), SLICE
    labels = [own for (own,) in images.labels]
    splits = sample_splits(labels, 0, queries, train, TRAIN_AND_GALLERY)
    left, rows = dict.fromkeys(labels, gallery - train), []
    for i, (name, label, own) in enumerate(zip(images.names, labels, splits, strict=True)):
        if own == GALLERY_ONLY:
            left[label] -= 1
            if left[label] < 0:
                continue
        path = folder / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.source.read(i)[0].save(path)
        rows.append([path.relative_to(folder), label, ";".join(sorted(own))])
    with atomic_path(manifest) as draft, draft.open("w", newline="") as stream:
        csv.writer(stream).writerows([["path", "label", "split"], *rows])
    return manifest


def by_row(trials: Sequence[OpenWorldTrial]) -> dict[str, list[OpenWorldTrial]]:
    """Group trials by row, in their order."""
    found: dict[str, list[OpenWorldTrial]] = {}
    for trial in trials:
        found.setdefault(trial.row, []).append(trial)
    return found


def product_maps(trial: OpenWorldTrial) -> OpenWorldMaps:
    """Return the maps of student->gallery; of a baseline, which has no student, its own."""
    return trial.student_gallery or trial.teacher_teacher


def compare(own: dict[str, list[OpenWorldTrial]]) -> Iterator[str]:
    """Yield a sentence for each reference of ours: the differences in student->gallery over the draws of both."""
    for reference in (OLD, ITQ_TRAIN):
        pairs = [
            (product_maps(ours), product_maps(other)) for ours in own.get(OURS, ()) for other in own.get(reference, ())
            if ours.seed == other.seed
        ]  # fmt: skip
        if not pairs:
            continue
        gains = {name: np.mean([getattr(a, name) - getattr(b, name) for a, b in pairs]) for name in COLUMNS}
        said = ", ".join(f"{COLUMNS[name]} {gain:+.3f}" for name, gain in gains.items())
        draws = f"{len(pairs)} draw{'s' if len(pairs) > 1 else ''}"
        yield f"- {OURS} against {reference}, student->gallery, {draws}: {said}."


def _table(own: dict[str, list[OpenWorldTrial]]) -> str:
    rows = []
    for name, group in own.items():
        students = [trial.student_gallery for trial in group if trial.student_gallery]
        seconds = np.mean([sum(trial.seconds.values()) for trial in group])
        found = [*cells([trial.teacher_teacher for trial in group]), *(cells(students) if students else [""] * 4)]
        rows.append([f"**{name}**" if name == OURS else name, group[0].setting, *found, f"{seconds:.0f}", len(group)])
    names = [f"{pair} {name}" for pair in ("t->t", "s->g") for name in COLUMNS.values()]
    return table(["", "teacher's setting", *names, "seconds", "draws"], rows)


def cells(maps: Sequence[OpenWorldMaps]) -> list[str]:
    """Format the four protocols: the mean over draws and half the range, where there are several."""
    if len(maps) == 1:
        return [f"{getattr(maps[0], name):.3f}" for name in COLUMNS]
    return [mean_and_half_range([getattr(one, name) for one in maps]) for name in COLUMNS]


def _point(group: Sequence[OpenWorldTrial]) -> tuple[float, float]:
    maps = [product_maps(trial) for trial in group]
    return float(np.mean([one.seen_seen for one in maps])), float(np.mean([one.unseen_unseen for one in maps]))


def _plot_curve(axis: Axes, own: dict[str, list[OpenWorldTrial]]) -> None:
    """Join the rows of CSCH in the order of the weight of the similarity term."""
    rows = [OURS, OLD, *WEIGHTS]
    weighed = sorted(
        (group[0].weight, *_point(group)) for name, group in own.items() if name in rows and group[0].weight is not None
    )
    axis.plot([x for _, x, _ in weighed], [y for _, _, y in weighed], color="grey", lw=1, zorder=0)
    for weight, x, y in weighed:
        axis.annotate(f"{weight:g}", (x, y), fontsize=7, xytext=(3, 3), textcoords="offset points")
