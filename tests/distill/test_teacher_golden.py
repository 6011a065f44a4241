"""Codes that are stored come from one arithmetic, and a machine with another one may not add to them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill import context as context_module
from distill import infer, pipeline, teacher_golden
from distill.context import RunContext
from distill.export_samples import golden_inputs
from distill.infer import code_logits, forward_logits, full_precision
from distill.models.hash_net import HashNet, build
from distill.summary import pair_logits
from distill.teacher_golden import FILE, NUM_IMAGES, check_golden, golden_images
from gallery.codes import pack
from gallery.errors import CodeSpaceMismatch, CorruptFile
from tests.distill.factories import BITS, SIZE, Learn

WAYS = {
    "in bf16 by autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "in fp16 by autocast": lambda: torch.autocast("cpu", torch.float16),
    "alone": nullcontext,
}


@pytest.fixture
def bf16_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that multiplies bf16 fast, which every other one can do slowly."""
    monkeypatch.setattr(infer, "has_bf16_units", lambda: True)


def plain(model: HashNet, context: RunContext, role: str, index: np.ndarray) -> np.ndarray:
    """Logits in fp32, without any of the code that decides about it."""
    with torch.inference_mode():
        return model.eval()(context.image_loader(role).load(index)).numpy()


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_logits_of_codes_are_the_same_bytes_whatever_the_processor_can(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(name, SIZE, BITS, seed=0).eval()
    images = torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    found, of_training = {}, {}
    for capable in (False, True):
        monkeypatch.setattr(infer, "has_bf16_units", lambda capable=capable: capable)
        for way, within in WAYS.items():
            with within():
                found[capable, way] = code_logits(model)(images).numpy().tobytes()
        of_training[capable] = forward_logits(model)(images).detach().numpy().tobytes()
    assert len(set(found.values())) == 1
    assert of_training[True] != of_training[False]  # training may be in bf16


def test_settings_of_the_process_change_no_code_and_are_left_as_they_were() -> None:
    model, images = build("vit_tiny_patch16_224", SIZE, BITS, seed=0).eval(), torch.rand(4, 3, SIZE, SIZE)
    expected = code_logits(model)(images)
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")  # bf16 kernels for fp32 matrices
        assert torch.equal(code_logits(model)(images), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(precision)


def test_convolutions_on_gpus_are_not_in_tf32() -> None:
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision, torch.backends.cudnn.deterministic
    with full_precision(torch.device("cpu")):
        assert (conv.fp32_precision, torch.backends.cudnn.deterministic) == ("ieee", True)
    assert (conv.fp32_precision, torch.backends.cudnn.deterministic) == before


@pytest.mark.usefixtures("bf16_units")
def test_all_that_is_stored_or_compared_with_it_is_in_fp32(learn: Learn) -> None:
    context, models = learn()
    data, teacher, student, query = context.data, models.teacher, models.student, context.data.query
    assert teacher is not None
    assert models.space.arithmetic == "fp32"
    assert np.array_equal(models.gallery.codes, pack(plain(teacher, context, "teacher", context.indexed_images)))
    pairs = pair_logits(context, models)
    for found, model, role, index in [
        (pairs.teacher_queries, teacher, "teacher", query), (pairs.student_queries, student, "student", query),
        (pairs.student_gallery, student, "student", context.indexed_images),
        (np.load(context.run_dir.cache / "gallery" / "00000.npy"), teacher, "teacher", data.gallery),
    ]:  # fmt: skip
        assert np.array_equal(found, plain(model, context, role, index))
    _, codes, logits = golden_inputs(context, student)
    assert np.array_equal(codes, pack(logits))


@pytest.mark.usefixtures("bf16_units")
def test_the_own_teacher_passes_and_a_rerun_adds_to_its_gallery(learn: Learn, tmp_path: Path) -> None:
    context, models = learn()
    assert models.teacher is not None
    check_golden(context.preprocessing("teacher"), tmp_path / "run", models.space, models.teacher)
    before = models.gallery.codes
    context.run_dir.invalidate("gallery")
    _, again = learn()
    assert np.array_equal(again.gallery.codes, before)


def squeezed(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def not_antialiased(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(image.crop((224, 0, 672, 448)).resize((size, size), Image.Resampling.NEAREST))


def test_what_hashes_otherwise_is_rejected(learn: Learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, models = learn()
    assert models.teacher is not None
    folder, space, rounded = tmp_path / "run", models.space, copy.deepcopy(models.teacher)
    for tensor in rounded.parameters():
        tensor.data = tensor.data.bfloat16().float()
    how = context.preprocessing("teacher")
    cases = {
        "another teacher": (how, build("resnet10t", SIZE, BITS, seed=3)),
        "weights in bf16": (how, rounded),
        "another mean": (replace(how, mean=(0.5, 0.5, 0.5)), models.teacher),
        "another std": (replace(how, std=(0.2, 0.2, 0.2)), models.teacher),
    }
    for name, (there, teacher) in cases.items():
        with pytest.raises(CodeSpaceMismatch, match=r"bits, on .* in torch\.float32"):
            pytest.fail(f"{name} passes: {check_golden(there, folder, space, teacher)}")
    for resize in (squeezed, not_antialiased):
        monkeypatch.setattr(teacher_golden, "to_square", resize)
        with pytest.raises(CodeSpaceMismatch, match="golden logits"):
            pytest.fail(f"{resize.__name__} passes: {check_golden(how, folder, space, models.teacher)}")


@pytest.mark.usefixtures("bf16_units")
@pytest.mark.parametrize("reuse", [False, True], ids=["resumed", "reused"])
def test_a_machine_that_hashes_in_bf16_adds_to_no_gallery(
    learn: Learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reuse: bool
) -> None:
    context, _ = learn("old")
    for module in (context_module, teacher_golden):
        monkeypatch.setattr(module, "code_logits", lambda model: torch.inference_mode()(forward_logits(model)))
    monkeypatch.setattr(pipeline, "create_gallery", lambda *_: pytest.fail("codes in bf16 are stored"))
    context.run_dir.invalidate("gallery")
    more = {"reuse_gallery": tmp_path / "old"} if reuse else {}
    with pytest.raises(CodeSpaceMismatch, match="golden logits"):
        learn("new" if reuse else "old", **more)


def test_codes_of_another_arithmetic_are_rejected(learn: Learn, tmp_path: Path) -> None:
    context, models = learn()
    assert models.teacher is not None
    declared = replace(models.space, arithmetic="bf16")
    assert declared.id != models.space.id
    with pytest.raises(CodeSpaceMismatch, match="in bf16"):
        check_golden(context.preprocessing("teacher"), tmp_path / "run", declared, models.teacher)


DAMAGES: tuple[Callable[[Path], object], ...] = (
    lambda path: path.write_bytes(path.read_bytes()[:-4] + b"\x00\x00\x80\x3f"),
    lambda path: path.write_bytes(path.read_bytes()[:-1]),
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"\x80\x04."),  # a pickle
    Path.unlink,
)


def test_rounding_by_another_machine_passes_by_sound_golden_logits_alone(
    learn: Learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, models = learn()
    assert models.teacher is not None
    how = context.preprocessing("teacher")
    check = partial(check_golden, how, tmp_path / "run", models.space, models.teacher)
    path = tmp_path / "run" / FILE
    sound = path.read_bytes()
    path.unlink()
    check()  # the machine that trained the teacher gives the same bytes again
    path.write_bytes(sound)
    monkeypatch.setattr(teacher_golden, "code_logits", lambda model: lambda images: code_logits(model)(images) + 1e-5)
    check()
    for damage in DAMAGES:
        path.write_bytes(sound)
        damage(path)
        with pytest.raises(CorruptFile, match=r"teacher_golden\.npy"):
            check()


def test_golden_images_are_coloured_different_and_wide() -> None:
    images = [np.asarray(image) for image in golden_images()]
    assert len({image.tobytes() for image in images}) == len(images) == NUM_IMAGES
    for image in images:
        assert image.shape == (448, 896, 3)
        assert np.ptp(image, axis=2).max() > 100
