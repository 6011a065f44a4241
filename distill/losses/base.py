"""The base of losses: their context, batch and pairwise helpers.

A loss is a module: what it learns beside the network (a classifier, proxies) are its parameters, and what it keeps
between steps (a bank of codes, a count) are its buffers, so that a killed training resumes bit for bit.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from distill.hash_centers.constructions import Construction
from distill.registry import Method
from gallery.errors import InputError


class UnsupportedLabels(InputError):
    """The labels are of a kind that the loss is not defined for."""


@dataclass(frozen=True)
class LossContext:
    """What a loss is built for: N training images, G of the gallery, C classes.

    positive: bool `[N, C]`, the classes of each training image; gallery: bool `[G, C]`, for methods that learn the
    gallery's codes; centers: float `[C, bits]` of +-1, the hash center of each class; target_codes: float `[N, bits]`
    of +-1, of each training image; multilabel: whether an image can have several classes; features: width of the
    backbone's output
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
        """Number of classes."""
        return self.centers.shape[0]

    def generator(self) -> torch.Generator:
        """A CPU generator seeded with `seed`."""
        return torch.Generator().manual_seed(self.seed)


class UnlabeledBatch(NamedTuple):
    """Images without a label: logits `[U, bits]`, and the pretrained backbone's features of them `[U, D]`."""

    logits: Tensor
    reference: Tensor


@dataclass(frozen=True)
class LossBatch:
    """Logits `[B, bits]`, features `[B, D]` and indices of the training images, int `[B]`.

    second_view_logits: logits of a second, stronger augmented view of the same images, for `n_views = 2`
    reference: the pretrained backbone's features of the whole images, `[B, D]`, for losses that use them
    unlabeled: images without a label, for losses that use them; None where there are none
    """

    logits: Tensor
    features: Tensor
    index: Tensor
    second_view_logits: Tensor | None = None
    reference: Tensor | None = None
    unlabeled: UnlabeledBatch | None = None


class HeadFit(NamedTuple):
    """A hash head in closed form: logits are (features @ weight.T - mean) / sqrt(variance).

    weight: `[bits, D]`; mean, variance: `[bits]`
    """

    weight: Tensor
    mean: Tensor
    variance: Tensor


class HashLoss(Method, nn.Module, ABC):
    """A loss over batches.

    centers: what `--hash-centers auto` stands for; None: it has no centers, and each class gets the majority of its
    training images' codes afterwards.  multilabel: whether it is defined for multi-label images; n_views: augmented
    views of each image in a batch; learns_gallery_codes: from labels, instead of hashing the gallery's images;
    uses_labels: whether it learns from labels: without, centers are those of clusters of codes, for the search alone;
    is_fitted: `fit_head` gives the hash head, and nothing is trained
    """

    centers: ClassVar[Construction | None] = None
    multilabel: ClassVar[bool] = True
    n_views: ClassVar[int] = 1
    learns_gallery_codes: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = True
    is_fitted: ClassVar[bool] = False

    def __init__(self, context: LossContext, **options: Any) -> None:
        super().__init__()
        self.context = context
        self.set_options(options)
        if context.multilabel and not self.multilabel:
            name = type(self).__module__.rpartition(".")[2]
            found = "multi-label images, for which it is not defined"
            raise UnsupportedLabels(f"one class an image for --loss {name}", found, "Choose another loss.")
        self.setup()

    @staticmethod
    def uses_reference(options: Any) -> bool:
        """Whether it compares training images by the features of the pretrained backbone."""
        return False

    @staticmethod
    def uses_unlabeled(options: Any) -> bool:
        """Whether it learns from images without a label, too, by the features of the pretrained backbone."""
        return False

    def setup(self) -> None:
        """Create parameters and buffers, for `context`."""

    def fit_head(self, features: Tensor) -> HeadFit:
        """Return the head of a method that `is_fitted` to the training images' pretrained features, `[N, D]`."""
        raise NotImplementedError

    @abstractmethod
    def forward(self, batch: LossBatch) -> Tensor:
        """The loss of a batch, a scalar."""

    def codes(self) -> Tensor | None:
        """The learned codes of the gallery, `[G, bits]` of +-1, where the method `learns_gallery_codes`."""
        return None


class CodeMemory(nn.Module):
    """The latest value of each training image, without gradient (a memory bank).

    values: float `[N, bits]`; filled: bool `[N]`, which rows have one; momentum: m of the moving average
    m * before + (1 - m) * now, initialized with the first value
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
        """In training; values: float `[B, bits]` of the images `rows`, int `[B]`, each once."""
        if not self.training:
            return
        average = torch.lerp(values, self.values[rows], self.momentum)
        self.values[rows] = torch.where(self.filled[rows, None], average, values)
        self.filled[rows] = True

    def pairs(self, rows: Tensor) -> Tensor:
        """Which images those of a batch are compared with, float `[B, N]`: all with a value, but not itself."""
        return self.filled.float().repeat(len(rows), 1).scatter(1, rows[:, None], 0.0)


class MemoryLoss(HashLoss):
    """A loss of pairs of an image of the batch and the latest output for each training image, a constant."""

    def setup(self) -> None:
        self.bank = CodeMemory(self.context)

    def update_bank(self, rows: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Put outputs u of the images `rows` into the bank; which pairs share a class and which count, `[B, N]`."""
        self.bank.update(rows, u)
        return share_class(self.context.positive[rows], self.context.positive), self.bank.pairs(rows)


def share_class(left: Tensor, right: Tensor) -> Tensor:
    """Pairs that share a class: bool `[L, C]` and `[R, C]` to float `[L, R]` of 0 and 1."""
    return ((left.float() @ right.float().T) > 0).float()


def class_index(positive: Tensor) -> Tensor:
    """The class of each image of one class: bool `[N, C]` to int `[N]`."""
    return positive.int().argmax(1)


def soft_labels(positive: Tensor) -> Tensor:
    """y / |y|: bool `[B, C]` to float; a row sums to one, or to zero where an image has no class."""
    return positive / positive.sum(1, keepdim=True).clamp(min=1)


def sign(logits: Tensor) -> Tensor:
    """The code as +-1 floats; a logit of zero is a bit that is not set."""
    return torch.where(logits > 0, 1.0, -1.0).to(logits.dtype)


def cosines(left: Tensor, right: Tensor) -> Tensor:
    """cos(l_i, r_j), `[L, D]` and `[R, D]` to `[L, R]`; exact ties of +-1 rows stay ties, whatever D is."""
    lengths = left.norm(dim=1, keepdim=True) * right.norm(dim=1)
    return (left @ right.T) / lengths.clamp(min=1e-12)


def squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """||l - r||^2 of `[L, bits]` and `[R, bits]`, as `[L, R]`."""
    squares = left.square().sum(1)[:, None] + right.square().sum(1)
    return (squares - 2 * left @ right.T).clamp(min=0)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean; 0 where all weights are."""
    return (values * weights).sum() / weights.sum().clamp(min=1)


def balanced_mean(losses: Tensor, similar: Tensor, pairs: Tensor | None = None) -> Tensor:
    """The mean over the S1 similar pairs and that over the S0 others, added: weights |S|/|S1| and |S|/|S0|.

    similar, pairs: 0 or 1 as floats, in the shape of `losses`; pairs: those that count, of a batch all but the diagonal
    """
    if pairs is None:
        pairs = 1 - torch.eye(len(similar), device=similar.device)
    return weighted_mean(losses, similar * pairs) + weighted_mean(losses, (1 - similar) * pairs)


def triplets(positive: Tensor) -> Tensor:
    """Which (i, j, k) of a batch have i and j, two images, share a class and i and k none: float `[B, B, B]`."""
    similar = share_class(positive, positive)
    others = 1 - torch.eye(len(similar), device=similar.device)
    return (similar * others)[:, :, None] * ((1 - similar) * others)[:, None, :]
