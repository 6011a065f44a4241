"""Golden photographs: drawn images, larger than the input and of many kinds, that show a wrong way into the model.

What a filter does differently lies between one and a few pixels of the input: stripes, rings, strokes and texture of
these sizes fill the images.  Nothing in them is anyone's photograph.
"""

from collections.abc import Iterator
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from export.icc_profile import DISPLAY_P3, rgb_profile

FACTOR, LARGEST = 4, 2048  # times the input's side is the shorter one, as rule 2 lets decoders reduce; at most, pixels
MAX_BYTES = 2 << 20  # of all; the quality is lowered until they fit
LOSSLESS, SMOOTH = ("alpha.png",), ("alpha.png", "cmyk.jpg")  # noise costs bytes
QUALITIES = 85, 70, 50, 30
ORIENTATION = 0x0112  # tag of EXIF
STORED = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}  # how a camera held that way writes
SIDES = {  # width and height, in shorter sides
    "detail.jpg": (1.5, 1), "exif-6.jpg": (1, 1.5), "exif-3.jpg": (1.25, 1), "grey.jpg": (1, 1.3), "cmyk.jpg": (1.3, 1),
    "alpha.png": (1.2, 1), "display-p3.jpg": (1.5, 1), "panorama.jpg": (2, 1),
}  # fmt: skip
WIDE_GAMUT = "exif-6", "display-p3", "panorama"  # as phones write
Pixels = NDArray[np.float32]


def draw_photos(size: int) -> dict[str, bytes]:
    """Return image files by name, the same for the same input side `size`, of at most `MAX_BYTES` or lowest quality.

    Sides are at least `FACTOR` times `size` (of inputs above 512 pixels: fewer times) and differ.
    """
    side = max(size, min(FACTOR * size, LARGEST))
    images = {
        name: _scene(number, round(width * side), round(height * side), side / size, noise=name not in SMOOTH)
        for number, (name, (width, height)) in enumerate(SIDES.items())
    }
    files = {name: _file(name, image.copy()) for name, image in images.items() if name in LOSSLESS}
    for quality in QUALITIES:
        files = {
            name: files[name] if name in LOSSLESS else _file(name, image, quality) for name, image in images.items()
        }
        if sum(map(len, files.values())) <= MAX_BYTES:
            break
    return files


def _file(name: str, image: Image.Image, quality: int = 0) -> bytes:
    """Encode one image as its name says."""
    kind, _, suffix = name.partition(".")
    options: dict[str, object] = {"quality": quality} if suffix == "jpg" else {}
    if kind in WIDE_GAMUT:
        options["icc_profile"] = rgb_profile("Display P3", DISPLAY_P3)
    if kind.startswith("exif"):
        exif, number = Image.Exif(), int(kind[-1])
        exif[ORIENTATION] = number
        image, options["exif"] = image.transpose(STORED[number]), exif
    elif kind == "grey":
        image = image.convert("L")
    elif kind == "cmyk":
        image, options["quality"] = _inks(image), quality - 20  # four channels in full
    elif kind == "alpha":
        image.putalpha(_fading(image.size))
    elif kind == "detail":
        options["subsampling"] = 0
    elif kind == "panorama":
        options["progressive"] = True
    image.save(stream := BytesIO(), {"jpg": "JPEG", "png": "PNG"}[suffix], **options)
    return stream.getvalue()


def _scene(number: int, width: int, height: int, unit: float, noise: bool) -> Image.Image:
    """Draw a scene; `unit`: image pixels that become one pixel of the input."""
    rng = np.random.default_rng([number, width, height])
    rows, columns = (np.mgrid[:height, :width] / unit).astype(np.float32)
    canvas = _blend(rng.uniform(0, 255, (2, 3)), (columns / width + rows / height) * unit / 2)
    for place in range(14):
        top, left = rng.uniform(-0.1, 0.8, 2) * (height, width)
        reach = rng.uniform(0.3, 0.6) * min(width, height)
        box = slice(max(0, int(top)), int(top + reach)), slice(max(0, int(left)), int(left + reach))
        y, x = rows[box], columns[box]
        if not y.size:
            continue
        texture = _blend(rng.uniform(0, 255, (2, 3)), _texture(rng, place, x, y))
        if place % 2:
            canvas[box] = texture
        else:
            inside = np.hypot(x - x.mean(), y - y.mean()) < reach / unit / 2
            canvas[box][inside] = texture[inside]
    if noise:
        canvas += rng.normal(0, 3, (height, width, 1)).astype(np.float32)
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for points, color, thickness in _strokes(rng, width, height, unit):
        draw.line(points, color, thickness)
    return image


def _texture(rng: np.random.Generator, place: int, x: Pixels, y: Pixels) -> Pixels:
    """Return shares 0..1 of the second color: stripes, rings that become finer, checks, blocks, or an edge."""
    period, angle = rng.uniform(0.6, 4), rng.uniform(0, np.pi)
    across = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    if place % 5 == 0:
        distance = np.square(x - x.mean()) + np.square(y - y.mean())
        return np.cos(distance * np.float32(np.pi / (2 * period * max(1.0, float(np.ptp(x)))))) / 2 + 0.5
    if place % 5 == 1:
        return (across / np.float32(period) % 1 < 0.5).astype(np.float32)
    if place % 5 == 2:
        return ((x // period + y // period) % 2).astype(np.float32)
    if place % 5 == 3:
        blocks = rng.uniform(0, 1, (64, 64)).astype(np.float32)
        return blocks[(y // 1.3).astype(int) % 64, (x // 1.3).astype(int) % 64]
    return (across > np.median(across)).astype(np.float32)


def _blend(colors: NDArray[np.float64], share: Pixels) -> Pixels:
    """Mix two colors `[2, 3]`: the second by its share."""
    mixed: Pixels = (colors[0] + (colors[1] - colors[0]) * share[..., None]).astype(np.float32)
    return mixed


def _strokes(
    rng: np.random.Generator, width: int, height: int, unit: float
) -> Iterator[tuple[list[tuple[float, float]], tuple[int, ...], int]]:
    """Yield lines of strokes as in writing, as thin as half a pixel of the input: points, color, thickness."""
    for _ in range(9):
        at, color = rng.uniform(0, 0.8, 2) * (width, height), tuple(map(int, rng.integers(0, 256, 3)))
        step, thickness = rng.uniform(2, 5) * unit, max(1, round(rng.uniform(0.4, 1.2) * unit))
        for letter in range(int(rng.integers(8, 20))):
            points = at + (letter * step, 0) + rng.uniform(0, step, (4, 2)) * (0.8, 1.5)
            yield [(float(x), float(y)) for x, y in points], color, thickness


def _inks(image: Image.Image) -> Image.Image:
    """Return an image as CMYK, half of what is dark in it by black ink."""
    light = np.asarray(image).astype(np.float32)
    black = (255 - light.max(axis=2, keepdims=True)) / 2
    inks = 255 - 255 * light / np.maximum(255 - black, 1)
    return Image.fromarray(np.concatenate([inks, black], axis=2).round().astype(np.uint8), "CMYK")


def _fading(size: tuple[int, int]) -> Image.Image:
    """Return an alpha channel: opaque in the middle, clear in the corners, with a grid of half of it."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(2 * x / width - 1, 2 * y / height - 1)
    alpha = 255 * (1.5 - 1.2 * distance).clip(0, 1)
    alpha[(x // 16 + y // 16) % 5 == 0] /= 2
    return Image.fromarray((alpha // 5 * 5).astype(np.uint8))
