"""Every comparison this project makes, one command each; a benchmark that was stopped goes on where it was.

python benchmarks/run.py csch        # CSCH as released beside ours: a file of results, a table and a plot
python benchmarks/run.py teachers    # modes and rates of the teacher
python benchmarks/run.py terms       # which terms of the student's loss earn their place
python benchmarks/run.py unseen      # classes without labels
python benchmarks/run.py distillers  # what a student is distilled by
python benchmarks/run.py objectives  # what a teacher is trained by: every method the field compares with
python benchmarks/run.py votes       # centers of pictures with several classes
python benchmarks/run.py export      # every form of two students: size, bits turned, mAP, latency, memory
python benchmarks/run.py views       # what stored views save, and whether the loader keeps up
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from benchmarks.csch import Csch, Distillers, Teachers, Terms, Unseen
from benchmarks.export import Export
from benchmarks.losses import Objectives
from benchmarks.multilabel_centers import Votes
from benchmarks.views import Views
from gallery.console import exit_code
from gallery.errors import EXIT_PASSED


def main() -> int:
    """Runs one benchmark and returns the exit code."""
    import tyro

    tables: tuple[Callable[..., Any], ...] = (
        Csch, Teachers, Terms, Unseen, Distillers, Objectives, Votes, Export, Views,
    )  # fmt: skip
    commands = {table.__name__.lower(): table for table in tables}
    command = tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)

    def work() -> int:
        command.run()
        return EXIT_PASSED

    return exit_code(work, "The same command goes on from here.")


if __name__ == "__main__":
    sys.exit(main())
