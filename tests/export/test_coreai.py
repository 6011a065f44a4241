"""Core AI files, exported and executed; where the extra is missing, rows and errors that say how to get it."""

from __future__ import annotations

import asyncio
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from export.artifact import ExportFailure, ModelMetadata
from export.exporter import export_all
from export.metadata import COREAI_PROGRAM, read_metadata
from gallery.codes import pack
from gallery.errors import CorruptFile, MissingBackend
from gallery.files import sha256_of, size_of
from mobile_eval.runtimes import open_model
from tests.export.factories import IMAGENET, Exports, Student, export_student, request_for

needs_extra = pytest.mark.skipif(find_spec("coreai_torch") is None, reason="needs the extra: pip install .[coreai]")
VARIANTS = ("coreai-fp32", "coreai-fp16")


@pytest.fixture(scope="module")
def assets(v3: Student, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return export_student(v3, VARIANTS, tmp_path_factory.mktemp("coreai"))


@needs_extra
@pytest.mark.parametrize(("variant", "largest"), zip(VARIANTS, (1e-4, 0.05), strict=True))
def test_the_asset_keeps_the_codes_and_its_metadata(assets: Exports, variant: str, largest: float) -> None:
    file, student = assets.files[variant], assets.student
    runtime = open_model(file.path)
    found = runtime.run(student.images[:24])
    flipped = (found.logits > 0) != (student.logits[:24] > 0)
    assert np.array_equal(found.codes, pack(found.logits))
    assert found.logits.dtype == np.float32
    assert np.abs(found.logits - student.logits[:24]).max() < largest
    assert np.abs(student.logits[:24][flipped]).max(initial=0) < (1e-3 if variant.endswith("fp32") else largest)
    assert runtime.metadata == read_metadata(file.path) == file.metadata
    assert runtime.engine.startswith("Core AI 1.")
    assert (file.sha256, file.bytes) == (sha256_of(file.path), size_of(file.path))


@needs_extra
def test_half_is_half_the_size(assets: Exports) -> None:
    full, half = (assets.files[variant].bytes for variant in VARIANTS)
    assert 0.49 < half / full < 0.54


@needs_extra
def test_it_runs_where_an_event_loop_runs_already(assets: Exports) -> None:
    async def inside() -> np.ndarray:
        return open_model(assets.files["coreai-fp32"].path).run(assets.student.images[:1]).logits

    assert np.abs(asyncio.run(inside()) - assets.student.logits[:1]).max() < 1e-4


@needs_extra
def test_nothing_of_this_machine_is_in_the_program(assets: Exports) -> None:
    program = (assets.files["coreai-fp32"].path / COREAI_PROGRAM).read_bytes()
    assert b"site-packages" not in program
    assert b".py" not in program


@needs_extra
def test_a_damaged_program_is_corrupt(assets: Exports, tmp_path: Path) -> None:
    path = Path(shutil.copytree(assets.files["coreai-fp32"].path, tmp_path / "a.aimodel"))
    program = (path / COREAI_PROGRAM).read_bytes()
    (path / COREAI_PROGRAM).write_bytes(program[: len(program) // 2])
    with pytest.raises(CorruptFile, match=r"main\.hash"):
        open_model(path)


@pytest.mark.skipif(find_spec("coreai_torch") is not None, reason="the extra coreai is installed here")
def test_without_the_extra_the_row_says_what_to_install(v3: Student, tmp_path: Path) -> None:
    from tests.export.test_metadata import aimodel

    (row,) = export_all(request_for(v3), ["coreai-fp32"], tmp_path)
    assert isinstance(row, ExportFailure)
    assert row.reason.startswith("MissingBackend")
    assert "pip install coreai-torch" in row.reason or "pip install -e '.[coreai]'" in row.reason
    with pytest.raises(MissingBackend, match=r"pip install (-e '\.\[coreai\]'|coreai-core)"):
        open_model(aimodel(tmp_path, ModelMetadata(v3.space.id, 64, v3.name, "fp32", 32, IMAGENET.rule).to_json()))
