"""Words of earlier versions do not come back: one term for one thing, and the field's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {  # a regular expression, whole words and any case -> the term to use
    r"pictures?": "image",
    r"hash words?|true words?|words of (a|the) (class|picture|image)s?": "hash center, target code",
    r"elected|elects|portraits?|pupils?": "optimised centers, model summary, training indices",
    r"four[ _]cells": "retrieval pairs",
    r"lanes?": "device",
    r"golden pictures?": "golden inputs",
    r"taken back": "kept in float",
    r"bits? (that )?(turn|turns|turned)|turned bits": "bit flips",
    r"proven?|proofs?|proves": "evaluation",
    r"unlabelled": "unlabeled",
    r"objectives?": "loss",
    r"read_card|to_card|cards?": "metadata",
    r"int8-weights|int8-calibrated|int8x16|int8-dynamic": "w8a32, w8a8, w8a16, w8a8-dynamic",
    r"the whole road|fragile bits|spare rows": "pipeline, low-margin bits, unlabeled rows",
}
NAMES = {  # in which a forbidden word is right
    ("distill/data/protocol_specs.py", "portrait"),  # a class of MIRFLICKR-25000
    ("distill/losses/orthohash.py", "objective"),  # the title of its paper
}
COMMANDS = (
    "distill/run.py", "export/run.py", "export/run.py verify", "export/run.py release-key", "export/run.py release",
    "export/run.py verify-release", "benchmarks/run.py", "benchmarks/run.py losses",
    *(f"gallery/run.py {name}".rstrip() for name in ("", "add", "remove", "search", "serve", "verify", "export")),
    *(f"mobile_eval/run.py {name}".rstrip() for name in ("", "setup", "evaluate", "import-results", "demo")),
)  # fmt: skip
SUFFIXES = {".py", ".md", ".j2", ".html", ".yml", ".toml", ".swift", ".kt", ".ts"}


def findings(text: str, name: str = "") -> list[str]:
    """Lines with a forbidden word, each with the term to use."""
    return [
        f"{number}: {match.group()!r}, use {term}"
        for number, line in enumerate(text.splitlines(), 1)
        for pattern, term in FORBIDDEN.items()
        if (match := re.search(rf"(?<![A-Za-z0-9/])({pattern})(?![A-Za-z0-9/])", line, re.IGNORECASE))
        and (name, match.group().lower()) not in NAMES
    ]


def files() -> list[str]:
    """Source, README, docs, result tables and page templates."""
    names = (path.relative_to(ROOT) for path in sorted(ROOT.rglob("*")) if path.suffix in SUFFIXES)
    folders = ("distill", "export", "gallery", "mobile_eval", "benchmarks", "twinhash", "docs")
    ours = (name for name in names if name.parts[0] in folders and not {"node_modules", "dist"} & {*name.parts})
    return ["README.md", *(name.as_posix() for name in ours)]


@pytest.mark.parametrize("name", files())
def test_file(name: str) -> None:
    assert findings((ROOT / name).read_text(), name) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str) -> None:
    arguments = [sys.executable, *command.split(), "--help"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert findings(done.stdout) == []


@pytest.mark.parametrize("line", ["The picture of a class", "UNLABELLED", "onnx-int8-weights", "a bit that turned"])
def test_a_word_that_came_back_is_found(line: str) -> None:
    assert len(findings(f"fine\n{line}\n")) == 1


@pytest.mark.parametrize("line", ["an image", "a cellular cellist", "improvement", "discard the cardinality"])
def test_other_words_are_not(line: str) -> None:
    assert findings(line) == []
