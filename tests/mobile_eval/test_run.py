"""`mobile_eval/run.py` as a user calls it: on a bundle alone, on a finished run, and in the example for CI."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import yaml

from distill.config import TrainConfig
from distill.run_dir import open_run
from gallery.files import sha256_of, write_json
from gallery.results import load
from gallery.results import load as load_results
from tests.mobile_eval.bundles import BITS, GOLDEN, SEEN, Call, Good, bundle_of, logits_of, refit

ROOT, PATIENCE_S = Path(__file__).parents[2], 240
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TWINHASH_WEIGHTS": "", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def evaluated(good: Good, module: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `evaluate` leaves of a bundle alone."""
    out = tmp_path_factory.mktemp("evaluated") / "evaluation"
    assert module.main(["evaluate", str(good.folder), "--num-runs", "3", "--out", str(out)]) == 0
    return out


@pytest.fixture
def evaluation(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(evaluated, tmp_path / "evaluation"))


def test_a_bundle_alone_is_evaluated_on_its_golden_inputs(evaluation: Path) -> None:
    found = load(evaluation / "results.json")
    assert [(row.device, row.variant, row.status) for row in found.models] == [
        ("host", "onnx-fp32", "ran"), ("host", "onnx-fp16", "ran"),
    ]  # fmt: skip
    assert (found.num_queries, found.gallery_size, found.map, found.examples) == (GOLDEN, None, None, ())
    assert "golden" in found.query_set
    assert found.models[0].bits_compared == GOLDEN * BITS
    assert found.models[0].recall_at_10 is None
    assert found.gate.passed
    assert {path.name for path in evaluation.iterdir()} == {"results.json", "report.html", "junit.xml"}
    root = ElementTree.parse(evaluation / "junit.xml").getroot()
    assert [root.get(name) for name in ("tests", "failures", "skipped", "errors")] == ["2", "0", "0", "0"]
    assert "onnx-fp16" in (evaluation / "report.html").read_text("utf-8")


def test_with_a_gallery_its_neighbours_are_compared_too(good: Good, tmp_path: Path, call: Call) -> None:
    arguments = ("--gallery", good.gallery, "--num-runs", 1, "--out", tmp_path)
    assert call("evaluate", good.folder, *arguments)[0] == 0
    found = load(tmp_path / "results.json")
    assert found.gallery_size == 60
    assert found.models[0].recall_at_10 == 1.0
    assert found.models[0].map is None


def test_a_bundle_in_its_run_is_evaluated_on_all_queries_in_the_runs_gallery(run: Path, call: Call) -> None:
    code, said = call("evaluate", run / "bundle", "--num-runs", 2, "--thresholds.min-map-ratio", "0.5")
    assert (code, "distill/run.py judges the networks" in said) == (2, True)
    before = {name: sha256_of(run / name) for name in ("results.json", "student.safetensors", "config.yaml")}
    code, said = call("evaluate", run / "bundle", "--num-runs", 2)
    ours, theirs = load(run / "evaluation" / "results.json"), load_results(run / "results.json")
    assert code == (0 if gated(theirs.models[0]) else 1), said
    assert (ours.num_queries, ours.gallery_size) == (theirs.protocol.query, theirs.protocol.gallery)
    assert ours.map == pytest.approx({pair.name: pair.map for pair in theirs.pairs}["student->gallery"], abs=1e-9)
    same = ("bits_compared", "bits_flipped", "map", "map_drop", "worst", "bit_flips", "recall_at_10", "margins")
    for field in same:
        assert getattr(ours.models[0], field) == getattr(theirs.models[0], field), field
    assert before == {name: sha256_of(run / name) for name in before}


def gated(row: Any) -> bool:
    return row.flips_beyond_tolerance == 0 and row.map_drop <= 0.002 and row.bit_flip_rate <= 0.005


def test_the_worst_disagreements_are_shown_with_what_either_code_finds(
    run: Path, call: Call, module: Any, tmp_path: Path
) -> None:
    """A file whose head was damaged, in a bundle elsewhere that names its run."""
    bundle = Path(shutil.copytree(run / "bundle", tmp_path / "bundle"))
    data = bytearray((bundle / "query-fp32.onnx").read_bytes())
    largest = max(onnx.load(bundle / "query-fp32.onnx").graph.initializer, key=lambda t: len(t.raw_data))
    place = data.find(largest.raw_data)
    data[place : place + len(largest.raw_data)] = np.zeros(len(largest.raw_data), np.uint8).tobytes()
    (bundle / "query-fp32.onnx").write_bytes(data)
    refit(bundle, "query-fp32.onnx")
    code, said = call("evaluate", bundle, "--run", run, "--num-runs", 1)
    assert code == 1, said
    grid = load(tmp_path / "evaluation" / "results.json").examples
    assert len(grid) in range(2, 2 * module.SHOWN + 1, 2)
    assert grid[0].query.label.endswith(": float student")
    assert re.search(r": host onnx-fp32, \d+ bit flips$", grid[1].query.label)
    assert [len(row.hits) for row in grid[:2]] == [10, 10]
    assert [hit.distance for hit in grid[0].hits] == sorted(hit.distance or 0 for hit in grid[0].hits)


def test_a_run_of_another_student_is_an_error(run: Path, good: Good, call: Call, tmp_path: Path) -> None:
    code, said = call("evaluate", good.folder, "--run", run, "--out", tmp_path)
    assert code == 2
    assert "code space" in said
    stranger = Path(shutil.copytree(run / "bundle", tmp_path / "bundle"))
    golden = json.loads((stranger / "golden.json").read_text())
    for row in golden:
        row["logits"] = [-value for value in row["logits"]]
        row["code"] = (~np.frombuffer(bytes.fromhex(row["code"]), np.uint8)).tobytes().hex()
    write_json(stranger / "golden.json", golden)
    refit(stranger, "golden.json")
    code, said = call("evaluate", stranger, "--run", run)
    assert code == 2
    assert "the bundle of the student in" in said


def test_golden_codes_that_are_not_those_of_the_logits_are_errors(good: Good, call: Call, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(good.folder, tmp_path / "bundle"))
    golden = json.loads((bundle / "golden.json").read_text())
    golden[0]["code"] = "00" * (BITS // 8) if golden[0]["code"] != "00" * (BITS // 8) else "ff" * (BITS // 8)
    write_json(bundle / "golden.json", golden)
    refit(bundle, "golden.json")
    code, said = call("evaluate", bundle)
    assert (code, "golden logits that give the golden codes" in said) == (2, True)
    assert list((bundle.parent).iterdir()) == [bundle]


def test_thresholds_of_the_run_hold_unless_others_are_given(run: Path, call: Call, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "runs" / "r"))
    shutil.copytree(run.parent / "cache", tmp_path / "runs" / "cache")
    with open_run(other) as folder:
        config = folder.load_settings("config", TrainConfig)
        assert config is not None
        limits = config.thresholds.model_copy(update={"max_size_mb": 0.5, "min_map_ratio": 0.1})
        folder.save_settings({"config": config.model_copy(update={"thresholds": limits})})
    assert call("evaluate", other / "bundle", "--num-runs", 1)[0] == 1
    assert "size in bytes" in load(other / "evaluation" / "results.json").gate.failures[0]
    call("evaluate", other / "bundle", "--num-runs", 1, "--thresholds.max-size-mb", 500)
    assert load(other / "evaluation" / "results.json").thresholds.max_size_mb == 500
    assert not any("size" in one for one in load(other / "evaluation" / "results.json").gate.failures)


def test_what_cannot_be_had_is_a_row_and_strict_makes_it_exit_2(
    good: Good, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINHASH_ARM64", str(tmp_path / "none"))
    monkeypatch.setenv("TWINHASH_BROWSER", str(tmp_path / "none"))
    arguments = ("evaluate", good.folder, "--num-runs", 1, "--out", tmp_path / "out", "--device")
    devices = ("host,arm64", "browser", "browser-webgpu", "android:no-such-serial", "apple")
    code, said = call(*arguments, *devices, "--strict")
    assert code == 2, said
    found = load(tmp_path / "out" / "results.json")
    rows = {(row.device, row.variant): row.status for row in found.models}
    assert len(rows) == 14
    assert {status for (device, _), status in rows.items() if device != "host"} == {"skipped"}
    assert [rows["host", variant] for variant in ("onnx-fp32", "onnx-fp16")] == ["ran", "ran"]
    assert any("setup arm64" in note for note in found.gate.notes)
    assert any("none of the bundle's files is for it" in note for note in found.gate.notes)
    assert (found.gate.passed, found.gate.failures) == (False, ())
    root = ElementTree.parse(tmp_path / "out" / "junit.xml").getroot()
    assert [root.get(name) for name in ("tests", "failures", "skipped")] == ["14", "0", "12"]
    assert call(*arguments, "host", "android:no-such-serial")[0] == 0
    assert call(*arguments, "host", "--strict")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("evaluate", "/no/such/bundle"), "manifest"),
        (("evaluate", "BUNDLE", "--device", "hots"), "browser-webgpu"),
        (("evaluate", "BUNDLE", "--gallery", "/no/such/gallery"), "Twinhash gallery"),
        (("evaluate", "BUNDLE", "--run", "/no/such/run"), "config.yaml"),
        (("evaluate", "BUNDLE", "--out", "BUNDLE/evaluation"), "outside the bundle"),
        (("setup",), "arm64"),
        (("import-results", "/no/such/evaluation", "x.json"), "evaluation results of schema"),
        (("import-results", "EVALUATION", "/no/such.json"), "no/such.json"),
        (("import-results", "EVALUATION"), "reports to import"),
    ],
)
def test_bad_input_is_exit_2_and_a_sentence(
    arguments: tuple[str, ...], says: str, good: Good, call: Call, evaluation: Path
) -> None:
    code, said = call(
        *(argument.replace("BUNDLE", str(good.folder)).replace("EVALUATION", str(evaluation)) for argument in arguments)
    )
    assert code == 2
    assert says in said
    assert said.startswith("Error: ")


def mac_report(row: Any, **changes: Any) -> dict[str, Any]:
    measured = {"file": row.path, "sha256": row.sha256, "unit": "ALL", "error": "", "load_ms": 30.0, "first_ms": 2.0,
                "samples_ms": [1.0, 2.0, 3.0], "bits_compared": 384, "bits_flipped": 0,
                "flips_beyond_tolerance": 0}  # fmt: skip
    machine = {"name": "Mac15,3", "chip": "M3", "macos": "15.1", "coremltools": "9.0"}
    return {"run_on_mac": 1, "machine": machine, "rows": [measured | changes]}


def litert_report(model: str) -> dict[str, Any]:
    latency = {"init_ms": 4.0, "warmup_first_ms": 2.0, "num_warmup_runs": 1, "avg_ms": 1.5, "median_ms": 1.4,
               "p95_ms": 1.9, "num_runs": 50}  # fmt: skip
    return {"model": model, "accelerators": ["cpu"], "fully_accelerated": True, "num_threads": 4, "latency": latency}


def test_measurements_of_others_become_rows_and_are_judged(evaluation: Path, call: Call, tmp_path: Path) -> None:
    found = load(evaluation / "results.json")
    as_litert = tuple(row.model_copy(update={"format": "litert"}) for row in found.models)  # two tools, two formats
    found.model_copy(update={"models": (as_litert[0], found.models[1].model_copy(update={"format": "coreml"}))}).save(
        evaluation / "results.json"
    )
    report = tmp_path / "phone.json"
    write_json(report, litert_report("/data/local/tmp/query-fp32.onnx"))
    code, said = call("import-results", evaluation, report, "--device", "pixel")
    assert code == 0, said
    after = load(evaluation / "results.json")
    assert [(row.device, row.variant) for row in after.models] == [
        ("host", "onnx-fp32"), ("host", "onnx-fp16"), ("pixel", "onnx-fp32"),
    ]  # fmt: skip
    assert (after.models[2].p50_ms, after.models[2].bit_flip_rate) == (1.4, None)
    assert "pixel" in (evaluation / "report.html").read_text("utf-8")
    assert ElementTree.parse(evaluation / "junit.xml").getroot().get("tests") == "3"
    write_json(report, mac_report(after.models[1], bits_flipped=40))
    assert call("import-results", evaluation, report)[0] == 1
    assert "apple-all onnx-fp16: bit flip rate" in load(evaluation / "results.json").gate.failures[0]
    write_json(report, mac_report(after.models[1], error="no Neural Engine"))
    assert call("import-results", evaluation, report)[0] == 1  # it failed where it should run
    write_json(report, mac_report(after.models[1]))
    assert call("import-results", evaluation, report)[0] == 0
    assert len(load(evaluation / "results.json").models) == 4


def test_the_evaluation_of_a_float_student_that_is_not_the_files(good: Good, call: Call, tmp_path: Path) -> None:
    """The golden codes come from one network and the files from another: nothing is corrupt, and nothing agrees."""
    other = logits_of(good.net, 255 - good.pixels[:GOLDEN])
    bundle_of(good.net, SEEN, ("onnx-fp32",), tmp_path, good.pixels[:GOLDEN], other)
    code, _ = call("evaluate", tmp_path / "bundle", "--num-runs", 1)
    assert code == 1


def test_ctrl_c_leaves_no_evaluation_and_nothing_running(good: Good, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "mobile_eval/run.py",
        "evaluate",
        good.folder,
        "--num-runs",
        "100000000",
        "--out",
        tmp_path,
    ]
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which a shell's background jobs do not inherit
    process = subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, preexec_fn=heeding
    )  # fmt: skip
    worker = 0
    for _ in range(600):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if worker := next(iter(map(int, children)), 0):
            break
        time.sleep(0.1)
    assert worker
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
    stat = Path(f"/proc/{worker}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"  # dead, and nobody's child


def test_help_answers_without_loading_torch() -> None:
    code = "import sys; sys.argv=['run.py','evaluate','--help']\n" \
           "import runpy\ntry: runpy.run_path('mobile_eval/run.py', run_name='__main__')\n" \
           "except SystemExit: pass\nassert not {'torch', 'timm', 'onnx', 'matplotlib'} & set(sys.modules)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for argument in ("--device", "--thresholds.max-p90-latency-ms", "arm64-cortex-a53", "android:SERIAL"):
        assert argument in done.stdout


def workflow_commands() -> list[list[str]]:
    workflow = yaml.safe_load((ROOT / "docs" / "github-actions.yml").read_text())
    return [step["run"].split() for step in workflow["jobs"]["evaluation"]["steps"] if "run" in step]


def test_the_commands_of_the_example_for_ci_exist() -> None:
    commands = [arguments for arguments in workflow_commands() if arguments[:2] == ["python", "mobile_eval/run.py"]]
    assert [arguments[2] for arguments in commands] == ["setup", "evaluate"]
    for arguments in commands:
        helped = [sys.executable, *arguments[1:3], "--help"]
        done = subprocess.run(helped, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        for argument in arguments[3:]:
            if argument.startswith("--"):
                assert argument in done.stdout, argument
    assert {"arm64", "browser"} <= set(commands[0])


def test_the_example_for_ci_as_it_stands_parses_to_what_it_says(good: Good, call: Call, tmp_path: Path) -> None:
    """The very arguments, with a bundle that is there; the devices that are not become rows, which fail --strict."""
    (arguments,) = [arguments[2:] for arguments in workflow_commands() if "evaluate" in arguments]
    given = {"$BUNDLE": good.folder, "$GALLERY": good.gallery, "evaluation": tmp_path / "evaluation"}
    given_arguments = [given.get(argument, argument) for argument in arguments if argument not in ("arm64", "browser")]
    assert call(*given_arguments)[0] == 0
    found = load(tmp_path / "evaluation" / "results.json")
    assert (found.thresholds.quantized.max_bit_flip_rate, found.thresholds.max_size_mb) == (0.01, 20)
    paths = yaml.safe_load((ROOT / "docs" / "github-actions.yml").read_text())["jobs"]["evaluation"]["steps"][-1]
    assert all((tmp_path / path).is_file() for path in paths["with"]["path"].split())
