"""Configuration checks, and every "auto" resolved in one place with its reason."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from distill.config import BackboneInfo, ResolvedConfig, StudentTrainConfig, TeacherTrainConfig, TrainConfig
from distill.data.fashion_mnist import SOURCES
from distill.data.load import PROTOCOLS
from distill.distillers import DISTILLERS
from distill.losses import LOSSES
from distill.run_dir import RunDir
from gallery.errors import InputError

WITHOUT_LABELS = "similarity"  # the loss of images that have none
MAX_SIZE, MAX_CPU_SIZE = 224, 128  # input sizes that "auto" chooses at most, pixels
MIN_SIZE, SIZE_STEP = 64, 16  # of convolutional networks, whose strides of 32 leave a 2 x 2 feature map then
AUTO = (  # options that may be "auto"
    "loss", "teacher_img_size", "student_img_size", "teacher_train.finetune", "student_train.cached_views",
    *(f"{role}_train.{name}" for role in ("teacher", "student") for name in ("epochs", "lr", "crop_min_scale")),
)  # fmt: skip
# Of a student from pretrained weights, by gallery images of seen classes alone: of these 15 classes 5 (imagenet20) or 4
# (UC Merced) played the unseen ones, a fifth of the images the queries; mobilenetv3_small at 96 px, 64 bits, 6 epochs,
# one seed; seen@seen, seen@all, unseen@unseen, unseen@all.  It was looked for after the queries of one draw of
# `open-world` had shown 1e-3 behind the teacher on imagenet20's unseen classes. imagenet20: 2e-3 .720 .648 .628 .412,
# 1e-3 .758 .688 .657 .457, 5e-4 .758 .684 .689 .482, 3e-4 .786 .709 .675 .474 (12 epochs: 5e-4 .781 .710 .691 .496,
# 3e-4 .806 .733 .693 .491; the teacher: .827 .757 .710 .524). UC Merced: 1e-3 .991 .985 .985 .710, 5e-4 .992 .979 .975
# .695, 3e-4 1.000 .984 .989 .730. Also tried, on imagenet20: crops of .6 and 1 of the area for .3, better on unseen
# classes, worse on seen ones (1e-3: .752 .680 .668 .460, .747 .671 .691 .487); ten times the rate for the head (3e-4:
# .785 .710 .695 .491); the code of the whole image as the target of its crops (1e-3: .749 .679 .662 .454).
PRETRAINED_STUDENT_LR = 3e-4
TEACHER = "teacher", "teacher_weights", "teacher_img_size", "loss_args", "hash_centers", "center_assignment"
ONLY_FINETUNING = "epochs", "lr", "model_ema_decay", "early_stopping_patience"  # of a teacher
PROBE = "teacher_train.linear_probe_epochs", "teacher_train.linear_probe_lr"
ONLINE_STUDENT = {"lr", "weight_decay", "center_loss_weight", "app_augment"}  # the others are those of the teacher


def resolve(
    config: TrainConfig, teacher: BackboneInfo, student: BackboneInfo, image_size: int, gpu: bool, labeled: bool = True
) -> ResolvedConfig:
    """Resolve every "auto".

    image_size: median shorter side of the images, pixels; labeled: whether they, and a gallery reused, have classes
    """
    reasons: list[str] = []

    def auto(name: str, asked: Any, value: Any, why: str) -> Any:
        """Return the user's value, or `value` for "auto" with its reason recorded."""
        if asked != "auto":
            return asked
        reasons.append(f"{name} {value if isinstance(value, str) else f'{value:g}'}: {why}")
        return value

    why = f"the images have {'labels' if labeled else 'no labels'}"
    loss = auto("loss", config.loss, "csch" if labeled else WITHOUT_LABELS, why)
    config = config.model_copy(update={"loss": loss})
    check(config)
    _check_labels(config, teacher, labeled)
    finetune, options, distill = config.teacher_train.finetune, config.teacher_train, config.student_train
    if finetune == "linear_probe" and teacher.random:
        expected, found = "pretrained weights for --teacher-train.finetune linear_probe", "random ones"
        raise InputError(expected, f"{found}, whose features are of no use", "Choose --teacher-train.finetune full.")
    if not LOSSES.find(loss).uses_labels:
        finetune = auto("teacher finetune", finetune, "linear_probe", f"loss {loss} keeps the pretrained features")
    why = f"the images have {image_size} px{'' if gpu else f', and a CPU can train on {MAX_CPU_SIZE}'}"
    sizes = [_size(info, image_size, gpu) for info in (teacher, student)]
    teacher_img_size = auto("teacher size", config.teacher_img_size, sizes[0], why)
    start = {True: "from random weights", False: "from pretrained weights"}
    teacher_start, student_start = start[teacher.random], start[student.random]
    slow = not gpu and teacher.transformer
    epochs = (max(3, 6 * 32**2 // teacher_img_size**2) if slow else 30) if teacher.random else 8
    asked_epochs, asked_lr = options.epochs, options.lr
    if finetune == "linear_probe":
        asked_epochs, asked_lr = options.linear_probe_epochs, options.linear_probe_lr
        if not LOSSES.find(loss).is_fitted:
            reasons.append(f"teacher epochs {asked_epochs}, learning rate {asked_lr:g}: those of a linear probe")
    epochs = auto("teacher epochs", asked_epochs, epochs, f"{teacher_start} on a {'GPU' if gpu else 'CPU'}")
    crop = 1.0 if teacher.random and epochs < 20 else 0.3  # short training from random weights gains nothing by crops
    finetune = auto("teacher finetune", finetune, "full" if teacher.random else "lp_ft", teacher_start)
    # After a linear probe a third of the rate: measured on CNNs (benchmarks/results/teacher_finetuning.md).
    lr = (3e-4 if teacher.transformer else 1e-3) * (0.3 if finetune == "lp_ft" else 1.0)
    student_lr = 2e-3 if student.random else PRETRAINED_STUDENT_LR
    family = "a transformer" if teacher.transformer else "a convolutional network"
    cost = "much" if slow else "little"
    return ResolvedConfig(
        loss=loss, teacher=teacher, student=student, teacher_img_size=teacher_img_size, teacher_epochs=epochs,
        student_img_size=auto("student size", config.student_img_size, sizes[1], why),
        student_epochs=auto("student epochs", distill.epochs, 15 if student.random else 10, student_start),
        teacher_lr=auto("teacher learning rate", asked_lr, lr, f"{family}, {finetune}"),
        student_lr=auto("student learning rate", distill.lr, student_lr, student_start),
        teacher_crop_min_scale=auto("teacher crop", options.crop_min_scale, crop, f"{teacher_start}, {epochs} epochs"),
        student_crop_min_scale=auto("student crop", distill.crop_min_scale, 0.3, "a default, not compared with others"),
        student_cached_views=auto("views", distill.cached_views, 2 if slow else 8, f"a teacher inference costs {cost}"),
        teacher_finetune=finetune, reasons=tuple(reasons),
    )  # fmt: skip


def check(config: TrainConfig) -> None:
    """Raise `InputError`, which names the fix, for options that contradict each other."""
    if config.loss != "auto":
        LOSSES.parse(config.loss, config.loss_args)
    distiller, options = DISTILLERS.find(config.distiller), DISTILLERS.parse(config.distiller, config.distiller_args)
    if not distiller.fixes_rotation(options) and not config.student_train.center_loss_weight:
        found = "only losses that a rotation of the space does not change: its codes would not fit the gallery's"
        fix = "Give center_loss_weight of --student-train, or another weight of --distiller-args, a value above 0."
        raise InputError("a loss that ties the student to the teacher's space", found, fix)
    online, finetune = config.distillation == "online", config.teacher_train.finetune
    leave_out = "Leave it out, or --distillation offline."
    if distiller.trains_teacher(options) and not online:
        found = "the joint one, whose gradient reaches the teacher, while --distillation offline freezes it"
        raise InputError("an instance loss that fits the distillation", found, "Add --distillation online.")
    if online and (config.reuse_gallery or finetune in ("linear_probe", "lp_ft")):
        found = "--reuse-gallery" if config.reuse_gallery else f"--teacher-train.finetune {finetune}"
        raise InputError("a teacher that is trained beside the student", found, leave_out)
    if online and config.unlabeled_data:
        raise InputError("--unlabeled-data in offline distillation", "online", leave_out)
    if online and (config.loss not in ("auto", "csch") or config.distiller != "csch"):
        found = f"--loss {config.loss} and --distiller {config.distiller}"
        raise InputError("CSCH in online distillation, which is its own", found, "Choose --distillation offline.")


def _check_labels(config: TrainConfig, teacher: BackboneInfo, labeled: bool) -> None:
    """Raise `InputError` for a loss that cannot learn from the images or from the weights, and for what it leaves out.

    config: with the loss that "auto" became
    """
    if LOSSES.find(config.loss).uses_labels:
        if not labeled:
            names = " or ".join(name for name in LOSSES.names() if not LOSSES.find(name).uses_labels)
            fix = f"Choose --loss {names}, or sort the images by class."
            raise InputError(f"images with labels for --loss {config.loss}", f"none in {config.data}", fix)
        return
    if teacher.random:
        fix = "Give --teacher-weights, or a folder of weights in TWINHASH_WEIGHTS."
        found = f"random ones of {teacher.name}, whose features are of no use"
        raise InputError(f"pretrained weights for --loss {config.loss}", found, fix)
    distiller, args = DISTILLERS.find(config.distiller), DISTILLERS.parse(config.distiller, config.distiller_args)
    if not (distiller.uses_teacher(args) and distiller.fixes_rotation(args)):
        found = f"--distiller {config.distiller} with these options, which needs hash centers beside it"
        fix = "Choose --distiller csch, or give its instance-weight a value above 0."
        raise InputError(
            f"a distiller that ties the student to the teacher's codes for --loss {config.loss}", found, fix
        )
    check_effects(config, _without_labels(config, labeled))


def _without_labels(config: TrainConfig, labeled: bool) -> Iterator[tuple[str, str]]:
    """Yield the options that a loss which uses no labels leaves without effect, and why."""
    why = f"--loss {config.loss}, which does not use labels"
    yield from ((name, why) for name in ("hash_centers", "center_assignment", "student_train.center_loss_weight"))
    if not labeled:
        yield "num_unseen_classes", "images without labels"
    if LOSSES.find(config.loss).is_fitted:
        why, names = f"--loss {config.loss}, which trains nothing", tuple(TeacherTrainConfig.model_fields)
    elif config.teacher_train.finetune == "auto":
        why, names = f"the linear probe of --loss {config.loss}", ONLY_FINETUNING
    else:
        return
    yield from ((f"teacher_train.{name}", why) for name in names)


def check_effects(config: TrainConfig, without_effect: Iterable[tuple[str, str]] | None = None) -> None:
    """Raise `InputError` for an option that another one leaves without effect, unless it has its default.

    without_effect: the options that have none, and why; by default those of which the configuration alone tells
    """
    for option, why in _without_effect(config) if without_effect is None else without_effect:
        value, default = (_get(one, option) for one in (config, TrainConfig()))
        if value != default:
            flag = f"--{option.replace('_', '-')}"
            raise InputError("options that have an effect", f"{flag} beside {why}", "Leave one of them out.")


def _without_effect(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """Yield the options that another one leaves without effect, and which that is."""
    finetune = config.teacher_train.finetune
    teacher_train = [f"teacher_train.{name}" for name in TeacherTrainConfig.model_fields]
    if config.reuse_gallery:
        yield from ((name, "--reuse-gallery, whose teacher is trained") for name in ("loss", *TEACHER, *teacher_train))
    if config.distillation == "online":
        names = [name for name in StudentTrainConfig.model_fields if name not in ONLINE_STUDENT]
        why = "--distillation online, which takes it from the teacher"
        yield from ((f"student_train.{name}", why) for name in names)
    if finetune == "full" or config.distillation == "online":
        yield from ((name, "a teacher without a linear probe") for name in PROBE)
    if finetune == "linear_probe":
        yield from ((f"teacher_train.{name}", "--teacher-train.finetune linear_probe") for name in ONLY_FINETUNING)
    loss = LOSSES.find(config.loss) if config.loss != "auto" else None  # what that becomes uses unlabeled images
    teacher_learns = not config.reuse_gallery
    if loss and not loss.uses_unlabeled(LOSSES.parse(config.loss, config.loss_args)):
        teacher_learns = False
        yield "teacher_train.unlabeled_ratio", f"--loss {config.loss}, which uses no unlabeled images"
    if config.distillation == "online":
        yield "teacher_train.unlabeled_ratio", "--distillation online, which uses no unlabeled images"
    options = DISTILLERS.parse(config.distiller, config.distiller_args)
    if not DISTILLERS.find(config.distiller).uses_teacher(options):
        why = "a distiller that does not use the teacher"
        yield "student_train.unlabeled_ratio", why
        if not teacher_learns:
            yield "unlabeled_data", why
    if loss and loss.centers is None:
        centers = "hash_centers", "center_assignment"
        yield from ((name, f"--loss {config.loss}, which has no hash centers") for name in centers)
    if not _is_named(config.data):
        yield "data_root", "--data with a path"


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Return the configuration with absolute paths: its run is opened from any working directory."""
    names = "data_root", "reuse_gallery", "teacher_weights", "student_weights"
    paths: dict[str, Any] = {name: Path(os.path.abspath(path)) for name in names if (path := getattr(config, name))}
    paths["unlabeled_data"] = tuple(map(os.path.abspath, config.unlabeled_data))
    if not _is_named(config.data):
        paths["data"] = os.path.abspath(config.data)
    return config.model_copy(update=paths)


def keep_stored(config: TrainConfig, run_dir: RunDir) -> TrainConfig:
    """Return the configuration with the run folder's own spelling of options that mean the same.

    That is, "auto" for the value that it became, and methods' options for the same ones given in another way.
    """
    stored = run_dir.load_settings("config", TrainConfig)
    resolved = run_dir.load_settings("resolved_config", ResolvedConfig)
    if stored is None or resolved is None:
        return config
    for option in AUTO:
        became = getattr(resolved, option.replace("_train.", "_"))
        if _get(stored, option) == "auto" and _get(config, option) == became:
            config = _set(config, option, "auto")
    for kind, registry in (("loss", LOSSES), ("distiller", DISTILLERS)):
        name, args = getattr(config, kind), f"{kind}_args"
        given, kept = getattr(config, args), getattr(stored, args)
        same, name = name == getattr(stored, kind), resolved.loss if name == "auto" else name
        if same and registry.parse(name, given) == registry.parse(name, kept):
            config = _set(config, args, kept)
    return config


def _is_named(source: str) -> bool:
    """Whether --data names a published data set rather than a path."""
    return source in SOURCES or source in PROTOCOLS


def _get(config: TrainConfig, option: str) -> Any:
    part, _, name = option.rpartition(".")
    return getattr(getattr(config, part) if part else config, name)


def _set(config: TrainConfig, option: str, value: Any) -> TrainConfig:
    part, _, name = option.rpartition(".")
    if not part:
        return config.model_copy(update={name: value})
    return config.model_copy(update={part: getattr(config, part).model_copy(update={name: value})})


def _size(info: BackboneInfo, image_size: int, gpu: bool) -> int:
    """Return the images' own size, rounded up to a multiple of the patch size, within what the device can train on.

    Pretrained transformers get eight patches a side at least, since they are made for 14.
    """
    step = info.patch if info.patch > 1 else SIZE_STEP
    smallest = 2 * step if info.random and info.patch > 1 else max(MIN_SIZE, 8 * info.patch)
    largest = MAX_SIZE if gpu else MAX_CPU_SIZE
    wanted = min(max(smallest, image_size), largest)
    return min(-(-wanted // step), largest // step) * step
