"""Teachers and students of every kind of method, learned for real on a few pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distill import pipeline
from distill.context import RunContext
from distill.engine import forward
from distill.losses import LOSSES
from gallery import codespace
from gallery.codes import pack, unpack
from gallery.errors import InputError
from tests.distill.factories import BITS, TEACHER, Learn


def logits(course: RunContext, networks: pipeline.TrainedModels, index: np.ndarray) -> np.ndarray:
    """The teacher's, computed anew."""
    assert networks.teacher
    return forward(networks.teacher)(course.lens("teacher").look(index)).detach().numpy()


@pytest.mark.parametrize("objective", ["csq", "dsh", "dhd"])
def test_the_gallery_is_the_teachers_own_codes(learn: Learn, objective: str) -> None:
    course, networks = learn(loss=objective)
    said = logits(course, networks, course.data.gallery)
    sure = np.abs(said) > 1e-4
    assert (unpack(networks.gallery.codes()) == (said > 0))[sure].all()
    assert networks.space.id == codespace.load(course.run.folder)[0].id


def test_a_method_without_centers_gets_those_of_its_own_codes(learn: Learn) -> None:
    course, networks = learn(loss="dsh")
    train = course.data.train
    said = logits(course, networks, train) > 0
    for label, center in enumerate(course.centers):
        share = said[course.labels[train] == label].mean(0)
        clear = np.abs(share - 0.5) > 0.2
        assert clear.any()
        assert ((center > 0) == (share > 0.5))[clear].all()


def test_a_method_that_learns_codes_stores_them_and_says_so(learn: Learn) -> None:
    course, networks = learn(loss="adsh")
    stored = np.load(course.run.cache / pipeline.LEARNED)
    assert (networks.gallery.codes() == pack(stored)).all()
    assert (stored.astype(int) @ stored.T.astype(int) / BITS > 0.99).sum() > len(stored)  # a class shares its code
    assert "adsh's own, learned from the labels" in course.protocol


def test_learned_codes_are_what_the_student_is_taught(learn: Learn) -> None:
    course, networks = learn(loss="adsh")
    again = pipeline.teach(course)
    assert (again[3] == np.where(unpack(networks.gallery.codes()), 1, -1)).all()


def test_a_new_student_for_learned_codes_is_taught_those_codes(learn: Learn, monkeypatch: pytest.MonkeyPatch) -> None:
    first, networks = learn("first", loss="adsh")
    shown: list[np.ndarray] = []
    taught = pipeline.distiller_of
    monkeypatch.setattr(pipeline, "distiller_of", lambda course, logits: shown.append(logits) or taught(course, logits))
    second, _ = learn("second", reuse_gallery=first.run.folder)
    assert (pack(shown[0]) == networks.gallery.codes()).all()
    own = second.logits("teacher", networks.teacher, second.data.gallery, "gallery", networks.space.id)
    assert (np.abs(shown[0]) == np.abs(own)).all()


def test_neighbours_against_loops(learn: Learn) -> None:
    course, _ = learn()
    lesson, index = course.teacher_lesson, course.data.train[:20]
    logits = torch.randn(20, BITS, generator=torch.Generator().manual_seed(3))
    right = 0
    for i, one in enumerate(logits):
        others = [(float(torch.cosine_similarity(one, logits[j], dim=0)), j) for j in range(20) if j != i]
        right += bool(course.labels[index[max(others)[1]]] == course.labels[index[i]])
    assert lesson.neighbours(logits, index).item() == pytest.approx(right / 20)


@pytest.mark.parametrize("objective", ["csch", "dsh", "adsh", "dhd", "sadh"])
def test_a_teacher_that_was_killed_goes_on_bit_for_bit(
    learn: Learn, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer, options = replace_epochs(2), {"width": 64.0} if objective == "sadh" else {}
    words = {"loss": objective, "loss_args": options, "teacher_train": longer}
    whole, _ = learn("whole", **words)
    calls, method = [0], LOSSES.find(objective)
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
    assert all(same_bytes(whole.run.folder / name, killed.run.folder / name) for name in names)


@pytest.mark.parametrize("distiller", ["fitnet", "d3still", "csd"])
def test_a_student_is_distilled_by_any_distiller(learn: Learn, distiller: str) -> None:
    course, networks = learn(distiller=distiller)
    assert networks.student(course.lens("student").look(course.data.query[:3])).shape == (3, BITS)


def test_methods_that_are_none_and_options_that_fit_nothing_are_refused(learn: Learn) -> None:
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
    assert not same_bytes(one.run.folder / "teacher.safetensors", other.run.folder / "teacher.safetensors")


def test_an_objective_beside_an_earlier_gallery_is_refused(learn: Learn) -> None:
    course, _ = learn("first")
    with pytest.raises(InputError, match="an objective for a teacher that is trained here"):
        learn("second", reuse_gallery=course.run.folder, loss="csq")


def replace_epochs(epochs: int) -> object:
    """The teacher's training, longer."""
    return TEACHER.model_copy(update={"epochs": epochs})


def same_bytes(left: Path, right: Path) -> bool:
    return left.read_bytes() == right.read_bytes()
