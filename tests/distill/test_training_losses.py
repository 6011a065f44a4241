"""Teachers and students of every kind of method, learned for real on a few images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distill import pipeline, train_student
from distill.codebook import hash_centers_of
from distill.context import RunContext
from distill.infer import code_logits
from distill.losses import LOSSES
from distill.pipeline import TrainedModels
from distill.run_dir import LEARNED_CODES
from distill.training_set import TrainingSet
from gallery import codespace
from gallery.codes import pack, unpack
from gallery.errors import InputError
from tests.distill.factories import BITS, TEACHER, Learn


def logits(context: RunContext, models: TrainedModels, index: np.ndarray) -> np.ndarray:
    """The teacher's, computed anew."""
    assert models.teacher
    return code_logits(models.teacher)(context.image_loader("teacher").load(index)).detach().numpy()


@pytest.mark.parametrize("loss", ["csq", "dsh", "dhd"])
def test_the_gallery_is_the_teachers_own_codes(learn: Learn, loss: str) -> None:
    context, models = learn(loss=loss)
    said = logits(context, models, context.indexed_images)
    sure = np.abs(said) > 1e-4
    assert (unpack(models.gallery.codes) == (said > 0))[sure].all()
    assert models.space.id == codespace.load(context.run_dir.folder)[0].id


def test_a_method_without_centers_gets_those_of_its_own_codes(learn: Learn) -> None:
    context, models = learn(loss="dsh")
    train = context.data.train
    said = logits(context, models, train) > 0
    for label, center in enumerate(hash_centers_of(context)):
        share = said[context.labels[train] == label].mean(0)
        clear = np.abs(share - 0.5) > 0.2
        assert clear.any()
        assert ((center > 0) == (share > 0.5))[clear].all()


def test_a_method_that_learns_codes_stores_them_and_says_so(learn: Learn) -> None:
    context, models = learn(loss="adsh")
    stored = np.load(context.run_dir.folder / LEARNED_CODES)
    assert (models.gallery.codes == pack(stored)[context.gallery_order]).all()
    assert (stored.astype(int) @ stored.T.astype(int) / BITS > 0.99).sum() > len(stored)  # a class shares its code
    assert "adsh's own, learned from the labels" in context.protocol


def test_learned_codes_are_what_the_student_is_taught(learn: Learn) -> None:
    context, models = learn(loss="adsh")
    again = pipeline.train_teacher_and_gallery(context)
    assert (again[3][context.gallery_order] == np.where(unpack(models.gallery.codes), 1, -1)).all()


def test_a_new_student_for_learned_codes_is_taught_those_codes(learn: Learn, monkeypatch: pytest.MonkeyPatch) -> None:
    first, models = learn("first", loss="adsh")
    shown: list[np.ndarray] = []
    build = train_student.build_student_loss
    record = lambda context, data, logits: shown.append(logits) or build(context, data, logits)  # noqa: E731
    monkeypatch.setattr(train_student, "build_student_loss", record)
    second, _ = learn("second", reuse_gallery=first.run_dir.folder)
    assert (pack(shown[0])[second.gallery_order] == models.gallery.codes).all()
    own = second.infer_logits("teacher", models.teacher, second.data.gallery, "gallery", models.space.id)
    assert (np.abs(shown[0]) == np.abs(own)).all()


def test_neighbours_against_loops(learn: Learn) -> None:
    context, _ = learn()
    data, index = TrainingSet(context, "teacher"), context.data.train[:20]
    logits = torch.randn(20, BITS, generator=torch.Generator().manual_seed(3))
    right = 0
    for i, one in enumerate(logits):
        others = [(float(torch.cosine_similarity(one, logits[j], dim=0)), j) for j in range(20) if j != i]
        right += bool(context.labels[index[max(others)[1]]] == context.labels[index[i]])
    assert data.nearest_neighbor_accuracy(logits, index).item() == pytest.approx(right / 20)


@pytest.mark.parametrize("loss", ["csch", "dsh", "adsh", "dhd", "sadh"])
def test_a_teacher_that_was_killed_goes_on_bit_for_bit(
    learn: Learn, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer, options = replace_epochs(2), {"width": 64.0} if loss == "sadh" else {}
    words = {"loss": loss, "loss_args": options, "teacher_train": longer}
    whole, _ = learn("whole", **words)
    calls, method = [0], LOSSES.find(loss)
    forward = method.forward

    def dies(self: object, seen: object) -> object:
        calls[0] += 1
        if calls[0] == 6:
            raise KeyboardInterrupt
        return forward(self, seen)

    with monkeypatch.context() as patch:
        patch.setattr(method, "forward", dies)
        with pytest.raises(KeyboardInterrupt):
            learn("killed", **words)
    killed, _ = learn("killed", **words)
    names = "teacher.safetensors", "codespace.json"
    assert all(same_bytes(whole.run_dir.folder / name, killed.run_dir.folder / name) for name in names)


@pytest.mark.parametrize("distiller", ["fitnet", "d3still", "csd"])
def test_a_student_is_distilled_by_any_distiller(learn: Learn, distiller: str) -> None:
    context, models = learn(distiller=distiller)
    assert models.student(context.image_loader("student").load(context.data.query[:3])).shape == (3, BITS)


def test_methods_that_are_none_and_options_that_fit_nothing_are_rejected(learn: Learn) -> None:
    with pytest.raises(InputError, match="Did you mean csch"):
        learn("a", loss="cshc")
    with pytest.raises(InputError, match="Did you mean d3still"):
        learn("b", distiller="d3stil")
    with pytest.raises(InputError, match="CSCH in online distillation"):
        learn("c", distillation="online", loss="csq")
    with pytest.raises(InputError, match="options of csch in --loss-args; found sclae"):
        learn("d", loss_args={"sclae": 4.0})
    with pytest.raises(InputError, match="options of csch in --distiller-args; found weight"):
        learn("e", distiller_args={"weight": 2.0})


def test_an_option_reaches_the_loss(learn: Learn) -> None:
    one, _ = learn("one")
    other, _ = learn("other", loss_args={"margin": 0.4})
    assert not same_bytes(one.run_dir.folder / "teacher.safetensors", other.run_dir.folder / "teacher.safetensors")


def replace_epochs(epochs: int) -> object:
    """The teacher's training, longer."""
    return TEACHER.model_copy(update={"epochs": epochs})


def same_bytes(left: Path, right: Path) -> bool:
    return left.read_bytes() == right.read_bytes()
