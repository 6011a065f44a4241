"""What every loss of a teacher is made for, is shown, and answers.

A loss is a module: what it learns beside the network (a classifier, proxies) are its parameters, and what it
remembers from step to step (a bank of codes, a count) are its buffers, so that a training that was killed goes on bit
for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distill.hash_centers.constructions import Construction
from distill.registry import MethodArgs, args_type
from gallery.errors import InputError


class UnsupportedLabels(InputError):
    """A method was asked for what it is not defined for."""


@dataclass(frozen=True)
class LossContext:
    """What a teacher learns from.  N training pictures, G of the gallery, C classes.

    positive: bool `[N, C]`, the classes of each training picture; gallery: bool `[G, C]`, for methods that learn the
    gallery's codes; words: float `[C, bits]` of +-1, the hash center of each class; targets: float `[N, bits]`, the
    word each training picture is drawn to; several: whether a picture can have several classes; features: width of the
    backbone's output; steps: of an epoch; epochs: in all
    """

    positive: Tensor
    gallery: Tensor
    centers: Tensor
    target_codes: Tensor
    multilabel: bool
    features: int
    steps_per_epoch: int
    epochs: int
    seed: int

    @property
    def bits(self) -> int:
        """Length of the code."""
        return self.centers.shape[1]

    @property
    def classes(self) -> int:
        """How many there are."""
        return self.centers.shape[0]

    def generator(self) -> torch.Generator:
        """A source of randomness on the CPU, begun anew from the seed."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class LossBatch:
    """A batch: the network's logits `[B, bits]` and features `[B, D]`, and which training pictures, int `[B]`.

    second_view_logits: logits of a second, harder look at the same pictures, for a loss that asks for `n_views = 2`
    """

    logits: Tensor
    features: Tensor
    index: Tensor
    second_view_logits: Tensor | None = None


class HashLoss(nn.Module, ABC):
    """A loss over batches.  A method is a subclass; its options are its constructor's keywords, with their defaults."""

    centers: ClassVar[Construction | None] = None
    """What `--hash-centers auto` stands for; None: the method knows no centers; a class's center is found afterwards,
    as the majority of the codes of its training pictures."""
    multilabel: ClassVar[bool] = True
    """Whether it is defined for pictures of several classes."""
    n_views: ClassVar[int] = 1
    """How often it looks at each picture of a batch."""
    learns_gallery_codes: ClassVar[bool] = False
    """Whether it learns the codes of the gallery's pictures, from their labels, in place of hashing them."""

    args: MethodArgs

    def __init__(self, context: LossContext, **args: Any) -> None:
        super().__init__()
        self.context = context
        self.args = args_type(type(self)).model_validate(args)
        if context.multilabel and not self.multilabel:
            name = type(self).__module__.rpartition(".")[2]
            found = "pictures of several classes, for which it is not defined"
            raise UnsupportedLabels(f"one class an image for --loss {name}", found, "Choose another loss.")

    @abstractmethod
    def forward(self, batch: LossBatch) -> Tensor:
        """The loss of a batch, a scalar."""

    def codes(self) -> Tensor | None:
        """The learned codes of the gallery, `[G, bits]` of +-1, where the method `learns_gallery_codes`."""
        return None


def share_class(left: Tensor, right: Tensor) -> Tensor:
    """Which pictures share a class: bool `[L, C]` and `[R, C]` to float `[L, R]` of 0 and 1."""
    return ((left.float() @ right.float().T) > 0).float()


def class_index(positive: Tensor) -> Tensor:
    """The class of each picture of one class: bool `[N, C]` to int `[N]`."""
    return positive.int().argmax(1)


def soft_labels(positive: Tensor) -> Tensor:
    """y / |y|: bool `[B, C]` to float; a row sums to one, or to zero where a picture has no class."""
    return positive / positive.sum(1, keepdim=True).clamp(min=1)


class CodeMemory(nn.Module):
    """What was last said of each training picture, without gradient.

    values: float `[N, bits]`; filled: bool `[N]`, of which pictures something was said; momentum: m of the moving
    average m * before + (1 - m) * now, which begins with the first value
    """

    values: Tensor
    filled: Tensor

    def __init__(self, context: LossContext, momentum: float = 0.0) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("values", torch.zeros(len(context.positive), context.bits))
        self.register_buffer("filled", torch.zeros(len(context.positive), dtype=torch.bool))

    @torch.no_grad()
    def update(self, rows: Tensor, values: Tensor) -> None:
        """In training; values: float `[B, bits]` of the pictures `rows`, int `[B]`, each once."""
        if not self.training:
            return
        average = torch.lerp(values, self.values[rows], self.momentum)
        self.values[rows] = torch.where(self.filled[rows, None], average, values)
        self.filled[rows] = True


def cosines(left: Tensor, right: Tensor) -> Tensor:
    """cos(l_i, r_j), `[L, D]` and `[R, D]` to `[L, R]`; exact ties of +-1 rows stay ties, whatever D is."""
    lengths = left.norm(dim=1, keepdim=True) * right.norm(dim=1)
    return (left @ right.T) / lengths.clamp(min=1e-12)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean; 0 where all weights are."""
    return (values * weights).sum() / weights.sum().clamp(min=1)


def balanced_mean(losses: Tensor, similar: Tensor) -> Tensor:
    """The mean over pairs of a batch weighted by |S|/|S1| where `similar` is 1 and by |S|/|S0| where it is 0, `[B, B]`:
    the mean over the S1 similar pairs and that over the S0 others, added.  A picture and itself are no pair."""
    pairs = 1 - torch.eye(len(similar), device=similar.device)
    return weighted_mean(losses, similar * pairs) + weighted_mean(losses, (1 - similar) * pairs)


def triplets(positive: Tensor) -> Tensor:
    """Which (i, j, k) of a batch have i and j, two pictures, share a class and i and k none: float `[B, B, B]`."""
    similar = share_class(positive, positive)
    others = 1 - torch.eye(len(similar), device=similar.device)
    return (similar * others)[:, :, None] * ((1 - similar) * others)[:, None, :]


def squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """||l - r||^2 of `[L, bits]` and `[R, bits]`, as `[L, R]`."""
    squares = left.square().sum(1)[:, None] + right.square().sum(1)
    return (squares - 2 * left @ right.T).clamp(min=0)


def valid_pairs(bank: CodeMemory, rows: Tensor) -> Tensor:
    """Which pictures of a bank those of a batch are compared with, float `[B, N]`: the known ones, but not itself."""
    return bank.filled.float().repeat(len(rows), 1).scatter(1, rows[:, None], 0.0)
