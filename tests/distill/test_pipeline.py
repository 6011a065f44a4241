"""Every way of learning that the command offers, on a few real images."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill import reference_features, train_teacher
from distill.codebook import hash_centers_of, pretrained_features
from distill.config import TrainConfig
from distill.context import RunContext, multi_hot, open_context
from distill.export_samples import calibration_images
from distill.hash_centers.assignment import assign
from distill.hash_centers.constructions import hash_centers
from distill.hash_centers.multilabel import optimise_centers, target_codes
from distill.metrics_log import read_metrics
from distill.models.hash_net import build
from distill.pipeline import TrainedModels
from distill.run_dir import open_run
from distill.summary import hash_center_summary, model_summaries, pair_logits
from distill.train_student import cache_teacher_views, student_indices
from distill.training_set import TrainingSet
from gallery import codespace
from gallery.codes import pack
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError
from tests.distill.factories import BITS, SIZE, STUDENT, TEACHER, Learn


def same(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.state_dict().values(), right.state_dict().values(), strict=True))


def codes(context: RunContext, models: TrainedModels) -> np.ndarray:
    return pack(pair_logits(context, models).student_queries)


def test_beside_a_student_the_teacher_becomes_what_it_becomes_alone(learn: Learn) -> None:
    _, staged = learn("offline")
    context, at_once = learn("at once", distillation="online")
    assert same(staged.teacher, at_once.teacher)
    assert not same(staged.student, at_once.student)
    assert np.array_equal(staged.gallery.codes, at_once.gallery.codes)
    assert {p.stage for p in read_metrics(context.run_dir.folder / "train.jsonl")} == {"pair"}
    assert context.run_dir.is_done("student")
    _, other = learn("another scale", distillation="online", loss_args={"scale": 16.0})
    assert not same(at_once.teacher, other.teacher)


@pytest.mark.parametrize("lost", ["teacher", "student"])
def test_a_kill_between_the_two_records_of_a_pair_trains_neither_alone(learn: Learn, tmp_path: Path, lost: str) -> None:
    _, before = learn(distillation="online")
    record = tmp_path / "run" / "stages.json"
    stages_done = json.loads(record.read_text())
    del stages_done[lost]
    record.write_text(json.dumps(stages_done))
    context, after = learn(distillation="online")
    assert same(before.student, after.student)
    assert same(before.teacher, after.teacher)
    assert {p.stage for p in read_metrics(context.run_dir.folder / "train.jsonl")} == {"pair"}


def test_the_released_joint_form_moves_the_teacher(learn: Learn) -> None:
    _, alone = learn("alone")
    _, joint = learn("joint", distillation="online", distiller_args={"instance_loss": "joint"})
    assert not same(alone.teacher, joint.teacher)


def test_a_new_student_for_an_old_gallery(learn: Learn, tmp_path: Path) -> None:
    _, old = learn("old")
    context, new = learn("new", reuse_gallery=tmp_path / "old", student="mobilenetv2")
    assert new.space == old.space
    assert same(new.teacher, old.teacher)
    assert np.array_equal(hash_centers_of(context), np.load(tmp_path / "old" / "centers.npy"))
    assert "teacher" not in context.run_dir.seconds
    assert json.loads((context.run_dir.folder / "codespace.json").read_text())["id"] == old.space.id


def test_a_student_from_stored_codes_alone(learn: Learn, tmp_path: Path) -> None:
    learn("old")
    (tmp_path / "old" / "teacher.safetensors").unlink()
    fit = STUDENT.model_copy(update={"center_loss_weight": 0.0, "epochs": 10})
    context, models = learn("new", reuse_gallery=tmp_path / "old", student="resnet10t", student_train=fit)
    cells = pair_logits(context, models)
    assert models.teacher is None
    assert [summary.role for summary in model_summaries(context, models)] == ["student"]
    assert cells.teacher_queries is None
    wanted = np.unpackbits(models.gallery.codes, axis=1)
    got = np.unpackbits(pack(cells.student_gallery), axis=1)
    assert (wanted == got).mean() > 0.7  # it has nothing else to learn from


def test_stored_codes_need_stored_views(learn: Learn, tmp_path: Path) -> None:
    learn("old")
    (tmp_path / "old" / "teacher.safetensors").unlink()
    with pytest.raises(InputError, match="views of at least 1"):
        learn("new", reuse_gallery=tmp_path / "old", student_train=STUDENT.model_copy(update={"cached_views": 0}))


def test_a_gallery_of_other_images_is_rejected(learn: Learn, image_folder: Path, tmp_path: Path) -> None:
    learn("old")
    shutil.copytree(image_folder / "labelled", tmp_path / "fewer")
    next((tmp_path / "fewer").rglob("*.png")).unlink()
    with pytest.raises(InputError, match="the images of the gallery"):
        learn("new", reuse_gallery=tmp_path / "old", data=str(tmp_path / "fewer"))
    with pytest.raises(InputError, match="--bits 16"):
        learn("newer", reuse_gallery=tmp_path / "old", bits=32)
    with pytest.raises(CorruptFile, match=r"codespace\.json"):
        learn("newest", reuse_gallery=tmp_path / "nowhere")


def test_a_gallery_whose_teacher_was_exchanged_is_rejected(learn: Learn, tmp_path: Path) -> None:
    learn("old")
    learn("other", seed=1)
    shutil.copy(tmp_path / "other" / "teacher.safetensors", tmp_path / "old" / "teacher.safetensors")
    with pytest.raises(CodeSpaceMismatch, match="another"):
        learn("new", reuse_gallery=tmp_path / "old")


def test_quick_trains_the_head_alone_and_head_first_goes_on_from_it(learn: Learn, weights: Path) -> None:
    begun = build("resnet10t", SIZE, BITS, seed=7).backbone
    context, quick = learn(
        "linear_probe", teacher_weights=weights, teacher_train=TEACHER.model_copy(update={"finetune": "linear_probe"})
    )
    assert same(quick.teacher.backbone, begun)
    steps = [p.step for p in read_metrics(context.run_dir.folder / "train.jsonl") if p.stage == "teacher"]
    assert steps[-1] == 30 * (len(context.data.train) // 16)
    context, both = learn(
        "both", teacher_weights=weights, teacher_train=TEACHER.model_copy(update={"finetune": "lp_ft"})
    )
    assert not same(both.teacher.backbone, begun)
    for name, counted in both.teacher.backbone.named_buffers():  # batch norms keep what pretraining has counted
        assert torch.equal(counted, begun.get_buffer(name)), name
    assert next(p.stage for p in read_metrics(context.run_dir.folder / "train.jsonl")) == "head"


def test_unlabeled_images_enter_with_the_instance_term_alone(learn: Learn, image_folder: Path) -> None:
    loose = (str(image_folder / "loose"),)
    context, with_them = learn("with", unlabeled_data=loose)
    assert len(context.data.unlabeled) == 20
    index, spare = student_indices(context, with_them.teacher, True)
    assert np.array_equal(index[: len(context.data.train)], context.data.train)
    assert set(index[len(context.data.train) :]) == set(context.data.unlabeled)
    assert spare == round(16 * 2 * 20 / (20 + len(context.data.train)))
    labels_only = {"instance_weight": 0.0}
    context, without = learn("without", distiller_args=labels_only)
    assert not list(context.run_dir.cache.glob("view-*"))  # and nothing to ask the teacher
    _, ignored = learn("ignored", distiller_args=labels_only, unlabeled_data=loose)
    assert same(without.student, ignored.student)  # without that term there is nothing to learn from them


@pytest.mark.parametrize("finetune", ["linear_probe", "lp_ft"])
def test_a_pretrained_teacher_learns_from_images_without_labels(
    learn: Learn, image_folder: Path, weights: Path, finetune: str
) -> None:
    how: dict[str, Any] = {
        "teacher_weights": weights,
        "teacher_train": TEACHER.model_copy(update={"finetune": finetune}),
    }
    loose = {"unlabeled_data": (str(image_folder / "loose"),)}
    context, with_them = learn("with", **how, **loose)
    seen = np.load(context.run_dir.cache / "teacher-features-unlabeled" / "00000.npy")
    assert len(seen) == len(context.data.unlabeled) == 20
    _, without = learn("without", **how)
    assert not same(with_them.teacher.head, without.teacher.head)
    _, ignored = learn("ignored", **how, **loose, loss_args={"similarity_weight": 0})
    _, none = learn(
        "none", **loose, **how | {"teacher_train": how["teacher_train"].model_copy(update={"unlabeled_ratio": 0.0})}
    )
    assert same(ignored.teacher, without.teacher)
    assert same(none.teacher, without.teacher)


def test_a_teacher_from_random_weights_has_no_neighbors_to_keep(learn: Learn, image_folder: Path) -> None:
    _, with_them = learn("with", unlabeled_data=(str(image_folder / "loose"),))
    _, without = learn("without")
    assert same(with_them.teacher, without.teacher)


def test_the_images_without_labels_are_bounded(
    learn: Learn, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, models = learn(unlabeled_data=(str(image_folder / "loose"),))
    monkeypatch.setattr(reference_features, "MAX_UNLABELED", 0)
    assert len(student_indices(context, models.teacher, True)[0]) == len(context.data.train)


def test_the_teacher_never_runs_twice_on_a_whole_image(learn: Learn, image_folder: Path) -> None:
    context, models = learn(unlabeled_data=(str(image_folder / "loose"),))
    looked_at = np.load(context.run_dir.cache / "view-0" / "00000.npy")
    assert len(looked_at) == len(context.data.unlabeled)  # the others are in the gallery
    index, _ = student_indices(context, models.teacher, True)
    gallery = context.infer_logits("teacher", models.teacher, context.data.gallery, "gallery", models.space.id)
    taught = cache_teacher_views(context, models.teacher, index, models.space, gallery)[1][0].numpy()
    fresh = context.infer_logits("teacher", models.teacher, index, "all anew", models.space.id)
    assert np.allclose(taught, fresh, atol=1e-4)


def test_stored_features_stay_within_their_room(learn: Learn, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_teacher, "MAX_FEATURE_BYTES", 1)
    context, _ = learn(teacher_weights=weights, teacher_train=TEACHER.model_copy(update={"finetune": "linear_probe"}))
    assert [path.name for path in context.run_dir.cache.glob("teacher-features-[0-9]*")] == ["teacher-features-0"]


def test_unseen_classes_have_no_center_and_are_searched_all_the_same(learn: Learn) -> None:
    context, models = learn("unseen", num_unseen_classes=1)
    assert len(context.classes) == len(hash_centers_of(context)) == 3
    assert models.space.classes == context.classes
    assert set(context.labels[context.data.train]) == {0, 1, 2}
    assert -1 in context.labels[context.data.gallery]
    index, spare = student_indices(context, models.teacher, True)
    assert spare > 0
    assert set(context.labels[index[len(context.data.train) :]]) == {-1}
    assert hash_center_summary(context, models).classes == context.classes


def test_fresh_crops_are_shown_to_the_teacher_each_time(learn: Learn) -> None:
    context, models = learn("online", student_train=STUDENT.model_copy(update={"cached_views": 0}))
    assert "views" not in context.run_dir.seconds
    assert codes(context, models).shape == (len(context.data.query), BITS // 8)


@pytest.mark.parametrize("how", ["hungarian", "quadratic", "csch"])
def test_assigned_centers_are_the_ones_that_are_saved(learn: Learn, weights: Path, how: str) -> None:
    made = {"hash_centers": "bernoulli", "teacher_weights": weights}
    plain, _ = learn("plain", center_assignment="none", **made)
    context, models = learn("assigned", center_assignment=how, **made)
    assert {tuple(row) for row in hash_centers_of(context)} == {tuple(row) for row in hash_centers_of(plain)}
    features = pretrained_features(context, "student" if how == "csch" else "teacher")
    order = assign(
        hash_centers_of(plain),
        how,
        features,
        multi_hot(context.labels[context.data.train], len(context.classes)),
        context.config.seed,
    )
    assert np.array_equal(hash_centers_of(context), hash_centers_of(plain)[order])
    assert models.space.centers_sha256 == codespace.hash_centers(np.load(context.run_dir.folder / "centers.npy"))
    assert np.array_equal(np.load(context.run_dir.folder / "centers.npy"), hash_centers_of(context))


def test_averaged_weights_and_early_stopping_reach_the_command(learn: Learn) -> None:
    fit = STUDENT.model_copy(update={"epochs": 12, "model_ema_decay": 0.5, "early_stopping_patience": 1, "lr": 1e-6})
    context, _ = learn("patient", student_train=fit, validation_fraction=0.2)
    points = [p for p in read_metrics(context.run_dir.folder / "train.jsonl") if p.stage == "student"]
    assert len([p for p in points if p.validation is not None]) < 12


@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_outputs_that_are_not_finite_are_no_accuracy(learn: Learn, fraction: float) -> None:
    """Whatever the weights: those of a teacher that diverged may be numbers."""
    context, models = learn(validation_fraction=fraction)
    validate = TrainingSet(context, "student").make_validator(models.student)
    assert (validate() is None) == (not fraction)
    with torch.no_grad():
        for parameter in models.student.head.parameters():
            parameter.mul_(1e38)
    assert str(validate()) == "nan"


def test_images_to_quantize_by_are_no_queries(learn: Learn) -> None:
    context, _ = learn()
    pixels = context.data.pixels[SIZE]
    seen, held = calibration_images(context)
    assert np.array_equal(seen, pixels[context.data.train])
    assert np.array_equal(held, pixels[context.data.validation])
    context, _ = learn("unwatched", validation_fraction=0.0)
    seen, held = calibration_images(context)
    assert len(seen) == len(held) + 1  # both are of train, for want of others


def test_centers_of_images_with_several_classes_are_optimised_unless_named(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("TWINHASH_WEIGHTS", raising=False)
    rows = ["path,labels"]
    for i, path in enumerate(sorted((image_folder / "labelled").rglob("*.png"))):
        more = [";in a shop"] if i % 3 else [";in a shop;on sale", ";on sale"]  # beside what it is
        rows.append(f"{path.relative_to(image_folder)},{path.parent.name}{more[i % 2 * (len(more) - 1)]}")
    listing = image_folder / "several.csv"
    listing.write_text("\n".join(rows) + "\n")
    learning = TrainConfig(data=str(listing), teacher="resnet10t", student="resnet10t", bits=BITS,
                        teacher_img_size=SIZE, student_img_size=SIZE)  # fmt: skip
    separated = hash_centers(6, BITS, 0)
    with open_run(tmp_path / "run") as run:
        context = open_context(run, learning, tmp_path / "cache")
        labels = context.labels[context.data.train]
        assert np.array_equal(hash_centers_of(context), optimise_centers(separated, labels))
        assert np.array_equal(
            TrainingSet(context, "teacher").target_codes[context.data.train],
            target_codes(labels, hash_centers_of(context)),
        )
        named = replace(context, config=context.config.model_copy(update={"hash_centers": "hadamard"}))
        assert np.array_equal(hash_centers_of(named), hash_centers(6, BITS, 0, "hadamard"))
        assert not np.array_equal(hash_centers_of(context), separated)
