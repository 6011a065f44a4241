"""Students trained on views as apps make them: what that costs on the rule's images, and what it saves in apps.

A part at a time, in any order: `python benchmarks/run.py app-augment --data imagenet20 --seeds 0 --shares 0 0.5`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from benchmarks.trial import GrowingBenchmark, Trial, data_source, panels, table
from distill.config import StudentTrainConfig, TeacherTrainConfig, TrainConfig
from gallery.console import log
from gallery.skew_results import PreprocessingSkew

if TYPE_CHECKING:
    from distill.context import RunContext
    from distill.pipeline import TrainedModels

OFF = 0.0  # the share whose teacher and gallery the others reuse
RESIZES = ("bilinear without antialiasing", "nearest neighbor", "box filter", "bicubic", "Lanczos")  # trained on
NOTE = (
    "share: of the student's views that are made as apps make them (--student-train.app-augment). All students of a "
    "seed are of one teacher and one gallery. Clean: student->gallery, all queries by the rule; the other columns are "
    "what is lost of that on the queries measured, in an app that makes its input so, or what share of the bits flips. "
    "The five resizes and JPEG are among what the students are trained on, the others are not. Tie-aware mAP over all; "
    "means over seeds, and half of the distance between the largest and the smallest, where there are several; seconds "
    "are wall-clock time of the student's training on a shared machine."
)


class AppAugmentTrial(Trial):
    """A student; clean: mAP of student->gallery on all queries; skew: what apps lose of it."""

    share: float
    clean: float
    skew: PreprocessingSkew
    seconds: float
    protocol: str

    @property
    def drops(self) -> dict[str, float]:
        """The mAP lost by each pipeline."""
        return {row.pipeline: row.map_drop for row in self.skew.rows if row.map_drop is not None}

    @property
    def resizing(self) -> float:
        """The mAP lost by the five resizes, their mean."""
        return float(np.mean([self.drops[name] for name in RESIZES]))


class AppAugment(GrowingBenchmark):
    """Shares of the student's views that are made as apps make them: mAP by the rule, and what apps lose."""

    parts: ClassVar[frozenset[str]] = frozenset({"data", "seeds", "shares"})
    trial_type: ClassVar[type[Trial]] = AppAugmentTrial
    name: str = "app_augment"
    data: tuple[str, ...] = ("ucmerced", "imagenet20")
    """Data sets, as for --data of distill/run.py; imagenet20: that of TWINHASH_DATA."""
    seeds: tuple[int, ...] = (0, 1, 2)
    shares: tuple[float, ...] = (OFF, 0.5)
    """Values of --student-train.app-augment; 0 is measured before any other, since it trains the teacher."""
    bits: int = 64
    teacher: str = "efficientnet_lite2"
    student: str = "mobilenetv3_small"
    size: int = 64
    """Input size of both networks, pixels: smaller than the images."""
    student_epochs: int = 6
    views: int = 2
    """Cached views an image."""
    queries: int = 500
    """At most how many queries are made into inputs as apps do."""

    def trials(self) -> Iterator[AppAugmentTrial]:
        """Yield the trials by data, seed and share, each after that of share 0."""
        for data, seed, share in itertools.product(self.data, self.seeds, self.shares):
            trial = self.trial(data, seed, share)
            said = f"clean {trial.clean:.4f}, lost by resizing {trial.resizing:.4f}"
            log.info("[%s, seed %d] share %g: %s", data, seed, share, said)
            yield trial

    def key(self, trial: Any) -> tuple[Any, ...]:
        """Return data, share and seed."""
        return trial.data, trial.share, trial.seed

    def trial(self, data: str, seed: int, share: float) -> AppAugmentTrial:
        """Train and measure one trial, or read it."""
        learning, folder = self.learning(data, seed, share), self.folder(data, seed, share)
        return self.measured(AppAugmentTrial, learning, folder, partial(self.score, data))

    def folder(self, data: str, seed: int, share: float) -> Path:
        """Return the run folder of a trial."""
        networks = f"{self.teacher}-{self.student}-{self.size}-{self.student_epochs}-{self.views}-{self.bits}"
        return self.runs / f"apps-{Path(data).name}-{networks}-{seed}-{share:g}"

    def learning(self, data: str, seed: int, share: float) -> TrainConfig:
        """Return the configuration of one trial, whose teacher is trained first where it is another's."""
        taught: dict[str, Any] = {"teacher_train": TeacherTrainConfig(finetune="linear_probe")}
        if share != OFF:
            self.trial(data, seed, OFF)
            taught = {"reuse_gallery": self.folder(data, seed, OFF)}
        distilled = StudentTrainConfig(epochs=self.student_epochs, cached_views=self.views, app_augment=share)
        return TrainConfig(
            teacher=self.teacher, student=self.student, data=data_source(data), bits=self.bits, seed=seed,
            teacher_img_size=self.size, student_img_size=self.size, student_train=distilled, **taught,
        )  # fmt: skip

    def score(self, name: str, context: RunContext) -> AppAugmentTrial:
        """Train the student of a trial, and measure it by the rule and as apps make its input."""
        from distill.pipeline import train_all

        models, config = train_all(context), context.config
        clean, skew = self.measure(context, models)
        return AppAugmentTrial(
            data=name, bits=config.bits, seed=config.seed, share=config.student_train.app_augment, clean=clean,
            skew=skew, seconds=context.run_dir.seconds["student"], protocol=context.protocol,
        )  # fmt: skip

    def measure(self, context: RunContext, models: TrainedModels) -> tuple[float, PreprocessingSkew]:
        """Return the mAP of student->gallery on all queries, and what apps lose of it."""
        from distill.run_images import query_photos
        from distill.summary import pair_logits
        from mobile_eval.compare import FloatReference
        from mobile_eval.skew import measure_skew, skewed_squares, subset_for_skew

        data, logits, photos = context.data, pair_logits(context, models).student_queries, query_photos(context)
        queries, labels = data.pixels[self.size][data.query], data.labels[data.query]
        reference = FloatReference(queries, logits, models.space, labels, models.gallery, classes=data.classes)
        part, reduction = subset_for_skew(reference, photos, self.size, self.queries)
        squares = skewed_squares(photos(part.indices), self.size)
        by_apps = {name: context.pixel_logits("student", models.student, pixels) for name, pixels in squares.items()}
        assert reference.map is not None  # all data sets have labels
        return reference.map, measure_skew(by_apps, part, reduction)

    def text(self, trials: Sequence[AppAugmentTrial]) -> str:
        """Return how to read the tables, and for each data set one of mAP, one of bits, and comparisons."""
        parts = [
            f"{self.teacher} (a linear probe) and {self.student} ({self.student_epochs} epochs, {self.views} cached "
            f"views), pretrained, at {self.size} px, {self.bits} bits. {NOTE}"
        ]
        for data in dict.fromkeys(trial.data for trial in trials):
            own = by_share([trial for trial in trials if trial.data == data])
            first = next(iter(own.values()))[0]
            seen = f"{first.skew.queries:,} queries, {first.skew.reduction:.3g} times the input's side (median)"
            parts += [f"### {data}", f"{first.protocol} {seen}.", drop_table(own), flip_table(own)]
            parts.append("\n".join(compare(own)))
        return "\n\n".join(filter(None, parts))

    def plot(self, trials: Sequence[AppAugmentTrial], path: Path) -> None:
        """Plot the mAP that each resize loses, by share: means over seeds."""
        datasets = [*dict.fromkeys(trial.data for trial in trials)]
        with panels(path, datasets, (1 + 4.2 * len(datasets), 4.2)) as (_, axes):
            for axis, data in zip(axes, datasets, strict=True):
                own = by_share([trial for trial in trials if trial.data == data])
                for name in RESIZES:
                    lost = [np.mean([trial.drops[name] for trial in group]) for group in own.values()]
                    axis.plot([*own], lost, "o-", label=name)
                axis.set_xlabel("share of the views as apps make them")
            axes[0].set_ylabel("mAP lost")
            axes[0].legend(fontsize=8)


def by_share(trials: Sequence[AppAugmentTrial]) -> dict[float, list[AppAugmentTrial]]:
    """Group trials by share, the smallest first."""
    found: dict[float, list[AppAugmentTrial]] = {}
    for trial in sorted(trials, key=lambda trial: (trial.share, trial.seed)):
        found.setdefault(trial.share, []).append(trial)
    return found


def drop_table(own: dict[float, list[AppAugmentTrial]]) -> str:
    """Format the clean mAP and what is lost of it by pipeline."""
    pipelines = [row.pipeline for row in next(iter(own.values()))[0].skew.rows]
    rows = []
    for share, group in own.items():
        drops = [figure([trial.drops[name] for trial in group]) for name in pipelines]
        clean, lost = figure([t.clean for t in group]), figure([t.resizing for t in group])
        rows.append([f"{share:g}", clean, lost, *drops, f"{np.mean([t.seconds for t in group]):.0f}", len(group)])
    return table(["share", "clean mAP", "lost: mean of five resizes", *pipelines, "seconds", "seeds"], rows)


def flip_table(own: dict[float, list[AppAugmentTrial]]) -> str:
    """Format the share of bits that flips by pipeline, in percent."""
    pipelines = [row.pipeline for row in next(iter(own.values()))[0].skew.rows]
    rows = [
        [f"{share:g}", *(f"{100 * np.mean([trial.skew.rows[i].bit_flip_rate for trial in group]):.2f}%"
                         for i in range(len(pipelines)))]
        for share, group in own.items()
    ]  # fmt: skip
    return table(["share", *(f"bits: {name}" for name in pipelines)], rows)


def figure(values: Sequence[float]) -> str:
    """Format one value, or the mean of several and half of their range; losses are small: four places."""
    if len(values) == 1:
        return f"{values[0]:z.4f}"
    return f"{np.mean(values):z.4f} ± {(max(values) - min(values)) / 2:.4f}"


def compare(own: dict[float, list[AppAugmentTrial]]) -> Iterator[str]:
    """Yield a sentence a share: the difference from share 0 by the rule and in apps, over the seeds of both."""
    first = {trial.seed: trial for trial in own.get(OFF, ())}
    for share, group in own.items():
        pairs = [(first[trial.seed], trial) for trial in group if trial.seed in first]
        if share == OFF or not pairs:
            continue
        gains = [new.clean - old.clean for old, new in pairs]
        sides = [*zip(*pairs, strict=True)]
        linear = " -> ".join(f"{np.mean([t.drops[RESIZES[0]] for t in side]):z.4f}" for side in sides)
        five = " -> ".join(f"{np.mean([t.resizing for t in side]):z.4f}" for side in sides)
        seeds = f"{len(pairs)} seed{'s' if len(pairs) > 1 else ''}"
        worst = f"from {min(gains):+.4f} to {max(gains):+.4f}"
        lost = f"lost by {RESIZES[0]} {linear}, by five resizes {five}"
        yield f"- {share:g} against 0, {seeds}: clean {np.mean(gains):+.4f} ({worst}); {lost}."
