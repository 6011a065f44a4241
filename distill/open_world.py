"""What a run finds of classes that its training had no label of, beside what its untouched pretrained features find."""

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from torch import Tensor

from distill.context import Role, RunContext, multi_hot
from distill.distillers import DISTILLERS
from distill.infer import Indices, ModelFn, extract_features
from distill.itq import fit_itq
from distill.pipeline import TrainedModels
from distill.reference_features import unlabeled_of_teacher
from distill.summary import pair_logits
from distill.train_student import student_indices
from gallery.codes import pack
from gallery.console import log
from gallery.distance_histogram import Labels
from gallery.errors import InputError, TwinhashError
from gallery.names import counted
from gallery.open_world import Features, open_world_float, open_world_maps, open_world_protocols
from gallery.open_world_results import FLOAT_COSINE, ITQ_GALLERY, ITQ_TRAIN, OpenWorldResults, OpenWorldRow
from gallery.results import STUDENT_GALLERY, TEACHER_TEACHER

MAX_FEATURE_BYTES = 1 << 30  # of the features that baselines are made of: 200,000 images of 1,280
FLOAT_BYTES = 4


def open_world_results(context: RunContext, models: TrainedModels) -> OpenWorldResults | None:
    """Return the four protocols of the trained codes and of the baselines; None where training had all labels."""
    data = context.data
    if not data.classes:
        return None
    seen, unseen = seen_and_unseen(context)
    labels = data.labels[data.query], data.labels[context.indexed_images]
    protocols = open_world_protocols(*labels, seen)
    new, known = protocols["unseen_unseen"], protocols["seen_seen"]
    if not (new.queries.any() or new.database.any()):
        return None
    rows = [*_trained_rows(context, models, labels, seen)]
    reason = _no_baselines(context)
    try:
        for row in _baseline_rows(context, labels, seen) if not reason else ():
            rows.append(row)
    except TwinhashError as error:
        reason = str(error)
    if reason:
        log.info("  no baselines for classes without training labels: %s", reason)
    used, hot = trained_images(context, models), multi_hot(data.labels, len(data.classes))
    fresh, either = np.asarray(hot[:, unseen].any(1)), np.zeros(len(hot), bool)
    for images in used.values():
        either[data.train if images is None else images] = True
    return OpenWorldResults(
        classes=(len(seen), len(unseen)),
        queries=(int(known.queries.sum()), int(new.queries.sum())),
        gallery=(int(known.database.sum()), int(new.database.sum())),
        unlabeled={role: None if images is None else int(fresh[images].sum()) for role, images in used.items()},
        unknown=int((either & ~hot.any(1)).sum()), rows=tuple(rows), no_baselines=reason,
    )  # fmt: skip


def seen_and_unseen(context: RunContext) -> tuple[Indices, Indices]:
    """Return the classes in train, and those of gallery and queries that are not, as indices into `data.classes`.

    Where nothing was learned from labels and all are in train, none counts as seen.
    """
    data = context.data
    asked = data.labels[np.concatenate([data.gallery, data.query])]
    there = np.flatnonzero(multi_hot(asked, len(data.classes)).any(0))
    unseen = np.setdiff1d(there, data.seen)
    return (data.seen, unseen) if len(unseen) or context.loss_class.uses_labels else (data.seen[:0], there)


def trained_images(context: RunContext, models: TrainedModels) -> dict[Role, Indices | None]:
    """Return the images that the training of each network used, with or without their labels.

    Any of unseen classes makes a run transductive, none inductive.  None where the teacher is an earlier run's.
    """
    config, train = context.config, context.data.train
    if config.distillation == "online":
        return {"teacher": train, "student": train}
    distiller = DISTILLERS.find(config.distiller)
    uses_teacher = distiller.uses_teacher(DISTILLERS.parse(config.distiller, config.distiller_args))
    student, _ = student_indices(context, models.teacher, uses_teacher)
    teacher = None if config.reuse_gallery else np.concatenate([train, unlabeled_of_teacher(context)[0]])
    return {"teacher": teacher, "student": student}


def _trained_rows(
    context: RunContext, models: TrainedModels, labels: tuple[Labels, Labels], seen: Indices
) -> Iterator[OpenWorldRow]:  # fmt: skip
    logits = pair_logits(context, models)
    pairs = (TEACHER_TEACHER, logits.teacher_queries), (STUDENT_GALLERY, logits.student_queries)
    for name, queries in pairs:
        if queries is not None:
            maps = open_world_maps(pack(queries), models.gallery.codes, *labels, seen)
            yield OpenWorldRow(name=name, maps=maps)


def _no_baselines(context: RunContext) -> str:
    """Return why there can be no baselines, empty where there can."""
    if context.config.reuse_gallery:
        return "with --reuse-gallery the teacher's pretrained weights are not at hand; its own run has them"
    if context.resolved.teacher.random:
        return "the teacher starts from random weights, whose features mean nothing"
    return ""


def _baseline_rows(context: RunContext, labels: tuple[Labels, Labels], seen: Indices) -> Iterator[OpenWorldRow]:
    """Yield float cosine and ITQ of the pretrained features; raises `InputError` where they are too few or too many."""
    data, bits = context.data, context.config.bits
    log.info("  baselines for classes without training labels: float cosine and ITQ of the pretrained features")
    features = baseline_features(context)
    query, gallery = features(data.query), features(context.indexed_images)
    yield OpenWorldRow(name=FLOAT_COSINE, maps=open_world_float(query, gallery, *labels, seen))
    for name, fitted in ((ITQ_TRAIN, features(data.train)), (ITQ_GALLERY, gallery)):
        made = fit_itq(fitted, bits, context.config.seed)
        codes = pack(made.logits(query)), pack(made.logits(gallery))
        yield OpenWorldRow(name=name, maps=open_world_maps(*codes, *labels, seen))


def baseline_features(context: RunContext) -> Callable[[Indices], Features]:
    """Return a function of images of train, gallery and queries to the pretrained teacher's features of them, `[n, D]`.

    They are computed once: those that the teacher's training made are read.  The backbone is
    built, and its weights looked for, only where some are missing.  Raises `InputError` for more than memory may hold.
    """
    data, train, extract = context.data, context.data.train, _pretrained_backbone(context)
    unlabeled, _ = unlabeled_of_teacher(context)
    rest = np.setdiff1d(data.gallery, np.concatenate([train, data.validation, unlabeled]))
    parts = ((train, "0"), (data.validation, "validation"), (unlabeled, "unlabeled"), (rest, "gallery"),
             (data.query, "queries"))  # fmt: skip
    found = list[Features]()
    for images, name in parts:
        if len(images):
            found.append(context.infer(extract, "teacher", images, f"teacher features {name}", f"pretrained {name}"))
            _check_size(sum(len(own) for own, _ in parts), found[0].shape[1])
    features, place = np.concatenate(found), np.full(len(data.labels), -1)
    place[np.concatenate([images for images, _ in parts])] = np.arange(len(features))
    return lambda images: features[place[images]]


def _check_size(images: int, width: int) -> None:
    if (size := images * width * FLOAT_BYTES) > MAX_FEATURE_BYTES:
        found = f"{counted(images, 'image')} of {width} features, {size / 1e9:.1f} GB"
        fix = "Measure them on a smaller gallery (--data with a split of its own)."
        raise InputError(f"features of at most {MAX_FEATURE_BYTES / 1e9:.1f} GB", found, fix)


def _pretrained_backbone(context: RunContext) -> ModelFn:
    """Return the teacher's untouched backbone as a function of images, built at its first call."""

    @cache
    def built() -> ModelFn:
        return extract_features(context.build_model("teacher").eval())

    def features(images: Tensor) -> Tensor:
        return built()(images)

    return features
