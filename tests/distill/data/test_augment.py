"""Augmentation: stored crops, and the pixels they select."""

import numpy as np
import pytest
import torch

from distill.data.app_pixels import APPS
from distill.data.augment import ImageLoader, color_jitter, fixed_crops, random_resized_crops, sample_apps


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_crops_stay_inside_the_image_and_have_the_areas_asked_for() -> None:
    crops = random_resized_crops(5000, 0.3, generator())
    half, center = crops[:, :2].abs(), crops[:, 2:]
    assert ((center.abs() + half) <= 1 + 1e-5).all()
    area = half.prod(1)
    assert 0.29 <= area.min() < 0.35
    assert area.max() > 0.95
    assert 0.45 < (crops[:, 0] < 0).float().mean() < 0.55  # mirrored


def test_a_crop_of_all_only_mirrors() -> None:
    crops = random_resized_crops(100, 1.0, generator())
    assert torch.equal(crops[:, :2].abs(), torch.ones(100, 2))
    assert torch.equal(crops[:, 2:], torch.zeros(100, 2))


def test_the_first_stored_view_is_the_whole_image_and_the_seed_decides_the_rest() -> None:
    views = fixed_crops(7, 3, 0.5, seed=4)
    assert views.shape == (3, 7, 4)
    assert torch.equal(views[0], torch.tensor([1.0, 1, 0, 0]).expand(7, 4))
    assert torch.equal(views, fixed_crops(7, 3, 0.5, seed=4))
    assert not torch.equal(views[1], views[2])
    assert not torch.equal(views[1], fixed_crops(7, 3, 0.5, seed=5)[1])


@pytest.fixture
def loader() -> ImageLoader:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    return ImageLoader(pixels, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5), torch.device("cpu"))


def test_normalisation_is_that_of_the_definition(loader: ImageLoader) -> None:
    seen = loader.load(np.array([3, 1]))
    slow = (loader.pixels[[3, 1]].astype(np.float64) / 255 - (0.5, 0.4, 0.3)) / (0.2, 0.25, 0.5)
    assert seen.shape == (2, 3, 8, 8)
    assert np.allclose(seen.numpy().transpose(0, 2, 3, 1), slow, atol=1e-5)


def test_the_whole_view_shows_the_pixels_themselves_and_a_mirror_reverses_them(loader: ImageLoader) -> None:
    index = np.arange(5)
    plain = loader.load(index)
    whole = loader.load(index, torch.tensor([[1.0, 1, 0, 0]]).expand(5, 4))
    mirror = loader.load(index, torch.tensor([[-1.0, 1, 0, 0]]).expand(5, 4))
    assert torch.allclose(whole, plain, atol=1e-4)
    assert torch.allclose(mirror, plain.flip(3), atol=1e-4)


def test_a_quarter_crop_shows_that_quarter(loader: ImageLoader) -> None:
    seen = loader.load(np.array([0]), torch.tensor([[0.5, 0.5, 0.5, -0.5]]))  # right half, upper half
    alone = ImageLoader(loader.pixels[:1, :4, 4:], (0.5, 0.4, 0.3), (0.2, 0.25, 0.5), torch.device("cpu")).load(
        np.array([0])
    )
    big = torch.nn.functional.interpolate(alone, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose(seen[:, :, 1:-1, 1:-1], big[:, :, 1:-1, 1:-1], atol=1e-4)  # its border sees neighbours


def test_the_share_of_views_as_apps_make_them_is_the_one_asked_for() -> None:
    apps = sample_apps(4000, 0.3, generator())
    assert apps.dtype == torch.int64
    assert set(apps.tolist()) == {-1, *range(APPS)}
    assert 0.27 < (apps >= 0).float().mean() < 0.33
    counts = torch.bincount(apps[apps >= 0])
    assert counts.min() > 0.8 * counts.max()
    assert torch.equal(apps, sample_apps(4000, 0.3, generator()))
    assert (sample_apps(50, 0.0, generator()) == -1).all()
    assert (sample_apps(50, 1.0, generator()) >= 0).all()


def test_views_show_the_square_of_their_app_and_are_cropped_alike(loader: ImageLoader) -> None:
    app_pixels = np.random.default_rng(1).integers(0, 256, (5, APPS, 8, 8, 3), np.uint8)
    before, index = loader.pixels.copy(), np.array([3, 1, 3, 0])
    how = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    made = ImageLoader(loader.pixels, *how, loader.device, app_pixels)
    crops, apps = random_resized_crops(4, 0.3, generator()), torch.tensor([-1, APPS - 1, 0, -1])
    for crop in (None, crops):
        seen = made.load(index, crop, apps)
        for row, (image, app) in enumerate(zip(index, apps.tolist(), strict=True)):
            own = loader.pixels[image] if app < 0 else app_pixels[image, app]
            alone = ImageLoader(own[None], *how, loader.device)
            slow = alone.load(np.array([0]), None if crop is None else crop[row : row + 1])
            assert torch.equal(seen[row : row + 1], slow)
    assert torch.equal(made.load(index, crops, torch.full((4,), -1)), loader.load(index, crops))
    assert np.array_equal(loader.pixels, before)


def test_tints_change_each_channel_of_each_image_as_a_whole() -> None:
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    made = color_jitter(images, 0.2, torch.Generator().manual_seed(1))
    for one, other in zip(images.flatten(0, 1), made.flatten(0, 1), strict=True):
        gain = (other.max() - other.min()) / (one.max() - one.min())
        assert 0.8 <= gain <= 1.2
        assert torch.allclose(other - gain * one, (other - gain * one).mean().expand(4, 4), atol=1e-6)
        assert (other - gain * one).abs().max() <= 0.2 + 1e-6
    assert torch.equal(color_jitter(images, 0.0, torch.Generator()), images)
