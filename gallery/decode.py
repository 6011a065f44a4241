"""From an image file to upright RGB, and from that to a network's square input."""

import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from gallery.bit_depth import WHITE, is_16_bit, is_in_color, largest_value, scaled_color, stated_white, to_8_bit
from gallery.console import plain
from gallery.errors import InputError
from gallery.icc import to_srgb

with suppress(ImportError):  # an extra
    import pillow_heif

    pillow_heif.register_heif_opener()

SUBFILE_TYPE, PHOTOMETRIC = 254, 262  # tags of TIFF
# Pillow would open many more; an EPS, for one, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", *({"HEIF"} & Image.OPEN.keys()))
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
MAX_PIXELS = 89_478_485  # of an image read in full: a quarter of a GiB of RGB; larger ones are halved
LARGEST_PIXELS = 16_384 * 12_288  # the sensors of phones end here
MAX_ASPECT = 50  # a strip of 50:1, its shorter side resized to 224 px, takes 7 MB
MAX_BYTES = 1 << 30
ROWS = 1024  # of a large image, converted at once
LARGE = threading.Lock()  # a large image takes up to 2 GB (HEIC: 4) while it is read: one at a time

Image.MAX_IMAGE_PIXELS = LARGEST_PIXELS  # Pillow refuses twice as many, in some formats before anything is allocated
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 64 MiB: prompts and edit histories exceed 1 MiB


def decode(source: Path | bytes) -> Image.Image:
    """Return the image in a file, or in its bytes, as upright RGB; raises `InputError` with the reason if it cannot.

    The colors are sRGB: an embedded ICC profile is applied, and passed over where it is of sRGB or cannot be applied
    (`gallery.icc`; a 12-megapixel photo in Display P3 takes 0.2 s more); PNG's gAMA, cHRM and cICP are passed over.
    EXIF orientation is applied; of an animation the first frame counts; transparency is laid on white, after the
    colors are converted; 16 bits are scaled from 0..65535, or from the range that the file states, not clipped, before.
    JPEGs are decoded in full, though `gallery.codespace.RULE` lets others decode them reduced: the decoder's `draft`
    mode would be faster (12 Mpx to a square: 30 ms for 110), but would make an image's pixels at one size depend on the
    other sizes asked for.  Images of more than `MAX_PIXELS` are halved while they are read.

    `info["bits"]` of the result, where the file has 16 bits a channel and states no fewer: those of the largest value.
    """
    with _opened(source) as image, LARGE if image.width * image.height > MAX_PIXELS else nullcontext():
        return _upright_rgb(image)


def shorter_side(path: Path) -> int:
    """Return the shorter side in pixels, from the header alone; raises `InputError` like `decode`."""
    with _opened(path) as image:
        return min(image.size)


def to_square(
    image: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.BILINEAR
) -> NDArray[np.uint8]:
    """Return uint8 `[size, size, 3]`: shorter side to size (bilinear, antialiased), centre crop.

    The arithmetic is that of torchvision's `Resize` and `CenterCrop`, so that others who follow the rule agree.
    resample: another filter breaks the rule
    """
    shape, box = resized_shape(image.size, size)
    return np.array(image.resize(shape, resample).crop(box).convert("RGB"))


def resized_shape(shape: tuple[int, int], size: int) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Return the width and height to which the rule resizes an image of `shape`, and the box that it crops of that."""
    width, height = shape
    if width <= height:
        width, height = size, int(size * height / width)
    else:
        width, height = int(size * width / height), size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return (width, height), (left, top, left + size, top + size)


def thumbnail(image: Image.Image, size: int) -> bytes:
    """Return an RGB image as JPEG; one whose longer side is more than `size` pixels is made smaller, in place."""
    image.thumbnail((size, size))
    image.save(data := BytesIO(), "JPEG", quality=80, optimize=True)
    return data.getvalue()


@contextmanager
def _opened(source: Path | bytes) -> Iterator[Image.Image]:
    place = f"{len(source):,} bytes" if isinstance(source, bytes) else source
    try:
        with _stream(source) as stream:
            head = stream.read(64)
            if head[4:8] == b"ftyp" and head[8:12] in HEIC and b"avif" not in head and "HEIF" not in FORMATS:
                raise ValueError("a HEIC image, which needs: pip install pillow-heif (or convert it to JPEG)")
            image = Image.open(stream, formats=FORMATS)
            width, height = image.size
            if head[8:10] == b"CR" or getattr(image, "tag_v2", {}).get(SUBFILE_TYPE, 0) & 1:
                raise ValueError("a camera's raw file, of which only the preview can be read: convert it to JPEG")
            if width * height > LARGEST_PIXELS:
                most = f"more than {LARGEST_PIXELS:,}: possibly a decompression bomb"
                raise ValueError(f"{width} x {height} pixels, {most}")
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise ValueError(f"{width} x {height} pixels, a strip longer than {MAX_ASPECT}:1")
            yield image
    except Exception as error:  # Pillow's decoders raise a dozen types on hostile bytes; the reason is kept
        raise InputError(f"an image in {place}", _reason(error), "Replace or remove the file.") from error


def _stream(source: Path | bytes) -> IO[bytes]:
    if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):  # to open a FIFO is to wait for its writer
        raise ValueError("not a regular file")
    size = source.stat().st_size if isinstance(source, Path) else len(source)
    if not 0 < size <= MAX_BYTES:
        raise ValueError(f"a file of more than {MAX_BYTES >> 20} MiB" if size else "an empty file")
    return source.open("rb") if isinstance(source, Path) else BytesIO(source)


def _upright_rgb(image: Image.Image) -> Image.Image:
    deep, white, profile = is_16_bit(image), stated_white(image), image.info.get("icc_profile") or b""
    if image.width * image.height > MAX_PIXELS:
        image.draft(None, (image.width // 2, image.height // 2))  # in JPEGs alone; halves them in the decoder
    elif white < WHITE and is_in_color(image):
        image, deep = scaled_color(image, white), False
    image.load()
    with suppress(SyntaxError):  # of damaged EXIF data, which cost an orientation, not the image
        ImageOps.exif_transpose(image, in_place=True)
    top = largest_value(image) if deep else 0
    if top > white or not image.mode.startswith("I"):
        white = WHITE  # what is stated does not hold, or cannot be made use of
    inverted = deep and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0  # 0 is white, which Pillow passes over here
    profile = b"" if inverted else profile
    large = image.width * image.height > MAX_PIXELS
    rgb = _halved(image, white, profile) if large else _to_rgb(image, white, profile)
    rgb = ImageOps.invert(rgb) if inverted else rgb
    rgb.info = {"bits": top.bit_length()} if top and white == WHITE else {}
    return rgb


def _halved(image: Image.Image, white: int, profile: bytes) -> Image.Image:
    """Return a large image as RGB of half its sides, in strips: none of the steps takes the whole in memory."""
    half = Image.new("RGB", ((image.width + 1) // 2, (image.height + 1) // 2))
    for top in range(0, image.height, ROWS):
        strip = image.crop((0, top, image.width, min(top + ROWS, image.height)))
        half.paste(_to_rgb(strip, white, profile).reduce(2), (0, top // 2))
    return half


def _to_rgb(image: Image.Image, white: int = WHITE, profile: bytes = b"") -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is unknown")
    if image.mode.startswith("I"):
        values = np.asarray(image)  # "I;16..." as uint16; "I" as int32, in which Pillow holds a 16-bit PGM
        if values.min() < 0 or values.max() > WHITE:
            raise ValueError("32-bit pixels, whose range is unknown")
        image = Image.fromarray(to_8_bit(values, white))
    if profile:
        image = to_srgb(image, profile)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")  # Pillow has already undone the inverted CMYK of JPEGs


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"not an image in a format read here ({', '.join(FORMATS)})"
    if isinstance(error, MemoryError):
        return "more pixels than there is memory for"
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return plain(text)[:200]
