"""The end-to-end pipeline on real images: one command, from a folder of PNGs to a gate result."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distill.data import DataConfig, load
from distill.metrics_log import read_metrics
from export.bundle import open_bundle, read_golden
from gallery.codespace import CodeSpace
from gallery.index import open_gallery
from gallery.results import STUDENT_GALLERY
from gallery.results import load as load_results

ROOT = Path(__file__).parents[1]
PATIENCE_S = 900
FILES = ("config.yaml", "codespace.json", "centers.npy", "teacher.safetensors", "student.safetensors", "train.jsonl",
         "gallery", "bundle/manifest.json", "results.json", "report.html",
         "junit.xml", "log.txt")  # fmt: skip
SMALL = ("--teacher", "resnet10t", "--student", "mobilenetv3_small", "--bits", "16", "--teacher-train.epochs", "6",
         "--student-train.epochs", "4", "--student-train.cached-views", "2", "--student-train.batch-size", "16",
         "--teacher-train.batch-size",
         "16", "--formats", "onnx", "litert", "--precisions", "fp32")  # fmt: skip


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of the embedded set, forty PNGs each, and one file that is no image."""
    folder = tmp_path_factory.mktemp("catalogue")
    data = load("embedded", {32}, folder / "cache", DataConfig(seed=0))
    for label, name in enumerate(("shirt", "trouser", "bag", "boot")):
        (folder / "in" / name).mkdir(parents=True)
        wanted = data.query[data.labels[data.query] == (0, 1, 8, 9)[label]][:40]
        for i in wanted:
            Image.fromarray(data.pixels[32][i]).save(folder / "in" / name / f"{i}.png")
    (folder / "in" / "bag" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return folder / "in"


def start(
    image_folder: Path, runs: Path, *more: str, preexec: Callable[[], object] | None = None
) -> subprocess.Popen[str]:
    command = [sys.executable, "distill/run.py", "--data", str(image_folder), "--output-dir", str(runs), "--name", "r"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TWINHASH_WEIGHTS": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *SMALL, *more], cwd=ROOT, env=env, preexec_fn=preexec, **pipes)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out


def student_sha(runs: Path) -> str:
    return hashlib.sha256((runs / "r" / "student.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def whole(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    runs = tmp_path_factory.mktemp("runs")
    code, out = finish(start(image_folder, runs))
    assert code == 0, out
    return runs, out


def test_it_leaves_every_file_and_a_gate_result(whole: tuple[Path, str]) -> None:
    runs, out = whole
    for name in FILES:
        assert (runs / "r" / name).exists(), name
    results = load_results(runs / "r" / "results.json")
    assert results.gate.passed
    assert [row.variant for row in results.models] == ["onnx-fp32", "litert-fp32"]
    assert all(row.flips_beyond_tolerance == 0 for row in results.models)
    assert {cell.name for cell in results.pairs} >= {"teacher->teacher", "student->gallery", "student->student"}
    assert [skipped.reason for skipped in results.skipped]
    assert "RANDOM" in out
    assert "broken.png" in (runs / "r" / "report.html").read_text()
    assert not list((runs / "r" / "cache").glob("*.checkpoint.safetensors"))


def test_everything_carries_the_one_code_space(whole: tuple[Path, str]) -> None:
    runs, _ = whole
    space = CodeSpace.from_dict(json.loads((runs / "r" / "codespace.json").read_text()))
    assert open_gallery(str(runs / "r" / "gallery"), space).space == space
    assert json.loads((runs / "r" / "bundle" / "codespace.json").read_text())["id"] == space.id
    assert load_results(runs / "r" / "results.json").code_space == space.id


def test_the_readmes_python_example(whole: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    runs, _ = whole
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "query-w8a32.tflite" in example
    (runs / "mine").symlink_to(runs / "r")
    monkeypatch.chdir(runs.parent)
    example = example.replace('"runs/', f'"{runs.name}/').replace("query-w8a32", "query-fp32")  # what this run exports
    bundle = runs / "r" / "bundle"
    golden = read_golden(bundle, open_bundle(bundle))
    names: dict[str, Any] = {"images": golden.images}
    exec(compile(example, "README.md", "exec"), names)
    assert (names["codes"] == golden.codes).all()
    assert names["distances"].shape == names["ids"].shape == (len(golden.images), 10)
    assert (np.diff(names["distances"]) >= 0).all()
    (runs / "mine").unlink()


def test_the_same_command_again_redoes_nothing(image_folder: Path, whole: tuple[Path, str]) -> None:
    runs, _ = whole
    before = {p: p.stat().st_mtime_ns for name in FILES[1:8] if (p := runs / "r" / name).is_file()}
    code, out = finish(start(image_folder, runs))
    assert code == 0, out
    for stage in ("teacher", "gallery", "student", "export", "evaluate"):
        assert f"[{stage}]" not in out
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_a_stricter_gate_fails_it_without_training_again(image_folder: Path, whole: tuple[Path, str]) -> None:
    runs, _ = whole
    code, out = finish(start(image_folder, runs, "--thresholds.min-map-ratio", "9"))
    assert code == 1, out
    assert "[student]" not in out
    assert not load_results(runs / "r" / "results.json").gate.passed


def test_other_settings_in_the_same_folder_are_rejected(image_folder: Path, whole: tuple[Path, str]) -> None:
    code, out = finish(start(image_folder, whole[0], "--seed", "5"))
    assert code == 2
    assert "seed" in out
    assert "--name" in out
    assert "Traceback" not in out


def test_strict_rejects_the_broken_image(image_folder: Path, tmp_path: Path) -> None:
    code, out = finish(start(image_folder, tmp_path, "--strict"))
    assert code == 2
    assert "broken.png" in out
    assert "Traceback" not in out


def metrics_has(runs: Path, stage: str) -> Callable[[str], bool]:
    path = runs / "r" / "train.jsonl"
    return lambda _: path.exists() and f'"{stage}"' in path.read_text()


def kill_when(process: subprocess.Popen[str], log: Path, condition: Callable[[str], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition(log.read_text() if log.exists() else ""):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_killed_in_every_stage_it_ends_with_the_same_student(
    image_folder: Path, whole: tuple[Path, str], tmp_path: Path
) -> None:
    log = tmp_path / "r" / "log.txt"
    moments: list[Callable[[str], bool]] = [
        lambda text: "[data]" in text,
        metrics_has(tmp_path, "teacher"),
        lambda text: "[gallery]" in text,
        metrics_has(tmp_path, "student"),
        lambda text: "[export]" in text,
        lambda text: "[evaluate]" in text,
    ]
    for moment in moments:
        kill_when(start(image_folder, tmp_path), log, moment)
    code, out = finish(start(image_folder, tmp_path))
    assert code == 0, out
    assert student_sha(tmp_path) == student_sha(whole[0])
    ours, theirs = (load_results(runs / "r" / "results.json") for runs in (tmp_path, whole[0]))
    assert ours.pairs == theirs.pairs
    assert ours.code_space == theirs.code_space
    assert [c.steps for c in ours.curves] == [c.steps for c in theirs.curves]


def test_ctrl_c_leaves_a_run_that_resumes(image_folder: Path, whole: tuple[Path, str], tmp_path: Path) -> None:
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a shell's background jobs do not inherit
    process = start(image_folder, tmp_path, preexec=heeding)
    while not metrics_has(tmp_path, "teacher")(""):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    code, out = finish(process)
    assert code == 130
    assert "resumes" in out
    assert "Traceback" not in out
    second, third = start(image_folder, tmp_path), start(image_folder, tmp_path)
    codes = sorted([finish(second), finish(third)])
    assert [code for code, _ in codes] == [0, 2]  # two at once: one works, the other is refused
    assert "in this run folder" in codes[1][1] or "no other process holds" in codes[1][1]
    assert student_sha(tmp_path) == student_sha(whole[0])


def test_a_disk_that_is_full_is_a_sentence_and_the_run_resumes(image_folder: Path, tmp_path: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20))  # a checkpoint of the teacher needs 60 MB

    code, out = finish(start(image_folder, tmp_path, preexec=small_files))
    assert code == 2, out
    assert "teacher.checkpoint.safetensors'. Free some space" in out
    assert "resumes" in out
    assert "Traceback" not in out
    assert not (tmp_path / "r" / "teacher.safetensors").exists()


def test_help_answers_without_loading_torch() -> None:
    code = "import sys; sys.argv=['run.py','--help']\n" \
           "import runpy\ntry: runpy.run_path('distill/run.py', run_name='__main__')\n" \
           "except SystemExit: pass\nassert not {'torch', 'timm', 'onnx', 'matplotlib'} & set(sys.modules)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--teacher" in done.stdout


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--teacher", "vit_bb"), "vit_b"),
        (("--data", "/no/such/place"), "/no/such/place"),
        (("--formats", "tf"), "onnx, litert"),
        (("--student-weights", "/none"), "/none"),
        (("--teacher", "vit_t", "--teacher-img-size", "50"), "multiple of 16"),
    ],
)
def test_bad_input_is_exit_2_and_a_sentence(
    image_folder: Path, tmp_path: Path, flags: tuple[str, str], says: str
) -> None:
    code, out = finish(start(image_folder, tmp_path, *flags))
    assert code == 2, out
    assert says in out
    assert "Traceback" not in out


def test_two_processes_run_it_together(image_folder: Path, tmp_path: Path) -> None:
    """Both train the same networks; the first alone exports, evaluates and writes."""
    together = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "distill/run.py"]
    options = ["--data", str(image_folder), "--output-dir", str(tmp_path), "--name", "r", *SMALL, "--teacher", "vit_t",
               "--teacher-train.epochs", "2", "--student-train.epochs", "1", "--formats", "onnx",
               "--num-unseen-classes", "1"]  # fmt: skip
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TWINHASH_WEIGHTS": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*together, *options], cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    results = load_results(tmp_path / "r" / "results.json")
    assert results.gate.passed
    assert results.open_world.classes == (3, 1)
    assert results.open_world.score(STUDENT_GALLERY, "unseen_all") > 0
    assert "random weights" in results.open_world.no_baselines
    assert "Classes without training labels" in (tmp_path / "r" / "report.html").read_text()
    assert (done.stdout + done.stderr).count("[teacher]") == 1
    assert (tmp_path / "r" / "log.txt").read_text().count("[evaluate]") == 1
    points = read_metrics(tmp_path / "r" / "train.jsonl")
    assert len(points) == len({(point.stage, point.step) for point in points})


def test_8_bit_files_are_made_of_a_finished_run(whole: tuple[Path, str], image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(whole[0], tmp_path / "runs")
    before = student_sha(tmp_path / "runs")
    precisions = "fp32", "w8a32", "w8a8"
    code, out = finish(start(image_folder, tmp_path / "runs", "--formats", "onnx", "--precisions", *precisions))
    assert code in (0, 1), out  # so small a student may well lose more than the gate allows
    results = load_results(tmp_path / "runs" / "r" / "results.json")
    assert [(row.variant, row.status) for row in results.models] == [(f"onnx-{p}", "ran") for p in precisions]
    assert student_sha(tmp_path / "runs") == before  # nothing was trained again
    assert results.quantization is not None
    assert {row.mode for row in results.quantization.layers} == {"weights", "int8"}
    assert [curve.stage for curve in results.curves] == ["teacher", "student"]
    assert "Quantization" in (tmp_path / "runs" / "r" / "report.html").read_text()
