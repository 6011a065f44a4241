"""Features of the pretrained backbone, to which losses compare logits while it is trained, and unlabeled images."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distill.config import Auto
from distill.context import RunContext
from distill.data import Dataset
from distill.infer import Indices, extract_features
from distill.losses import LOSSES
from distill.losses.base import HashLoss
from distill.models.hash_net import HashNet
from distill.system import device
from gallery.console import log

MAX_UNLABELED_RATIO = 0.5  # of a batch
MAX_UNLABELED = 4  # times the training images: more would cost inferences of images that are seldom used


class ReferenceFeatures(NamedTuple):
    """Features of the pretrained backbone on whole images.

    train: of the training images `[len(train), D]`, or `[0, D]` where the loss does not use them
    unlabeled: of unlabeled images `[n, D]`; images: indices of these; per_step: how many of them a step has
    mean: `[D]`, over all of them
    """

    train: Tensor
    unlabeled: Tensor
    images: Indices
    per_step: int
    mean: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """Return rows of `unlabeled` for a step, int `[per_step]`."""
        return torch.randint(max(1, len(self.images)), (self.per_step,), generator=generator)


def reference_features(context: RunContext, model: HashNet, loss: HashLoss) -> ReferenceFeatures:
    """Return the features that a loss uses, of the teacher's backbone before it is trained; empty where it uses none.

    From random weights there is nothing to preserve.
    """
    train, (unlabeled, per_step) = context.data.train, unlabeled_of_teacher(context)
    known = train if loss.uses_reference(loss.options) and not context.resolved.teacher.random else train[:0]
    if per_step:
        labeled = min(context.config.teacher_train.batch_size, len(train))
        text = "  %d images without a label keep their neighbors (--loss %s): %d in each step, beside %d labeled ones"
        log.info(text, len(unlabeled), context.config.loss, per_step, labeled)
    extract = extract_features(model.eval())

    def features(images: Indices, name: str) -> Tensor:
        if not len(images):
            return torch.zeros(0, model.head.features, device=device())
        found = context.infer(extract, "teacher", images, f"teacher features {name}", f"pretrained {name}")
        return torch.from_numpy(found).to(device())

    own, others = features(known, "0"), features(unlabeled, "unlabeled")
    everyone = torch.cat([own, others])
    return ReferenceFeatures(own, others, unlabeled, per_step, everyone.sum(0) / max(1, len(everyone)))


def unlabeled_of_teacher(context: RunContext) -> tuple[Indices, int]:
    """Return the unlabeled images that the teacher's loss learns from, and how many of them a step has."""
    config, train, options = context.config, context.data.train, context.config.teacher_train
    uses_unlabeled = context.loss_class.uses_unlabeled(LOSSES.parse(config.loss, config.loss_args))
    if context.resolved.teacher.random or config.distillation == "online" or not uses_unlabeled:
        return train[:0], 0
    unlabeled = unlabeled_images(context.data, config.seed, "teacher")
    ratio = unlabeled_ratio(options.unlabeled_ratio, len(unlabeled), len(train))
    per_step = round(min(options.batch_size, len(train)) * ratio / (1 - ratio)) if len(unlabeled) else 0
    return unlabeled if per_step else unlabeled[:0], per_step


def unlabeled_images(data: Dataset, seed: int, role: str, stored_only: bool = False) -> Indices:
    """Return the images that have no label, or one that is not used: the gallery but for the validation images, and
    --unlabeled-data; at most `MAX_UNLABELED` times as many as those of train.

    stored_only: without --unlabeled-data, of which no codes are stored
    """
    unlabeled = np.setdiff1d(data.gallery, np.concatenate([data.train, data.validation]))
    unlabeled = unlabeled if stored_only else np.concatenate([unlabeled, data.unlabeled])
    if len(unlabeled) > (most := MAX_UNLABELED * len(data.train)):
        log.info("  the %s uses %d of %d unlabeled images", role, most, len(unlabeled))
        unlabeled = np.sort(np.random.default_rng(seed).choice(unlabeled, most, replace=False))
    return unlabeled


def unlabeled_ratio(asked: float | Auto, unlabeled: int, labeled: int) -> float:
    """Return the share of a batch that is unlabeled; "auto": twice that of the images, at most half."""
    if asked != "auto":
        return asked
    return min(MAX_UNLABELED_RATIO, 2 * unlabeled / max(1, unlabeled + labeled))
