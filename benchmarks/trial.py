"""What the benchmarks share: trials, each trained in its own run folder, and the tables and plots of their figures."""

from __future__ import annotations

import os
import shutil
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from distill.config import TrainConfig
from gallery.files import atomic_write, write_json
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
            "options": self.model_dump(mode="json", exclude={"root", "runs"}),
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
