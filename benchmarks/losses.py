"""Compare all teacher losses: the same backbone, images, crops and steps, and a learning rate for each.

The learning rate is chosen on the validation images of the first seed, never on queries.
A part at a time, in any order: `python benchmarks/run.py losses --data ucmerced --losses csch csq`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from benchmarks.published import PUBLISHED
from benchmarks.trial import GrowingBenchmark, Trial, data_source, mean_and_half_range, panels, share_features, table
from distill.config import TeacherTrainConfig, TrainConfig
from distill.losses import LOSSES
from gallery.console import log

if TYPE_CHECKING:
    from distill.context import RunContext
    from distill.models.hash_net import HashNet

OURS = "csch"
FACTORS = (0.3, 1.0, 3.0)  # of both learning rates
HEAD_LR, LR, VIEWS = 3e-3, 3e-4, 8
MIN_PRECISION = 0.5  # of the plot: below, all curves fall alike
COLUMNS = {
    "map": "mAP", "map_retrieved": "mAP (retrieved-only denominator)", "precision_2": "P@H<=2",
    "empty_2": "queries with empty ball", "entropy": "bit entropy", "seconds": "seconds",
}  # fmt: skip


class LossTrial(Trial):
    """One teacher: its queries against its gallery.

    map: tie-aware, over the whole gallery; validation: mAP of the validation images against those of train, where the
    factor of the learning rates is chosen by it; precision, recall: by radius 0..bits, None where every ball is empty;
    entropy: mean over the bits of the gallery's codes; skipped: why there are no figures
    """

    loss: str
    transductive: bool
    """Whether the gallery's codes were learned from the gallery's labels."""
    protocol: str = ""
    weights: str = ""
    """Source of the backbone's weights."""
    factor: float = 1.0
    validation: float | None = None
    map: float = 0.0
    map_retrieved: float = 0.0
    precision_2: float = 0.0
    empty_2: float = 0.0
    entropy: float = 0.0
    seconds: float = 0.0
    precision: tuple[float | None, ...] = ()
    recall: tuple[float, ...] = ()
    skipped: str = ""


class LossBenchmark(GrowingBenchmark):
    """Every teacher loss: mAP, P@H<=2, precision and recall by radius, entropy, seconds."""

    parts: ClassVar[frozenset[str]] = frozenset({"data", "bits", "losses", "seeds"})
    trial_type: ClassVar[type[Trial]] = LossTrial
    name: str = "losses"
    data: tuple[str, ...] = ("ucmerced", "ucmerced_multi")
    """Data sets, as for --data of distill/run.py."""
    bits: tuple[Literal[16, 24, 32, 48, 64, 128], ...] = (32, 64)
    losses: tuple[str, ...] = ()
    """Names of files in distill/losses; by default all that learn from labels."""
    seeds: int = 3
    """Number of seeds, from 0."""
    teacher: str = "mobilenetv3_small"
    size: int = 96
    """Input size, pixels."""
    linear_probe_epochs: int = 30
    """Epochs of the linear probe, on cached features."""
    epochs: int = 4
    """Epochs of all layers, after the linear probe."""

    def trials(self) -> Iterator[LossTrial]:
        """Yield the trials, each at the learning rate of the best validation mAP at seed 0 and the longest code."""
        losses = self.losses or [name for name in LOSSES.names() if LOSSES.find(name).uses_labels]
        for data, bits, seed, loss in itertools.product(self.data, self.bits, range(self.seeds), losses):
            tried = {factor: self.trial(data, max(self.bits), 0, loss, factor).validation or 0.0 for factor in FACTORS}
            trial = self.trial(data, bits, seed, loss, max(FACTORS, key=tried.__getitem__))
            log.info("[%s, %d bits, seed %d] %s: %s", data, bits, seed, loss, trial.skipped or f"mAP {trial.map:.4f}")
            yield trial

    def key(self, trial: Any) -> tuple[Any, ...]:
        """Return data, bits, seed and loss."""
        return trial.data, trial.bits, trial.seed, trial.loss

    def folder(self, kind: str, data: str, *key: object) -> Path:
        """Return the folder of a trial, or of features, of this backbone and data set."""
        return self.runs / "-".join(map(str, (kind, self.teacher, self.size, Path(data).stem, *key)))

    def trial(self, data: str, bits: int, seed: int, loss: str, factor: float) -> LossTrial:
        """Train a trial at a given learning rate, or read it if it is finished."""
        learning = TrainConfig(
            data=data_source(data), teacher=self.teacher, student=self.teacher, bits=bits, seed=seed, loss=loss,
            teacher_img_size=self.size, student_img_size=self.size,
            teacher_train=TeacherTrainConfig(
                finetune="lp_ft", linear_probe_epochs=self.linear_probe_epochs, epochs=self.epochs,
                lr=factor * LR, linear_probe_lr=factor * HEAD_LR,
            ),
        )  # fmt: skip
        folder = self.folder("loss", data, self.epochs, bits, seed, loss, f"x{factor:g}")
        return self.measured(LossTrial, learning, folder, partial(self.score, factor))

    def score(self, factor: float, context: RunContext) -> LossTrial:
        """Train the teacher of a trial and measure its queries against its gallery."""
        from distill.losses.base import UnsupportedLabels
        from distill.pipeline import train_teacher_and_gallery
        from gallery.codes import pack
        from gallery.metrics import bit_entropy, mean_average_precision, precision_recall, precision_within_radius

        data, config = context.data, context.config
        key = {"loss": config.loss, "data": data.name, "bits": config.bits, "seed": config.seed, "factor": factor,
               "transductive": context.loss_class.learns_gallery_codes}  # fmt: skip
        share_features(
            context, self.folder("features", config.data, config.seed), (f"features-{v}" for v in range(VIEWS))
        )
        try:
            teacher, space, gallery, _ = train_teacher_and_gallery(context)
        except UnsupportedLabels as error:  # single-label losses on multi-label data
            return LossTrial(**key, skipped=error.found)
        codes, selects_lr = gallery.codes, (config.seed, config.bits) == (0, max(self.bits))
        queries = pack(context.infer_logits("teacher", teacher, data.query, "teacher queries", space.id))
        evaluated = queries, codes, data.labels[data.query], data.labels[context.indexed_images]
        score, ball = mean_average_precision(*evaluated), precision_within_radius(*evaluated)
        precision, recall = precision_recall(*evaluated)
        return LossTrial(
            **key, protocol=context.protocol, weights=context.resolved.teacher.source,
            map=score.map, map_retrieved=score.map_retrieved,
            precision_2=ball.precision, empty_2=ball.empty, entropy=bit_entropy(codes),
            seconds=context.run_dir.seconds["teacher"], recall=tuple(recall.round(4).tolist()),
            precision=tuple(None if np.isnan(p) else round(float(p), 4) for p in precision),
            validation=validation_map(context, teacher, space.id) if selects_lr else None,
        )  # fmt: skip

    def text(self, trials: Sequence[LossTrial]) -> str:
        """Return a table for each data set and length of code, best first, and published figures."""
        start = next((trial.weights for trial in trials if trial.weights), "")
        parts = [
            f"{self.teacher} at {self.size} px, {start}: a linear probe for {self.linear_probe_epochs} epochs on "
            f"cached views, then all layers for {self.epochs} epochs on on-the-fly crops; learning rates x "
            f"{', '.join(map(str, FACTORS))}, chosen for each loss on validation images. Means over seeds, and half of "
            "the distance between the largest and the smallest; seconds are the teacher's wall-clock time.\n"
        ]
        for data, bits in dict.fromkeys((trial.data, trial.bits) for trial in trials):
            own = by_loss([trial for trial in trials if (trial.data, trial.bits) == (data, bits)])
            firsts = [several[0] for several in own.values()]
            protocols = sorted((first.transductive, first.protocol) for first in firsts if first.protocol)
            rows = (_row(name, several) for name, several in own.items() if not several[0].skipped)
            skipped = (f"- {first.loss}: skipped: {first.skipped}." for first in firsts if first.skipped)
            parts += [f"### {data}, {bits} bits\n\n{protocols[0][1] if protocols else ''}\n",
                      table(["loss", *COLUMNS.values(), "lr x", "seeds"], rows), "",
                      *skipped, *compare_to_ours(own), ""]  # fmt: skip
        parts.append("### Published figures\n\nOther images, backbones and protocols: not comparable with the above.\n")
        names = dict.fromkeys(trial.loss for trial in trials)
        published = ((name, f"{one.map:.3f}", *one[1:]) for name in names for one in PUBLISHED.get(name, ()))
        return "\n".join([*parts, table(["loss", "mAP", "bits", "data", "backbone", "source"], published)])

    def plot(self, trials: Sequence[LossTrial], path: Path) -> None:
        """Plot precision over recall by radius, a panel for each data set and length of code, means over seeds."""
        import matplotlib

        keys = [*dict.fromkeys((trial.data, trial.bits) for trial in trials)]
        names, colors = [*dict.fromkeys(trial.loss for trial in trials)], matplotlib.colormaps["tab20"]
        titles = [f"{data}, {bits} bits" for data, bits in keys]
        with panels(path, titles, (1 + 4.2 * len(keys), 5.6)) as (figure, axes):
            handles = {}
            for axis, key in zip(axes, keys, strict=True):
                own = by_loss([c for c in trials if (c.data, c.bits) == key and not c.skipped])
                for name, several in own.items():
                    precision = np.mean([np.array(c.precision, float) for c in several], 0)
                    style: dict[str, Any] = {"color": colors(names.index(name) % 20), "lw": 1}
                    if name == OURS:
                        style = {"color": "black", "lw": 2, "zorder": 3}
                    (handles[name],) = axis.plot(
                        np.mean([c.recall for c in several], 0), precision, label=name, **style,
                        ls="--" if several[0].transductive else "-",
                    )  # fmt: skip
                axis.set(xlabel="recall within the radius", ylim=(MIN_PRECISION, 1.01))
            axes[0].set_ylabel("precision within the radius")
            figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=7, fontsize=8)


def validation_map(context: RunContext, teacher: HashNet, key: str) -> float:
    """Return the mAP of the validation images against those of train, by the network's codes of both."""
    from gallery.codes import pack
    from gallery.metrics import mean_average_precision

    parts = {"validation": context.data.validation, "train": context.data.train}
    queries, gallery = (pack(context.infer_logits("teacher", teacher, part, name, key)) for name, part in parts.items())
    labels = [context.data.labels[part] for part in parts.values()]
    return mean_average_precision(queries, gallery, labels[0], labels[1]).map


def by_loss(trials: Sequence[LossTrial]) -> dict[str, list[LossTrial]]:
    """Group the trials by loss, the best mean mAP first."""
    found: dict[str, list[LossTrial]] = {}
    for trial in trials:
        found.setdefault(trial.loss, []).append(trial)
    return dict(sorted(found.items(), key=lambda item: -float(np.mean([trial.map for trial in item[1]]))))


def compare_to_ours(own: dict[str, list[LossTrial]]) -> Iterator[str]:
    """Yield which inductive losses are better than CSCH, and by how much; or that none is."""
    if OURS not in own:
        return
    ours = [trial.map for trial in own[OURS]]
    better = {
        name: np.mean([c.map for c in several]) - np.mean(ours) for name, several in own.items()
        if not several[0].transductive and np.mean([c.map for c in several]) > np.mean(ours)
    }  # fmt: skip
    if not better:
        yield f"- {OURS}, ours, is first among the inductive losses."
    for name, gain in better.items():
        seeds = max(np.ptp([trial.map for trial in own[name]]), np.ptp(ours)) / 2
        result = "more than" if gain > seeds else "within"
        yield f"- {name} is {gain:.3f} better than {OURS}, ours: {result} the spread over seeds ({seeds:.3f})."


def _row(name: str, several: list[LossTrial]) -> list[str]:
    figures = [mean_and_half_range([getattr(trial, key) for trial in several]) for key in COLUMNS]
    label = f"**{name}**" if name == OURS else name
    if several[0].transductive:
        label = f"{name} (transductive: learns codes from the gallery's labels)"
    return [label, *figures, f"{several[0].factor:g}", str(len(several))]
