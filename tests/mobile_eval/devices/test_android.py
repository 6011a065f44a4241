"""The adb harness: Debian's real adb against a daemon of ours over the ARM64 userland.  It is no Android."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gallery.errors import CorruptFile, DeviceLost, InputError, MissingBackend
from gallery.results import ModelResult
from mobile_eval.devices import android
from mobile_eval.devices.adb import AdbClient, choose
from mobile_eval.devices.android import TEMP, Android, read_log
from mobile_eval.devices.subprocess_device import WorkerFailed
from tests.mobile_eval.devices.adb_daemon import Daemon, make_root
from tests.mobile_eval.devices.handset import TOLERANCE, Handset

RECORDED = """INFO: Initialized session in 119.515ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
INFO: count=9 first=87112 curr=51629 min=51629 max=87112 avg=58147.4 std=11478 p5=51629 median=51962 p95=87112

INFO: count=200 first=52162 curr=49785 min=49088 max=686105 avg=63743.2 std=60716 p5=49620 median=51891 p95=68628
INFO: Inference timings in us: Init: 119515, First inference: 87112, Warmup (avg): 58147.4, Inference (avg): 63743.2
INFO: Memory footprint delta from the start of the tool (MB): init=55.4961 overall=56.25
"""
TOOL = """#!/bin/sh
# What the native tool prints, around an inference by the real LiteRT for ARM64.
for word in "$@"; do case "$word" in --graph=*) graph="${word#--graph=}";; esac; done
python3 -c "
import sys, time
from ai_edge_litert.interpreter import Interpreter
start = time.perf_counter()
engine = Interpreter(sys.argv[1], num_threads=1)
engine.allocate_tensors()
loaded = time.perf_counter()
engine.invoke()
init, first = (loaded - start) * 1e6, (time.perf_counter() - loaded) * 1e6
print(f'INFO: count=1 first={first:.0f} curr={first:.0f} min={first:.0f} max={first:.0f} avg={first:.1f} std=0')
print(f'INFO: Inference timings in us: Init: {init:.0f}, First inference: {first:.0f}, Warmup (avg): 1, ...')
" "$graph"
"""


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """adb with a server, a port and keys of its own, which end with the tests."""
    if not shutil.which("adb"):
        pytest.skip("no adb (Debian's package of that name)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    home = tmp_path_factory.mktemp("adb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", port)
        patch.setenv("HOME", str(home))
        yield home
        subprocess.run(["adb", "kill-server"], timeout=30, capture_output=True)


@pytest.fixture(scope="module")
def phone_root(userland: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.geteuid():
        pytest.skip("the daemon's changed root directory needs root")
    return make_root(userland, tmp_path_factory.mktemp("phone") / "root")


@pytest.fixture
def phone(phone_root: Path, bridge: Path) -> Iterator[Daemon]:
    daemon = plugged(Daemon(phone_root))
    yield daemon
    subprocess.run(["adb", "disconnect"], timeout=30, capture_output=True)
    daemon.unplug()


def plugged(daemon: Daemon) -> Daemon:
    subprocess.run(["adb", "connect", daemon.serial], timeout=30, capture_output=True, check=True)
    return daemon


def left_behind(daemon: Daemon) -> list[str]:
    return [path.name for path in (daemon.root / TEMP[1:]).iterdir() if path.name.startswith("twinhash")]


def test_shell_and_files_pass_through_the_real_adb(phone: Daemon, tmp_path: Path) -> None:
    adb = AdbClient()
    assert adb.serial == phone.serial
    assert adb.shell("echo out; echo err >&2") == "out\n"
    for code, words in {7: "exit code 7", 127: "exit code 127", 137: "SIGKILL", 132: "SIGILL"}.items():
        with pytest.raises(WorkerFailed, match=words):
            adb.shell(f"exit {code}")
    with pytest.raises(WorkerFailed, match=r"exit code 1 \(the last words\)"):
        adb.shell("echo first >&2; echo the last words >&2; exit 1")
    with pytest.raises(WorkerFailed, match="still running after 1 s"):
        adb.shell("sleep 60", limit_s=1)
    data = np.random.default_rng(0).bytes(3_000_001)
    (tmp_path / "many").mkdir()
    (tmp_path / "many/it's bytes").write_bytes(data)
    adb.push([tmp_path / "many"], TEMP)
    adb.pull(f"{TEMP}/many/it's bytes", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    with pytest.raises(WorkerFailed, match="pull"):
        adb.pull(f"{TEMP}/none", tmp_path / "none")


def test_with_a_python_there_codes_and_latency_come_back(phone: Daemon, handset: Handset) -> None:
    with Android(samples=3) as device:
        device.push(list(handset.files.values()), handset.images[:2])
        assert len(left_behind(phone)) == 1
        found = device.run(handset.files["litert-fp32"])
        assert found.codes is not None
        assert found.logits is not None
        sure = np.abs(handset.logits[:2]) > TOLERANCE
        assert np.array_equal((found.logits > 0)[sure], (handset.logits[:2] > 0)[sure])
        assert np.array_equal(found.codes, np.packbits(found.logits > 0, axis=1, bitorder="little"))
        row = ModelResult(variant="f", format="f", precision="p", path="p", status="ran", **found.figures)
        assert (row.samples, row.threads) == (3, 1)
        assert row.p50_ms > 0
        assert row.conditions["model"] == "Test double"
        assert row.conditions["governor"] == "schedutil"
        assert row.conditions["thermal status"] == "light"
        (phone.root / device._folder[1:] / "query-fp32.tflite").write_bytes(b"junk" * 99)
        with pytest.raises(CorruptFile, match=r"query-fp32\.tflite"):
            device.run(handset.files["litert-fp32"])
        with pytest.raises(MissingBackend, match=r"something that runs query\.mlpackage"):
            device.run(replace(handset.files["onnx-fp32"], path=Path("query.mlpackage"), format="coreml"))
    assert left_behind(phone) == []
    asked = [str(child.args[-1]) for child in phone.children]
    kill, work = (next(one for one in asked if word in one) for word in ("pkill", "devices.worker"))
    pattern = shlex.split(kill)[-1]
    assert re.search(pattern, work), "what still runs is ended"
    assert not re.search(pattern, kill), "but not the shell that ends it"


def test_without_a_python_the_benchmark_tool_gives_latency_alone(
    phone: Daemon, handset: Handset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(android, "PYTHON", {"litert": "no_such_module"})
    file = handset.files["litert-fp32"]
    with Android() as device:
        device.push([file], handset.images)
        with pytest.raises(MissingBackend, match="Name a benchmark_model"):
            device.run(file)
    (tmp_path / "my_benchmark").write_text(TOOL)
    with Android(benchmark=tmp_path / "my_benchmark") as device:
        device.push([file], handset.images)
        found = device.run(file)
        assert (found.codes, found.logits) == (None, None)
        row = ModelResult(variant="f", format="f", precision="p", path="p", status="ran", **found.figures)
        assert row.load_ms > 0
        assert row.first_ms > 0
        assert (row.samples, row.p90_ms) == (1, None)
        (phone.root / device._folder[1:] / "my_benchmark").write_text("#!/bin/sh\necho no such delegate; exit 1\n")
        with pytest.raises(WorkerFailed, match="no such delegate"):
            device.run(file)
    found_there = phone.root / TEMP[1:] / "benchmark_model"
    found_there.write_text("#!/bin/sh\necho something else\n")
    found_there.chmod(0o755)
    with Android() as device, pytest.raises(CorruptFile, match="something else"):
        device.run(file)
    found_there.unlink()
    assert left_behind(phone) == []
    with pytest.raises(InputError, match="benchmark_model"):
        Android(benchmark=tmp_path / "none")


def test_unplugged_in_mid_run_is_lost_at_once_and_for_the_next_file(phone: Daemon, handset: Handset) -> None:
    file = handset.files["litert-fp32"]
    with Android(samples=10**7, max_seconds=600) as device:
        device.push([file], handset.images)
        threading.Thread(target=unplug_when_busy, args=(phone,)).start()
        with pytest.raises(DeviceLost, match=rf"{phone.serial} to stay connected.*worker"):
            device.run(file)
        with pytest.raises(DeviceLost):
            device.run(file)
    shutil.rmtree(phone.root / TEMP[1:] / left_behind(phone)[0])


def unplug_when_busy(phone: Daemon) -> None:
    """Once the worker is being executed."""
    for _ in range(600):
        if any(b"devices.worker" in " ".join(map(str, child.args)).encode() for child in phone.children):
            break
        time.sleep(0.1)
    time.sleep(1)
    phone.unplug()


def test_several_devices_need_a_name_and_a_locked_one_its_owner(phone: Daemon) -> None:
    other = plugged(Daemon(phone.root))
    with pytest.raises(InputError, match=rf"{phone.serial}.*Name one"):
        AdbClient()
    assert AdbClient(other.serial).serial == other.serial
    other.unplug()
    locked = Daemon(phone.root, locked=True)
    subprocess.run(["adb", "connect", locked.serial], timeout=30, capture_output=True)
    with pytest.raises(MissingBackend, match=r"unauthorized.*accept this computer's key"):
        AdbClient(locked.serial)
    locked.unplug()


def test_nothing_connected_is_said(bridge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingBackend, match=r"an Android device; found none\. Connect one"):
        Android().__enter__()
    with pytest.raises(MissingBackend, match="an Android device"):
        Android("emulator-5554").prepare()
    monkeypatch.setenv("PATH", str(bridge))
    with pytest.raises(MissingBackend, match="adb on the path"):
        Android().prepare()


@pytest.mark.parametrize(
    ("state", "fix"),
    [
        ("offline", "Plug it in again"),
        ("no permissions (user in plugdev group; are your udev rules wrong?); see [link]", "udev rule"),
        ("authorizing", "accept this computer's key"),
        ("recovery", "Start Android on it"),
    ],
)
def test_a_device_that_is_not_ready_is_rejected_with_the_way_out(state: str, fix: str) -> None:
    listed = f"List of devices attached\nA1\tdevice\nB2\t{state}\n\n"
    assert choose(listed, "A1") == "A1"
    with pytest.raises(MissingBackend, match=fix):
        choose(listed, "B2")
    with pytest.raises(MissingBackend, match="the Android device C3; found only A1, B2"):
        choose(listed, "C3")


def test_the_log_of_the_native_tool_is_read() -> None:
    assert read_log(RECORDED) == pytest.approx(
        {"load_ms": 119.515, "first_ms": 87.112, "samples": 200, "p50_ms": 51.891, "peak_memory_mb": 58.9824}
    )
    older = RECORDED.replace(" p5=49620 median=51891 p95=68628", "").split("INFO: Memory")[0]
    assert read_log(older) == pytest.approx({"load_ms": 119.515, "first_ms": 87.112, "samples": 200})
    for junk in ("", "Segmentation fault", RECORDED.split("INFO: Inference")[0]):
        with pytest.raises(CorruptFile, match="the timings of benchmark_model"):
            read_log(junk)
