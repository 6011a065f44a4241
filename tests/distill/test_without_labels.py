"""Runs on images without labels: from a folder of images to a verified bundle and a gallery that is searched."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distill.data import DataConfig, load
from distill.infer import code_logits
from distill.load_run import load_run
from distill.neighbors import float_neighbors
from distill.summary import student_logits
from gallery import codespace
from gallery.codes import hamming, pack
from gallery.errors import CorruptFile
from gallery.index import TRAINING, open_gallery
from gallery.results import RunResults
from gallery.results import load as load_results
from tests.conftest import Call, import_script
from tests.distill.factories import STUDENT, Learn

COUNT = 90
SMALL = ("--teacher", "resnet10t", "--student", "mobilenetv3_small", "--bits", "16", "--teacher-img-size", "32",
         "--student-img-size", "32", "--student-train.epochs", "2", "--student-train.cached-views", "1",
         "--student-train.batch-size", "16", "--formats", "onnx", "--precisions", "fp32", "w8a8")  # fmt: skip
Mains = Callable[..., Call]


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of ten classes in one folder, and a photo that is not among them."""
    folder = tmp_path_factory.mktemp("flat")
    data = load("embedded", {32}, folder / "cache", DataConfig(seed=0))
    (folder / "images").mkdir()
    for place, i in enumerate(data.query[:: len(data.query) // (COUNT + 1)][: COUNT + 1]):
        Image.fromarray(data.pixels[32][i]).save(folder / ("images" if place < COUNT else "") / f"{i}.png")
    return folder / "images"


@pytest.fixture(scope="module")
def finished(flat: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    runs = tmp_path_factory.mktemp("runs")
    assert run_on(flat, weights, runs) in (0, 1)
    return runs / "r"


def run_on(flat: Path, weights: Path, runs: Path, *more: str) -> int:
    words = ["--data", str(flat), "--teacher-weights", str(weights), "--output-dir", str(runs), *SMALL, *more]
    code: int = import_script("distill.run").main([*words, "--teacher-train.linear-probe-epochs", "8", "--name", "r"])
    return code


def test_every_figure_is_one_that_needs_no_labels(finished: Path) -> None:
    found = load_results(finished / "results.json")
    assert isinstance(found, RunResults)
    assert (found.map, found.center_distance, found.hash_centers, found.protocol.classes) == (None, None, None, 0)
    assert [pair.name for pair in found.pairs] == ["teacher->teacher", "student->gallery", "student->student"]
    for pair in found.pairs:
        assert (pair.map, pair.map_retrieved, pair.recall_at_100) == (None, None, None)  # 72 images in the gallery
        assert pair.recall_at_1 is not None
        assert pair.recall_at_10 is not None
    assert found.pairs[0].recall_at_10 > 2 * 10 / 72  # chance
    assert found.neighbor_recall == found.pairs[1].recall_at_10
    ran = [row for row in found.models if row.status == "ran"]
    assert {row.precision for row in ran} == {"fp32", "w8a8"}
    for row in ran:
        assert row.map is row.map_drop is None
        assert row.neighbor_recall + row.neighbor_recall_drop == pytest.approx(found.neighbor_recall)
    assert ran[0].neighbor_recall_drop == pytest.approx(0, abs=1e-9)
    assert {curve.stage for curve in found.curves} == {"teacher", "student"}
    assert "no labels" in found.query_set
    assert "Nothing was learned from labels (loss similarity)" in found.query_set
    assert not any(example.query.label for example in found.examples)
    assert all(hit.right is None for example in found.examples for hit in example.hits)
    page, log = (finished / "report.html").read_text(), (finished / "log.txt").read_text()
    assert "recall@10 of float neighbors" in page
    assert ", no labels</dd>" in page
    assert "Hash centers" not in page
    for word in ("nan", "None<", "0 classes", "mAP"):
        assert word not in page
    assert "loss similarity: the images have no labels" in log
    assert "mAP" not in log


def test_recall_is_the_slow_twin(finished: Path) -> None:
    found = load_results(finished / "results.json")
    with load_run(finished) as run:
        context, rows = run.context, float_neighbors(run.context)
        index = open_gallery(run.gallery, run.space, TRAINING)
        codes = pack(student_logits(context, run.student, run.space.id, "queries"))
        names = [context.data.names[i] for i in context.indexed_images]
        ask = [context.data.names[i] for i in context.data.query]
    assert index.ids.to_pylist() == names
    assert rows.shape == (len(ask), len(names))
    for k, share in ((1, found.pairs[1].recall_at_1), (10, found.pairs[1].recall_at_10)):
        slow = []
        for distances, true in zip(hamming(codes, index.codes).tolist(), rows.tolist(), strict=True):
            first = sorted(range(len(names)), key=lambda row: (distances[row], names[row]))[:k]
            slow.append(len({*first} & {*true[:k]}) / k)
        assert share == pytest.approx(np.mean(slow))


def test_neighbors_are_those_of_the_pretrained_features(learn: Learn, flat: Path, weights: Path) -> None:
    context, _ = learn(data=str(flat), teacher_weights=weights, student_train=STUDENT, teacher_train={})
    rows, data = float_neighbors(context), context.data
    backbone, loader = context.build_model("teacher").eval().backbone, context.image_loader("teacher")
    query, items = (code_logits(backbone)(loader.load(i)).numpy() for i in (data.query, context.indexed_images))
    for asked, found in zip(query, rows, strict=True):
        cosine = items @ asked / np.linalg.norm(items, axis=1)
        assert cosine[found[:10]] == pytest.approx(np.sort(cosine)[::-1][:10], abs=1e-5)


def test_the_code_space_has_no_classes_and_centers_that_are_clusters(finished: Path) -> None:
    space, centers = codespace.load(finished)
    assert space.classes == ()
    assert 2 <= len(centers) <= 9  # the root of 72
    index = open_gallery(finished / "gallery", space)
    assert np.array_equal(index.centers, centers)
    assert index.labels.null_count == len(index)
    nearest = hamming(index.codes, pack(centers)).min(1)
    assert nearest.mean() < hamming(index.codes, pack(-centers[:1])).mean()


def test_a_space_without_classes_needs_a_center(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "r")
    centers = np.load(tmp_path / "r" / "centers.npy")
    for wrong in (centers[:-1], centers[:0], centers[:, :8]):
        np.save(tmp_path / "r" / "centers.npy", wrong)
        with pytest.raises(CorruptFile, match="the centers of code space"):
            codespace.load(tmp_path / "r")


def test_bundle_evaluation_and_gallery(
    finished: Path, flat: Path, heard: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export, evaluate, gallery = (
        heard(import_script(f"{part}.run").main) for part in ("export", "mobile_eval", "gallery")
    )
    runs = Path(shutil.copytree(finished.parent, tmp_path / "runs"))
    code, said = export("verify", runs / "r" / "bundle")
    assert code == 0, said
    code, said = evaluate("evaluate", runs / "r" / "bundle", "--num-runs", "1")
    assert code in (0, 1), said
    found = load_results(runs / "r" / "evaluation" / "results.json")
    before = load_results(finished / "results.json")
    assert found.map is None
    assert found.neighbor_recall == before.neighbor_recall
    assert [row.neighbor_recall for row in found.models] == [row.neighbor_recall for row in before.models]
    photo = next(flat.parent.glob("*.png"))
    (tmp_path / "new").mkdir()
    shutil.copy(photo, tmp_path / "new" / "photo.png")
    code, said = gallery("add", runs / "r", tmp_path / "new")
    assert code == 0, said
    for command in (("verify", runs / "r"), ("publish", runs / "r")):
        code, said = gallery(*command)
        assert code == 0, said
    capsys.readouterr()
    code, said = gallery("search", runs / "r", photo, "--json")
    assert code == 0, said
    assert len(json.loads(capsys.readouterr().out)["results"]) == 10
    assert "photo.png" in open_gallery(runs / "r" / "gallery").ids.to_pylist()


def test_a_finished_run_is_read_and_lost_neighbors_are_found_again(
    finished: Path, flat: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = Path(shutil.copytree(finished.parent, tmp_path / "runs"))
    before = (runs / "r" / "neighbors.npy").read_bytes()
    (runs / "r" / "neighbors.npy").write_bytes(before[:-4])
    with pytest.raises(CorruptFile, match="run the command"), load_run(runs / "r") as run:
        float_neighbors(run.context)
    assert run_on(flat, weights, runs) in (0, 1)
    assert (runs / "r" / "neighbors.npy").read_bytes() == before
    old, new = (load_results(folder / "r" / "results.json") for folder in (finished.parent, runs))
    assert (new.pairs, new.models[0].sha256) == (old.pairs, old.models[0].sha256)


def test_a_new_student_for_a_gallery_without_labels(finished: Path, flat: Path, tmp_path: Path) -> None:
    words = ["--data", str(flat), "--reuse-gallery", str(finished), "--bits", "16", "--student", "mobilenetv3_small",
             "--student-train.epochs", "1", "--student-train.cached-views", "1", "--student-img-size", "32",
             "--student-train.batch-size", "16", "--formats", "onnx", "--precisions", "fp32"]  # fmt: skip
    assert import_script("distill.run").main([*words, "--output-dir", str(tmp_path), "--name", "second"]) in (0, 1)
    found, before = load_results(tmp_path / "second" / "results.json"), load_results(finished / "results.json")
    assert found.code_space == before.code_space
    assert found.pairs[0] == before.pairs[0]
    assert (tmp_path / "second" / "neighbors.npy").read_bytes() == (finished / "neighbors.npy").read_bytes()


def test_itq_on_labeled_images_uses_their_labels_for_evaluation_alone(
    image_folder: Path, weights: Path, tmp_path: Path
) -> None:
    words = [
        "--data",
        str(image_folder / "labelled"),
        "--teacher-weights",
        str(weights),
        "--loss",
        "itq",
        *SMALL,
        "--precisions",
        "fp32",
    ]
    assert import_script("distill.run").main([*words, "--output-dir", str(tmp_path), "--name", "r"]) in (0, 1)
    found = load_results(tmp_path / "r" / "results.json")
    assert isinstance(found, RunResults)
    assert all(pair.map and pair.recall_at_10 for pair in found.pairs)
    assert (found.protocol.classes, found.center_distance, found.hash_centers) == (4, None, None)
    assert {curve.stage for curve in found.curves} == {"student"}
    assert json.loads((tmp_path / "r" / "codespace.json").read_text())["classes"] == []
    assert "Nothing was learned from labels (loss itq)" in found.query_set
    assert all(row.map_drop is not None for row in found.models if row.status == "ran")


REFUSED = {
    ("--loss", "csch"): "--loss itq or similarity",
    ("--loss", "csq"): "--loss itq or similarity",
    ("--loss", "itq", "--teacher-train.finetune", "full"): "--teacher-train.finetune beside --loss itq",
    ("--student-train.center-loss-weight", "2"): "--student-train.center-loss-weight beside --loss similarity",
    ("--hash-centers", "bernoulli"): "--hash-centers beside --loss similarity",
    ("--num-unseen-classes", "2"): "--num-unseen-classes beside images without labels",
    ("--teacher-train.epochs", "3"): "--teacher-train.epochs beside the linear probe of --loss similarity",
    ("--loss-args", "margin", "0.3"): "options of similarity",
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_what_needs_labels_or_has_no_effect_is_refused_with_its_fix(
    words: tuple[str, ...], flat: Path, weights: Path, tmp_path: Path, heard: Any
) -> None:
    given = ("--data", flat, "--teacher-weights", weights, "--output-dir", tmp_path, *SMALL, *words)
    code, said = heard(import_script("distill.run").main)(*given)
    assert code == 2
    assert REFUSED[words] in said


def test_random_features_are_refused(flat: Path, tmp_path: Path, heard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("TWINHASH_WEIGHTS", raising=False)
    code, said = heard(import_script("distill.run").main)("--data", flat, "--output-dir", tmp_path, *SMALL)
    assert code == 2
    assert "--teacher-weights, or a folder of weights in TWINHASH_WEIGHTS" in said


def test_the_terminal_shows_recall_and_no_empty_column(finished: Path) -> None:
    from rich.console import Console

    from mobile_eval.report import print_tables

    out = io.StringIO()
    print_tables(load_results(finished / "results.json"), Console(file=out, width=80))
    said = out.getvalue()
    assert "recall@1" in said
    assert "@10" in said
    for word in ("@100", "mAP", "nan", "retrieved"):
        assert word not in said
