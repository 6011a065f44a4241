"""The emulated ARM64: set up whole, the same codes as here, counts that repeat, and every way it can be missing."""

from __future__ import annotations

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from gallery.errors import CorruptFile, InputError, MissingBackend
from gallery.results import ModelResult
from mobile_eval.devices import setup
from mobile_eval.devices.arm64 import COUNTS, MARKS, PROFILES, Arm64, min_instructions
from mobile_eval.devices.host import Host
from mobile_eval.devices.setup import ARM64_FIX, WHEELS, out_of_date_reason, set_up_arm64
from mobile_eval.devices.subprocess_device import WorkerFailed
from tests.mobile_eval.devices.handset import SIZE, TOLERANCE, Handset, kill_worker_in

A53 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
FEATURES = {
    "cortex-a53": (A53, "0x0", "0xd03"),
    "cortex-a76": (f"{A53} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp", "0x4", "0xd0b"),
}


def cpuinfo(features: str, variant: str, part: str) -> str:
    """What a Linux on two such cores prints."""
    core = {"BogoMIPS": "38.40", "Features": features, "CPU implementer": "0x41", "CPU architecture": "8"}
    core |= {"CPU variant": variant, "CPU part": part, "CPU revision": "1"}
    lines = "".join(f"{key}\t: {value}\n" for key, value in core.items())
    return "".join(f"processor\t: {number}\n{lines}\n" for number in range(2))


def test_setup_leaves_all_of_it_and_a_second_one_leaves_it_alone(userland: Path) -> None:
    made = {path.name for path in userland.iterdir()}
    assert made == {"base", "armcount.so", "stamp.json", *PROFILES}
    before = (userland / "stamp.json").stat().st_mtime_ns
    assert set_up_arm64(userland) == userland
    assert (userland / "stamp.json").stat().st_mtime_ns == before
    assert not [path for path in userland.parent.iterdir() if path.name.startswith(f".{userland.name}.")]
    for profile in PROFILES:
        assert (userland / profile / "proc/cpuinfo").read_text() == cpuinfo(*FEATURES[profile])
        assert (userland / profile / "usr").resolve() == (userland / "base/usr").resolve()
    elf = (userland / "base/usr/bin/python3.11").read_bytes()[:20]
    assert (elf[:4], int.from_bytes(elf[18:20], "little")) == (b"\x7fELF", 183), "AArch64"


def test_codes_are_the_hosts_on_both_processors_at_once(userland: Path, handset: Handset) -> None:
    def answers(form: str, profile: str) -> np.ndarray:
        with Arm64(profile, userland, count=False) as device:
            device.push([], handset.images[:2])
            found = device.run(handset.files[form])
        assert found.codes is not None
        assert found.logits is not None
        assert np.array_equal(found.codes, np.packbits(found.logits > 0, axis=1, bitorder="little"))
        assert found.figures["conditions"] == {"profile": profile, "emulator": "qemu-user 7.2"}
        return found.logits

    for form in ("onnx-fp32", "litert-fp32"):
        with Host(samples=0) as host, ThreadPoolExecutor(2) as pool:
            small, big = pool.map(partial(answers, form), PROFILES)
            host.push([], handset.images[:2])
            here = host.run(handset.files[form]).logits
        for there in (small, big):
            sure = np.abs(here) > TOLERANCE
            assert np.array_equal((there > 0)[sure], (here > 0)[sure])
            assert np.abs(there - here).max() < 1e-4


def test_counts_repeat_and_tell_the_processors_apart(userland: Path, handset: Handset) -> None:
    five = [count(userland, "cortex-a76", handset) for _ in range(5)]
    small = count(userland, "cortex-a53", handset)
    for row in (*five, small):
        times = {name for name in row.model_dump(exclude_none=True) if name.endswith("_ms")}
        assert not times, "there is no time under emulation"
        assert (row.samples, row.peak_memory_mb) == (None, None)
    totals = [row.instructions for row in five]
    assert max(totals) - min(totals) <= 1e-5 * min(totals), totals
    assert max(totals) < small.instructions, "the bigger core has wider kernels"
    multiplied = 4 * int(five[0].conditions["vector multiply-adds"].replace(",", ""))
    assert multiplied == pytest.approx(multiply_adds(), rel=1 / 6), "padding, and what is no convolution"


def multiply_adds() -> float:
    """Of convolutions and linear layers, counted by torch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from distill.models.hash_net import build

    net = build("mobilenetv3_small_100", SIZE, 64, seed=0).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, SIZE, SIZE))
    return counter.get_total_flops() / 2


def count(root: Path, profile: str, handset: Handset) -> ModelResult:
    with Arm64(profile, root) as device:
        device.push([], handset.images[:1])
        found = device.run(handset.files["litert-fp32"])
    assert device.name == f"arm64-{profile}"
    return ModelResult(variant="f", format="litert", precision="fp32", path="p", status="ran", **found.figures)


def test_a_killed_emulator_costs_only_its_file(userland: Path, handset: Handset) -> None:
    with Arm64("cortex-a53", userland) as device:
        device.push([], handset.images.repeat(500, 0))
        killer = threading.Thread(target=kill_worker_in, args=(device.folder, signal.SIGKILL))
        killer.start()
        with pytest.raises(WorkerFailed, match="SIGKILL"):
            device.run(handset.files["litert-fp32"])
        killer.join()
        device.push([], handset.images[:1])
        assert device.run(handset.files["litert-fp32"]).figures["instructions"] > 10**6


def test_a_damaged_file_is_rejected_with_the_engines_words(userland: Path, handset: Handset) -> None:
    with Arm64("cortex-a53", userland) as device:
        device.push([], handset.images[:1])
        junk = device.folder / "junk.tflite"
        junk.write_bytes(b"junk" * 40)
        with pytest.raises(CorruptFile, match=r"junk\.tflite"):
            device.run(replace(handset.files["litert-fp32"], path=junk))


def test_without_a_userland_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINHASH_ARM64", str(tmp_path / "none"))
    with pytest.raises(MissingBackend, match=f"no userland in {tmp_path}/none. {ARM64_FIX}"):
        Arm64("cortex-a53").__enter__()
    with pytest.raises(InputError, match="cortex-a53, cortex-a76"):
        Arm64("cortex-x4")


def test_a_userland_of_other_versions_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = setup._arm64_stamp() | {"numpy": "1.0"}
    (tmp_path / "stamp.json").write_text(json.dumps(stamp))
    with pytest.raises(MissingBackend, match=r"made of numpy 1\.0, not 2\.") as error:
        Arm64(root=tmp_path).prepare()
    assert ARM64_FIX in str(error.value)
    (tmp_path / "stamp.json").write_text(json.dumps(setup._arm64_stamp()))
    assert set(WHEELS) < set(setup._arm64_stamp())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert out_of_date_reason(tmp_path) == "no qemu-aarch64 on the path"


def test_setup_that_fails_says_why_and_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools, root = tmp_path / "bin", tmp_path / "arm64"
    for folder in (tools, root):
        folder.mkdir()
    for name in ("qemu-aarch64", "mmdebstrap", "gcc", "cc"):
        (tools / name).write_text("#!/bin/sh\necho 'E: no mirror answers' >&2\nexit 3\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    (root / "stamp.json").write_text('{"recipe": "old"}')
    with pytest.raises(MissingBackend, match="unpack an ARM64 Debian to succeed; found E: no mirror answers"):
        set_up_arm64(root)
    assert [path.name for path in root.iterdir()] == ["stamp.json"]
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "arm64"}


@pytest.mark.parametrize("name", ["thesis.tex", "stamp.json"])
def test_setup_leaves_what_is_somebody_elses_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    for root in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match="Name another folder"):
            set_up_arm64(root)
    assert (tmp_path / name).read_text() == "precious"


def test_counter_lines_that_are_missing_are_noticed(tmp_path: Path) -> None:
    lines = [f"{1000 * i + 7 * i * i} {i} {i}" for i in range(2 * MARKS)]
    (tmp_path / COUNTS).write_text("\n".join(lines))
    assert min_instructions(tmp_path / COUNTS) == (1007, 1, 1)
    for wrong in (lines[:-2], lines[1:], ["1 2", "3 4"] * MARKS, []):
        (tmp_path / COUNTS).write_text("\n".join(wrong))
        with pytest.raises(WorkerFailed, match="lines of the instruction counter"):
            min_instructions(tmp_path / COUNTS)
