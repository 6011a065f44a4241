"""Augmentation with stored crop parameters: teacher and student see the same pixels, each at its own resolution."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from distill.data.app_pixels import APPS

MAX_ASPECT_RATIO = 4 / 3  # of a crop's sides


def random_resized_crops(count: int, min_scale: float, generator: torch.Generator) -> Tensor:
    """Sample crops `[count, 4]` float32: half width, half height, center x, center y in [-1, 1].

    The crop's area is uniform in [min_scale, 1] of the image, its aspect ratio log-uniform in [3/4, 4/3]; a negative
    half width flips the image horizontally.
    """
    random = torch.rand(count, 5, generator=generator)
    side = (min_scale + (1 - min_scale) * random[:, 0]).sqrt()
    stretch = MAX_ASPECT_RATIO ** ((random[:, 1] - 0.5) * (1.0 if min_scale < 1 else 0.0))
    half = torch.stack([side * stretch, side / stretch], 1).clamp(max=1.0)
    center = (2 * random[:, 2:4] - 1) * (1 - half)
    flip = torch.where(random[:, 4:] < 0.5, -1.0, 1.0)
    return torch.cat([half[:, :1] * flip, half[:, 1:], center], 1)


def fixed_crops(count: int, views: int, min_scale: float, seed: int) -> Tensor:
    """Return crops `[views, count, 4]`; view 0 is the whole image, whose teacher output is the gallery's own code."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(1, count, 4)
    return torch.cat([whole, *(random_resized_crops(count, min_scale, generator)[None] for _ in range(views - 1))])


def sample_apps(count: int, share: float, generator: torch.Generator) -> Tensor:
    """Sample by which of the stored apps each of `count` views is made: int64, -1 (by the rule) for `1 - share`."""
    random = torch.rand(count, generator=generator)
    return torch.randint(APPS, (count,), generator=generator).where(random < share, -1)


def color_jitter(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Scale each channel of each normalized image `[B, 3, S, S]` by 1 +- strength and shift it by +- strength."""
    random = (2 * torch.rand(2, len(images), 3, 1, 1, generator=generator) - 1).to(images.device)
    return images * (1 + strength * random[0]) + strength * random[1]


class ImageLoader:
    """Turns uint8 images into a network's input: gather, crop, normalize, on the device.

    pixels: uint8 `[N, S, S, 3]`, memory-mapped; mean, std: on pixels scaled to 0..1
    app_pixels: the same images as apps make them, uint8 `[N, APPS, S, S, 3]`, where `load` is asked for some
    """

    def __init__(
        self, pixels: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float], device: torch.device,
        app_pixels: NDArray[np.uint8] | None = None,
    ) -> None:  # fmt: skip
        self.pixels, self.app_pixels, self.device = pixels, app_pixels, device
        self.scale = (1 / (255 * torch.tensor(std, device=device)))[:, None, None]
        self.shift = (-torch.tensor(mean, device=device) / torch.tensor(std, device=device))[:, None, None]

    def load(self, index: NDArray[np.int64], crops: Tensor | None = None, apps: Tensor | None = None) -> Tensor:
        """Return the images at `index`, cropped by `crops` `[B, 4]`: float32 `[B, 3, S, S]`, channels last.

        apps: by which app each is made, int64 `[B]`, -1: by the rule
        """
        pixels = np.ascontiguousarray(self.pixels[index])
        if apps is not None:
            assert self.app_pixels is not None
            shown = np.flatnonzero(apps.numpy() >= 0)
            pixels[shown] = self.app_pixels[index[shown], apps.numpy()[shown]]
        images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float()
        if crops is not None:
            crops = crops.to(self.device)
            theta = torch.zeros(len(crops), 2, 3, device=self.device)
            theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = crops[:, 0], crops[:, 1], crops[:, 2:]
            grid = F.affine_grid(theta, list(images.shape), align_corners=False)
            images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
        return torch.addcmul(self.shift, images, self.scale).contiguous(memory_format=torch.channels_last)
