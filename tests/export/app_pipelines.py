"""Ways from an image file to the model's square that apps have: each but the rule's is wrong.

They are the real things where an index has them: OpenCV, and Skia, which is what Android's Bitmap scales by.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from gallery.decode import decode, to_square

Square = NDArray[np.uint8]
Resize = Callable[[NDArray[np.uint8], int, int], NDArray[np.uint8]]  # pixels, width, height
Pipeline = Callable[[bytes, int], Square]


def resized_by(resize: Resize) -> Pipeline:
    """Right but for the filter: the shorter side becomes `size`, then the centre is cropped."""

    def pipeline(data: bytes, size: int) -> Square:
        pixels = np.asarray(decode(data))
        height, width = pixels.shape[:2]
        scale = size / min(width, height)
        wide, high = max(size, int(width * scale)), max(size, int(height * scale))
        left, top = round((wide - size) / 2), round((high - size) / 2)
        return np.ascontiguousarray(resize(pixels, wide, high)[top : top + size, left : left + size])

    return pipeline


def pillow(filter: Image.Resampling) -> Resize:
    return lambda pixels, width, height: np.asarray(Image.fromarray(pixels).resize((width, height), filter))


def opencv(name: str) -> Resize:
    import cv2

    return lambda pixels, width, height: cv2.resize(pixels, (width, height), interpolation=getattr(cv2, name))


def skia_linear() -> Resize:
    """`Bitmap.createScaledBitmap(bitmap, width, height, true)`: four neighbours, however small the image gets."""
    import skia

    def resize(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
        rgba = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
        image = skia.Image.fromarray(rgba, skia.ColorType.kRGBA_8888_ColorType)
        made = image.resize(width, height, skia.SamplingOptions(skia.FilterMode.kLinear))
        return np.asarray(made.toarray(colorType=skia.ColorType.kRGBA_8888_ColorType))[..., :3]

    return resize


def sampled_then_scaled() -> Resize:
    """`inSampleSize`, as its documentation computes it (halved while it stays larger), then `createScaledBitmap`."""
    scaled = skia_linear()

    def resize(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
        image = Image.fromarray(pixels)
        while image.width >= 2 * width and image.height >= 2 * height:
            image = image.reduce(2)
        return scaled(np.asarray(image), width, height)

    return resize


def stretched(data: bytes, size: int) -> Square:
    return np.asarray(decode(data).resize((size, size), Image.Resampling.BILINEAR))


def unrotated(data: bytes, size: int) -> Square:
    image = decode(data)
    with Image.open(BytesIO(data)) as raw:
        turned = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}.get(raw.getexif().get(0x0112, 1))
    return to_square(image.transpose(turned) if turned else image, size)


def without_profile(data: bytes, size: int) -> Square:
    with Image.open(BytesIO(data)) as raw:
        if not raw.info.get("icc_profile"):
            return to_square(decode(data), size)
        return to_square(ImageOps.exif_transpose(raw).convert("RGB"), size)


def without_alpha(data: bytes, size: int) -> Square:
    with Image.open(BytesIO(data)) as raw:
        return to_square(raw.convert("RGB") if raw.mode == "RGBA" else decode(data), size)


def bgr(data: bytes, size: int) -> Square:
    return np.ascontiguousarray(to_square(decode(data), size)[..., ::-1])


def right(data: bytes, size: int) -> Square:
    return to_square(decode(data), size)


def reduced(data: bytes, size: int) -> Square:
    """What the rule allows: halves, of no less than 4 x size on the shorter side, then the exact resize."""
    image = decode(data)
    while min(image.size) >= 8 * size:
        image = image.reduce(2)
    return to_square(image, size)


FILTERS = {  # eleven, with `sampled_then_scaled` and `stretched`
    "Pillow bicubic": lambda: pillow(Image.Resampling.BICUBIC),
    "Pillow Lanczos": lambda: pillow(Image.Resampling.LANCZOS),
    "Pillow box": lambda: pillow(Image.Resampling.BOX), "Pillow nearest": lambda: pillow(Image.Resampling.NEAREST),
    "OpenCV INTER_LINEAR": lambda: opencv("INTER_LINEAR"), "OpenCV INTER_AREA": lambda: opencv("INTER_AREA"),
    "OpenCV INTER_CUBIC": lambda: opencv("INTER_CUBIC"), "OpenCV INTER_NEAREST": lambda: opencv("INTER_NEAREST"),
    "createScaledBitmap": skia_linear, "inSampleSize and createScaledBitmap": sampled_then_scaled,
}  # fmt: skip
OTHERS: dict[str, Pipeline] = {
    "stretched": stretched, "EXIF ignored": unrotated, "Display P3 read as sRGB": without_profile,
    "alpha dropped": without_alpha, "BGR": bgr,
}  # fmt: skip
WRONG = (*FILTERS, *OTHERS)


def pipeline_of(name: str) -> Pipeline:
    """Return a wrong pipeline; raises `ImportError` without the library that it is of."""
    return OTHERS[name] if name in OTHERS else resized_by(FILTERS[name]())
