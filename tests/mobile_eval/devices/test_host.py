"""Models run in a process of their own: what they return, what is measured, and how its exit is described."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.artifact import ExportedModel
from gallery.errors import CorruptFile, InputError, MissingBackend
from gallery.results import ModelResult
from mobile_eval.devices import worker
from mobile_eval.devices.host import Host
from mobile_eval.devices.subprocess_device import (
    OUTPUTS,
    REPORT,
    REPOSITORY,
    WorkerFailed,
    WorkerKilled,
    describe_exit,
    read_output,
)
from mobile_eval.runtimes import open_model
from tests.mobile_eval.devices.handset import BITS, TOLERANCE, Handset, kill_worker_in


@pytest.fixture
def host(handset: Handset) -> Iterator[Host]:
    with Host(samples=5) as device:
        device.push(list(handset.files.values()), handset.images)
        yield device


def other(file: ExportedModel, path: Path) -> ExportedModel:
    return replace(file, path=path)


@pytest.mark.parametrize("form", ["onnx-fp32", "litert-fp32"])
def test_a_file_gives_what_it_gives_in_this_process_and_is_measured(host: Host, handset: Handset, form: str) -> None:
    file = handset.files[form]
    found, here = host.run(file), open_model(file.path)
    assert found.codes is not None
    assert found.logits is not None
    expected = here.run(handset.images)
    assert np.array_equal(found.codes, expected.codes)
    assert np.array_equal(found.logits, expected.logits)
    sure = np.abs(handset.logits) > TOLERANCE
    assert sure.mean() > 0.9
    assert np.array_equal((found.logits > 0)[sure], (handset.logits > 0)[sure])
    assert found.engine == here.engine
    row = ModelResult(variant=form, format=file.format, precision="fp32", path="f", status="ran", **found.figures)
    assert (row.samples, row.threads) == (5, 1)
    assert 0 < row.p50_ms <= row.p90_ms <= row.p99_ms
    assert row.load_ms > 0
    assert row.first_ms > 0
    assert row.conditions["cpu"]
    assert file.bytes / 1e6 / 2 < row.peak_memory_mb < 40 * file.bytes / 1e6


def test_without_samples_no_clock_is_read(handset: Handset) -> None:
    with Host(samples=0) as device:
        device.push([], handset.images[:1])
        assert set(device.run(handset.files["litert-fp32"]).figures) == {"conditions"}


def test_the_workers_typed_errors_arrive(host: Host, handset: Handset, tmp_path: Path) -> None:
    whole = handset.files["litert-fp32"]
    junk = tmp_path / "junk.tflite"
    junk.write_bytes(whole.path.read_bytes()[:5000])
    with pytest.raises(CorruptFile, match=r"junk\.tflite"):
        host.run(other(whole, junk))
    with pytest.raises(InputError, match="nothing at"):
        host.run(other(whole, tmp_path / "gone.onnx"))
    with pytest.raises(CorruptFile, match="shapes"):
        host.run(replace(whole, metadata=replace(whole.metadata, bits=128)))
    assert host.run(whole).codes is not None, "one bad file spoils no other"


def test_images_of_another_size_are_rejected_with_the_models(handset: Handset) -> None:
    with Host(samples=0) as device:
        device.push([], handset.images[:, :50, :50])
        with pytest.raises(InputError, match=r"96, 96, 3.*50, 50, 3"):
            device.run(handset.files["litert-fp32"])
        with pytest.raises(InputError, match="at least one image"):
            device.push([], handset.images[:0])


def test_an_engine_that_is_missing_is_named(host: Host, handset: Handset, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = Path(host.folder, "onnxruntime.py")
    blocked.write_text("raise ImportError('no onnxruntime on this machine')")
    monkeypatch.setenv("PYTHONPATH", str(host.folder))
    with pytest.raises(MissingBackend, match=r"no onnxruntime on this machine.*pip install .*onnxruntime"):
        host.run(handset.files["onnx-fp32"])
    blocked.write_text("raise RuntimeError('its library is broken\\nin two lines')")
    with pytest.raises(WorkerFailed, match="RuntimeError: its library is broken"):
        host.run(handset.files["onnx-fp32"])
    blocked.write_text("import os; os.kill(os.getpid(), 4)")
    with pytest.raises(WorkerFailed, match=r"SIGILL \(an instruction that this processor does not have\)") as raised:
        host.run(handset.files["onnx-fp32"])
    assert raised.type is WorkerFailed  # it would do so again
    blocked.write_text("raise SystemExit('no more')")
    with pytest.raises(WorkerFailed, match=r"exit code 1 \(no more\)"):
        host.run(handset.files["onnx-fp32"])


def test_a_killed_worker_costs_only_its_file(host: Host, handset: Handset) -> None:
    host._options = ["--samples", "10000000", "--seconds", "600"]
    killer = threading.Thread(target=kill_worker_in, args=(host.folder, signal.SIGKILL))
    killer.start()
    with pytest.raises(WorkerKilled, match=r"SIGKILL \(out of memory, or killed by hand\)"):
        host.run(handset.files["litert-fp32"])
    killer.join()
    host._options = ["--samples", "1"]
    assert host.run(handset.files["litert-fp32"]).codes is not None


def test_a_worker_that_does_not_end_is_ended(host: Host, handset: Handset) -> None:
    host._options, host.limit_s, host.image_s = ["--samples", "10000000", "--seconds", "600"], 1.0, 0.0
    with pytest.raises(WorkerFailed, match="still running after 1 s"):
        host.run(handset.files["litert-fp32"])
    assert not [p for p in Path("/proc").glob("[0-9]*/cwd") if os.path.realpath(p) == str(host.folder.resolve())]


@pytest.mark.parametrize(
    ("codes", "report", "reason"),
    [
        (np.zeros((6, 7), np.uint8), {"engine": "e"}, "codes and logits of"),
        (np.zeros((6, 8), np.float32), {"engine": "e"}, "codes and logits of"),
        (np.array([None]), {"engine": "e"}, "pickle"),
        (None, {"engine": "e"}, "the worker's outputs"),
        (np.zeros((6, 8), np.uint8), None, "the worker's report"),
        (np.zeros((6, 8), np.uint8), {"error": "x"}, "the worker's report"),
        (np.zeros((6, 8), np.uint8), {}, "the worker's outputs"),
        (np.zeros((6, 1 << 20), np.uint8), {"engine": "e"}, "not a file of at most"),
    ],
)
def test_answers_that_are_none_are_rejected(
    handset: Handset, tmp_path: Path, codes: np.ndarray | None, report: dict[str, str] | None, reason: str
) -> None:
    if codes is not None:
        np.savez(tmp_path / OUTPUTS, codes=codes, logits=np.zeros((6, 64), np.float32))
    (tmp_path / REPORT).write_text("{" if report is None else json.dumps(report))
    with pytest.raises(CorruptFile, match=reason):
        read_output(tmp_path, handset.files["onnx-fp32"], 6)


def test_a_model_that_asks_for_more_memory_than_it_may_fails_alone(
    host: Host, handset: Handset, tmp_path: Path
) -> None:
    file = handset.files["onnx-fp32"]
    model = onnx.load(file.path)
    for node in model.graph.node:
        node.output[:] = ["before" if name == "logits" else name for name in node.output]
        node.input[:] = ["before" if name == "logits" else name for name in node.input]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([6, 1 << 22, BITS]), "large"))  # 6.4 GB
    model.graph.node.append(onnx.helper.make_node("Expand", ["before", "large"], ["many"]))
    model.graph.node.append(onnx.helper.make_node("ReduceMax", ["many"], ["most"], keepdims=0))
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "most"], ["logits"]))
    onnx.save(model, tmp_path / "large.onnx")
    with pytest.raises((WorkerFailed, CorruptFile), match=r"alloc|memory"):
        host.run(other(file, tmp_path / "large.onnx"))
    assert host.run(file).codes is not None


def test_closing_removes_the_folder_and_may_be_done_twice(handset: Handset) -> None:
    with Host() as device:
        folder = device.folder
    assert not folder.exists()
    device.close()
    with pytest.raises(InputError, match="not prepared"):
        device.push([], handset.images)


def test_the_listed_sources_are_all_that_a_device_needs(handset: Handset, tmp_path: Path) -> None:
    for name in worker.WORKER_MODULES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    np.save(tmp_path / "p.npy", handset.images[:2])
    heavy = "torch pydantic onnx flatbuffers coremltools timm rich PIL scipy"
    (tmp_path / "guarded.py").write_text(
        f"import sys\nfor name in '{heavy}'.split(): sys.modules[name] = None\n"
        "from mobile_eval.devices.worker import main\nsys.exit(main())\n"
    )
    for file in handset.files.values():
        command = [sys.executable, "-P", "guarded.py", file.path, file.metadata.to_json(), "p.npy", "a.npz", "r.json"]
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
        done = subprocess.run([*command, "--samples=1"], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + (tmp_path / "r.json").read_text()
        assert json.loads((tmp_path / "r.json").read_text())["samples"] == 1


def test_conditions_are_what_the_system_says(tmp_path: Path) -> None:
    assert worker.system_state(tmp_path) == {}
    for core, governor in enumerate(["powersave", "schedutil", "powersave"]):
        place = tmp_path / f"devices/system/cpu/cpu{core}/cpufreq/scaling_governor"
        place.parent.mkdir(parents=True)
        place.write_text(governor + "\n")
    for zone, heat in enumerate(["41200", "-274000", "asleep", "63700"]):
        place = tmp_path / f"class/thermal/thermal_zone{zone}/temp"
        place.parent.mkdir(parents=True)
        place.write_text(heat)
    assert worker.system_state(tmp_path) == {"governor": "powersave schedutil", "temperature": "64 °C"}


def test_describe_exit() -> None:
    assert describe_exit(3, "") == "exit code 3"
    assert describe_exit(-signal.SIGSEGV, "said so") == "SIGSEGV (said so)"
    assert describe_exit(-signal.SIGTERM, "") == "SIGTERM"
