"""Compare all teacher losses: the same backbone, images, crops and steps, and a learning rate for each.

The learning rate is chosen on the validation images of the first seed, never on queries.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from benchmarks import trial as results
from benchmarks.published import PUBLISHED
from benchmarks.trial import Trial, data_source, mean_and_half_range, opened, write_results
from distill.config import StrictModel, TeacherTrainConfig, TrainConfig
from distill.losses import LOSSES
from gallery.console import log
from gallery.files import write_json

if TYPE_CHECKING:
    from distill.context import RunContext
    from distill.models.hash_net import HashNet

RECORD, OURS = "loss.json", "csch"
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


class LossBenchmark(StrictModel):
    """Every teacher loss: mAP, P@H<=2, precision and recall by radius, entropy, seconds."""

    data: tuple[str, ...] = ("ucmerced", "ucmerced_multi")
    bits: tuple[Literal[16, 24, 32, 48, 64, 128], ...] = (32, 64)
    losses: tuple[str, ...] = LOSSES.names()
    """Names of files in distill/losses."""
    seeds: int = 3
    """Number of seeds, from 0."""
    teacher: str = "mobilenetv3_small"
    size: int = 96
    """Input size, pixels."""
    linear_probe_epochs: int = 30
    """Of the linear probe, on cached features."""
    epochs: int = 4
    """Of all layers, after the linear probe."""
    runs: Path = Path("runs/bench")
    """Run folders of the trials; finished ones are read."""

    def run(self) -> None:
        """Measure all trials and write the results, the table and the plot."""
        trials: list[LossTrial] = []
        for data, bits, seed, name in itertools.product(self.data, self.bits, range(self.seeds), self.losses):
            trial = self.trial(data, bits, seed, name)
            log.info("[%s, %d bits, seed %d] %s: %s", data, bits, seed, name, trial.skipped or f"mAP {trial.map:.4f}")
            trials.append(trial)
            self.write(trials)

    def write(self, trials: Sequence[LossTrial]) -> None:
        """Write `losses.json`, `losses.md` and `losses.svg` to `benchmarks/results`."""
        options = self.model_dump(mode="json", exclude={"runs"})
        write_results("losses", options, trials, "\n".join(markdown(self, trials)))
        plot(trials, results.RESULTS / "losses.svg")

    def folder(self, kind: str, data: str, *key: object) -> Path:
        """Return the folder of a trial, or of features, of this backbone and data set."""
        return self.runs / "-".join(map(str, (kind, self.teacher, self.size, Path(data).stem, *key)))

    def trial(self, data: str, bits: int, seed: int, name: str) -> LossTrial:
        """Return one trial, at the learning rate of the best validation mAP at seed 0 and the longest code."""
        tried = {factor: self.trained(data, max(self.bits), 0, name, factor).validation or 0.0 for factor in FACTORS}
        return self.trained(data, bits, seed, name, max(FACTORS, key=tried.__getitem__))

    def trained(self, data: str, bits: int, seed: int, name: str, factor: float) -> LossTrial:
        """Train a trial at a given learning rate, or read it if it is finished."""
        from distill.losses.base import UnsupportedLabels

        folder = self.folder("loss", data, self.epochs, bits, seed, name, f"x{factor:g}")
        if (folder / RECORD).exists():
            return LossTrial.model_validate_json((folder / RECORD).read_text())
        key = {"loss": name, "data": data, "bits": bits, "seed": seed, "factor": factor}
        key["transductive"] = LOSSES.find(name).learns_gallery_codes
        try:
            trial = LossTrial(**key, **self.measured(self.learning(data, bits, seed, name, factor), folder))
        except UnsupportedLabels as error:  # single-label losses on multi-label data
            trial = LossTrial(**key, skipped=error.found)
        write_json(folder / RECORD, trial.model_dump(mode="json"))
        shutil.rmtree(folder / "cache", ignore_errors=True)
        return trial

    def learning(self, data: str, bits: int, seed: int, name: str, factor: float) -> TrainConfig:
        """Return the configuration of one trial."""
        return TrainConfig(
            data=data_source(data),
            teacher=self.teacher,
            student=self.teacher,
            bits=bits,
            seed=seed,
            loss=name,
            teacher_img_size=self.size,
            student_img_size=self.size,
            teacher_train=TeacherTrainConfig(
                finetune="lp_ft",
                linear_probe_epochs=self.linear_probe_epochs,
                epochs=self.epochs,
                lr=factor * LR,
                linear_probe_lr=factor * HEAD_LR,
            ),
        )

    def selects_lr(self, learning: TrainConfig) -> bool:
        """Whether the learning rate of a loss is chosen by this trial's validation mAP."""
        return (learning.seed, learning.bits) == (0, max(self.bits))

    def measured(self, learning: TrainConfig, folder: Path) -> dict[str, Any]:
        """Train one trial and return its figures."""
        from distill.pipeline import train_teacher_and_gallery
        from gallery.codes import pack
        from gallery.metrics import bit_entropy, mean_average_precision, precision_recall, precision_within_radius

        with self.opened(learning, folder) as context:
            teacher, space, gallery, _ = train_teacher_and_gallery(context)
            data, codes = context.data, gallery.codes()
            queries = pack(context.infer_logits("teacher", teacher, data.query, "teacher queries", space.id))
            evaluated = queries, codes, data.labels[data.query], data.labels[data.gallery]
            score, ball = mean_average_precision(*evaluated), precision_within_radius(*evaluated)
            precision, recall = precision_recall(*evaluated)
            return {
                "protocol": context.protocol, "weights": context.resolved.teacher.source,
                "map": score.map, "map_retrieved": score.map_retrieved,
                "precision_2": ball.precision, "empty_2": ball.empty, "entropy": bit_entropy(codes),
                "seconds": context.run_dir.seconds["teacher"], "recall": tuple(recall.round(4).tolist()),
                "precision": tuple(None if np.isnan(p) else round(float(p), 4) for p in precision),
                "validation": validation_map(context, teacher, space.id) if self.selects_lr(learning) else None,
            }  # fmt: skip

    @contextmanager
    def opened(self, learning: TrainConfig, folder: Path) -> Iterator[RunContext]:
        """Open the run folder of a trial; all trials of a seed share the backbone's features of the cached views."""
        shared = self.folder("features", learning.data, learning.seed)
        (folder / "cache").mkdir(parents=True, exist_ok=True)
        for view in range(VIEWS):
            (shared / str(view)).mkdir(parents=True, exist_ok=True)
            link = folder / "cache" / f"teacher-features-{view}"
            if not link.is_symlink():
                link.symlink_to((shared / str(view)).resolve())
        with opened(learning, folder, self.runs / "cache") as context:
            yield context


def validation_map(context: RunContext, teacher: HashNet, key: str) -> float:
    """Return the mAP of the validation images against those of train, by the network's codes of both."""
    from gallery.codes import pack
    from gallery.metrics import mean_average_precision

    parts = {"validation": context.data.validation, "train": context.data.train}
    queries, gallery = (pack(context.infer_logits("teacher", teacher, part, name, key)) for name, part in parts.items())
    labels = [context.data.labels[part] for part in parts.values()]
    return mean_average_precision(queries, gallery, labels[0], labels[1]).map


def markdown(table: LossBenchmark, trials: Sequence[LossTrial]) -> Iterator[str]:
    """Yield a table for each data set and length of code, best first, and published figures."""
    start = next((trial.weights for trial in trials if trial.weights), "")
    yield (
        f"{table.teacher} at {table.size} px, {start}: a linear probe for {table.linear_probe_epochs} epochs on cached "
        f"views, then all layers for {table.epochs} epochs on on-the-fly crops; learning rates x "
        f"{', '.join(map(str, FACTORS))}, chosen for each loss on validation images. Means over seeds, and half of the "
        "distance between the largest and the smallest; seconds are the teacher's wall-clock time.\n"
    )
    for data, bits in dict.fromkeys((trial.data, trial.bits) for trial in trials):
        own = by_loss([trial for trial in trials if (trial.data, trial.bits) == (data, bits)])
        protocols = sorted(
            (several[0].transductive, several[0].protocol) for several in own.values() if several[0].protocol
        )
        yield f"### {data}, {bits} bits\n\n{protocols[0][1] if protocols else ''}\n"
        yield f"| loss | {' | '.join(COLUMNS.values())} | lr x | seeds |"
        yield "|---" * (len(COLUMNS) + 3) + "|"
        yield from (_line(name, several) for name, several in own.items() if not several[0].skipped)
        yield ""
        yield from (f"- {name}: skipped: {several[0].skipped}." for name, several in own.items() if several[0].skipped)
        yield from compare_to_ours(own)
        yield ""
    yield "### Published figures\n\nOther images, backbones and protocols: not comparable with the above.\n"
    yield "| loss | mAP | bits | data | backbone | source |\n|---|---|---|---|---|---|"
    for name in dict.fromkeys(trial.loss for trial in trials):
        for one in PUBLISHED.get(name, ()):
            yield f"| {name} | {one.map:.3f} | {one.bits} | {one.data} | {one.backbone} | {one.source} |"


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


def _line(name: str, several: list[LossTrial]) -> str:
    figures = [mean_and_half_range([getattr(trial, key) for trial in several]) for key in COLUMNS]
    label = f"**{name}**" if name == OURS else name
    if several[0].transductive:
        label = f"{name} (transductive: learns codes from the gallery's labels)"
    return f"| {label} | {' | '.join(figures)} | {several[0].factor:g} | {len(several)} |"


def plot(trials: Sequence[LossTrial], path: Path) -> None:
    """Plot precision over recall by radius, a panel for each data set and length of code, means over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": path.stem, "svg.fonttype": "none"}  # the same figures give the same file
    import matplotlib.pyplot as plt

    panels = [*dict.fromkeys((trial.data, trial.bits) for trial in trials)]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(1 + 4.2 * len(panels), 5.6), squeeze=False, sharey=True, layout="constrained"
    )
    names = [*dict.fromkeys(trial.loss for trial in trials)]
    for axis, (data, bits) in zip(axes[0], panels, strict=True):
        own = by_loss([c for c in trials if (c.data, c.bits) == (data, bits) and not c.skipped])
        for name, several in own.items():
            precision = np.mean([np.array(c.precision, float) for c in several], 0)
            style: dict[str, Any] = {"color": plt.get_cmap("tab20")(names.index(name) % 20), "lw": 1}
            if name == OURS:
                style = {"color": "black", "lw": 2, "zorder": 3}
            axis.plot(np.mean([c.recall for c in several], 0), precision, label=name, **style,
                      ls="--" if several[0].transductive else "-")  # fmt: skip
        axis.set(title=f"{data}, {bits} bits", xlabel="recall within the radius", ylim=(MIN_PRECISION, 1.01))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("precision within the radius")
    handles = {label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=7, fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
