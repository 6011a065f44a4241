"""Run a benchmark and write its results to benchmarks/results; rerun the same command to resume."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from benchmarks.app_augment import AppAugment
from benchmarks.csch import Csch, CschAblation, Distillers, TeacherFinetuning
from benchmarks.export import ExportBenchmark
from benchmarks.gallery import GalleryBenchmark
from benchmarks.losses import LossBenchmark
from benchmarks.metric import MetricBenchmark
from benchmarks.multilabel_centers import MultilabelCenters
from benchmarks.open_world import OpenWorld
from benchmarks.protocols import Protocols
from benchmarks.students import StudentBenchmark
from gallery.command_line import read_flags, run_cli
from gallery.errors import EXIT_PASSED

COMMANDS: dict[str, Callable[..., Any]] = {
    "csch": Csch, "teacher-finetuning": TeacherFinetuning, "csch-ablation": CschAblation,
    "distillers": Distillers, "losses": LossBenchmark,
    "multilabel-centers": MultilabelCenters, "export": ExportBenchmark, "metric": MetricBenchmark,
    "students": StudentBenchmark, "gallery": GalleryBenchmark, "open-world": OpenWorld, "protocols": Protocols,
    "app-augment": AppAugment,
}  # fmt: skip


def main() -> int:
    """Run one benchmark and return the exit code."""

    def work() -> int:
        import tyro

        command = read_flags(tyro.extras.subcommand_cli_from_dict, COMMANDS, description=__doc__)
        return command.run() or EXIT_PASSED

    return run_cli(work, "Rerun the same command to resume.")


if __name__ == "__main__":
    sys.exit(main())
