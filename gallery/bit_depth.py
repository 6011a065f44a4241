"""Images of 16 bits a channel: which range their values have, and how it becomes 8 bits."""

import os
import sys
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WHITE = 65_535  # of 16 bits
BITS_PER_SAMPLE, ORIENTATION, MAX_SAMPLE_VALUE = 258, 274, 281  # tags of TIFF
MAX_CHUNKS = 4096  # of a PNG, searched for its number of bits
OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}  # of the two bytes of a value


def is_16_bit(image: Image.Image) -> bool:
    """Return whether the file has 16 bits a channel; asked before it is read."""
    forms = [str(tile[3]) for tile in getattr(image, "tile", ())]
    return image.mode.startswith("I") or any(";16" in form or str(WHITE) in form for form in forms)


def is_in_color(image: Image.Image) -> bool:
    """Return whether Pillow can read both bytes of the file's channels, one after the other (`scaled_color`)."""
    forms = [tile[3][0] if isinstance(tile[3], tuple) else tile[3] for tile in getattr(image, "tile", ())]
    return bool(forms) and all(str(form).startswith(("RGB;16", "RGBA;16")) for form in forms)


def stated_white(image: Image.Image) -> int:
    """Return the largest value that an image of 16 bits a channel may have: what its file states, else 65535."""
    tags, bits = getattr(image, "tag_v2", {}), 16
    if not is_16_bit(image):
        return WHITE
    if image.format == "PNG":
        bits = _png_bits(image.fp)  # type: ignore[attr-defined]  # of an ImageFile, which it is
    elif isinstance(largest := tags.get(MAX_SAMPLE_VALUE), tuple | int):
        values = largest if isinstance(largest, tuple) else (largest,)
        bits = max((value.bit_length() for value in values if isinstance(value, int)), default=bits)
    bits = min([bits, *tags.get(BITS_PER_SAMPLE, ())])
    return (1 << min(16, max(8, bits))) - 1


def _png_bits(stream: IO[bytes]) -> int:
    """Return the significant bits of a PNG's first channel by its sBIT chunk; 16 without one."""
    start = stream.tell()
    stream.seek(len(b"\x89PNG\r\n\x1a\n"))
    try:
        for _ in range(MAX_CHUNKS):
            head = stream.read(8)
            if head[4:] == b"sBIT":
                return (stream.read(1) or b"\x10")[0]
            if head[4:] in (b"", b"IDAT"):
                break
            stream.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    finally:
        stream.seek(start)
    return 16


def largest_value(image: Image.Image) -> int:
    """Return the largest value of a 16-bit image's channels; of one in colour, of which 8 bits are left, a bound."""
    if image.mode.startswith("I"):
        return int(np.asarray(image).max())
    if image.mode not in ("RGB", "RGBA", "RGBa", "L", "LA"):
        return 0
    largest = np.array(image.getextrema()).reshape(-1, 2)[: 3 if image.mode.startswith("RGB") else 1, 1].max()
    return int(largest) << 8 | 255


def to_8_bit(values: NDArray[Any], white: int) -> NDArray[np.uint8]:
    """Return values of 0..white as 0..255, rounded; raises `IndexError` for others."""
    return ((np.arange(white + 1) * 255 + white // 2) // white).astype(np.uint8)[values]


def scaled_color(image: Image.Image, white: int) -> Image.Image:
    """Return an image of 16 bits a channel, not yet read, as 8 bits, scaled from `white` unless values are above it.

    Pillow reads the upper bytes; with the other byte order it reads the lower ones.
    """
    stream: IO[bytes] = image.fp  # type: ignore[attr-defined]
    start, lower = stream.tell(), Image.open(stream, formats=(image.format or "",))
    lower.tile = [tile._replace(args=_swapped(tile.args)) for tile in lower.tile]
    low = np.asarray(lower)[..., :3].astype(np.uint16)
    stream.seek(start)
    upper = np.asarray(image)
    values = low | upper[..., :3].astype(np.uint16) << 8
    channels = to_8_bit(values, white) if values.max() <= white else upper[..., :3]
    scaled = Image.fromarray(np.concatenate([channels, upper[..., 3:]], axis=2))
    scaled.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
    return scaled


def _swapped(args: Any) -> Any:
    """Return a decoder's arguments with the other byte order."""
    if isinstance(args, tuple):
        return (_swapped(args[0]), *args[1:])
    mode, _, order = str(args).rpartition(";16")
    return f"{mode};16{OTHER_ORDER.get(order, order)}"
