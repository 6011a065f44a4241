"""The exported graph: uint8 image in, normalise, student, logits, sign, packed code bytes out."""

import copy
import sys

import torch
from torch import Tensor, nn

from export.fold_bn import fold_batch_norm
from export.plain_layers import materialize_weights
from gallery.codes import check_bits
from gallery.codespace import Preprocessing
from gallery.errors import InputError

TOLERANCE = 1e-4  # of the largest logit; folding mobilenetv3, v2 and lite0 costs 1e-6


def inference_copy(net: nn.Module, size: int) -> nn.Module:
    """Copy `net` to the CPU in float32 and eval mode, branches merged and batch norm folded, numbers unchanged.

    Weights that are computed at each call are stored instead, where that gives the same numbers.

    net: normalised float32 `[B, 3, size, size]` to logits `[B, bits]`; not modified.
    Raises `InputError` when the copy's logits differ from the network's by more than `TOLERANCE`.
    """
    before = copy.deepcopy(net).cpu().float().eval().requires_grad_(False)
    for parameter in before.parameters():
        parameter.data = parameter.data.contiguous()  # or channels_last training would show in the exported bytes
    after = copy.deepcopy(before)
    materialize_weights(after)
    if "timm" in sys.modules:  # only its networks have training-time branches: FastViT, MobileOne, RepGhost
        from timm.utils.model import reparameterize_model

        after = reparameterize_model(after)
    fold_batch_norm(after)
    for module in after.modules():
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010  (exporters take twice as long to see through a change)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = before(images), after(images)
    difference, scale = float((expected - found).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE * scale:  # also when either is not a number
        raise InputError(
            f"the folded network to repeat the network's logits within {TOLERANCE:g} of {scale:.3g}",
            f"a difference of {difference:.3g}",
            "Look for a batch norm with a vanishing running variance, or weights that are not finite.",
        )
    return after


class QueryModel(nn.Module):
    """uint8 RGB `[B, S, S, 3]` to (packed codes uint8 `[B, bits/8]`, logits float32 `[B, bits]`).

    The mean and the scale stay in front of the first convolution: folded into it they would be wrong along the
    border, where zero padding means "the mean colour" after the normalisation and "black" before it.
    Subtracting first suits fp16, where a pixel is exact: Core ML's logits came out a tenth closer than with x * a + b.
    """

    mean: Tensor
    scale: Tensor
    place_values: Tensor
    packing: Tensor  # [bits, bits/8]

    def __init__(self, net: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.net, self.size = net, preprocessing.size
        self.register_buffer("mean", 255 * torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("scale", 1 / (255 * torch.tensor(preprocessing.std).view(1, 3, 1, 1)))
        self.register_buffer("place_values", 2.0 ** torch.arange(8))
        with torch.no_grad():
            self.bits = check_bits(net(torch.zeros(1, 3, self.size, self.size)).shape[1])
        self.register_buffer("packing", torch.kron(torch.eye(self.bits // 8), self.place_values[:, None]))
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        # contiguous: as a channels-last view it put a Gather over all channels into the ONNX graph, 5 % of its time
        logits = self.logits(image.permute(0, 3, 1, 2).contiguous().float())
        return ((logits > 0).float() @ self.packing).to(torch.uint8), logits  # `pack` in fewer steps, for ONNX

    def logits(self, pixels: Tensor) -> Tensor:
        """Float pixels 0..255 `[B, 3, S, S]` to logits `[B, bits]`."""
        logits: Tensor = self.net((pixels - self.mean) * self.scale)
        return logits

    def pack(self, logits: Tensor) -> Tensor:
        """Logits to code bytes as whole floats `[B, bits/8]`; a sum of distinct powers of two is exact in fp16 too."""
        bits = (logits > 0).float().reshape(-1, self.bits // 8, 8)
        return (bits * self.place_values).sum(-1)

    def example(self, batch: int = 1) -> Tensor:
        """Return a black image in the shape the graph takes."""
        return torch.zeros(batch, self.size, self.size, 3, dtype=torch.uint8)
