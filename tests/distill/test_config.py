"""Configuration: refusals that name the key, and every "auto" with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tyro
from pydantic import ValidationError

from distill.config import (
    BackboneInfo,
    StudentTrainConfig,
    TeacherTrainConfig,
    TrainConfig,
    load_yaml,
    to_yaml,
)
from distill.resolve import check_effects, keep_stored, resolve, with_absolute_paths
from distill.run_dir import open_run
from gallery.errors import InputError
from tests.conftest import import_script

VIT = BackboneInfo(name="v", source="s", random=True, transformer=True, patch=14, mean=(0.5,) * 3, std=(0.5,) * 3)
CNN = BackboneInfo(name="c", source="s", random=False, transformer=False, patch=1, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_round_trip(tmp_path: Path) -> None:
    learning = TrainConfig(teacher="x", bits=48, student_train=StudentTrainConfig(lr=0.1), teacher_weights=Path("a/b"))
    (tmp_path / "c.yaml").write_text(to_yaml(learning))
    assert load_yaml(tmp_path / "c.yaml", TrainConfig) == learning


@pytest.mark.parametrize(
    ("text", "names"),
    [("bits: 63", "bits"), ("teacher_train: {batch_size: 1}", "teacher_train.batch_size"), ("bogus: 1", "bogus"),
     ("", "dictionary"), ("[" * 100_000, "readable"), ("a: " + "1" * 10_000, "a"), ("bits: [", "yaml"),
     ("student_train: {lr: fast}", "student_train.lr"), ("seed: -1", "seed"), ("\x00", "yaml")],
)  # fmt: skip
def test_a_bad_file_names_the_key(tmp_path: Path, text: str, names: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=names):
        load_yaml(tmp_path / "c.yaml", TrainConfig)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none"):
        load_yaml(tmp_path / "none.yaml", TrainConfig)


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        TrainConfig().bits = 32  # type: ignore[misc]


def test_auto_follows_images_device_and_weights() -> None:
    small = resolve(TrainConfig(), VIT, CNN, image_size=28, gpu=False)
    large = resolve(TrainConfig(), CNN, CNN, image_size=600, gpu=False)
    gpu = resolve(TrainConfig(), CNN, CNN, image_size=600, gpu=True)
    assert (small.teacher_img_size, small.student_img_size) == (28, 64)  # two patches of 14; a convolutional network
    assert (large.teacher_img_size, gpu.teacher_img_size) == (128, 224)
    assert (small.teacher_finetune, large.teacher_finetune) == ("full", "lp_ft")  # random weights; pretrained ones
    whole = resolve(TrainConfig(teacher_train=TeacherTrainConfig(finetune="full")), CNN, CNN, image_size=600, gpu=False)
    assert large.teacher_lr < whole.teacher_lr
    assert small.teacher_lr < whole.teacher_lr
    assert small.student_cached_views < large.student_cached_views
    assert resolve(TrainConfig(), CNN, CNN, image_size=100, gpu=False).teacher_img_size == 112
    pretrained = VIT.model_copy(update={"random": False})
    assert resolve(TrainConfig(), pretrained, CNN, image_size=28, gpu=False).teacher_img_size == 112  # 8 x 8 patches
    reasons = "\n".join(small.reasons)
    for what in ("teacher size", "student size", "epochs", "learning rate", "crop", "views"):
        assert what in reasons


def test_what_the_user_says_is_taken_and_gives_no_reason() -> None:
    asked = TrainConfig(
        loss="csch",
        teacher_img_size=96,
        student_img_size=80,
        teacher_train=TeacherTrainConfig(epochs=1, lr=0.5, crop_min_scale=0.7, finetune="full"),
        student_train=StudentTrainConfig(epochs=2, lr=0.25, crop_min_scale=0.6, cached_views=3),
    )
    plan = resolve(asked, VIT, CNN, image_size=28, gpu=False)
    assert plan.reasons == ()
    assert (plan.teacher_img_size, plan.student_img_size, plan.student_cached_views) == (96, 80, 3)
    assert (plan.teacher_epochs, plan.teacher_lr, plan.teacher_crop_min_scale) == (1, 0.5, 0.7)
    assert (plan.student_epochs, plan.student_lr, plan.student_crop_min_scale) == (2, 0.25, 0.6)


def test_options_of_methods_are_spelled_as_flags_are() -> None:
    given = tyro.cli(TrainConfig, args=["--distiller-args", "instance-loss", "raw", "rkd-weight", "1"])
    assert given.distiller_args == {"instance_loss": "raw", "rkd_weight": 1}


def test_images_without_labels_have_a_loss_of_their_own() -> None:
    plan = resolve(TrainConfig(), CNN, CNN, image_size=64, gpu=False, labeled=False)
    assert (plan.loss, plan.teacher_finetune) == ("similarity", "linear_probe")
    assert "loss similarity: the images have no labels" in plan.reasons
    labeled = resolve(TrainConfig(), CNN, CNN, image_size=64, gpu=False)
    assert (labeled.loss, labeled.teacher_finetune) == ("csch", "lp_ft")
    whole = TrainConfig(teacher_train=TeacherTrainConfig(finetune="lp_ft", epochs=3))
    assert resolve(whole, CNN, CNN, image_size=64, gpu=False, labeled=False).teacher_epochs == 3
    for asked, fix in (
        (TrainConfig(loss="dch"), "Choose --loss itq or similarity"),
        (TrainConfig(distillation="online"), "--distillation offline"),
    ):
        with pytest.raises(InputError, match=fix):
            resolve(asked, CNN, CNN, image_size=64, gpu=False, labeled=False)
    with pytest.raises(InputError, match="TWINHASH_WEIGHTS"):
        resolve(TrainConfig(loss="itq"), VIT, CNN, image_size=64, gpu=False)


CENTERLESS = StudentTrainConfig(center_loss_weight=0)


@pytest.mark.parametrize(
    ("asked", "start", "fix"),
    [
        (
            TrainConfig(student_train=CENTERLESS, distiller_args={"instance_weight": 0, "rkd_weight": 1}),
            CNN,
            "center_loss_weight",
        ),
        (
            TrainConfig(student_train=CENTERLESS, distiller_args={"instance_weight": 0, "bit_margin_weight": 1}),
            CNN,
            "distiller-args",
        ),
        (TrainConfig(distiller_args={"instance_loss": "joint"}), CNN, "--distillation online"),
        (TrainConfig(distillation="online", reuse_gallery=Path("x")), CNN, "--distillation offline"),
        (
            TrainConfig(distillation="online", teacher_train=TeacherTrainConfig(finetune="linear_probe")),
            CNN,
            "--distillation offline",
        ),
        (TrainConfig(distillation="online", unlabeled_data=("x",)), CNN, "--distillation offline"),
        (TrainConfig(teacher_train=TeacherTrainConfig(finetune="linear_probe")), VIT, "finetune full"),
    ],
)
def test_what_cannot_be_learned_is_rejected_with_its_fix(asked: TrainConfig, start: BackboneInfo, fix: str) -> None:
    with pytest.raises(InputError, match=fix):
        resolve(asked, start, CNN, image_size=64, gpu=False)


@pytest.mark.parametrize("term", ["instance_weight", "center_similarity_weight", "ranking_weight"])
def test_any_term_that_knows_where_the_gallery_is_may_stand_alone(term: str) -> None:
    weights = {"instance_weight": 0, term: 1.0, "rkd_weight": 1.0}
    for fit, args in ((CENTERLESS, weights), (StudentTrainConfig(), {"instance_weight": 0, "rkd_weight": 1.0})):
        learning = TrainConfig(student_train=fit, distiller_args=args)
        assert resolve(learning, CNN, CNN, image_size=64, gpu=False).reasons


OUT_OF_RANGE = {
    "--student-train.batch-size": "1", "--student-train.epochs": "0", "--student-train.lr": "-1",
    "--teacher-train.lr": "nan", "--teacher-train.crop-min-scale": "0", "--student-train.cached-views": "-1",
    "--student-train.unlabeled-ratio": "1.5", "--student-train.app-augment": "1.5",
    "--teacher-train.weight-decay": "inf", "--teacher-img-size": "0",
    "--seed": "99999999999", "--query-fraction": "1", "--validation-fraction": "nan",
    "--thresholds.logit-tolerance": "-1", "--thresholds.max-size-mb": "nan", "--bits": "7",
    "--name": "../elsewhere",
}  # fmt: skip


@pytest.mark.parametrize("flag", OUT_OF_RANGE)
def test_a_value_out_of_range_is_told_by_its_key_and_not_by_a_traceback(
    flag: str, capsys: pytest.CaptureFixture[str], heard: Any
) -> None:
    try:
        code, said = heard(import_script("distill.run").main)(flag, OUT_OF_RANGE[flag])
    except SystemExit as ended:  # tyro's own
        code, said = ended.code, capsys.readouterr().err
    assert code == 2
    assert flag.rpartition(".")[2].removeprefix("--") in " ".join(said.replace("│", " ").split())
    assert "Crash" not in said


@pytest.mark.parametrize(
    ("options", "beside"),
    [
        ({"loss": "csq", "reuse_gallery": "x"}, "--loss beside --reuse-gallery"),
        ({"reuse_gallery": "x", "teacher_train": {"lr": 0.1}}, "--teacher-train.lr beside --reuse-gallery"),
        ({"distillation": "online", "student_train": {"epochs": 2}}, "--student-train.epochs beside --distillation"),
        ({"teacher_train": {"finetune": "full", "linear_probe_lr": 0.1}}, "a teacher without a linear probe"),
        ({"teacher_train": {"finetune": "linear_probe", "epochs": 3}}, "--teacher-train.finetune linear_probe"),
        (
            {"loss": "csq", "distiller_args": {"instance_weight": 0}, "unlabeled_data": ("x",)},
            "does not use the teacher",
        ),
        ({"distillation": "online", "teacher_train": {"unlabeled_ratio": 0.2}}, "--distillation online"),
        ({"loss": "dsh", "center_assignment": "quadratic"}, "--loss dsh, which has no hash centers"),
        ({"data": "a/folder", "data_root": "x"}, "--data with a path"),
    ],
)
def test_an_option_without_effect_is_an_error(options: dict[str, object], beside: str) -> None:
    with pytest.raises(InputError, match=beside):
        check_effects(TrainConfig(**options))


def test_options_with_their_defaults_are_never_without_effect() -> None:
    check_effects(TrainConfig(reuse_gallery=Path("x"), distillation="online", data="a/folder"))


def test_the_student_of_a_pair_may_see_views_as_apps_make_them() -> None:
    check_effects(TrainConfig(distillation="online", student_train=StudentTrainConfig(app_augment=0.5)))


def test_paths_become_absolute_and_names_of_data_sets_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "coco").mkdir()  # a folder of this name does not hide the protocol
    named = with_absolute_paths(TrainConfig(data="coco", unlabeled_data=("u",), teacher_weights=Path("../w.pth")))
    assert named.data == "coco"
    assert named.unlabeled_data == (str(tmp_path / "u"),)
    assert named.teacher_weights == tmp_path.parent / "w.pth"
    assert {with_absolute_paths(TrainConfig(data=given)).data for given in ("x", "x/", "./x", str(tmp_path / "x"))} == {
        str(tmp_path / "x")
    }


def test_an_option_that_equals_the_stored_one_is_no_change(tmp_path: Path) -> None:
    stored = TrainConfig(loss_args={"margin": 0.3})
    resolved = resolve(stored, CNN, CNN, image_size=64, gpu=False)
    given = TrainConfig(
        teacher_img_size=64,
        loss_args={"margin": "0.30"},
        distiller_args={"instance_weight": 10},
        student_train=StudentTrainConfig(epochs=resolved.student_epochs),
    )
    with open_run(tmp_path) as run:
        run.save_settings({"config": stored})
        assert keep_stored(given, run) == given  # nothing is resolved yet
        run.save_settings({"resolved_config": resolved})
        assert keep_stored(given, run) == stored
        assert keep_stored(given.model_copy(update={"teacher_img_size": 96}), run) != stored
