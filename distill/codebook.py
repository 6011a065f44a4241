"""The hash centers that a run uses."""

import numpy as np
from numpy.typing import NDArray

from distill.context import Role, RunContext, multi_hot
from distill.hash_centers.assignment import QUADRATIC_MOST, Assignment, assign, class_means
from distill.hash_centers.clustering import k_majority
from distill.hash_centers.constructions import Centers, Construction, hash_centers
from distill.hash_centers.multilabel import optimise_centers
from distill.infer import evenly_spaced, extract_features
from distill.models.hash_net import HashNet
from gallery import codespace
from gallery.console import log
from gallery.files import sha256_of

MAX_CLUSTERED = 4096  # codes of which the clusters are made


def hash_centers_of(context: RunContext) -> Centers:
    """Return the hash centers `[classes, bits]`, in class order: those of the code space once there is one.

    Where nothing is learned from labels they are those of clusters of codes, none as long as there are no codes.
    """
    config = context.config
    if config.reuse_gallery or context.run_dir.is_done("teacher"):
        return codespace.load(context.run_dir.folder)[1]
    if not context.classes:
        return np.zeros((0, config.bits), np.int8)
    how = center_assignment(context)
    centers = hash_centers(len(context.classes), config.bits, config.seed, center_construction(context))
    positive = multi_hot(context.labels[context.data.train], len(context.classes))
    if how != "none":
        role: Role = "student" if how == "csch" else "teacher"
        log.info("  assigning centers to classes by the features of the %s (%s)", role, how)
        centers = centers[assign(centers, how, pretrained_features(context, role), positive, config.seed)]
    if optimises_multilabel_centers(context):
        log.info("  optimising centers for majority-vote targets that tell which images share a class")
        centers = optimise_centers(centers, positive)
    return centers


def final_centers(context: RunContext, teacher: HashNet, initial: Centers) -> Centers:
    """Return the centers of a saved teacher's space: what it was trained toward, or the majority of a class's codes.

    Without classes, those of clusters of the gallery's codes.
    """
    if context.loss_class.centers:
        return initial
    key = sha256_of(context.run_dir.folder / "teacher.safetensors")
    if not context.classes:
        sample = evenly_spaced(context.data.gallery, MAX_CLUSTERED)
        logits = context.infer_logits("teacher", teacher, sample, "teacher sample", key)
        return k_majority(np.where(logits > 0, np.float32(1), np.float32(-1)), context.config.seed)
    train = context.data.train
    logits = context.infer_logits("teacher", teacher, train, "teacher train", key)
    means = class_means(np.sign(logits), multi_hot(context.labels[train], len(context.classes)))
    return np.where(means > 0, np.int8(1), np.int8(-1))


def center_assignment(context: RunContext) -> Assignment:
    """Return how centers are assigned to classes; "auto": of csch quadratically where there is enough to choose.

    With no more classes than bits, all distances are about bits / 2; random features know no classes.
    """
    config = context.config
    if config.center_assignment != "auto":
        return config.center_assignment
    worth_it = config.bits < len(context.classes) <= QUADRATIC_MOST and not context.resolved.teacher.random
    return "quadratic" if worth_it and config.loss == "csch" else "none"


def center_construction(context: RunContext) -> Construction:
    """Return how centers are constructed; "auto": as the loss wants them."""
    asked, wanted = context.config.hash_centers, context.loss_class.centers
    return wanted if asked == "auto" and wanted else asked


def optimises_multilabel_centers(context: RunContext) -> bool:
    """Whether centers are optimised for majority-vote targets; "auto": of csch, for images of several classes."""
    config = context.config
    return (config.loss, config.hash_centers) == ("csch", "auto") and context.data.labels.ndim == 2


def pretrained_features(context: RunContext, role: Role) -> NDArray[np.float32]:
    """Return a pretrained backbone's features of the training images, `[len(train), D]`."""
    model = context.build_model(role).eval()
    return context.infer(extract_features(model), role, context.data.train, f"{role} features 0", "pretrained 0")
