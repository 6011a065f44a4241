"""What a network is trained on: images at its input size, labels, hash centers and target codes."""

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.codebook import hash_centers_of
from distill.context import Role, RunContext, multi_hot
from distill.data.augment import sample_apps
from distill.distributed import shard
from distill.hash_centers.constructions import Centers
from distill.hash_centers.multilabel import target_codes
from distill.infer import ENCODE_BATCH, Indices, Logits, forward_logits
from distill.losses.csch import center_consistency
from distill.models.hash_net import HashNet

MetricFn = Callable[[Tensor, Indices], Tensor]


class TrainingSet:
    """What the teacher or the student of a run is trained on: images, labels, and a hash center for each class.

    labels: of all images, int `[N]` (-1: no label, or a class without a center) or multi-hot bool `[N, C]`
    train, validation: indices of labeled images
    """

    def __init__(self, context: RunContext, role: Role) -> None:
        self.context, self.loader, self.labels = context, context.image_loader(role), context.labels
        self.train, self.validation = context.data.train, context.data.validation
        self.reference = torch.zeros(0)

    def load_views(self, index: Indices, crops: Tensor, generator: torch.Generator) -> Tensor:
        """Load this process's share of the student's views of a step, some of them as apps would make them.

        crops: `[len(index), 4]`; nothing is sampled where all views are made by the rule
        """
        share = self.context.config.student_train.app_augment
        apps = shard(sample_apps(len(index), share, generator)) if share else None
        return self.loader.load(shard(index), shard(crops), apps)

    @cached_property
    def hash_centers(self) -> Centers:
        """Hash centers int8 `[C, bits]`: none where nothing is learned from labels."""
        return hash_centers_of(self.context)[: len(self.context.classes)]

    @cached_property
    def centers(self) -> Tensor:
        """Hash centers `[C, bits]`, float32 on the device."""
        return torch.from_numpy(self.hash_centers.astype(np.float32)).to(self.loader.device)

    @cached_property
    def target_codes(self) -> Tensor:
        """The target code of each image of train and validation, float32 `[N, bits]`; zeros for the others."""
        labeled = np.concatenate([self.train, self.validation]) if len(self.hash_centers) else self.train[:0]
        targets = np.zeros((len(self.labels), self.hash_centers.shape[1]), np.float32)
        targets[labeled] = target_codes(self.labels[labeled], self.hash_centers)
        return torch.from_numpy(targets).to(self.loader.device)

    @cached_property
    def multi_hot(self) -> Tensor:
        """The classes of each image, bool `[N, C]`."""
        return torch.from_numpy(multi_hot(self.labels, len(self.hash_centers))).to(self.loader.device)

    def center_loss(self, logits: Tensor, index: Indices) -> Tensor:
        """Return CSCH's center consistency of `logits` `[B, bits]` for the images at `index`."""
        return center_consistency(logits, self.target_codes[index], self.centers, self.multi_hot[index])

    def accuracy(self, logits: Tensor, index: Indices) -> Tensor:
        """Return the share of `logits` whose nearest center belongs to one of their classes."""
        nearest = (F.normalize(logits, dim=1) @ self.centers.T).argmax(1)
        return self.multi_hot[index, nearest].float().mean()

    def nearest_neighbor_accuracy(self, logits: Tensor, index: Indices) -> Tensor:
        """Return the share of images whose nearest neighbor among `index` shares a class: it needs no centers."""
        h, positive = F.normalize(logits, dim=1), self.multi_hot[index].float()
        nearest = (h @ h.T).fill_diagonal_(-torch.inf).argmax(1)
        return ((positive * positive[nearest]).sum(1) > 0).float().mean()

    def set_reference(self, images: Indices, values: Logits) -> None:
        """Set what `neighbor_agreement` and `bit_agreement` compare with; only images that have it are validated.

        values: features, or the teacher's logits, `[len(images), D]`
        """
        table = np.zeros((len(self.labels), values.shape[1]), np.float32)
        table[images] = values
        self.reference = torch.from_numpy(table).to(self.loader.device)
        self.validation = np.intersect1d(self.validation, images)

    def neighbor_agreement(self, logits: Tensor, index: Indices) -> Tensor:
        """Return the share of images whose nearest neighbor among `index` is that by the reference: without labels."""
        nearest = [(one @ one.T).fill_diagonal_(-torch.inf).argmax(1)
                   for one in (F.normalize(logits, dim=1), F.normalize(self.reference[index], dim=1))]  # fmt: skip
        return (nearest[0] == nearest[1]).float().mean()

    def bit_agreement(self, logits: Tensor, index: Indices) -> Tensor:
        """Return the share of bits that are those of the reference, the teacher's logits: without labels."""
        return ((logits > 0) == (self.reference[index] > 0)).float().mean()

    def score(self, logits: Tensor, metric: MetricFn | None = None) -> float | None:
        """Return a metric of logits of the validation images, by default `accuracy`; see `make_validator`."""
        if not logits.isfinite().all():
            return math.nan
        found = (metric or self.accuracy)(logits, self.validation) if len(self.validation) else None
        return None if found is None else round(float(found), 4)

    def make_validator(self, model: HashNet, metric: MetricFn | None = None) -> Callable[[], float | None]:
        """Return a function that measures `accuracy`, or another metric, on the uncropped validation images.

        It returns None where there are none, and NaN where a logit is not finite: of a batch of train, without them.
        """
        forward = forward_logits(model)

        def validate() -> float | None:
            index = self.validation if len(self.validation) else self.train[:ENCODE_BATCH]
            model.eval()
            with torch.inference_mode():
                parts = np.array_split(index, -(-len(index) // ENCODE_BATCH))
                return self.score(torch.cat([forward(self.loader.load(part)) for part in parts]), metric)

        return validate
