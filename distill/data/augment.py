"""Views: augmented looks at a picture whose crop parameters are stored, so that teacher and student see the same
pixels, each at its own resolution, and the teacher looks at each view once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

RATIO = 4 / 3  # of a crop's sides at most


def draw(count: int, smallest: float, generator: torch.Generator) -> Tensor:
    """Random crops `[count, 4]` float32: half width, half height, centre x, centre y of the crop in [-1, 1].

    The crop's area is uniform in [smallest, 1] of the picture, its sides' ratio log-uniform in [3/4, 4/3]; a
    negative half width is a mirror image.
    """
    random = torch.rand(count, 5, generator=generator)
    side = (smallest + (1 - smallest) * random[:, 0]).sqrt()
    stretch = RATIO ** ((random[:, 1] - 0.5) * (1.0 if smallest < 1 else 0.0))
    half = torch.stack([side * stretch, side / stretch], 1).clamp(max=1.0)
    centre = (2 * random[:, 2:4] - 1) * (1 - half)
    mirror = torch.where(random[:, 4:] < 0.5, -1.0, 1.0)
    return torch.cat([half[:, :1] * mirror, half[:, 1:], centre], 1)


def stored(count: int, views: int, smallest: float, seed: int) -> Tensor:
    """Crops `[views, count, 4]`; view 0 is the whole picture, whose teacher output is the gallery's own code."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(1, count, 4)
    return torch.cat([whole, *(draw(count, smallest, generator)[None] for _ in range(views - 1))])


def tinted(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Normalised `[B, 3, S, S]` with each channel of each picture scaled by 1 +- strength and moved by +- strength."""
    random = (2 * torch.rand(2, len(images), 3, 1, 1, generator=generator) - 1).to(images.device)
    return images * (1 + strength * random[0]) + strength * random[1]


class ImageLoader:
    """Turns uint8 pictures into a network's input: gather, crop, normalise, on the device.

    pixels: uint8 `[N, S, S, 3]`, memory-mapped; mean, std: on pixels scaled to 0..1
    """

    def __init__(
        self, pixels: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float], device: torch.device
    ) -> None:
        self.pixels, self.device = pixels, device
        self.scale = (1 / (255 * torch.tensor(std, device=device)))[:, None, None]
        self.shift = (-torch.tensor(mean, device=device) / torch.tensor(std, device=device))[:, None, None]

    def look(self, index: NDArray[np.int64], crops: Tensor | None = None) -> Tensor:
        """Normalised float32 `[B, 3, S, S]` (channels last) of the pictures at `index`, through `crops` `[B, 4]`."""
        raw = torch.from_numpy(np.ascontiguousarray(self.pixels[index])).to(self.device).permute(0, 3, 1, 2).float()
        images = raw if crops is None else _crop(raw, crops.to(self.device))
        return torch.addcmul(self.shift, images, self.scale).contiguous(memory_format=torch.channels_last)


def _crop(images: Tensor, crops: Tensor) -> Tensor:
    theta = torch.zeros(len(crops), 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = crops[:, 0], crops[:, 1], crops[:, 2:]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
