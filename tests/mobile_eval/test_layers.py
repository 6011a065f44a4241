"""What works with the base's packages alone, or those and the service's, and what is said where others are missing."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gallery.errors import MissingBackend
from tests.conftest import ROOT

if TYPE_CHECKING:
    from tests.mobile_eval.bundles import Good

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NOT_IN_BASE = (
    "torch", "torchvision", "timm", "scipy", "safetensors", "onnx", "onnxscript", "onnxruntime", "coremltools",
    "sklearn", "ai_edge_litert", "litert_torch", "ai_edge_quantizer", "torchao", "jax", "jinja2", "matplotlib",
    "fastapi", "starlette", "uvicorn", "prometheus_client", "ray", "pandas", "pillow_heif", "playwright",
)  # fmt: skip
HIDE = """
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
def find(name, *others):
    return None if name.partition(".")[0] in {} else find_spec(name, *others)
PathFinder.find_spec = find
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH in which Twinhash's metadata is that of today's pyproject.toml."""
    lines = [f"Metadata-Version: 2.4\nName: twinhash\nVersion: {PROJECT['version']}"]
    lines += [f"Requires-Dist: {one}" for one in PROJECT["dependencies"]]
    for extra, names in EXTRAS.items():
        lines += [f"Provides-Extra: {extra}", *(f'Requires-Dist: {one}; extra == "{extra}"' for one in names)]
    (tmp_path / "twinhash-0.dist-info").mkdir()
    (tmp_path / "twinhash-0.dist-info" / "METADATA").write_text("\n".join(lines) + "\n")
    return tmp_path


def ran(folder: Path, *words: object, blocked: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run Python where some modules cannot be found, and the metadata are those in the folder."""
    (folder / "sitecustomize.py").write_text(HIDE.format(blocked))
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "COLUMNS": "300"}
    if words[0] == "-c":
        environment["PYTHONSAFEPATH"] = "1"  # else metadata of an editable installation in ROOT come first
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_the_gallery_is_imported_with_the_packages_of_the_base(installed: Path) -> None:
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "gallery").rglob("*.py")]
    modules = [".".join(path.parts) for path in paths if "service" not in path.parts and path.name != "__init__"]
    done = ran(installed, "-c", "; ".join(f"import {name}" for name in modules), blocked=NOT_IN_BASE)
    assert "gallery.decode" in modules
    assert done.returncode == 0, done.stderr


def test_a_gallery_is_made_and_searched_without_torch(installed: Path, good: Good) -> None:
    code = (
        "import sys; from twinhash import open_gallery; gallery = open_gallery(sys.argv[1])\n"
        "print(gallery.search(gallery.codes[:1], 1).distances)"
    )
    done = ran(installed, "-c", code, good.gallery, blocked=NOT_IN_BASE)
    assert done.stdout == "[[0]]\n", done.stderr


def test_a_student_of_a_bundle_runs_with_the_packages_of_the_service(installed: Path, good: Good) -> None:
    code = """
import sys, numpy
from pathlib import Path
from export.bundle import open_bundle
from mobile_eval.runtimes import open_model
manifest = open_bundle(Path(sys.argv[1]), parse_models=False)
model = open_model(manifest.files[0].path)
assert model.metadata == manifest.files[0].metadata
print(model.encode(numpy.zeros((1, model.metadata.size, model.metadata.size, 3), "uint8")).shape)
"""
    without = tuple(name for name in NOT_IN_BASE if name != "onnxruntime")
    done = ran(installed, "-c", code, good.folder, blocked=without)
    assert done.stdout == "(1, 2)\n", done.stderr


COMMANDS = {  # the package that is not there, the extra it is in
    "distill/run.py": ("torch", "train"),
    "export/run.py no-run": ("torch", "train"),
    "export/run.py verify {bundle}": ("onnx", "export"),
    "export/run.py verify-release {bundle}/manifest.json --public-key none": ("cryptography", "release"),
    "mobile_eval/run.py evaluate {bundle}": ("onnx", "export"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_the_extra_that_is_missing(command: str, installed: Path, good: Good) -> None:
    package, extra = COMMANDS[command]
    words = [word.format(bundle=good.folder) for word in command.split()]
    done = ran(installed, *words, blocked=(package,))
    assert done.returncode == 2, done.stderr
    assert f"pip install -e '.[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_release_is_signed_and_verified_with_the_base_and_its_extra(
    installed: Path, good: Good, tmp_path: Path
) -> None:
    key, out = tmp_path / "key.pem", tmp_path / "release.json"
    commands: list[tuple[object, ...]] = [
        ("release-key", key), ("release", good.folder, "--version", "1", "--key", key, "--out", out),
        ("verify-release", out, "--public-key", tmp_path / "key.pub", "--folder", good.folder),
    ]  # fmt: skip
    for words in commands:
        done = ran(installed, "export/run.py", *words, blocked=NOT_IN_BASE)
        assert done.returncode == 0, done.stderr


HELP = ("distill/run.py", "export/run.py", "export/run.py verify", "export/run.py release", "mobile_eval/run.py")


@pytest.mark.parametrize("command", HELP)
def test_help_needs_the_base_alone(command: str, installed: Path) -> None:
    done = ran(installed, *command.split(), "--help", blocked=NOT_IN_BASE)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


REQUIRE = "from gallery.layers import require, missing_module as missing; "


def test_what_an_extra_lacks_is_found_without_importing_it(installed: Path) -> None:
    metadata = installed / "twinhash-0.dist-info" / "METADATA"
    for line in ('no-such-package==3; extra == "export"', 'no-such-engine>=1; extra == "train"'):
        metadata.write_text(metadata.read_text() + f"Requires-Dist: {line}\n")
    done = ran(installed, "-c", REQUIRE + "require('export')")
    expected = "expected the packages of the extra export; found no no-such-engine, no-such-package. Run, in"
    assert expected in done.stderr
    assert done.stderr.rstrip().endswith("pip install -e '.[export]'")
    assert MissingBackend.__name__ in done.stderr
    assert ran(installed, "-c", REQUIRE + "require('web'), require('no extra')").returncode == 0


FIXES = {
    "torch.nn": "-e '.[train]'", "onnxruntime": "-e '.[serve]'", "sklearn": "-e '.[export]'",
    "pillow_heif": "-e '.[heif]'", "faiss": "-e .", "jax": "-e '.[all]'",
}  # fmt: skip


def test_the_smallest_extra_with_a_package_is_named(installed: Path) -> None:
    done = ran(installed, "-c", REQUIRE + f"print(*(missing(one).fix for one in {list(FIXES)}), sep='\\n')")
    assert done.stdout.splitlines() == [f"Run, in Twinhash's folder: pip install {fix}" for fix in FIXES.values()]
