"""A run with classes that it was not trained on, beside its untouched pretrained features."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill import open_world
from distill.config import TeacherTrainConfig
from distill.context import RunContext, multi_hot
from distill.open_world import baseline_features, open_world_results, seen_and_unseen, trained_images
from distill.pipeline import TrainedModels
from distill.summary import pair_logits
from gallery.codes import hamming, pack
from gallery.open_world_results import FLOAT_COSINE, ITQ_GALLERY, ITQ_TRAIN, OpenWorldResults
from gallery.results import STUDENT_GALLERY, TEACHER_TEACHER
from tests.distill.factories import Learn, learn_in

Run = tuple[RunContext, TrainedModels]


def average_precision(distances: np.ndarray, relevant: np.ndarray) -> float:
    """The mean over 200 random orders of ties."""
    rng, scores = np.random.default_rng(0), []
    for _ in range(200):
        order = rng.permutation(len(distances))
        hits = relevant[order][np.argsort(distances[order], kind="stable")]
        scores.append((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())
    return float(np.mean(scores))


def by_hand(context: RunContext, distances: np.ndarray) -> dict[str, float]:
    """The four protocols from distances `[queries, gallery]`, both in the order of the data."""
    data = context.data
    asked, there = (np.array([data.classes[c] for c in data.labels[own]]) for own in (data.query, data.gallery))
    found = {}
    for name in ("seen_seen", "seen_all", "unseen_unseen", "unseen_all"):
        of, within = name.split("_")
        rows = np.flatnonzero(np.isin(asked, data.unseen) == (of == "unseen"))
        items = np.flatnonzero((np.isin(there, data.unseen) == (within == "unseen")) | (within == "all"))
        scores = [average_precision(distances[q, items], there[items] == asked[q]) for q in rows]
        found[name] = float(np.mean(scores))
    return found


@pytest.fixture(scope="module")
def run(image_folder: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A linear probe on three of four classes, and a folder without labels for the student."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("TWINHASH_WEIGHTS", raising=False)
        probe = TeacherTrainConfig(finetune="linear_probe", linear_probe_epochs=2, batch_size=16)
        options = {"num_unseen_classes": 1, "teacher_weights": weights, "teacher_train": probe}
        more = (str(image_folder / "loose"),)
        yield learn_in(tmp_path_factory.mktemp("unseen"), image_folder, "run", unlabeled_data=more, **options)


def measured(context: RunContext, models: TrainedModels) -> OpenWorldResults:
    found = open_world_results(context, models)
    assert found is not None
    return found


def rows(found: OpenWorldResults) -> dict[str, Any]:
    return {row.name: row.maps.model_dump() for row in found.rows}


def with_config(context: RunContext, **changes: Any) -> RunContext:
    return replace(context, config=context.config.model_copy(update=changes))


def test_four_protocols_of_the_codes_and_of_the_pretrained_features(run: Run) -> None:
    context, models = run
    probe = {path: path.stat().st_mtime_ns for path in context.run_dir.cache.glob("teacher-features-*/*.npy")}
    found, data = measured(context, models), context.data
    made = rows(found)
    assert list(made) == [TEACHER_TEACHER, STUDENT_GALLERY, FLOAT_COSINE, ITQ_TRAIN, ITQ_GALLERY]
    assert {path: path.stat().st_mtime_ns for path in probe} == probe, "what the linear probe made is read"
    assert found.classes == (3, 1)
    assert found.queries[1] == int(np.isin(data.labels[data.query], seen_and_unseen(context)[1]).sum()) > 0
    assert sum(found.gallery) == len(data.gallery)

    logits, stored = pair_logits(context, models), np.empty_like(models.gallery.codes)
    stored[context.gallery_order] = models.gallery.codes
    for name, own in ((TEACHER_TEACHER, logits.teacher_queries), (STUDENT_GALLERY, logits.student_queries)):
        assert made[name] == pytest.approx(by_hand(context, hamming(pack(own), stored)), abs=0.02)

    backbone, loader = context.build_model("teacher").eval().backbone, context.image_loader("teacher")
    with torch.inference_mode():
        query, gallery = (backbone(loader.load(own)).numpy() for own in (data.query, data.gallery))
    cosine = (query @ gallery.T) / np.linalg.norm(query, axis=1)[:, None] / np.linalg.norm(gallery, axis=1)
    assert made[FLOAT_COSINE] == pytest.approx(by_hand(context, -cosine), abs=0.02)
    assert made[ITQ_TRAIN] != made[ITQ_GALLERY]


def test_features_are_computed_once(run: Run, weights: Path) -> None:
    context, _ = run
    first = baseline_features(context)(context.data.query)
    weights.rename(weights.with_suffix(".away"))
    try:
        assert np.array_equal(baseline_features(replace(context))(context.data.query), first)
    finally:
        weights.with_suffix(".away").rename(weights)


def test_which_images_were_trained_on_without_labels(run: Run) -> None:
    context, models = run
    found, data = measured(context, models), context.data
    for role, used in trained_images(context, models).items():
        assert used is not None
        new = np.isin(data.labels[used], seen_and_unseen(context)[1])
        assert found.unlabeled[role] == new.sum() == found.gallery[1] > 0
    assert found.unknown == len(data.unlabeled) > 0
    assert found.setting.startswith("Transductive: images of these classes")

    train = context.config.student_train.model_copy(update={"unlabeled_ratio": 0.0})
    again = measured(with_config(context, student_train=train), models)
    assert again.unlabeled == {"teacher": found.gallery[1], "student": 0}
    again = measured(with_config(context, student_train=train, loss_args={"similarity_weight": 0}), models)
    assert again.unlabeled == {"teacher": 0, "student": 0}
    assert again.setting.startswith("Inductive: no image")
    told = again.model_copy(update={"unknown": 1200})
    assert told.setting.startswith("Inductive, unless some of the 1,200 images without labels")


def test_where_all_classes_are_trained_on_there_is_nothing_to_say(run: Run) -> None:
    context, models = run
    data = replace(context.data, train=np.union1d(context.data.train, context.data.gallery))
    assert open_world_results(replace(context, data=data), models) is None
    found = measured(with_config(replace(context, data=data), loss="similarity", loss_args={}), models)
    assert (found.classes, found.queries, found.gallery[0]) == ((0, 4), (0, len(data.query)), 0)
    assert found.unlabeled["teacher"] == len(data.gallery)
    assert {row.maps.seen_all for row in found.rows} == {None}
    assert all(row.maps.unseen_all == row.maps.unseen_unseen is not None for row in found.rows)


def test_one_label_an_image_may_be_multi_hot(run: Run) -> None:
    context, models = run
    labels = multi_hot(context.data.labels, len(context.data.classes))
    found = measured(replace(context, data=replace(context.data, labels=labels)), models)
    for row, one in zip(found.rows, measured(context, models).rows, strict=True):
        assert row.maps.model_dump() == pytest.approx(one.maps.model_dump(), abs=1e-9)
    assert found.model_dump(exclude={"rows"}) == measured(context, models).model_dump(exclude={"rows"})


@pytest.mark.parametrize("bits", [48, 64])
def test_more_bits_than_training_images(run: Run, bits: int) -> None:
    context, models = run
    assert len(context.data.train) < bits
    found = measured(with_config(context, bits=bits), models)
    assert list(rows(found)) == [TEACHER_TEACHER, STUDENT_GALLERY, FLOAT_COSINE]
    assert f"at least {bits} images" in found.no_baselines


def test_what_is_in_the_way_of_baselines_is_said(run: Run, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, models = run
    monkeypatch.setattr(open_world, "MAX_FEATURE_BYTES", 1000)
    found = measured(context, models)
    assert list(rows(found)) == [TEACHER_TEACHER, STUDENT_GALLERY]
    assert "images of 512 features" in found.no_baselines
    monkeypatch.undo()
    shutil.rmtree(context.run_dir.cache / "teacher-features-queries", ignore_errors=True)
    weights.rename(weights.with_suffix(".away"))
    try:
        found = measured(context, models)
    finally:
        weights.with_suffix(".away").rename(weights)
    assert list(rows(found)) == [TEACHER_TEACHER, STUDENT_GALLERY]
    assert "weights" in found.no_baselines


def test_there_are_no_baselines_without_pretrained_weights(learn: Learn, tmp_path: Path) -> None:
    found = measured(*learn("random", num_unseen_classes=1))
    assert list(rows(found)) == [TEACHER_TEACHER, STUDENT_GALLERY]
    assert "random weights" in found.no_baselines
    reused = measured(*learn("new", reuse_gallery=tmp_path / "random", num_unseen_classes=1))
    assert "--reuse-gallery" in reused.no_baselines
    assert reused.unlabeled["teacher"] is None
    inductive = reused.model_copy(update={"unlabeled": {"teacher": None, "student": 0}})
    assert inductive.setting.startswith("Whether the teacher, an earlier run's")
