"""The configuration: frozen, unknown keys refused, "auto" resolved in one place with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from distill.distillers import DISTILLERS
from distill.hash_centers.assignment import Assignment
from distill.hash_centers.constructions import Construction
from distill.losses import OBJECTIVES
from gallery.errors import InputError

TeacherMode = Literal["quick", "full", "head_first"]
Instance = Literal["sign", "raw", "cosine", "joint"]
AutoInt = int | Literal["auto"]
AutoFloat = float | Literal["auto"]


class Model(BaseModel):
    """Base of all parts: frozen, and a key that does not exist is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            error.args = (_said(error),)  # what the command line prints; pydantic leaves it empty
            raise


class OptimizerConfig(Model):
    """How a network is trained."""

    epochs: AutoInt = "auto"
    """Passes over the training pictures."""
    batch: int = Field(64, ge=2)
    """Pictures a step, over all processes."""
    lr: AutoFloat = "auto"
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(0.05, ge=0)
    warmup: float = Field(0.1, ge=0, le=1)
    """Share of the steps in which the rate rises."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    crop: AutoFloat = "auto"
    """Smallest share of a picture's area that an augmented view shows; 1 shows all of it."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay, a step, of a moving average of the weights that takes their place in the end; 0: none."""
    patience: int = Field(0, ge=0)
    """Epochs without a gain on the validation pictures after which training ends, with the best weights; 0: never."""


class TeacherTrainConfig(OptimizerConfig):
    """How the teacher is trained."""

    mode: TeacherMode | Literal["auto"] = "auto"
    """quick: the hash head alone, on stored features; full: all layers; head_first: quick, then all layers slowly."""
    head_epochs: int = Field(30, ge=1)
    """Passes over the stored features."""
    head_lr: float = Field(3e-3, gt=0)


class StudentTrainConfig(OptimizerConfig):
    """How the student is distilled: to the centers, and by `--distiller`.  The weights but the first are of csch."""

    views: AutoInt = "auto"
    """Stored views a picture; the teacher looks at each once.  0: fresh crops, and the teacher looks at every one."""
    center_weight: float = Field(1.0, ge=0)
    """To the center of the picture's class."""
    instance_weight: float = Field(10.0, ge=0)
    """To the teacher's own code of the picture."""
    instance: Instance = "sign"
    """Its form: sign, raw, cosine, or joint (as CSCH's released code: the gradient reaches the teacher too)."""
    similarity_weight: float = Field(0.0, ge=0)
    """To the teacher's similarities to all centers."""
    rank_weight: float = Field(0.0, ge=0)
    """To the order in which the teacher ranks a batch."""
    relation_weight: float = Field(0.0, ge=0)
    """To the teacher's similarities within a batch, student to student."""
    margin_weight: float = Field(0.0, ge=0)
    """Away from zero: room for quantization."""
    unlabelled_share: AutoFloat = "auto"
    """Share of a batch taken from pictures without labels, which are the rest of the gallery and --unlabelled; "auto":
    twice their share of all pictures, at most half."""

    def terms(self) -> dict[str, Any]:
        """The options of the distiller csch."""
        names = "instance", "instance_weight", "similarity_weight", "rank_weight", "relation_weight", "margin_weight"
        return self.model_dump(include=set(names))

    @property
    def asks_teacher(self) -> bool:
        """Whether any term of csch looks at what the teacher said."""
        return bool(self.instance_weight or self.similarity_weight or self.rank_weight or self.relation_weight)


class RoundedFit(Model):
    """How the student is made ready for 8-bit arithmetic, once it is trained: its biases learn to make up for it."""

    epochs: int = Field(2, ge=1)
    """Passes over the pictures of train and gallery."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    batch: int = Field(64, ge=2)


class Learning(Model):
    """What is learned, from what, and how."""

    teacher: str = "vit_b"
    """Gallery network: vit_b, resnet50, efficientnet_lite2, convnext_t, dinov2_b, hybridhash, ... or any timm name."""
    student: str = "mobilenetv3"
    """Query network: mobilenetv3, mobilenetv3_small, mobilenetv2, mobilenetv4, fastvit_t8, ... or any timm name."""
    data: str = "embedded"
    """embedded (a Fashion-MNIST subset), a protocol (cifar10, coco, ucmerced, ...), an image folder, a CSV, Parquet."""
    root: Path | None = None
    """Where published data sets lie; by default the folder in TWINHASH_DATA."""
    unlabelled: tuple[str, ...] = ()
    """Folders of pictures without labels, from which the student learns the teacher's codes."""
    unseen: int = Field(0, ge=0)
    """Classes, drawn by the seed, that are searched for but not trained on."""
    bits: Literal[16, 24, 32, 48, 64, 128] = 64
    """Length of the code."""
    objective: str = "csch"
    """What the teacher is trained by: csch, csq, dch, hashnet, ... (a file in distill/objectives)."""
    objective_options: dict[str, float] = {}
    """Of the objective's own, by name, e.g. margin 0.3."""
    distiller: str = "csch"
    """What the student is distilled by, beside the centers: csch, csd, d3still, ... (a file in distill/distillers)."""
    distiller_options: dict[str, float] = {}
    """Of the distiller's own, by name; those of csch are in --student-fit."""
    centers: Construction = "auto"
    """Construction of the hash centers; auto takes the one with the largest minimum distance, or the objective's.

    For csch and pictures of several classes, auto then moves them until majority votes tell who shares a class.
    """
    assignment: Assignment | Literal["auto"] = "auto"
    """Which center goes to which class."""
    gallery: Path | None = None
    """An earlier run whose gallery stays: a new student for it; without teacher.safetensors from its codes alone."""
    schedule: Literal["staged", "simultaneous"] = "staged"
    """Teacher first and then the student, or both at once."""
    teacher_size: AutoInt = "auto"
    """Side of the teacher's square input, pixels."""
    student_size: AutoInt = "auto"
    """Side of the student's square input, pixels: the highest the phone can pay for."""
    teacher_weights: Path | None = None
    """Pretrained weights of the teacher's backbone; else TWINHASH_WEIGHTS, the hub, installed packages, or random."""
    student_weights: Path | None = None
    """Pretrained weights of the student's backbone, likewise."""
    query_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of each class drawn as queries where the data has no split of its own."""
    validation_fraction: float = Field(0.05, ge=0, lt=0.5)
    """Share of the training pictures held out to watch the training."""
    teacher_fit: TeacherTrainConfig = TeacherTrainConfig()
    student_fit: StudentTrainConfig = StudentTrainConfig()
    seed: int = Field(0, ge=0)
    strict: bool = False
    """A picture that cannot be read, or a file that cannot run here, is fatal."""

    @field_validator("data")
    @classmethod
    def _without_slash(cls, data: str) -> str:
        return data.rstrip("/") or data


class BackboneInfo(Model):
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


class ResolvedConfig(Model):
    """What every "auto" became; `reasons` says why, one sentence a choice."""

    teacher: BackboneInfo
    student: BackboneInfo
    teacher_size: int
    student_size: int
    teacher_epochs: int
    student_epochs: int
    teacher_lr: float
    student_lr: float
    teacher_crop: float
    student_crop: float
    teacher_mode: TeacherMode
    views: int
    reasons: tuple[str, ...]


NATIVE, CPU_LARGEST = 224, 128  # pixels
SMALLEST, GRID = 64, 16  # of convolutional networks, whose strides of 32 leave four places then


def resolve(
    learning: Learning, teacher: BackboneInfo, student: BackboneInfo, picture_size: int, gpu: bool
) -> ResolvedConfig:
    """Settles every "auto", the one place where that happens.

    picture_size: median shorter side of the pictures, pixels
    """
    _check(learning, teacher)
    auto = AutoResolver()
    why = f"the pictures have {picture_size} px{'' if gpu else f', and a CPU can train on {CPU_LARGEST}'}"
    sizes = [_size(start, picture_size, gpu) for start in (teacher, student)]
    teacher_size = auto("teacher size", learning.teacher_size, sizes[0], why)
    student_size = auto("student size", learning.student_size, sizes[1], why)
    device = "on a GPU" if gpu else "on a CPU"
    fit, distil = learning.teacher_fit, learning.student_fit
    start = {True: "from random weights", False: "from pretrained weights"}
    slow = not gpu and teacher.transformer
    epochs = (max(3, 6 * 32**2 // teacher_size**2) if slow else 30) if teacher.random else 8
    epochs = auto("teacher epochs", fit.epochs, epochs, f"{start[teacher.random]} {device}")
    crop = 1.0 if teacher.random and epochs < 20 else 0.3  # little training from nothing has no use for hard views
    mode = auto("teacher mode", fit.mode, "full" if teacher.random else "head_first", start[teacher.random])
    # Head first wants a third of the rate: measured on CNNs (benchmarks/results/teacher_finetuning.md).
    lr = (3e-4 if teacher.transformer else 1e-3) * (0.3 if mode == "head_first" else 1.0)
    family = "a transformer" if teacher.transformer else "a convolutional network"
    student_start = start[student.random]
    return ResolvedConfig(
        teacher=teacher,
        student=student,
        teacher_size=teacher_size,
        student_size=student_size,
        teacher_epochs=epochs,
        student_epochs=auto("student epochs", distil.epochs, 15 if student.random else 10, student_start),
        teacher_lr=auto("teacher rate", fit.lr, lr, f"{family}, {mode}"),
        student_lr=auto("student rate", distil.lr, 2e-3 if student.random else 1e-3, student_start),
        teacher_crop=auto("teacher crop", fit.crop, crop, f"{start[teacher.random]}, {epochs} epochs"),
        student_crop=auto("student crop", distil.crop, 0.3, "a default, not compared with others"),
        teacher_mode=mode,
        views=auto(
            "views", distil.views, 2 if slow else 8, "one look costs the teacher " + ("much" if slow else "little")
        ),
        reasons=tuple(auto.reasons),
    )


def _check(learning: Learning, teacher: BackboneInfo) -> None:
    """Refuses what cannot be learned; every message names the fix."""
    fit = learning.student_fit
    _check_methods(learning)
    free = learning.distiller == "csch" and not (fit.instance_weight or fit.similarity_weight or fit.rank_weight)
    if free and not fit.center_weight:
        raise InputError(
            "a term that ties the student to the teacher's space",
            "only terms that a rotation of the space does not change: its codes would not fit the gallery's",
            "Give center_weight, instance_weight, similarity_weight or rank_weight of --student-fit a value above 0.",
        )
    if fit.instance == "joint" and learning.schedule == "staged":
        found = "the joint form, whose gradient reaches the teacher, in the staged schedule, whose teacher is frozen"
        raise InputError("an instance term that fits the schedule", found, "Add --schedule simultaneous.")
    mode = learning.teacher_fit.mode
    if learning.schedule == "simultaneous" and (learning.gallery or mode in ("quick", "head_first")):
        found = "--gallery" if learning.gallery else f"--teacher-fit.mode {mode}"
        raise InputError("a teacher that learns beside the student", found, "Leave it out, or --schedule staged.")
    if learning.schedule == "simultaneous" and learning.unlabelled:
        raise InputError("--unlabelled in the staged schedule", "simultaneous", "Leave it out, or --schedule staged.")
    if mode == "quick" and teacher.random:
        found = "random ones, whose features a head cannot make good"
        raise InputError("pretrained weights for --teacher-fit.mode quick", found, "Choose --teacher-fit.mode full.")


def _check_methods(learning: Learning) -> None:
    """Refuses methods that do not exist, and those that another option leaves nothing to do."""
    OBJECTIVES.check(learning.objective)
    DISTILLERS.check(learning.distiller)
    if learning.gallery and learning.objective != "csch":
        found = f"--objective {learning.objective} beside --gallery, whose teacher is trained"
        raise InputError("an objective for a teacher that is trained here", found, "Leave one of them out.")
    if learning.schedule == "simultaneous" and (learning.objective, learning.distiller) != ("csch", "csch"):
        found = f"--objective {learning.objective} and --distiller {learning.distiller}"
        raise InputError("CSCH in the simultaneous schedule, which is its own", found, "Choose --schedule staged.")
    if learning.distiller == "csch" and learning.distiller_options:
        found = ", ".join(learning.distiller_options)
        raise InputError("no --distiller-options for csch", found, "Its terms are in --student-fit.")


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


def load_yaml(path: Path, kind: type[Model]) -> Any:
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
