"""Every device has its rows whatever happens to it, and its results are compared with those of the host."""

from __future__ import annotations

import errno
import os
import platform
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.artifact import ExportedModel
from gallery.codes import pack
from gallery.errors import CodeSpaceMismatch, DeviceLost, InputError, MissingBackend
from gallery.index import open_gallery
from gallery.results import Thresholds
from mobile_eval.compare import FloatReference
from mobile_eval.devices import devices_by_name
from mobile_eval.devices.android import Android
from mobile_eval.devices.arm64 import Arm64
from mobile_eval.devices.base import Device, DeviceOutput
from mobile_eval.devices.browser import Browser
from mobile_eval.devices.host import Host
from mobile_eval.devices.subprocess_device import WorkerKilled, describe_exit
from mobile_eval.evaluate import evaluate, evaluate_on
from mobile_eval.gate import check, exit_code
from tests.mobile_eval.bundles import BITS, SPACE, Good

FILES = ("onnx-fp32", "onnx-fp16")


@pytest.fixture(scope="module")
def reference(good: Good) -> FloatReference:
    return FloatReference(
        good.pixels, good.logits, SPACE, good.labels, open_gallery(good.gallery, SPACE), classes=SPACE.classes
    )


class Other(Host):
    """This machine under another name, whose outputs `change` changes."""

    def __init__(
        self, change: Callable[[DeviceOutput], DeviceOutput] = lambda outcome: outcome, name: str = "phone"
    ) -> None:
        super().__init__(samples=1)
        self.name, self._change = name, change

    def run(self, file: ExportedModel) -> DeviceOutput:
        return self._change(super().run(file))


class Unplugged(Other):
    """A place whose worker is killed in the middle of the second file, and that is gone then."""

    ran = 0

    def run(self, model: ExportedModel) -> DeviceOutput:
        self.ran += 1
        if self.ran == 1:
            return super().run(model)
        command = self._command([str(model.path), model.metadata.to_json(), "images.npy", "o.npz", "r.json"])
        worker = subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL)
        worker.send_signal(signal.SIGKILL)
        raise DeviceLost(f"{self.name} to stay connected", describe_exit(worker.wait(60), ""), "Connect it again.")


def test_the_host_runs_every_file(good: Good, reference: FloatReference) -> None:
    results = evaluate_on(Host(samples=2), good.manifest.files, reference)
    assert [(row.device, row.variant, row.status) for row in results.rows] == [
        ("host", variant, "ran") for variant in FILES
    ]
    row = results.rows[0]
    assert (row.path, row.sha256, row.samples) == ("query-fp32.onnx", good.manifest.files[0].sha256, 2)
    assert (row.bits_compared, row.flips_beyond_tolerance, row.map_drop) == (40 * BITS, 0, 0.0)
    assert row.map == reference.map
    assert row.host_flips is None
    assert np.array_equal(results.outputs[row.sha256].codes, pack(good.logits))
    assert check(results.rows, Thresholds()).passed


def test_a_file_that_breaks_costs_only_its_row(good: Good, reference: FloatReference, tmp_path: Path) -> None:
    first, second = good.manifest.files
    (tmp_path / first.path.name).write_bytes(first.path.read_bytes()[:-400])
    broken = replace(first, path=tmp_path / first.path.name)
    results = evaluate_on(Host(samples=1), [broken, second], reference)
    assert [row.status for row in results.rows] == ["failed", "ran"]
    assert results.rows[0].reason.startswith(("CorruptFile: ", "WorkerFailed: "))
    assert exit_code(check(results.rows, Thresholds())) == 1


def test_a_file_of_another_size_fails_and_one_of_another_code_space_is_an_error(
    good: Good, reference: FloatReference
) -> None:
    first, second = good.manifest.files
    large = replace(first, metadata=replace(first.metadata, size=32))
    assert [row.status for row in evaluate_on(Host(samples=1), [large, second], reference).rows] == ["failed", "ran"]
    with pytest.raises(CodeSpaceMismatch, match="onnx-fp32"):
        evaluate_on(
            Host(samples=1), [replace(first, metadata=replace(first.metadata, code_space="f" * 16)), second], reference
        )


class FullDisk(Other):
    """A machine whose disk is full when the images are written."""

    def push(self, models: object, images: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


class OutOfMemory(Other):
    """A machine on which every second process is killed."""

    ran = 0

    def run(self, model: ExportedModel) -> DeviceOutput:
        self.ran += 1
        if self.ran % 2:
            raise WorkerKilled("a worker that reports", "SIGKILL (out of memory, or killed by hand)", "Run it again.")
        return super().run(model)


def test_a_killed_process_is_a_failed_row_to_be_tried_again(good: Good, reference: FloatReference) -> None:
    results = evaluate_on(OutOfMemory(), good.manifest.files, reference)
    assert [row.status for row in results.rows] == ["failed", "ran"]
    assert results.killed == [FILES[0]]
    assert evaluate_on(Host(samples=1), good.manifest.files, reference).killed == []


def test_a_full_disk_ends_the_evaluation_and_is_no_result_of_a_model(good: Good, reference: FloatReference) -> None:
    with pytest.raises(OSError, match="No space left"):
        evaluate_on(FullDisk(), good.manifest.files, reference)


def test_an_unplugged_device_leaves_a_reason_and_the_others_complete(good: Good, reference: FloatReference) -> None:
    devices = [Host(samples=1), Unplugged(), Other(name="tablet")]
    found, notes = evaluate(devices, good.manifest.files, reference, 10)
    rows = [row for one in found for row in one.rows]
    assert [(row.device, row.status) for row in rows] == [
        ("host", "ran"), ("host", "ran"), ("phone", "ran"), ("phone", "skipped"), ("tablet", "ran"), ("tablet", "ran"),
    ]  # fmt: skip
    assert rows[3].reason.startswith("DeviceLost: ")
    assert "SIGKILL" in rows[3].reason
    assert notes == []
    assert exit_code(check(rows, Thresholds())) == 0
    assert exit_code(check(rows, Thresholds(), strict=True)) == 2


@pytest.mark.parametrize(
    "absent",
    [
        lambda folder: Arm64(root=folder),
        lambda folder: Browser(folder=folder),
        lambda folder: Browser(accelerator="webgpu", folder=folder),
        lambda folder: Android("no-such-serial"),
    ],
    ids=["no userland", "no browser", "no adapter", "no phone"],
)
def test_a_device_that_is_not_there_is_rows_with_the_reason(
    absent: Callable[[Path], Device], good: Good, reference: FloatReference, tmp_path: Path
) -> None:
    device = absent(tmp_path)
    results = evaluate_on(device, good.manifest.files, reference)
    assert [(row.device, row.variant, row.status) for row in results.rows] == [
        (device.name, variant, "skipped") for variant in FILES
    ]
    assert all(row.reason.startswith("MissingBackend: expected ") for row in results.rows)
    assert all(row.bytes and row.sha256 for row in results.rows), "what other tools measure there can still be imported"


def chromium_below(parent: int) -> list[int]:
    """Processes of Chromium among the descendants of a process."""
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    children = [int(pid) for task in tasks for pid in of_process(task).split()]
    below = children + [pid for child in children for pid in chromium_below(child)]
    return [pid for pid in below if b"chromium" in of_process(Path(f"/proc/{pid}/cmdline"))]


def of_process(path: Path) -> bytes:
    """What the system says of a process; nothing of one that has ended meanwhile."""
    with suppress(OSError):
        return path.read_bytes()
    return b""


def test_a_browser_that_dies_leaves_a_reason_and_the_others_complete(
    engines: Path, good: Good, reference: FloatReference
) -> None:
    class Dying(Browser):
        ran = 0

        def run(self, file: ExportedModel) -> DeviceOutput:
            self.ran += 1
            for pid in chromium_below(os.getpid()) if self.ran == 2 else []:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return super().run(file)

    devices = [Dying(folder=engines, samples=1), Host(samples=1)]
    found, _ = evaluate(devices, good.manifest.files, reference, 5)
    rows = [row for one in found for row in one.rows]
    assert [(row.device, row.status) for row in rows] == [
        ("browser-wasm-1t", "ran"), ("browser-wasm-1t", "skipped"), ("host", "ran"), ("host", "ran"),
    ]  # fmt: skip
    assert rows[1].reason.startswith("DeviceLost: ")
    assert (rows[0].host_flips_beyond, rows[0].bits_compared) == (0, 5 * BITS)
    assert exit_code(check(rows, Thresholds(), strict=True)) == 2


def test_bits_unlike_the_hosts_are_told_and_fail_an_fp32_file(good: Good, reference: FloatReference) -> None:
    """One bit in 640 is no bit flip rate to speak of; only the host tells that it should not be."""

    def flipped(outcome: DeviceOutput) -> DeviceOutput:
        assert outcome.logits is not None
        logits = outcome.logits.copy()
        logits[1, 4] *= -1
        return replace(outcome, codes=pack(logits), logits=logits)

    found, _ = evaluate([Other(flipped)], good.manifest.files, reference, 10)
    row = found[0].rows[0]
    indices = reference.subset(10).query_indices
    assert indices is not None
    assert (row.host_flips, row.host_flips_beyond) == (1, 1)
    (one,) = row.disagreements
    assert (one.query, one.bit) == (indices[1], 4)
    assert one.host == pytest.approx(good.logits[indices[1], 4], abs=1e-4)
    assert one.logit == -one.host
    gate = check([row], Thresholds())
    assert any("phone onnx-fp32: against the host" in sentence for sentence in gate.failures)


def test_few_images_give_the_map_of_all(good: Good, reference: FloatReference) -> None:
    """Where the outputs are the host's, so is the figure; a difference on the few moves it by what it makes there."""

    def opposite(output: DeviceOutput) -> DeviceOutput:
        assert output.codes is not None
        assert output.logits is not None
        return replace(output, codes=~output.codes, logits=-output.logits)

    found, _ = evaluate([Host(samples=1), Other(), Other(opposite, "mad")],
                          good.manifest.files[:1], reference, 7)  # fmt: skip
    host, same, mad = (one.rows[0] for one in found)
    assert (same.map, same.map_drop) == (pytest.approx(host.map, abs=1e-12), pytest.approx(host.map_drop, abs=1e-12))
    few = found[1].reference
    assert same.bits_compared == 7 * BITS
    assert few.map is not None
    assert abs(few.map - host.map) > 1e-3, "the figure of the few alone is another"
    assert mad.bit_flip_rate == 1.0
    alone = evaluate_on(Other(opposite), good.manifest.files[:1], few)
    assert alone.rows[0].map is None, "without the host there is nothing to correct"
    here = FloatReference(
        few.pixels, few.logits, SPACE, few.labels, open_gallery(good.gallery, SPACE), classes=SPACE.classes
    )
    drop = evaluate_on(Other(opposite), good.manifest.files[:1], here).rows[0].map_drop
    assert mad.map_drop == pytest.approx(host.map_drop + drop, abs=1e-9)


def test_latency_alone_is_a_row_without_codes(good: Good, reference: FloatReference) -> None:
    timed = Other(lambda o: DeviceOutput(None, None, "benchmark", {"p50_ms": 2.0}))
    found, notes = evaluate([Host(samples=1), timed], good.manifest.files, reference, 10)
    row = found[1].rows[0]
    assert (row.status, row.p50_ms, row.bit_flip_rate, row.host_flips) == ("ran", 2.0, None, None)
    assert notes == []
    assert check([row for one in found for row in one.rows], Thresholds()).passed


def test_outputs_of_another_shape_are_this_files_failure(good: Good, reference: FloatReference) -> None:
    results = evaluate_on(Other(lambda o: replace(o, codes=o.codes[:-1])), good.manifest.files[:1], reference)
    assert (results.rows[0].status, results.rows[0].reason[:11]) == ("failed", "CorruptFile")


def test_the_host_runs_first_even_where_it_is_not_among_the_devices(good: Good, reference: FloatReference) -> None:
    found, notes = evaluate([Other(), *devices_by_name(["coreml-reference"], 1)], good.manifest.files, reference, 10)
    assert [one.device for one in found] == ["phone", "coreml-reference"]
    assert [row.host_flips for row in found[0].rows] == [0, 0]
    assert notes == ["coreml-reference: none of the bundle's files is for it"]


def test_a_device_beside_a_host_without_the_engine_says_what_was_not_compared(
    good: Good, reference: FloatReference, tmp_path: Path
) -> None:
    class Bare(Host):
        def run(self, file: ExportedModel) -> DeviceOutput:
            raise MissingBackend("onnxruntime", "none", "Install it.")

    found, notes = evaluate([Bare(), Other()], good.manifest.files, reference, 10)
    assert [row.status for row in found[0].rows] == ["skipped"] * 2
    assert notes[0].startswith("phone onnx-fp32: not compared with the host, where it did not run: MissingBackend")
    assert found[1].rows[0].map is None


MAC, UNITS = platform.system() == "Darwin", ("cpu-only", "cpu-and-gpu", "cpu-and-ne", "all")


def names_of(*names: str) -> list[str]:
    return [device.name for device in devices_by_name(names, 1)]


def test_names_become_devices_in_their_order_and_once() -> None:
    assert names_of("host,arm64", "browser", "host") == [
        "host", "arm64-cortex-a53", "arm64-cortex-a76", "browser-wasm-1t", "browser-wasm-2t",
    ]  # fmt: skip
    assert names_of("browser-webgpu", "arm64-cortex-a76", "android") == [
        "browser-webgpu", "arm64-cortex-a76", "android",
    ]  # fmt: skip
    phones = devices_by_name(["android:R5CT", "android:emulator-5554"], 1)
    assert [(p.name, p.serial) for p in phones if isinstance(p, Android)] == [
        ("android:R5CT", "R5CT"), ("android:emulator-5554", "emulator-5554"),
    ]  # fmt: skip
    assert names_of("apple") == ([f"apple-{unit}" for unit in UNITS] if MAC else ["coreml-reference"])
    assert names_of("apple-cpu-only") == ["apple-cpu-only"]


@pytest.mark.parametrize("names", [("hots",), ("host", "arm64-cortex-a9"), (), ("",), ("host,",), ("android:",)])
def test_an_unknown_name_is_an_error_with_those_there_are(names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"host, arm64-cortex-a53.*browser-webgpu.*android:SERIAL") as error:
        devices_by_name(names, 1)
    assert "Name some of these" in error.value.fix
