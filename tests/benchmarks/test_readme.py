"""The README's figures are those of the committed results."""

from __future__ import annotations

from pathlib import Path

from benchmarks import open_world, readme

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_figures_are_up_to_date() -> None:
    assert readme.with_block(README) == README, "run `python benchmarks/readme.py`"


def test_the_table_of_unseen_classes_is_of_the_longest_codes_and_ours() -> None:
    maps = {"seen_seen": 0.75, "seen_all": 0.5, "unseen_unseen": 0.625, "unseen_all": 0.25}
    facts = {"data": "ucmerced", "setting": "inductive", "unseen": ["a"], "seconds": {}, "protocol": "p"}
    trials = [
        {**facts, "bits": bits, "seed": seed, "row": row, "teacher_teacher": {**maps, "seen_all": 0.5 + seed / 4}}
        for bits in (32, 64) for seed in (0, 1) for row in (open_world.FLOAT, open_world.OURS, "csq")
    ]  # fmt: skip
    options = open_world.OpenWorld().model_dump()
    page = readme._open_world({"command": "c", "options": options, "trials": trials})
    assert page.count("| ucmerced |") == 2
    assert "| ucmerced | **csch** | 0.750 ± 0.000 | 0.625 ± 0.125 | 0.625 ± 0.000 | 0.250 ± 0.000 | 2 |" in page
    assert "64-bit codes" in page


def test_it_promises_two_commands_that_exist() -> None:
    assert ".venv/bin/python distill/run.py --teacher vit_b --student mobilenetv3\n" in README
    assert ".venv/bin/python -m pytest -n auto\n" in README
