"""Squares as apps make them that do not follow the rule: by another resize, from another JPEG, blurred or sharpened.

The student may be trained on such views (`--student-train.app-augment`), so that its codes change less in these apps.
They are made where the images are decoded, of the image in full size: what a resize without antialiasing makes of fine
detail cannot be computed from a square that has lost it.  Where the image is no larger than the square they are what
apps make of small images: enlarged by that filter.  Mistakes with geometry or colors (stretched squares, EXIF
orientation or color profile ignored, BGR) are left out: they are to be mended, not learned.
"""

from collections.abc import Callable
from functools import partial
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from gallery.decode import to_square
from gallery.resampling import square_without_antialiasing

APPS = 2  # of each image, by different filters; each takes as much disk space as the squares by the rule
RECIPE = 1  # to be raised with every change of what is made: it is in the name of the stored file
FACTOR = 4  # times the square's side: what antialiased filters and JPEGs see of a larger image, reduced by averaging
JPEG_SHARE, QUALITIES, JPEG_SIDE = 0.5, (40, 95), 65_500  # the longest side that libjpeg takes, pixels
SHARPNESS_SHARE, SHARPNESS = 1 / 3, (0.0, 2.0)  # Pillow's factor: 0 is smoothed by 3 x 3 pixels, 1 unchanged
Pixels = NDArray[np.uint8]
Kernel = Callable[[Image.Image, int], Pixels]

ALIASING: dict[str, Kernel] = {
    "bilinear without antialiasing": square_without_antialiasing,
    "nearest neighbor": partial(to_square, resample=Image.Resampling.NEAREST),
}
KERNELS: dict[str, Kernel] = {
    **ALIASING,
    "box filter": partial(to_square, resample=Image.Resampling.BOX),
    "bilinear": to_square,  # that of the rule: what follows it may be another
    "bicubic": partial(to_square, resample=Image.Resampling.BICUBIC),
    "Lanczos": partial(to_square, resample=Image.Resampling.LANCZOS),
}


def app_squares(photo: Image.Image, size: int, digest: str) -> Pixels:
    """Return what `APPS` apps make of an upright RGB image, uint8 `[APPS, size, size, 3]`.

    digest: hexadecimal, of the file: it alone decides which apps, so that runs of every seed share the stored squares
    """
    random = np.random.default_rng((RECIPE, int(digest, 16)))
    names = random.permutation(list(KERNELS))[:APPS]
    return np.stack([_app_square(photo, size, str(name), random) for name in names])


def _app_square(photo: Image.Image, size: int, kernel: str, random: np.random.Generator) -> Pixels:
    saved, sharpened = random.random(2) < (JPEG_SHARE, SHARPNESS_SHARE)
    quality, sharpness = int(random.integers(*QUALITIES, endpoint=True)), random.uniform(*SHARPNESS)
    if saved or kernel not in ALIASING:
        photo = photo.reduce(max(1, min(photo.size) // (FACTOR * size)))
    if saved and max(photo.size) <= JPEG_SIDE:
        photo = through_jpeg(photo, quality)
    square = KERNELS[kernel](photo, size)
    return np.asarray(ImageEnhance.Sharpness(Image.fromarray(square)).enhance(sharpness)) if sharpened else square


def through_jpeg(photo: Image.Image, quality: int) -> Image.Image:
    """Return an image as it is after being saved as JPEG, with a quarter of the color's resolution (4:2:0)."""
    photo.save(data := BytesIO(), "JPEG", quality=quality, subsampling="4:2:0")
    return Image.open(data, formats=["JPEG"])
