"""The configuration of a run: frozen, and an unknown key is an error."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from distill.hash_centers.assignment import Assignment
from distill.hash_centers.constructions import Construction
from gallery.console import plain
from gallery.errors import InputError
from gallery.files import read_bytes
from gallery.record import Line, ModelVersion, Record, describe
from gallery.results import Thresholds

Finetune = Literal["linear_probe", "full", "lp_ft"]
MethodArg = int | float | str
Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
MAX_YAML = 1 << 20  # bytes; the largest seen has 3 kB
OTHER_FOLDER = "run distill/run.py under another --name"


def is_run(folder: Path) -> bool:
    """Whether distill/run.py made a folder, of which a file may be lost."""
    return any((folder / name).is_file() for name in ("config.yaml", "stages.json"))


class OptimizerConfig(Record):
    """How a network is trained."""

    epochs: Count | Auto = "auto"
    """Passes over the training images."""
    batch_size: int = Field(64, ge=2)
    """Images a step, over all processes."""
    lr: Rate | Auto = "auto"
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(0.05, ge=0, allow_inf_nan=False)
    """Weight decay of AdamW; none for biases and norms."""
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    """Share of the steps in which the rate rises."""
    clip_grad: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    crop_min_scale: Annotated[Share, Field(gt=0)] | Auto = "auto"
    """Smallest share of an image's area that an augmented view shows; 1: all of it."""
    model_ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay, a step, of a moving average of the weights that replaces them at the end; 0: none."""
    early_stopping_patience: int = Field(0, ge=0)
    """Epochs without a gain on the validation images after which training ends, with the best weights; 0: never."""


class TeacherTrainConfig(OptimizerConfig):
    """How the teacher is trained."""

    finetune: Finetune | Literal["auto"] = "auto"
    """linear_probe: the hash head alone, on cached features; full: all layers; lp_ft: one, then the other, slower."""
    linear_probe_epochs: Count = 30
    """Passes over the cached features."""
    linear_probe_lr: Rate = 3e-3
    """Peak learning rate of the linear probe."""
    unlabeled_ratio: Annotated[Share, Field(lt=1)] | Auto = "auto"
    """Share of a step's images that are unlabeled, beside the batch; auto: twice their share, at most half."""


class StudentTrainConfig(OptimizerConfig):
    """How the student is distilled: toward the hash centers, and by `--distiller`."""

    cached_views: Annotated[int, Field(ge=0)] | Auto = "auto"
    """Augmented views an image with one cached teacher output each; 0: on the fly, with a teacher inference each."""
    app_augment: Share = 0.0
    """Share of the views that are made as apps would make them: by another resize, from another JPEG; 0: none."""
    center_loss_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Weight of the central similarity loss: toward the hash center of the image's class."""
    unlabeled_ratio: Share | Auto = "auto"
    """Share of a batch that is unlabeled gallery images and --unlabeled-data; auto: twice their share, at most half."""


class TrainConfig(Record):
    """Train a teacher, hash the gallery, distill a student, export it, and evaluate the exported models."""

    teacher: str = "vit_b"
    """Gallery network: vit_b, resnet50, efficientnet_lite2, convnext_t, dinov2_b, hybridhash, ... or any timm name."""
    student: str = "mobilenetv3"
    """Query network: mobilenetv3, mobilenetv3_small, mobilenetv2, mobilenetv4, fastvit_t8, ... or any timm name."""
    data: str = "embedded"
    """embedded (a Fashion-MNIST subset), a protocol (cifar10, coco, ucmerced, ...), an image folder, a CSV, Parquet;
    a folder that holds images alone, or a list without labels: codes that keep the pretrained features' neighbors."""
    data_root: Path | None = None
    """Folder of published data sets; by default that in TWINHASH_DATA."""
    unlabeled_data: tuple[str, ...] = ()
    """Folders of images without labels: the student learns the teacher's codes of them, the teacher their neighbors."""
    num_unseen_classes: int = Field(0, ge=0)
    """Classes, sampled by the seed, that are searched for but not trained on."""
    bits: Literal[16, 24, 32, 48, 64, 128] = 64
    """Length of the code."""
    loss: str = "auto"
    """Loss of the teacher: csch, csq, dch, ... (a file in distill/losses); auto: csch, or similarity without labels."""
    loss_args: dict[str, MethodArg] = Field({})
    """Options of the loss, by name, e.g. margin 0.3."""
    distiller: str = "csch"
    """Distiller of the student, beside the centers: csch, csd, d3still, ... (a file in distill/distillers)."""
    distiller_args: dict[str, MethodArg] = Field({})
    """Options of the distiller, by name, e.g. instance-weight 20."""
    hash_centers: Construction = "auto"
    """Construction of the hash centers; auto: the loss's own, or the largest minimum distance."""
    center_assignment: Assignment | Literal["auto"] = "auto"
    """Which center goes to which class: in order (none), or by class similarity, linearly or over all pairs."""
    reuse_gallery: Path | None = None
    """An earlier run whose gallery is kept: a new student for it; without teacher.safetensors from its codes alone."""
    distillation: Literal["offline", "online"] = "offline"
    """Teacher first and then the student, or both at once."""
    teacher_img_size: Count | Auto = "auto"
    """Side of the teacher's square input, pixels."""
    student_img_size: Count | Auto = "auto"
    """Side of the student's square input, pixels: the largest that is fast enough on the phone."""
    teacher_weights: Path | None = None
    """Pretrained weights of the teacher's backbone; else TWINHASH_WEIGHTS, the hub, installed packages, or random."""
    student_weights: Path | None = None
    """Pretrained weights of the student's backbone, likewise."""
    query_fraction: float = Field(0.2, gt=0, lt=1)
    """Share of each class (without labels: of all) sampled as queries where the data has no split of its own."""
    validation_fraction: float = Field(0.05, ge=0, lt=0.5)
    """Share of the training images held out for validation."""
    teacher_train: TeacherTrainConfig = TeacherTrainConfig()
    student_train: StudentTrainConfig = StudentTrainConfig()
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of splits, hash centers, crops and initial weights; the same seed gives the same networks."""
    strict: bool = False
    """Every warning is fatal: unreadable images, data to check, results that are of no use, files that do not run."""
    formats: tuple[str, ...] = ("onnx", "litert", "coreml")
    """onnx, ort, litert, mediapipe (LiteRT without the codes), coreml, coreai."""
    precisions: tuple[str, ...] = ()
    """fp32, fp16, w8a32, w8a8, w8a16, w8a8-dynamic, palettize6; default: the first three (Core ML: without fp32)."""
    dynamic_image_size: bool = False
    """ONNX models take images of any size and resize them themselves."""
    author: Line = ""
    """Author of the model, which the exported files carry where Xcode and Netron show it; by default "not stated"."""
    license: Line = ""
    """License of the model, likewise."""
    model_version: ModelVersion = 0
    """Version of the model, likewise: a whole number that you count up; 0: not stated."""
    thresholds: Thresholds = Thresholds()
    """Quality gate: what a file may lose before the run fails."""
    skew: bool = True
    """Measure what the student's codes lose in apps that resize or decode photos in other ways."""
    tensorboard: bool = False
    """Write the training curves as TensorBoard events too; needs the extra `tensorboard`."""
    name: str = ""
    """Name of the run folder; by default made of the networks, the data and the bits."""
    output_dir: Path = Path("runs")
    """Folder of run folders and of the cache of decoded images."""

    @property
    def title(self) -> str:
        """The name of the run folder."""
        teacher = self.reuse_gallery.resolve().name if self.reuse_gallery else self.teacher
        return self.name or f"{teacher}-{self.student}-{plain(Path(self.data).stem)}-{self.bits}"

    @field_validator("name")
    @classmethod
    def _is_folder_name(cls, name: str) -> str:
        if name in (".", "..") or "/" in name:
            raise ValueError("not the name of a folder (--output-dir names the one that it is in)")
        return name

    @field_validator("loss_args", "distiller_args")
    @classmethod
    def _by_field_name(cls, args: dict[str, MethodArg]) -> dict[str, MethodArg]:
        """Accept names as flags spell them, e.g. instance-weight."""
        return {name.replace("-", "_"): value for name, value in args.items()}

    @field_validator("data")
    @classmethod
    def _without_slash(cls, data: str) -> str:
        return data.rstrip("/") or data


class BackboneInfo(Record):
    """How a network is initialised: its timm name, the source of its weights, and their preprocessing."""

    name: str
    source: str
    random: bool
    transformer: bool
    """It needs a lower learning rate, and is slow on a CPU."""
    patch: int
    """Side of its patches, pixels, of which its input must be a multiple; 1: none."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class ResolvedConfig(Record):
    """What every "auto" became; `reasons`: why, one sentence each."""

    loss: str
    teacher: BackboneInfo
    student: BackboneInfo
    teacher_img_size: int
    student_img_size: int
    teacher_epochs: int
    student_epochs: int
    teacher_lr: float
    student_lr: float
    teacher_crop_min_scale: float
    student_crop_min_scale: float
    teacher_finetune: Finetune
    student_cached_views: int
    reasons: tuple[str, ...]


def load_yaml(path: Path, kind: type[Record]) -> Any:
    """Read a configuration; every error names its key."""
    try:
        return kind.model_validate(yaml.safe_load(read_bytes(path, MAX_YAML).decode("utf-8")))
    except ValidationError as error:
        fix = f"Correct or remove these keys, or {OTHER_FOLDER}."
        raise InputError(f"a valid configuration in {path}", describe(error), fix) from error
    except (OSError, yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        problem = " ".join(str(error).split())[:200]
        raise InputError(f"a readable configuration in {path}", problem, f"Restore it, or {OTHER_FOLDER}.") from error


def to_yaml(config: BaseModel) -> str:
    """Return the configuration as YAML, in the order of its fields."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
