"""The README's figures are those of the committed results."""

from __future__ import annotations

from pathlib import Path

from benchmarks import readme

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_figures_are_up_to_date() -> None:
    assert readme.with_block(README) == README, "run `python benchmarks/readme.py`"


def test_it_promises_two_commands_that_exist() -> None:
    assert ".venv/bin/python distill/run.py --teacher vit_b --student mobilenetv3\n" in README
    assert ".venv/bin/python -m pytest -n auto\n" in README
