"""Hostile image files: each is decoded or skipped with a reason, in bounded time and memory.

A quick part by default; all with TWINHASH_ATTACK=all.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from distill.data import DataConfig, load
from tests.attack.images import cases
from tests.distill.data.factories import noise

ROOT, SEED, QUICK = Path(__file__).parents[2], 14, 60
MOST_MEMORY, MOST_SECONDS = 4 << 30, 60  # address space of the process, with its libraries; CPU time for one file
DECODE = """
import json, resource, signal, sys, warnings
from pathlib import Path
from gallery.decode import decode, shorter_side, to_square
from gallery.errors import InputError

resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
warnings.simplefilter("ignore")
for path in sorted(Path(sys.argv[1]).iterdir()):
    signal.alarm(int(sys.argv[3]))  # ends the process
    try:
        shorter_side(path)
        image = decode(path)
        told = f"image {image.mode} {to_square(image, 32).shape}"
    except InputError as error:
        told = "reason " + error.found
    except BaseException as error:
        told = f"TRACEBACK {type(error).__name__}: {error}"
    print(json.dumps([path.name, told]), flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("attack")
    everything = list(cases(SEED))
    chosen = everything if os.environ.get("TWINHASH_ATTACK") == "all" else everything[:: len(everything) // QUICK]
    assert len(everything) >= 300
    for number, (name, raw) in enumerate(chosen):
        (made / f"{number:03d}-{name}").write_bytes(raw if isinstance(raw, bytes) else raw())
    return made


def test_every_file_gives_an_image_or_a_reason(folder: Path, record_property: Callable[[str, object], None]) -> None:
    command = [sys.executable, "-c", DECODE, str(folder), str(MOST_MEMORY), str(MOST_SECONDS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    told = dict(json.loads(line) for line in done.stdout.splitlines())
    names = sorted(path.name for path in folder.iterdir())
    missing = [name for name in names if name not in told]
    assert not missing, f"ended with {done.returncode} in {missing[0]}: {done.stderr[-500:]}"
    ends = Counter(text.split()[0] for text in told.values())
    record_property("attack", f"{len(names)} hostile images: " + ", ".join(f"{n} {end}" for end, n in ends.items()))
    assert {
        name: text for name, text in told.items() if not text.startswith(("image RGB (32, 32, 3)", "reason "))
    } == {}
    assert all(text.isprintable() and len(text) < 300 for text in told.values())
    assert not [name for name in names if "bomb" in name and "60000" in name and told[name].startswith("image")]


def test_a_data_set_of_them_is_loaded_without_those_that_are_broken(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(4):
            noise(ord(name) + 9 * i).save(tmp_path / "set" / name / f"sound{i}.png")
    few = [path for path in sorted(folder.iterdir()) if path.stat().st_size < 1 << 16 and "bomb" not in path.name]
    for number, path in enumerate(few):
        (tmp_path / "set" / "ab"[number % 2] / path.name).symlink_to(path)
    with caplog.at_level(logging.INFO, "twinhash"):
        data = load(str(tmp_path / "set"), [32], tmp_path / "cache", DataConfig(seed=0))
    assert len(data.names) + len(data.skipped) == len(few) + 8
    assert [name for name in data.names if "sound" in name] == [f"{c}/sound{i}.png" for c in "ab" for i in range(4)]
    assert all(skip.path.isprintable() and skip.reason.isprintable() and skip.reason for skip in data.skipped)
    assert all(record.message.isprintable() for record in caplog.records)
