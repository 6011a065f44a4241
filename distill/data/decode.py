"""From an image file to upright RGB, and from that to a network's square input."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from gallery.errors import InputError

# Pillow would open many more; an EPS, for one, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
MAX_PIXELS = 89_478_485  # Pillow warns above this (a quarter of a GiB of RGB) and refuses only at twice as many
MAX_ASPECT = 50  # a strip of 50:1, its shorter side resized to 224 px, takes 7 MB
MAX_BYTES = 1 << 30


def decode(path: Path) -> Image.Image:
    """Return the image in `path` as upright RGB; raises `InputError` with the reason when it cannot be read.

    EXIF orientation is applied; of an animation the first frame counts; transparency is laid on white; 16-bit grey
    is scaled from 0..65535, not clipped.  ICC profiles are ignored, as they are in the images that networks are
    pretrained on.  JPEGs are decoded in full: the decoder's `draft` mode would be faster (12 Mpx to a square: 30 ms
    for 110), but would make an image's pixels at one size depend on the other sizes asked for.
    """
    with _opened(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)


def shorter_side(path: Path) -> int:
    """Return the shorter side in pixels, from the header alone; raises `InputError` like `decode`."""
    with _opened(path) as image:
        return min(image.size)


def to_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Return uint8 `[size, size, 3]`: shorter side to size (bilinear, antialiased), centre crop.

    The arithmetic is that of torchvision's `Resize` and `CenterCrop`, so that others who follow the rule agree.
    """
    width, height = image.size
    if width <= height:
        width, height = size, int(size * height / width)
    else:
        width, height = int(size * width / height), size
    left, top = round((width - size) / 2), round((height - size) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(resized.crop((left, top, left + size, top + size)).convert("RGB"))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # before opening: to open a FIFO is to wait for its writer
            raise ValueError("not a regular file")
        if not 0 < status.st_size <= MAX_BYTES:
            raise ValueError(f"a file of more than {MAX_BYTES >> 20} MiB" if status.st_size else "an empty file")
        with path.open("rb") as stream:
            image = Image.open(stream, formats=FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}: possibly a decompression bomb")
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise ValueError(f"{width} x {height} pixels, a strip longer than {MAX_ASPECT}:1")
            yield image
    except Exception as error:  # Pillow's decoders raise a dozen types on hostile bytes; the reason is kept
        raise InputError(f"an image in {path}", _reason(error), "Replace or remove the file.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    if image.mode.startswith("I"):
        values = np.asarray(image)  # "I;16..." as uint16; "I" as int32, in which Pillow holds a 16-bit PGM
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit pixels, whose range is unknown")
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")  # Pillow has already undone the inverted CMYK of JPEGs


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"not an image in a format read here ({', '.join(FORMATS)})"
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return text.encode("utf-8", "backslashreplace").decode()[:200]
