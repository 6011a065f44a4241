"""The configuration: frozen, unknown keys refused, "auto" resolved in one place with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from distill.distillers import DISTILLERS
from distill.hash_centers.assignment import Assignment
from distill.hash_centers.constructions import Construction
from distill.losses import LOSSES
from gallery.errors import InputError
from gallery.results import Thresholds

if TYPE_CHECKING:
    from distill.distillers.base import DistillerArgs

Finetune = Literal["linear_probe", "full", "lp_ft"]
MethodArg = int | float | str
AutoInt = int | Literal["auto"]
AutoFloat = float | Literal["auto"]


class StrictModel(BaseModel):
    """Base of all parts: frozen, and a key that does not exist is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            error.args = (_said(error).replace("_", "-"),)  # what the command line prints; pydantic leaves it empty
            raise


class OptimizerConfig(StrictModel):
    """How a network is trained."""

    epochs: AutoInt = "auto"
    """Passes over the training pictures."""
    batch_size: int = Field(64, ge=2)
    """Images a step, over all processes."""
    lr: AutoFloat = "auto"
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(0.05, ge=0)
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    """Share of the steps in which the rate rises."""
    clip_grad: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    crop_min_scale: AutoFloat = "auto"
    """Smallest share of a picture's area that an augmented view shows; 1 shows all of it."""
    model_ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay, a step, of a moving average of the weights that takes their place in the end; 0: none."""
    early_stopping_patience: int = Field(0, ge=0)
    """Epochs without a gain on the validation pictures after which training ends, with the best weights; 0: never."""


class TeacherTrainConfig(OptimizerConfig):
    """How the teacher is trained."""

    finetune: Finetune | Literal["auto"] = "auto"
    """linear_probe: the hash head alone, on cached features; full: all layers; lp_ft: one, then the other slowly."""
    linear_probe_epochs: int = Field(30, ge=1)
    """Passes over the stored features."""
    linear_probe_lr: float = Field(3e-3, gt=0)


class StudentTrainConfig(OptimizerConfig):
    """How the student is distilled: to the centers, and by `--distiller`."""

    cached_views: AutoInt = "auto"
    """Augmented views an image with one cached teacher output each; 0: on the fly, with a teacher inference each."""
    center_loss_weight: float = Field(1.0, ge=0)
    """To the center of the picture's class."""
    unlabeled_ratio: AutoFloat = "auto"
    """Share of a batch taken from unlabeled images: the rest of the gallery and --unlabeled-data; "auto": twice their
    share of all images, at most half."""


class TrainConfig(StrictModel):
    """Train a teacher, hash the gallery, distill a student, export it, and check the files against the gallery."""

    teacher: str = "vit_b"
    """Gallery network: vit_b, resnet50, efficientnet_lite2, convnext_t, dinov2_b, hybridhash, ... or any timm name."""
    student: str = "mobilenetv3"
    """Query network: mobilenetv3, mobilenetv3_small, mobilenetv2, mobilenetv4, fastvit_t8, ... or any timm name."""
    data: str = "embedded"
    """embedded (a Fashion-MNIST subset), a protocol (cifar10, coco, ucmerced, ...), an image folder, a CSV, Parquet."""
    data_root: Path | None = None
    """Where published data sets lie; by default the folder in TWINHASH_DATA."""
    unlabeled_data: tuple[str, ...] = ()
    """Folders of pictures without labels, from which the student learns the teacher's codes."""
    num_unseen_classes: int = Field(0, ge=0)
    """Classes, drawn by the seed, that are searched for but not trained on."""
    bits: Literal[16, 24, 32, 48, 64, 128] = 64
    """Length of the code."""
    loss: str = "csch"
    """What the teacher is trained by: csch, csq, dch, hashnet, ... (a file in distill/losses)."""
    loss_args: dict[str, MethodArg] = {}
    """Of the loss's own, by name, e.g. margin 0.3."""
    distiller: str = "csch"
    """What the student is distilled by, beside the centers: csch, csd, d3still, ... (a file in distill/distillers)."""
    distiller_args: dict[str, MethodArg] = {}
    """Of the distiller's own, by name, e.g. instance_weight 20."""
    hash_centers: Construction = "auto"
    """Construction of the hash centers; auto takes the one with the largest minimum distance, or the objective's.

    For csch and pictures of several classes, auto then moves them until majority votes tell who shares a class.
    """
    center_assignment: Assignment | Literal["auto"] = "auto"
    """Which center goes to which class."""
    reuse_gallery: Path | None = None
    """An earlier run whose gallery stays: a new student for it; without teacher.safetensors from its codes alone."""
    distillation: Literal["offline", "online"] = "offline"
    """Teacher first and then the student, or both at once."""
    teacher_img_size: AutoInt = "auto"
    """Side of the teacher's square input, pixels."""
    student_img_size: AutoInt = "auto"
    """Side of the student's square input, pixels: the highest the phone can pay for."""
    teacher_weights: Path | None = None
    """Pretrained weights of the teacher's backbone; else TWINHASH_WEIGHTS, the hub, installed packages, or random."""
    student_weights: Path | None = None
    """Pretrained weights of the student's backbone, likewise."""
    query_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of each class drawn as queries where the data has no split of its own."""
    validation_fraction: float = Field(0.05, ge=0, lt=0.5)
    """Share of the training pictures held out to watch the training."""
    teacher_train: TeacherTrainConfig = TeacherTrainConfig()
    student_train: StudentTrainConfig = StudentTrainConfig()
    seed: int = Field(0, ge=0)
    strict: bool = False
    """An image that cannot be read, or a file that cannot run here, is fatal."""
    formats: tuple[str, ...] = ("onnx", "litert", "coreml")
    """onnx, litert, coreml, coreai."""
    precisions: tuple[str, ...] = ()
    """fp32, fp16, w8a32, w8a8, w8a16, w8a8-dynamic, palettize6: each in the formats that have it; by default fp32, fp16
    and w8a32, Core ML without fp32."""
    dynamic_image_size: bool = False
    """ONNX models take images of any size and resize them themselves."""
    thresholds: Thresholds = Thresholds()
    """What a file may lose before the run fails."""
    tensorboard: bool = False
    """Write the training curves as TensorBoard events too; needs the extra `tensorboard`."""
    name: str = ""
    """Name of the run folder; by default made of the networks, the data and the bits."""
    output_dir: Path = Path("runs")
    """Where run folders and the cache of decoded images live."""

    @property
    def title(self) -> str:
        """The name of the run folder."""
        teacher = self.reuse_gallery.resolve().name if self.reuse_gallery else self.teacher
        return self.name or f"{teacher}-{self.student}-{Path(self.data).stem}-{self.bits}"

    @field_validator("data")
    @classmethod
    def _without_slash(cls, data: str) -> str:
        return data.rstrip("/") or data


class BackboneInfo(StrictModel):
    """Where a network begins: its timm name, its weights in words, and the preprocessing they were trained with."""

    name: str
    source: str
    random: bool
    transformer: bool
    """Made of matrix products: it wants a lower rate, and takes long on a CPU."""
    patch: int
    """Side of its patches, pixels, which its input must be a multiple of; 1 if it has none."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class ResolvedConfig(StrictModel):
    """What every "auto" became; `reasons` says why, one sentence a choice."""

    teacher: BackboneInfo
    student: BackboneInfo
    teacher_img_size: int
    student_img_size: int
    teacher_epochs: int
    student_epochs: int
    teacher_lr: float
    student_lr: float
    teacher_crop: float
    student_crop: float
    teacher_finetune: Finetune
    cached_views: int
    reasons: tuple[str, ...]


NATIVE, CPU_LARGEST = 224, 128  # pixels
SMALLEST, GRID = 64, 16  # of convolutional networks, whose strides of 32 leave four places then


def resolve(
    learning: TrainConfig, teacher: BackboneInfo, student: BackboneInfo, picture_size: int, gpu: bool
) -> ResolvedConfig:
    """Settles every "auto", the one place where that happens.

    picture_size: median shorter side of the pictures, pixels
    """
    _check(learning, teacher)
    auto = AutoResolver()
    why = f"the pictures have {picture_size} px{'' if gpu else f', and a CPU can train on {CPU_LARGEST}'}"
    sizes = [_size(start, picture_size, gpu) for start in (teacher, student)]
    teacher_img_size = auto("teacher size", learning.teacher_img_size, sizes[0], why)
    student_img_size = auto("student size", learning.student_img_size, sizes[1], why)
    device = "on a GPU" if gpu else "on a CPU"
    fit, distil = learning.teacher_train, learning.student_train
    start = {True: "from random weights", False: "from pretrained weights"}
    slow = not gpu and teacher.transformer
    epochs = (max(3, 6 * 32**2 // teacher_img_size**2) if slow else 30) if teacher.random else 8
    epochs = auto("teacher epochs", fit.epochs, epochs, f"{start[teacher.random]} {device}")
    crop = 1.0 if teacher.random and epochs < 20 else 0.3  # little training from nothing has no use for hard views
    mode = auto("teacher mode", fit.finetune, "full" if teacher.random else "lp_ft", start[teacher.random])
    # Head first wants a third of the rate: measured on CNNs (benchmarks/results/teacher_finetuning.md).
    lr = (3e-4 if teacher.transformer else 1e-3) * (0.3 if mode == "lp_ft" else 1.0)
    family = "a transformer" if teacher.transformer else "a convolutional network"
    student_start = start[student.random]
    return ResolvedConfig(
        teacher=teacher,
        student=student,
        teacher_img_size=teacher_img_size,
        student_img_size=student_img_size,
        teacher_epochs=epochs,
        student_epochs=auto("student epochs", distil.epochs, 15 if student.random else 10, student_start),
        teacher_lr=auto("teacher rate", fit.lr, lr, f"{family}, {mode}"),
        student_lr=auto("student rate", distil.lr, 2e-3 if student.random else 1e-3, student_start),
        teacher_crop=auto("teacher crop", fit.crop_min_scale, crop, f"{start[teacher.random]}, {epochs} epochs"),
        student_crop=auto("student crop", distil.crop_min_scale, 0.3, "a default, not compared with others"),
        teacher_finetune=mode,
        cached_views=auto(
            "views",
            distil.cached_views,
            2 if slow else 8,
            "one look costs the teacher " + ("much" if slow else "little"),
        ),
        reasons=tuple(auto.reasons),
    )


def _check(learning: TrainConfig, teacher: BackboneInfo) -> None:
    """Refuses what cannot be learned; every message names the fix."""
    fit = learning.student_train
    _check_methods(learning)
    distiller: DistillerArgs = DISTILLERS.parse(learning.distiller, learning.distiller_args)
    if not distiller.fixes_rotation and not fit.center_loss_weight:
        raise InputError(
            "a term that ties the student to the teacher's space",
            "only terms that a rotation of the space does not change: its codes would not fit the gallery's",
            "Give center_loss_weight of --student-train, or another weight of --distiller-args, a value above 0.",
        )
    if distiller.trains_teacher and learning.distillation == "offline":
        found = "the joint form, whose gradient reaches the teacher, while --distillation offline freezes it"
        raise InputError("an instance loss that fits the distillation", found, "Add --distillation online.")
    mode = learning.teacher_train.finetune
    if learning.distillation == "online" and (learning.reuse_gallery or mode in ("linear_probe", "lp_ft")):
        found = "--reuse-gallery" if learning.reuse_gallery else f"--teacher-train.finetune {mode}"
        raise InputError("a teacher that learns beside the student", found, "Leave it out, or --distillation offline.")
    if learning.distillation == "online" and learning.unlabeled_data:
        raise InputError(
            "--unlabeled-data in offline distillation", "online", "Leave it out, or --distillation offline."
        )
    if mode == "linear_probe" and teacher.random:
        found = "random ones, whose features a head cannot make good"
        raise InputError(
            "pretrained weights for --teacher-train.finetune linear_probe",
            found,
            "Choose --teacher-train.finetune full.",
        )


def _check_methods(learning: TrainConfig) -> None:
    """Refuses methods that do not exist, and those that another option leaves nothing to do."""
    LOSSES.parse(learning.loss, learning.loss_args)
    DISTILLERS.check(learning.distiller)
    if learning.reuse_gallery and learning.loss != "csch":
        found = f"--loss {learning.loss} beside --reuse-gallery, whose teacher is trained"
        raise InputError("an objective for a teacher that is trained here", found, "Leave one of them out.")
    if learning.distillation == "online" and (learning.loss, learning.distiller) != ("csch", "csch"):
        found = f"--loss {learning.loss} and --distiller {learning.distiller}"
        raise InputError("CSCH in online distillation, which is its own", found, "Choose --distillation offline.")


def _size(start: BackboneInfo, picture_size: int, gpu: bool) -> int:
    """The pictures' own size, rounded up to what the network divides by, within what the device can pay for."""
    step, smallest = (start.patch, 2 * start.patch) if start.patch > 1 else (GRID, SMALLEST)
    largest = NATIVE if gpu else CPU_LARGEST
    wanted = min(max(smallest, picture_size), largest)
    return min(-(-wanted // step), largest // step) * step


class AutoResolver:
    """Returns the user's value, or the given one with its reason noted."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def __call__(self, what: str, asked: Any, value: Any, why: str) -> Any:
        if asked != "auto":
            return asked
        self.reasons.append(f"{what} {value if isinstance(value, str) else f'{value:g}'}: {why}")
        return value


def load_yaml(path: Path, kind: type[StrictModel]) -> Any:
    """Reads a configuration; every error names its key."""
    try:
        return kind.model_validate(yaml.safe_load(path.read_text()) or {})
    except ValidationError as error:
        raise InputError(f"a valid configuration in {path}", _said(error), "Correct or remove these keys.") from error
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            f"a readable configuration in {path}", str(error), "Restore it, or use another run folder."
        ) from error


def _said(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors())


def to_yaml(config: BaseModel) -> str:
    """The configuration as YAML, in the order of its fields."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
