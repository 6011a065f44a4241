"""Sabotaged bundles against `verify` and `evaluate`: no traceback, no hang, no memory, and no silent pass.

A quick part by default; all of them: TWINHASH_ATTACK=all python -m pytest tests/attack/test_bundles.py
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gallery.errors import EXIT_BAD_INPUT, EXIT_GATE_FAILED, EXIT_PASSED
from mobile_eval.devices.host import Host
from tests.attack.bundle_cases import Case, cases, quick
from tests.mobile_eval.bundles import BITS, SEEN, bundle_of, images, logits_of

ALL = os.environ.get("TWINHASH_ATTACK") == "all"
EACH, LEAST = 9, 400  # of each group in the quick part; in all
VARIANTS = {
    "onnx": ("onnx-fp32",), "pair": ("onnx-fp32", "onnx-w8a32"), "litert": ("litert-fp32",), "coreml": ("coreml-fp16",),
}  # fmt: skip
MAX_S, MODEL_S, MAX_MEMORY = 60, 20.0, 2 << 20  # seconds of a command, of an engine; kB that it may take more


class Hang(BaseException):
    """A command that did not end; no `except Exception` takes it for an engine's error."""


class Wide(nn.Module):
    """A layer large enough for 8-bit weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(3, 64, 3, 2, 1), nn.Conv2d(64, 64, 1)
        self.head = nn.Conv2d(64, BITS, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.mix(F.hardswish(self.conv(x))))
        return 30 * self.head(x.mean((2, 3), keepdim=True)).flatten(1)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = Wide().eval()
    pixels = images(8, 0)
    logits, folder = logits_of(net, pixels), tmp_path_factory.mktemp("bases")
    for name, variants in VARIANTS.items():
        assert not bundle_of(net, SEEN, variants, folder / name, pixels, logits).failures
    return {name: folder / name / "bundle" for name in VARIANTS}


@pytest.fixture(scope="module")
def commands() -> dict[str, Any]:
    """`verify` and `evaluate`; as scripts they would keep the place in front of the path that they take when loaded."""
    first = sys.path[0]
    import export.run
    import mobile_eval.run

    sys.path[0] = first
    return {"verify": export.run.main, "evaluate": mobile_eval.run.main}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Engines have seconds, commands a minute."""
    monkeypatch.setattr(Host, "limit_s", MODEL_S)
    monkeypatch.setattr(Host, "image_s", 0.0)

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.signal(signal.SIGALRM, before)


def attacked(case: Case, bases: dict[str, Path], heard: Any, commands: dict[str, Any], folder: Path) -> str:
    """What is wrong with the two commands' answers; empty if nothing is."""
    bundle = Path(shutil.copytree(bases[case.base], folder / "bundle"))
    case.sabotage(bundle)
    codes, said = {}, {}
    for name, main in commands.items():
        words = [name, bundle] if name == "verify" else [name, bundle, "--num-runs", "1", "--out", folder / "out"]
        signal.alarm(MAX_S)
        try:
            codes[name], said[name] = heard(main)(*words)
        except Hang:
            return f"HANG {case.group}: {case.name}: {name} after {MAX_S} s"
        finally:
            signal.alarm(0)
    told = f"{case.group}: {case.name}: {codes} {str(said)[:600]}"
    if not set(codes.values()) <= {EXIT_PASSED, EXIT_GATE_FAILED, EXIT_BAD_INPUT} or "Traceback" in str(said):
        return f"CRASH {told}"
    passed = {name: code == EXIT_PASSED for name, code in codes.items()}
    if len(set(passed.values())) > 1:
        return f"DISAGREE {told}"
    return f"WRONG {told}" if case.harmless not in (None, passed["verify"]) else ""


def test_the_bundle_that_was_not_sabotaged_passes(
    bases: dict[str, Path], heard: Any, commands: dict[str, Any], tmp_path: Path
) -> None:
    for base in ("onnx", "pair", *(("litert", "coreml") if ALL else ())):
        good = Case("none", base, base, lambda bundle: None, harmless=True)
        assert attacked(good, bases, heard, commands, tmp_path / base) == ""


def test_sabotaged_bundles(
    bases: dict[str, Path],
    heard: Any,
    commands: dict[str, Any],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    wrong, start, chosen = [], time.monotonic(), cases() if ALL else quick(EACH)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i, case in enumerate(chosen):
        folder = tmp_path / str(i)
        folder.mkdir()
        wrong += list(filter(None, [attacked(case, bases, heard, commands, folder)]))
        shutil.rmtree(folder)
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    groups = ", ".join(f"{count} {group}" for group, count in Counter(case.group for case in chosen).items())
    what = f"{len(chosen)} of {len(cases())} sabotaged bundles ({groups}): {len(wrong)} wrong"
    record_property("attack", f"{what}, {time.monotonic() - start:.0f} s, {more / 1e3:.0f} MB")
    assert wrong == []
    assert more < MAX_MEMORY
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2 * MAX_MEMORY


def test_there_are_enough_of_them() -> None:
    names = [(case.base, case.name) for case in cases()]
    assert len(set(names)) == len(names) >= LEAST
