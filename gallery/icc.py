"""Embedded ICC profiles: what they describe becomes sRGB, as browsers, Android and iOS show an image by default.

Chromium and Android (skcms) and Core Graphics convert to sRGB and clip what lies outside; between profiles of primaries
and curves, which those of cameras and displays are, all rendering intents are the same.  Relative colorimetric is taken
here: by it "sRGB v4 ICC preference", whose perceptual table is another rendering, is sRGB.  (skcms reads the
perceptual table of such a profile.)  Chromium 156 gives the same pixels within 1 of 255 for every kind of profile that
the tests have, grey, of four inks and misplaced ones among them, and passes over the same ones.  It also applies PNG's
gAMA, cHRM and cICP, which are passed over here: what writes them for an image in sRGB writes an sRGB chunk, too.
"""

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE = 4 << 20  # bytes: those of printers have up to 3 MB
GREY = ("1", "L", "LA", "La")
MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}  # of the images that a profile's colour space fits
SAME = 1  # of 255: a profile that moves no color of a grid by more is sRGB, and moves no pixel
KEPT = 16  # transforms: a catalogue has few profiles, and a transform takes 0.1 to 100 ms to build
_STEPS = np.linspace(0, 255, 18).round().astype(np.uint8)
_GRID = {  # colors on which a profile is compared with sRGB: all greys, and 18 steps of each channel
    "L": np.arange(256, dtype=np.uint8)[None],
    "RGB": np.concatenate([
        np.stack(np.meshgrid(_STEPS, _STEPS, _STEPS), axis=-1).reshape(1, -1, 3),
        np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3),
    ], axis=1),
}  # fmt: skip


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Return an image in sRGB: as RGB, or as RGBA where it has transparency; or as it is.

    image: of any mode that becomes RGB; its values are those that `profile` describes
    As it is: where the profile is of sRGB, of another number of channels than the image, larger than `MAX_PROFILE`, or
    damaged.  A grey image may have a profile of RGB.
    """
    mode = MODES.get(profile[16:20]) if isinstance(profile, bytes) else None
    grey, alpha = image.mode in GREY, image.has_transparency_data
    fits = image.mode == "CMYK" if mode == "CMYK" else image.mode != "CMYK" and (grey or mode == "RGB")
    transform = _transform(profile, mode) if mode and fits else None
    if transform is None:
        return image
    image = image.convert("RGBA") if alpha else image
    converted = transform.apply(image if image.mode == mode else image.convert(mode))
    if alpha:
        converted.putalpha(image.getchannel("A"))
    return converted


@lru_cache(KEPT)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Build the transform of pixels of `mode` to sRGB; None where there is none, or nothing to do."""
    if len(profile) > MAX_PROFILE:
        return None
    try:
        source, intent = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.Intent.RELATIVE_COLORIMETRIC
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        transform = ImageCms.ImageCmsTransform(source, target, mode, "RGB", intent)
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):  # of a damaged profile
        return None
    if mode == "CMYK":
        return transform
    grid = Image.fromarray(_GRID[mode])
    moved = np.asarray(transform.apply(grid)).astype(int) - np.asarray(grid.convert("RGB"))
    return transform if np.abs(moved).max() > SAME else None
