"""What the benchmarks share: trials, each trained in its own run folder, and the tables and plots of their figures."""

from __future__ import annotations

import os
import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from distill.config import TrainConfig
from gallery.errors import InputError
from gallery.files import atomic_write, read_json, write_json
from gallery.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from distill.context import RunContext

RESULTS, RECORD = Path(__file__).with_name("results"), "trial.json"


class Trial(Record):
    """What the trials of every benchmark share: the data set, the length of the code, the seed."""

    data: str
    bits: int
    seed: int


T = TypeVar("T", bound=Trial)


class Benchmark(Record):
    """Trials and the files they are written to."""

    parts: ClassVar[frozenset[str]] = frozenset()
    """Options that choose what is measured, not how: they are not written."""
    name: str
    """Name of the files in benchmarks/results."""
    runs: Path = Path("runs/bench")
    """Run folders of the trials, and decoded images; finished trials are read."""

    @abstractmethod
    def trials(self) -> Iterator[Trial]:
        """Yield all trials, measuring those that are not finished."""

    @abstractmethod
    def text(self, trials: Sequence[Any]) -> str:
        """Return the tables of the trials, in Markdown."""

    def plot(self, trials: Sequence[Any], path: Path) -> None:
        """Write a plot to `path`, where there is one."""

    def run(self) -> None:
        """Measure all trials; write `<name>.json`, `.md` and `.svg` to `benchmarks/results` after each."""
        trials: list[Trial] = []
        for trial in self.trials():
            trials.append(trial)
            self.write(trials)

    def write(self, trials: Sequence[Trial]) -> None:
        """Write the command, options, system and trials as JSON, and their tables and plot."""
        from mobile_eval.system_info import describe

        write_json(RESULTS / f"{self.name}.json", {
            "command": f"python benchmarks/run.py {self.name.replace('_', '-')}",
            "options": self.model_dump(mode="json", exclude={"root", "runs", *self.parts}),
            "machine": describe().model_dump(), "trials": [trial.model_dump(mode="json") for trial in trials],
        })  # fmt: skip
        atomic_write(RESULTS / f"{self.name}.md", self.text(trials).rstrip("\n") + "\n")
        self.plot(trials, RESULTS / f"{self.name}.svg")

    def measured(self, kind: type[T], learning: TrainConfig, folder: Path, score: Callable[[RunContext], T]) -> T:
        """Train and score `learning` in `folder`, resuming; a finished trial is read from its record."""
        from distill import resolve
        from distill.context import open_context
        from distill.run_dir import open_run
        from distill.system import limit_threads, tune_malloc

        record = folder / RECORD
        if record.exists():
            return kind.model_validate_json(record.read_text())
        limit_threads()
        tune_malloc()
        with open_run(folder) as run_dir:
            learning = resolve.keep_stored(resolve.with_absolute_paths(learning), run_dir)
            run_dir.check_config("config", learning)
            trial = score(open_context(run_dir, learning, self.runs / "cache"))
            write_json(record, trial.model_dump(mode="json"))
            shutil.rmtree(run_dir.cache)
        return trial


class GrowingBenchmark(Benchmark):
    """A benchmark that is measured part by part: the trials of earlier commands stay in its files."""

    trial_type: ClassVar[type[Trial]]

    def run(self) -> None:
        """Measure the trials of this part, and write them beside the earlier ones after each."""
        self.earlier()  # raises before anything is measured
        for trial in self.trials():
            kept = {self.key(one): one for one in (*self.earlier(), trial)}
            self.write([kept[key] for key in sorted(kept)])

    @abstractmethod
    def key(self, trial: Any) -> tuple[Any, ...]:
        """Return what tells a trial from all others, and orders them."""

    def earlier(self) -> list[Trial]:
        """Return the trials in the file; raises `InputError` where they were measured in another way."""
        path = RESULTS / f"{self.name}.json"
        if not path.exists():
            return []
        record: dict[str, Any] = read_json(path, dict)
        before, own = record["options"], self.model_dump(mode="json", exclude={"root", "runs", *self.parts})
        if changed := [name for name, value in own.items() if before.get(name) != value]:
            found, fix = ", ".join(f"{name} {before.get(name)}" for name in changed), "Use these, or another --name."
            raise InputError(f"trials of the same options in {path}", found, fix)
        return [self.trial_type.model_validate(one) for one in record["trials"]]


def share_features(context: RunContext, shared: Path, names: Iterable[object]) -> None:
    """Let all trials of a data set and a seed share what the pretrained teacher computes under `names`.

    shared: the folder of these trials' features, which stays when a trial's cache is deleted
    """
    for name in map(str, names):
        (shared / name).mkdir(parents=True, exist_ok=True)
        link = context.run_dir.cache / f"teacher-{name}"
        if not link.is_symlink():
            link.symlink_to((shared / name).resolve())


def data_source(name: str) -> str:
    """Return the value of --data for a benchmark's data set: imagenet20 has a manifest in TWINHASH_DATA."""
    return f"{os.environ.get('TWINHASH_DATA', '.')}/imagenet20/manifest.csv" if name == "imagenet20" else name


def mean_and_half_range(values: Sequence[float]) -> str:
    """Format the mean, and half of the distance between the largest and the smallest."""
    return f"{np.mean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format a table in Markdown."""
    head, *lines = ("|" + "".join(f" {cell} |" if cell != "" else " |" for cell in row) for row in (columns, *rows))
    return "\n".join([head, "|---" * len(columns) + "|", *lines])


@contextmanager
def panels(path: Path, titles: Sequence[str], size: tuple[float, float]) -> Iterator[tuple[Figure, Sequence[Axes]]]:
    """Yield a figure and a panel for each title, in one row, and write it as SVG: the same bytes for the same data."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, len(titles), squeeze=False, sharey=True)[0]
        for axis, title in zip(axes, titles, strict=True):
            axis.set_title(title)
            axis.grid(alpha=0.3)
        yield figure, axes
        figure.savefig(path, metadata={"Date": None})
