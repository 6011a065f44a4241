"""The student's views as apps make them: nothing else of a training moves, and a kill changes nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill import engine
from distill.config import StudentTrainConfig, TeacherTrainConfig
from distill.context import RunContext
from distill.data.app_pixels import APPS
from distill.data.augment import ImageLoader, sample_apps
from distill.train_student import StudentBatch, batches_from_cache, batches_on_the_fly
from distill.training_set import TrainingSet
from tests.distill.factories import SIZE, STUDENT, TEACHER, Learn

HALF, SHARE = SIZE // 2, 0.5
TRAINED = "teacher.safetensors", "student.safetensors", "centers.npy"


def with_share(share: float, **changes: Any) -> StudentTrainConfig:
    return STUDENT.model_copy(update={"app_augment": share, **changes})


def files(context: RunContext) -> dict[str, bytes]:
    return {name: (context.run_dir.folder / name).read_bytes() for name in TRAINED}


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def set_of(share: float) -> TrainingSet:
    """Images without a run."""
    rng, data = np.random.default_rng(0), TrainingSet.__new__(TrainingSet)
    pixels = rng.integers(0, 256, (6, 8, 8, 3), np.uint8), rng.integers(0, 256, (6, APPS, 8, 8, 3), np.uint8)
    data.loader = ImageLoader(pixels[0], (0.5,) * 3, (0.2,) * 3, torch.device("cpu"), pixels[1])
    data.context = SimpleNamespace(config=SimpleNamespace(student_train=with_share(share)))
    data.train = np.arange(4)
    return data


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 3), st.floats(0.01, 1))
def test_a_step_differs_from_one_without_in_its_own_views_alone(seed: int, n_unlabeled: int, share: float) -> None:
    crops = torch.tensor([1.0, 1, 0, 0]).expand(2, 6, 4)
    teacher = torch.randn(2, 6, 16, generator=generator())
    off, on = (batches_from_cache(set_of(one), np.arange(6), crops, teacher, n_unlabeled) for one in (0, share))
    rows = np.array([2, 0, 3])
    plain, shown = off.load(rows, generator(seed)), on.load(rows, generator(seed))
    assert np.array_equal(plain.index, shown.index)
    assert torch.equal(plain.teacher_logits(), shown.teacher_logits())
    moved = (plain.images != shown.images).flatten(1).any(1)
    after = generator(seed)
    off.load(rows, after)
    assert torch.equal(moved, sample_apps(3 + n_unlabeled, share, after) >= 0)  # sampled after all that was before


def test_a_share_of_none_samples_nothing() -> None:
    before, data = generator(), set_of(0.0)
    seen = data.load_views(np.arange(4), torch.tensor([1.0, 1, 0, 0]).expand(4, 4), before)
    assert torch.equal(before.get_state(), generator().get_state())
    assert torch.allclose(seen, data.loader.load(np.arange(4)), atol=1e-4)


def test_batches_are_the_same_by_any_number_of_threads() -> None:
    crops = torch.tensor([1.0, 1, 0, 0]).expand(2, 6, 4)
    batches = batches_from_cache(set_of(SHARE), np.arange(6), crops, torch.zeros(2, 6, 16), 2)

    def load(seed: int) -> torch.Tensor:
        return batches.load(np.array([2, 0, 3]), generator(seed)).images

    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, map(load, range(40)), pool.map(load, range(40))))


def test_the_teacher_its_gallery_and_its_views_do_not_move(learn: Learn, tmp_path: Path) -> None:
    (off, plain), (on, trained) = (
        learn(f"run-{share}", student_img_size=HALF, student_train=with_share(share)) for share in (0.0, SHARE)
    )
    assert off.data.app_pixels is None
    assert on.data.app_pixels is not None
    assert on.data.app_pixels.shape == (len(on.data.names), APPS, HALF, HALF, 3)
    assert off.data.fingerprint == on.data.fingerprint
    before, after = files(off), files(on)
    assert [name for name in TRAINED if before[name] != after[name]] == ["student.safetensors"]
    assert np.array_equal(plain.gallery.codes, trained.gallery.codes)
    assert "50% of its views as apps make them" in (on.run_dir.folder / "log.txt").read_text()
    assert "apps" not in (off.run_dir.folder / "log.txt").read_text()
    assert len([*(tmp_path / "cache").glob("*/*apps*.npy")]) == 1

    def on_the_fly(context: RunContext) -> StudentBatch:
        data, gallery = TrainingSet(context, "student"), context.data.gallery
        assert trained.teacher is not None
        found: StudentBatch = batches_on_the_fly(context, trained.teacher, data, gallery, 4).load(
            np.arange(12), generator()
        )
        return found

    clean, shown = on_the_fly(off), on_the_fly(on)
    assert torch.equal(clean.teacher_logits(), shown.teacher_logits())
    assert np.array_equal(clean.index, shown.index)
    moved = (clean.images != shown.images).flatten(1).any(1)
    assert 0 < moved.sum() < 16


def test_in_online_distillation_too_the_teacher_does_not_move(learn: Learn) -> None:
    teaching = TeacherTrainConfig(**TEACHER.model_dump() | {"epochs": 1, "finetune": "full"})
    contexts = [
        learn(f"online-{share}", distillation="online", teacher_train=teaching, student_img_size=HALF,
              student_train=StudentTrainConfig(app_augment=share))[0]
        for share in (0.0, SHARE)
    ]  # fmt: skip
    before, after = map(files, contexts)
    assert [name for name in TRAINED if before[name] != after[name]] == ["student.safetensors"]


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("views", [2, 0])
def test_killed_at_any_step_it_ends_bit_for_bit_the_same(
    learn: Learn, monkeypatch: pytest.MonkeyPatch, views: int
) -> None:
    options = {"student_img_size": HALF, "student_train": with_share(SHARE, cached_views=views, epochs=2)}
    whole, save, left = files(learn("whole", **options)[0]), engine.save_state, [0]
    monkeypatch.setattr(engine, "CHECKPOINT_EVERY_S", 0.0)

    def save_and_die(path: Path, *state: Any) -> None:
        save(path, *state)
        if path.name == "student.checkpoint.safetensors":
            left[0] -= 1
            if left[0] == 0:
                raise Killed

    monkeypatch.setattr(engine, "save_state", save_and_die)
    for left[0] in (1, 2, 3):  # a process that does one more step each time
        with pytest.raises(Killed):
            learn("killed", **options)
    assert files(learn("killed", **options)[0]) == whole
