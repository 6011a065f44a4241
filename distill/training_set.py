"""What a network learns from: the pictures through its own lens, and the words their labels are drawn to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from distill.data.augment import ImageLoader
from distill.engine import forward
from distill.hash_centers.constructions import Centers
from distill.hash_centers.multilabel import target_codes
from distill.losses.csch import center_consistency
from distill.models.hash_net import HashNet
from gallery.encode import ShardCache, encode

ENCODE_BATCH = 128
Logits = NDArray[np.float32]
Indices = NDArray[np.int64]
Look = Callable[[Tensor], Tensor]
Judge = Callable[[Tensor, Indices], Tensor]


@dataclass(frozen=True)
class TrainingSet:
    """Pictures, their labels, and a center a class.

    labels: of all pictures, int `[N]` (-1 for a picture without, or of a class without a center) or multi-hot bool
    `[N, C]`; train, validation: indices into them, all labelled
    """

    lens: ImageLoader
    labels: NDArray[Any]
    centers: Centers
    train: Indices
    validation: Indices

    @cached_property
    def words(self) -> Tensor:
        """Centers `[C, bits]` float32 on the device."""
        return torch.from_numpy(self.centers.astype(np.float32)).to(self.lens.device)

    @cached_property
    def targets(self) -> Tensor:
        """The word each picture of train and validation is drawn to, float32 `[N, bits]`; zeros for the others."""
        taught = np.concatenate([self.train, self.validation])
        targets = np.zeros((len(self.labels), self.centers.shape[1]), np.float32)
        targets[taught] = target_codes(self.labels[taught], self.centers)
        return torch.from_numpy(targets).to(self.lens.device)

    @cached_property
    def positive(self) -> Tensor:
        """The classes of each picture, bool `[N, C]`."""
        return torch.from_numpy(multi_hot(self.labels, len(self.centers))).to(self.lens.device)

    def center_loss(self, logits: Tensor, index: Indices) -> Tensor:
        """CSCH's center consistency of `logits` `[B, bits]` for the pictures at `index`."""
        return center_consistency(logits, self.targets[index], self.words, self.positive[index])

    def accuracy(self, logits: Tensor, index: Indices) -> Tensor:
        """The share of `logits` whose nearest center belongs to a class of theirs."""
        nearest = (F.normalize(logits, dim=1) @ self.words.T).argmax(1)
        return self.positive[index, nearest].float().mean()

    def neighbours(self, logits: Tensor, index: Indices) -> Tensor:
        """The share of pictures whose nearest other one among `index` has a class of theirs: it needs no centers."""
        h, positive = F.normalize(logits, dim=1), self.positive[index].float()
        nearest = (h @ h.T).fill_diagonal_(-torch.inf).argmax(1)
        return ((positive * positive[nearest]).sum(1) > 0).float().mean()

    def validator(self, net: HashNet, judge: Judge | None = None) -> Callable[[], float | None]:
        """A function that measures `accuracy`, or another judge's figure, on the validation pictures, uncropped.

        None where there are none.
        """
        run = forward(net)

        def validate() -> float | None:
            if not len(self.validation):
                return None
            net.eval()
            with torch.inference_mode():
                parts = np.array_split(self.validation, -(-len(self.validation) // ENCODE_BATCH))
                logits = torch.cat([run(self.lens.look(part)) for part in parts])
                return round(float((judge or self.accuracy)(logits, self.validation)), 4)

        return validate


def multi_hot(labels: NDArray[Any], classes: int) -> NDArray[np.bool_]:
    """The classes of each picture, `[N, C]`, of labels that are int `[N]` (-1 for none) or multi-hot already."""
    return labels if labels.ndim == 2 else labels[:, None] == np.arange(classes)


def look_at(
    run: Look,
    net: HashNet,
    lens: ImageLoader,
    index: Indices,
    cache: ShardCache,
    crops: Tensor | None = None,
) -> Logits:
    """What `run`, a function of `net`, says of pictures or of one crop of each (`[len(index), 4]`); resumable."""
    net.eval()

    def encoder(rows: Indices) -> Logits:
        with torch.inference_mode():
            out = run(lens.look(index[rows], None if crops is None else crops[rows]))
        return out.float().cpu().numpy()

    return encode(encoder, np.arange(len(index)), ENCODE_BATCH, cache)
