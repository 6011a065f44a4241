"""Preprocessing skew: what the student's codes lose when an app makes its input in another way than the rule's."""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from export.golden_photos import FACTOR
from export.icc_profile import DISPLAY_P3, rgb_profile
from gallery.codes import pack
from gallery.cores import map_ahead
from gallery.decode import to_square
from gallery.resampling import square_without_antialiasing, without_antialiasing
from gallery.skew_results import PreprocessingSkew, SkewRow
from mobile_eval.compare import FloatReference, Logits, Pixels, compare_to_float

BILINEAR, QUALITY = Image.Resampling.BILINEAR, 75
MOST, SAMPLE = 200, 16  # queries
PIXELS = 200e6  # of all photos together: a photo of 12 million takes 0.5 s on 2 cores, the squares of all pipelines
Photo = Image.Image
Indices = NDArray[np.int64]


class Pipeline(NamedTuple):
    """A way from an upright RGB photo to a square uint8 `[size, size, 3]`; found_in: what does so, or nearly."""

    found_in: str
    make: Callable[[Photo, int], Pixels]
    allowed: bool = False


def _reduced(photo: Photo, size: int) -> Pixels:
    scale = FACTOR * size / min(photo.size)
    if scale < 1:
        width, height = (int(np.ceil(side * scale)) for side in photo.size)
        photo = photo.resize((width, height), Image.Resampling.BICUBIC)
    return to_square(photo, size)


def _jpeg(photo: Photo, size: int) -> Pixels:
    photo.save(data := BytesIO(), "JPEG", quality=QUALITY)
    return to_square(Image.open(data), size)


@lru_cache(1)
def _to_display_p3() -> ImageCms.ImageCmsTransform:
    target = ImageCms.ImageCmsProfile(BytesIO(rgb_profile("Display P3", DISPLAY_P3)))
    return ImageCms.buildTransform(ImageCms.createProfile("sRGB"), target, "RGB", "RGB")


def _filtered(resample: Image.Resampling) -> Callable[[Photo, int], Pixels]:
    return lambda photo, size: to_square(photo, size, resample)


PIPELINES = {
    "bilinear without antialiasing": Pipeline(
        "Android's createScaledBitmap, a canvas's drawImage, OpenCV's INTER_LINEAR", square_without_antialiasing
    ),
    "nearest neighbor": Pipeline("OpenCV's INTER_NEAREST, pixelated canvases", _filtered(Image.Resampling.NEAREST)),
    "box filter": Pipeline("Android's inSampleSize", _filtered(Image.Resampling.BOX)),
    "bicubic": Pipeline("a browser's high quality", _filtered(Image.Resampling.BICUBIC)),
    "Lanczos": Pipeline("vImage and Core Image on iOS", _filtered(Image.Resampling.LANCZOS)),
    "stretched instead of cropped": Pipeline(
        "Vision's scaleFill", lambda photo, size: np.array(photo.resize((size, size), BILINEAR))
    ),
    "stretched, without antialiasing": Pipeline(
        "MediaPipe's ImageEmbedder", lambda photo, size: without_antialiasing(photo, (size, size))
    ),
    f"JPEG of quality {QUALITY}": Pipeline("a photo that was sent or stored again", _jpeg),
    "Display P3 read as sRGB": Pipeline(
        "an iPhone's photo without its color profile",
        lambda photo, size: to_square(_to_display_p3().apply(photo), size),
    ),
    "EXIF orientation ignored": Pipeline(
        "Android's BitmapFactory, UIImage.cgImage on iOS",
        lambda photo, size: to_square(photo.transpose(Image.Transpose.ROTATE_90), size),
    ),
    "red and blue swapped": Pipeline(
        "OpenCV's imread, a BGRA pixel buffer", lambda photo, size: to_square(photo, size)[..., ::-1]
    ),
    f"decoded to {FACTOR} times the input": Pipeline("the bundle's app code", _reduced, allowed=True),
}


def subset_for_skew(
    reference: FloatReference, photos: Callable[[Indices], Iterable[Photo]], size: int, most: int = MOST
) -> tuple[FloatReference, float]:
    """Return queries to measure, at most `most` of `PIXELS` in all, but `SAMPLE`, and their reduction to `size`.

    photos: a function of places among the queries to their upright RGB photos
    """
    some = reference.subset(SAMPLE)
    shapes = [photo.size for photo in photos(some.indices)]
    pixels = float(np.median([width * height for width, height in shapes]))
    return reference.subset(max(SAMPLE, min(most, int(PIXELS / pixels)))), float(np.median([*map(min, shapes)])) / size


def skewed_squares(photos: Iterable[Photo], size: int) -> dict[str, Pixels]:
    """Return what each pipeline makes of upright RGB photos, uint8 `[n, size, size, 3]`; a thread a core."""

    def squares(photo: Photo) -> list[Pixels]:
        return [pipeline.make(photo, size) for pipeline in PIPELINES.values()]

    return {
        name: np.stack(made)
        for name, made in zip(PIPELINES, zip(*map_ahead(squares, photos), strict=True), strict=True)
    }


def measure_skew(logits: Mapping[str, Logits], reference: FloatReference, reduction: float) -> PreprocessingSkew:
    """Compare the float student's logits by each pipeline, `[queries, bits]`, with those by the rule, `reference`.

    reference: with a gallery
    """
    return PreprocessingSkew(
        queries=len(reference.logits), reduction=reduction,
        rows=tuple(_row(name, own, reference) for name, own in logits.items()),
    )  # fmt: skip


def _row(name: str, logits: Logits, reference: FloatReference) -> SkewRow:
    codes = pack(logits)
    found = compare_to_float(codes, logits, reference)
    if reference.precision and (own := reference.score(codes)):
        error = (reference.precision.per_query - own.per_query).std() / np.sqrt(len(logits))
        found["map_drop_error"] = float(error)
    measured = {key: value for key, value in found.items() if key in SkewRow.model_fields}
    return SkewRow(pipeline=name, found_in=PIPELINES[name].found_in, allowed=PIPELINES[name].allowed, **measured)
