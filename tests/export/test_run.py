"""`export/run.py` on a real run: what it writes, its errors, and the damaged bundles that `verify` finds."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.checkpoint import load_network
from distill.config import TrainConfig
from distill.models.custom import load_custom_model
from distill.models.hash_net import import_timm
from export.artifact import ANY_SIZE
from export.bundle import MANIFEST, Golden, open_bundle, read_golden
from export.exporter import select_variants
from export.quantize import logits, normalize
from gallery import codespace
from gallery.codes import pack, unpack
from gallery.codespace import Preprocessing
from gallery.errors import InputError
from gallery.files import sha256_of, size_of
from mobile_eval.devices.host import Host
from mobile_eval.golden import compare_golden
from mobile_eval.runtimes import ModelOutput, open_model
from tests.attack.bundle_cases import endless, onnx_changed
from tests.conftest import import_script

ROOT, PATIENCE_S, BITS = Path(__file__).parents[2], 240, 16
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "TWINHASH_WEIGHTS": "", "OMP_NUM_THREADS": "1"}
Call = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def module() -> Any:
    """`export/run.py`."""
    return import_script("export.run")


@pytest.fixture
def call(module: Any, heard: Any) -> Call:
    """The command line in this process: exit code and what it said."""
    found: Call = heard(module.main)
    return found


@pytest.fixture
def bundle(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run / "bundle", tmp_path / "bundle"))


def state(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_of(p) for p in folder.rglob("*") if p.is_file()}


def stages(run: Path) -> dict[str, Any]:
    """What is recorded of each stage but that of the data."""
    return {k: v for k, v in json.loads((run / "stages.json").read_text()).items() if k != "data"}


def test_a_finished_run_is_exported_again_and_stays_as_it_was(run: Path, call: Call) -> None:
    before, noted = state(run), stages(run)
    code, said = call(run, "--formats", "onnx", "--precisions", "w8a8", "--dynamic-image-size")
    assert code == 0, said
    manifest = open_bundle(run / "export")
    (file,) = manifest.files
    assert (file.variant, file.metadata.layout, manifest.space) == ("onnx-w8a8", ANY_SIZE, codespace.load(run)[0])
    assert f"onnx-w8a8: {file.bytes / 1e6:.2f} MB, {len(file.metadata.float_layers)} layers kept in float, " in said
    size = file.metadata.size
    assert open_model(file.path).encode(np.zeros((1, size + 9, 2 * size, 3), np.uint8)).shape == (1, BITS // 8)
    now = {name: digest for name, digest in state(run).items() if not name.startswith(("export/", "cache/"))}
    changed = {name for name in now | before if not name.startswith("cache/") and now.get(name) != before.get(name)}
    assert changed <= {".lock", ".pid", "log.txt", "stages.json", "train.jsonl"}
    assert stages(run) == noted
    both = [read_golden(folder, open_bundle(folder)) for folder in (run / "bundle", run / "export")]
    assert np.array_equal(both[0].codes, both[1].codes)
    assert call("verify", run / "export")[0] == 0


def forgotten(run: Path, *stages: str) -> None:
    record = json.loads((run / "stages.json").read_text())
    (run / "stages.json").write_text(json.dumps({k: v for k, v in record.items() if k not in stages}))


@pytest.mark.parametrize("stage", ["teacher", "gallery", "student"])
def test_an_unfinished_run_is_an_error_that_says_how_to_finish_it(
    run: Path, call: Call, tmp_path: Path, stage: str
) -> None:
    other = shutil.copytree(run, tmp_path / "runs" / "other")
    forgotten(other, stage)
    code, said = call(other, "--formats", "onnx")
    assert code == 2
    assert f"no finished {stage}" in said
    assert f"distill/run.py --output-dir {tmp_path / 'runs'} --name other" in said


def test_what_is_no_run_is_an_error_and_nothing_is_written(run: Path, call: Call, tmp_path: Path) -> None:
    for arguments in ((tmp_path / "none",), (run / "bundle",)):
        code, said = call(*arguments)
        assert code == 2
        assert "config.yaml" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("copy", [shutil.copy, shutil.copy2], ids=["its cache is stale", "its cache is whole"])
def test_a_run_that_cannot_be_written_is_exported_elsewhere(run: Path, tmp_path: Path, copy: Any) -> None:
    folder = Path(shutil.copytree(run.parent, tmp_path / "runs", copy_function=copy)) / run.name
    (folder / "config.yaml").unlink()
    places = [path for path in (folder.parent, *folder.parent.rglob("*")) if path.is_dir()]
    for path in places:
        path.chmod(0o555)
    rights = ("setpriv", "--bounding-set=-all", "--inh-caps=-all") if os.geteuid() == 0 else ()
    command = (*rights, sys.executable, "export/run.py", folder, "--formats", "onnx", "--precisions", "fp32")
    options: Any = {"cwd": ROOT, "env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": PATIENCE_S}
    before = state(folder)
    refused, done = (subprocess.run((*command, *more), **options) for more in ((), ("--out", tmp_path / "out")))
    for path in places:
        path.chmod(0o755)
    assert (refused.returncode, "Give this user the rights to that path" in refused.stderr) == (2, True), refused.stderr
    assert done.returncode == 0, done.stderr
    assert ("into a temporary folder" in done.stderr) == (copy is shutil.copy)
    assert open_bundle(tmp_path / "out").files
    assert state(folder) == before


def test_the_bundle_of_a_run_that_lost_its_settings_is_not_overwritten(run: Path, call: Call, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "r"))
    (folder / "config.yaml").unlink()
    code, said = call(folder, "--formats", "onnx", "--out", folder / "bundle")
    assert (code, "the bundle that its run evaluated" in said) == (2, True)


def test_a_run_in_use_is_left_alone(run: Path, call: Call) -> None:
    import fcntl

    with (run / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, said = call(run, "--formats", "onnx", "--out", run.parent / "never")
    assert (code, "no other process holds" in said) == (2, True)


OUTS: dict[str, Callable[[Path], object]] = {
    "a folder of others": lambda p: (p.mkdir(), (p / "thesis.tex").write_text("x")),
    "a file": lambda p: p.write_text("x"),
    "a bundle with a guest": lambda p: (shutil.move(p.parent / "bundle", p), (p / "thesis.tex").write_text("x")),
}


@pytest.mark.parametrize("kind", OUTS)
def test_nothing_but_a_bundle_is_overwritten(run: Path, bundle: Path, call: Call, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    OUTS[kind](out)
    before = sha256_of(out)
    code, said = call(run, "--formats", "onnx", "--out", out)
    assert (code, "Choose another --out" in said) == (2, True)
    assert sha256_of(out) == before


def test_the_bundle_that_its_run_evaluated_stays(run: Path, call: Call) -> None:
    code, said = call(run, "--formats", "onnx", "--out", run / "bundle")
    assert (code, "evaluated" in said) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--formats", "tf"), "onnx"),
        (("--precisions", "int5"), "palettize6"),
        (("--formats", "coreml", "--precisions", "w8a8-dynamic"), "palettize6"),
        (("--img-size", "64"), "--img-size"),
    ],
)
def test_options_that_no_format_has_are_an_error(run: Path, call: Call, arguments: tuple[str, ...], says: str) -> None:
    code, said = call(run, *arguments)
    assert (code, says in said) == (2, True)


def test_each_format_is_exported_in_the_precisions_it_has(module: Any) -> None:
    variants = select_variants(("onnx", "coreml"), ("w8a8", "palettize6"))
    assert variants == ["onnx-w8a8", "coreml-w8a8", "coreml-palettize6"]
    command = module.ExportCommand(run=Path("r"))
    assert (command.formats, command.precisions) == (TrainConfig().formats, TrainConfig().precisions)
    assert select_variants(command.formats, command.precisions) == [
        "onnx-fp32", "onnx-fp16", "onnx-w8a32", "litert-fp32", "litert-fp16", "litert-w8a32", "coreml-fp16",
        "coreml-w8a32"]  # fmt: skip
    assert select_variants(("coreml", "coreai"), ("fp32",)) == ["coreml-fp32", "coreai-fp32"]
    assert select_variants(("coreai",)) == ["coreai-fp32", "coreai-fp16"]


def test_interrupted_it_leaves_nothing(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "export/run.py", str(run), "--formats", "onnx", "--out", str(tmp_path / "out")]
    heeding = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, **heeding)
    deadline = time.monotonic() + PATIENCE_S
    try:
        while not list(tmp_path.iterdir()):  # the draft beside the folder to be
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert (process.returncode, "Stopped" in said, "Traceback" in said) == (130, True, False)
    assert not list(tmp_path.iterdir())


def own(run: Path, weights: Path, *more: object) -> tuple[object, ...]:
    """The command line for a network of the user's."""
    return ("--student-weights", weights, "--code-space", run, "--images", run.parents[1] / "in",
            "--formats", "onnx", "--precisions", "fp32", *more)  # fmt: skip


PLAIN = ("--student", "mobilenetv3_small_100", "--img-size", 32)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """timm's own network with as many outputs as the code has bits."""
    return saved(tmp_path_factory.mktemp("plain") / "mine.safetensors", BITS)


def saved(path: Path, outputs: int, change: Callable[[dict[str, Any]], object] = lambda _: None) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        tensors = import_timm().create_model("mobilenetv3_small_100", num_classes=outputs).state_dict()
    change(tensors)
    save_file(tensors, path)
    return path


def test_a_timm_network_becomes_a_bundle_of_the_space(made: Path, run: Path, plain: Path, call: Call,
                                                      tmp_path: Path) -> None:  # fmt: skip
    shown = Path(shutil.copytree(made / "in", tmp_path / "in"))
    (shown / "broken.jpg").write_bytes(b"\xff\xd8 and no more")
    out, mean, std = tmp_path / "out", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    arguments = (*own(run, plain, *PLAIN, "--out", out, "--mean", *mean, "--std", *std), "--images", shown)
    code, said = call(*arguments)
    assert code == 0, said
    assert "broken.jpg" in said
    assert "hardly closer to the centers than random ones" in said  # random weights speak no code
    net = import_timm().create_model("mobilenetv3_small_100", num_classes=BITS)
    net.load_state_dict(load_file(plain))
    manifest, golden = open_bundle(out), read_golden(out, open_bundle(out))
    assert manifest.space == codespace.load(run)[0]
    expected = logits(net, normalize(golden.images, Preprocessing(32, mean, std))).numpy()
    assert np.allclose(golden.logits, expected, atol=1e-6)
    assert call("verify", out)[0] == 0


def test_the_student_of_a_run_knows_its_name_and_size(module: Any, run: Path, tmp_path: Path) -> None:
    space, _ = codespace.load(run)
    path = run / "student.safetensors"
    net, start, size = load_custom_model(path, None, None, space.bits)
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert start.name == "mobilenetv3_small_100"
    assert torch.equal(net(images), load_network(path)(images))
    save_file(load_file(path), tmp_path / "bare.safetensors")  # the same tensors, and nothing to say what they are
    path = tmp_path / "bare.safetensors"
    with pytest.raises(InputError, match="--student and --img-size"):
        load_custom_model(path, None, None, space.bits)
    bare, *_ = load_custom_model(path, "mobilenetv3_small_100", size, space.bits)
    assert torch.equal(bare(images), net(images))


FOREIGN: dict[str, tuple[int, Callable[[dict[str, Any]], object], tuple[str, ...]]] = {
    "missing": (BITS, lambda t: t.pop("conv_stem.weight"), ("1 missing (conv_stem.weight)",)),
    "surplus": (BITS, lambda t: t.update({"extra.bias": torch.zeros(1)}), ("1 surplus (extra.bias)",)),
    "no classifier": (0, lambda _: None, ("2 missing (classifier.bias, classifier.weight)",)),
    "other outputs": (1000, lambda _: None, ("classifier.weight [1000, 1024] for [16, 1024]", "16 outputs")),
    "not a number": (BITS, lambda t: t["classifier.weight"].fill_(float("nan")), ("finite",)),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_tensors_that_do_not_fit_are_named(run: Path, call: Call, tmp_path: Path, kind: str) -> None:
    outputs, change, says = FOREIGN[kind]
    path = saved(tmp_path / "mine.safetensors", outputs, change)
    code, said = call(*own(run, path, *PLAIN, "--out", tmp_path / "out"))
    assert code == 2
    for arguments in says:
        assert arguments in said
    assert not (tmp_path / "out").exists()


def test_a_pickle_is_not_opened(run: Path, call: Call, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "mine.pth")
    code, said = call(*own(run, tmp_path / "mine.pth", *PLAIN, "--out", tmp_path / "out"))
    assert (code, "safetensors.torch.save_file" in said) == (2, True)


def test_a_foreign_code_space_is_an_error(run: Path, call: Call, tmp_path: Path) -> None:
    space, _ = codespace.load(run)
    other = np.random.default_rng(0).choice([-1, 1], (4, 64)).astype(np.int8)
    codespace.save(tmp_path, replace(space, bits=64, centers_sha256=codespace.hash_centers(other)), other)
    weights = run / "student.safetensors"
    arguments = (*own(run, weights, "--out", tmp_path / "out"), "--code-space", tmp_path)
    code, said = call(*arguments)
    assert (code, "64 bits" in said, "with 16" in said) == (2, True, True)
    np.save(tmp_path / "centers.npy", -other)
    code, said = call(*arguments)
    assert (code, "centers" in said) == (2, True)
    assert not (tmp_path / "out").exists()


def test_what_a_network_needs_is_said(run: Path, plain: Path, call: Call, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    for arguments, says in (
        (("--student-weights", plain), "no --code-space, --images, --out"),
        ((), "--student-weights, --code-space"),
        (own(run, plain, *out), "--student and --img-size"),
        ((*own(run, plain, *PLAIN, *out), "--img-size", 5000), "16 to 2048"),
        ((*own(run, plain, *PLAIN, *out), "--std", 1, 0, 1), "above zero"),
        ((*own(run, plain, *PLAIN, *out), "--images", tmp_path / "empty"), "none among 0 files"),
        (own(run, tmp_path / "none", *PLAIN, *out), "none"),
    ):
        code, said = call(*arguments)
        assert (code, says in said) == (2, True), said
    assert not (tmp_path / "out").exists()


def rewritten(bundle: Path, name: str, data: bytes) -> None:
    """Changes a file and its entry in the manifest."""
    (bundle / name).write_bytes(data)
    record = json.loads((bundle / MANIFEST).read_text())
    record["files"][name].update(sha256=hashlib.sha256(data).hexdigest(), bytes=size_of(bundle / name))
    (bundle / MANIFEST).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def flipped_byte(bundle: Path) -> None:
    data = bytearray((bundle / "query-fp32.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "query-fp32.onnx").write_bytes(data)


def linked(bundle: Path) -> None:
    shutil.move(bundle / "README.md", bundle.parent / "elsewhere")
    (bundle / "README.md").symlink_to(bundle.parent / "elsewhere")


def climbing(bundle: Path) -> None:
    text = (bundle / MANIFEST).read_text()
    (bundle / MANIFEST).write_text(text.replace('"README.md"', '"../README.md"'))


def other_space(bundle: Path) -> None:
    space, centers = codespace.load(bundle)
    codespace.save(bundle, replace(space, teacher_sha256="0" * 64), centers)
    rewritten(bundle, "codespace.json", (bundle / "codespace.json").read_bytes())


def longer(bundle: Path) -> None:
    text = (bundle / "golden.json").read_text().replace('"code": "', '"code": "00')
    rewritten(bundle, "golden.json", text.encode())


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "one flipped byte": (flipped_byte, "query-fp32.onnx"),
    "an added file": (lambda b: (b / "more.onnx").write_bytes(b"x"), "more.onnx"),
    "a link": (linked, "README.md, a link"),
    "a name that climbs": (climbing, "../README.md"),
    "another code space": (other_space, "codespace.json"),
    "golden codes of another length": (longer, "golden codes of 16 bits"),
    "nothing there": (shutil.rmtree, "manifest"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_bundle_that_is_not_what_it_says_is_exit_2(bundle: Path, call: Call, how: str) -> None:
    breaks, says = BROKEN[how]
    assert call("verify", bundle)[0] == 0
    breaks(bundle)
    code, said = call("verify", bundle)
    assert (code, says in said) == (2, True), said


def test_golden_codes_that_no_file_returns_are_found_by_running_them(bundle: Path, call: Call) -> None:
    rows, golden = json.loads((bundle / "golden.json").read_text()), read_golden(bundle, open_bundle(bundle))
    place = int(np.abs(golden.logits[0]).argmax())
    bits = unpack(golden.codes)
    bits[0, place] ^= True
    rows[0] |= {"code": pack(bits)[0].tobytes().hex(), "logits": np.where(bits[0], 1.0, -1.0).tolist()}
    rewritten(bundle, "golden.json", json.dumps(rows).encode())
    code, said = call("verify", bundle)
    assert (code, "onnx-fp32: FAILED: 1 bit flips in" in said) == (1, True), said


def test_a_file_without_an_engine_is_a_row(
    bundle: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "onnxruntime.py").write_text("raise ImportError('no onnxruntime on this machine')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "blocked"))  # of the process that runs the file
    code, said = call("verify", bundle)
    assert (code, "onnx-fp32: skipped: MissingBackend" in said) == (0, True), said
    assert call("verify", bundle, "--strict")[0] == 2


def flipped_outputs(flips: int, distance: float = 1.0) -> tuple[ModelOutput, Golden]:
    """A model's output for 8 images of 64 bits with bit flips, their logits `distance` on the other side of 0."""
    expected = np.random.default_rng(0).choice([-1.0, 1.0], (8, 64)).astype(np.float32)
    expected.flat[:flips] *= distance
    found = expected.copy()
    found.flat[:flips] *= -1
    return ModelOutput(pack(found), found), Golden(np.zeros((8, 1, 1, 3), np.uint8), pack(expected), expected)


@pytest.mark.parametrize(
    ("precision", "flips", "distance", "end"),
    [
        ("fp32", 0, 1.0, "ok"), ("fp32", 512, 0.9e-3, "ok"), ("fp32", 1, 1.1e-3, "FAILED"),
        ("fp16", 1, 0.09, "ok"), ("fp16", 1, 0.11, "FAILED"),
        ("w8a8", 19, 1.0, "ok"), ("w8a8", 20, 1.0, "FAILED"),
    ],
)  # fmt: skip
def test_allowed_bit_flips(module: Any, precision: str, flips: int, distance: float, end: str) -> None:
    found, golden = flipped_outputs(flips, distance)
    assert compare_golden(precision, found, golden)[0] == end


def test_a_folder_that_was_only_looked_at_is_empty(module: Any, tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_bytes(b"x")
    module.check_out(tmp_path)
    (tmp_path / "mine.txt").write_bytes(b"x")
    with pytest.raises(InputError, match="a bundle to replace"):
        module.check_out(tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "w8a8"])
def test_codes_are_the_signs_of_the_files_own_logits(module: Any, precision: str) -> None:
    found, golden = flipped_outputs(0)
    dead = found.codes.copy()
    dead[:, 2] &= 0b1110_1111  # one bit of 64: fewer flips than a quantized file may have
    status, why = compare_golden(precision, ModelOutput(dead, found.logits), golden)
    assert (status, "not the signs of its own logits" in why) == ("FAILED", True)


def test_a_file_that_never_ends_is_ended(bundle: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx_changed(endless)(bundle)
    monkeypatch.setattr(Host, "limit_s", 6.0)
    monkeypatch.setattr(Host, "image_s", 0.0)
    code, said = call("verify", bundle)
    assert (code, "still running after 6 s" in said) == (1, True), said


def test_golden_logits_of_zero_excuse_nothing(module: Any) -> None:
    found, golden = flipped_outputs(1)
    lying = Golden(golden.images, golden.codes, np.zeros_like(golden.logits))
    assert compare_golden("fp32", found, lying)[0] == "FAILED"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "w8a8"])
def test_what_is_not_a_number_fails(module: Any, precision: str) -> None:
    found, golden = flipped_outputs(0)
    found.logits[3, 5] = np.nan
    assert compare_golden(precision, found, golden)[0] == "FAILED"


@pytest.mark.parametrize(("arguments", "says"), [((), "--student-weights"), (("verify",), "--strict")])
def test_help_answers_without_loading_torch(arguments: tuple[str, ...], says: str) -> None:
    code = f"import runpy, sys; sys.argv = ['run.py', *{arguments!r}, '--help']\n" \
           "try: runpy.run_path('export/run.py', run_name='__main__')\n" \
           "except SystemExit: pass\nassert not {'torch', 'timm', 'onnx', 'scipy'} & set(sys.modules)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
