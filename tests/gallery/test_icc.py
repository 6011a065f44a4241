"""Embedded profiles: what they describe becomes sRGB; those of sRGB, and those that cannot be applied, move nothing."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from export.icc_profile import CURVE, DISPLAY_P3, SRGB, rgb_profile
from gallery import decode as decode_module
from gallery import icc
from gallery.decode import decode
from gallery.errors import InputError

P3, WEB = rgb_profile("Display P3", DISPLAY_P3), rgb_profile("sRGB", SRGB)
PIXELS = np.random.default_rng(0).integers(0, 256, (37, 51, 4), np.uint8)


def file_of(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    image.save(stream := io.BytesIO(), format, **options)
    return stream.getvalue()


def moved(image: Image.Image, profile: bytes, format: str = "PNG", **options: object) -> int:
    """The largest difference that a profile makes to the decoded image."""
    bare, described = (decode(file_of(image, format, icc_profile=one, **options)) for one in (None, profile))
    return int(np.abs(np.asarray(bare).astype(int) - np.asarray(described)).max())


def p3_to_srgb(pixels: np.ndarray) -> np.ndarray:
    """By the definitions, in float64: linear light, through XYZ, clipped, and back."""
    x = pixels / 255
    exponent, a, b, c, d = CURVE
    linear = np.where(x >= d, (a * x + b) ** exponent, c * x)
    linear = np.clip(linear @ np.array(DISPLAY_P3) @ np.linalg.inv(np.array(SRGB)), 0, 1)
    return np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear) * 255


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "AVIF"])
def test_display_p3_becomes_srgb(format: str) -> None:
    lossless = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(format, {})
    data = file_of(Image.fromarray(PIXELS[..., :3]), format, icc_profile=P3, **lossless)
    with Image.open(io.BytesIO(data)) as raw:
        expected = p3_to_srgb(np.asarray(raw.convert("RGB")))
    error = np.abs(np.asarray(decode(data)) - expected)
    assert error.max() < 1.1
    assert error.mean() < 0.3


def test_a_jpeg_in_display_p3() -> None:
    image = Image.fromarray(PIXELS[..., :3])
    pixels = np.asarray(decode(file_of(image, "JPEG")))
    found = np.asarray(decode(file_of(image, "JPEG", icc_profile=P3)))
    assert np.abs(found - p3_to_srgb(pixels)).max() < 1.1


def test_heic_in_display_p3() -> None:
    pytest.importorskip("pillow_heif")
    assert moved(Image.fromarray(PIXELS[..., :3]), P3, "HEIF", quality=-1) > 40
    assert moved(Image.fromarray(PIXELS[..., :3]), WEB, "HEIF", quality=-1) == 0


def test_profiles_of_srgb_move_no_pixel() -> None:
    image = Image.fromarray(PIXELS)
    written_by_lcms = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    close = rgb_profile("rounded", np.round(SRGB, 4).tolist())
    for profile in (WEB, written_by_lcms, close):
        for mode in ("RGB", "RGBA", "L", "LA", "P"):
            assert moved(image.convert(mode), profile) == 0
    assert moved(image, rgb_profile("gamma", SRGB, (2.2, 1, 0, 0, 0))) > 1  # of another curve


def test_the_usual_profile_of_srgb_in_real_photos() -> None:
    """Hewlett-Packard's of 1998, the most common: its curve is a table."""
    if not (spec := find_spec("sklearn")) or not spec.origin:
        pytest.skip("scikit-learn, which comes with two photos, is not installed")
    for name in ("china.jpg", "flower.jpg"):
        path = Path(spec.origin).parent / "datasets" / "images" / name
        with Image.open(path) as raw:
            assert b"sRGB IEC61966-2.1" in raw.info["icc_profile"]
            assert np.array_equal(decode(path), raw)


def test_transparency_is_laid_on_white_after_the_conversion() -> None:
    rgba = PIXELS.copy()
    rgba[0] = (200, 0, 0, 0)
    found = np.asarray(decode(file_of(Image.fromarray(rgba), icc_profile=P3)))
    opaque = np.asarray(decode(file_of(Image.fromarray(rgba[..., :3]), icc_profile=P3))).astype(float)
    share = rgba[..., 3:] / 255
    assert np.abs(found - (opaque * share + 255 * (1 - share))).max() <= 1
    assert (found[0] == 255).all()


def grey_profile(gamma: float) -> bytes:
    """A profile of grey with one curve (ICC.1, version 4)."""
    curve = struct.pack(">4s4xHHi", b"para", 0, 0, round(gamma * 65536))
    white = rgb_profile("", SRGB)[68:80]
    tags = {b"wtpt": b"XYZ \0\0\0\0" + white, b"kTRC": curve}
    table, data = struct.pack(">I", len(tags)), b""
    for tag, value in tags.items():
        table += struct.pack(">4sII", tag, 128 + 4 + 12 * len(tags) + len(data), len(value))
        data += value
    head = bytearray(WEB[:128])
    head[16:20] = b"GRAY"
    head[:4] = struct.pack(">I", 128 + len(table) + len(data))
    return bytes(head) + table + data


def cmyk_profile() -> bytes:
    """A profile of four inks by a table of 2 x 2 x 2 x 2 colors in Lab (lut8Type): black is grey, the inks are pale."""
    grid = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1).reshape(-1, 4)
    light = 255 - 40 * grid[:, :3].sum(1) - 90 * grid[:, 3]
    lab = np.stack([light, 128 - 30 * grid[:, 0] + 30 * grid[:, 1], 128 + 40 * grid[:, 2]], 1).astype(np.uint8)
    ramp = np.arange(256, dtype=np.uint8).tobytes()
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + lab.tobytes() + ramp * 3
    tags = {b"A2B0": table, b"wtpt": b"XYZ \0\0\0\0" + WEB[68:80]}
    index, data = struct.pack(">I", len(tags)), b""
    for tag, value in tags.items():
        index += struct.pack(">4sII", tag, 128 + 4 + 12 * len(tags) + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = bytearray(WEB[:128])
    head[:4], head[8:12] = struct.pack(">I", 128 + len(index) + len(data)), b"\x02\x20\0\0"
    head[12:24] = b"prtrCMYKLab "
    return bytes(head) + index + data


def test_grey() -> None:
    profile = grey_profile(1.8)
    for mode in ("L", "LA", "1"):
        image = Image.fromarray(PIXELS).convert(mode)
        assert (moved(image, profile) > 10) is (mode != "1")  # black and white stay
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(8, 0))
    found = np.asarray(decode(file_of(ramp, icc_profile=profile)))[0].astype(float)
    linear = (np.arange(256) / 255) ** 1.8
    expected = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear) * 255
    assert np.abs(found - expected[:, None]).max() < 1.6
    deep = Image.fromarray(np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64))
    assert moved(deep, profile) > 10
    assert moved(deep, P3) == 0  # greys are the same in both


def test_four_inks() -> None:
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    assert decode(file_of(image, "TIFF")).getpixel((3, 3)) == (0, 255, 255)
    pale = decode(file_of(image, "TIFF", icc_profile=cmyk_profile())).getpixel((3, 3))
    assert 120 < pale[0] < pale[1]
    black = decode(
        file_of(Image.new("CMYK", (16, 16), (0, 0, 0, 255)), "JPEG", icc_profile=cmyk_profile(), quality=100)
    )
    assert min(black.getpixel((3, 3))) > 100


def test_what_does_not_fit_is_passed_over() -> None:
    color, inks = Image.fromarray(PIXELS), Image.fromarray(PIXELS, "RGBA").convert("RGB").convert("CMYK")
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (grey_profile(1.8), cmyk_profile(), lab, b"", b"rubbish", P3[:200], bytes(500), P3[:16] + b"RGB "):
        assert moved(color, profile) == 0
    for profile in (P3, grey_profile(1.8), lab):
        assert moved(inks, profile, "TIFF") == 0
    assert moved(Image.fromarray(PIXELS).convert("L"), cmyk_profile()) == 0
    assert moved(color, P3) > 40


def test_large_profiles_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(icc, "MAX_PROFILE", len(P3))
    assert moved(Image.fromarray(PIXELS), P3) > 40
    assert moved(Image.fromarray(PIXELS), P3 + b"\0") == 0


def test_a_tiff_whose_profile_is_a_number() -> None:
    data = bytearray(file_of(Image.fromarray(PIXELS[..., :3]), "TIFF", icc_profile=P3))
    at = data.index(struct.pack("<HH", 34675, 7))
    data[at : at + 12] = struct.pack("<HHII", 34675, 4, 1, 77)
    assert np.array_equal(decode(bytes(data)), PIXELS[..., :3])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([P3, grey_profile(1.8), cmyk_profile()]),
       st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=9), st.integers(0, 2000))  # fmt: skip
def test_damaged_profiles_cost_no_image(profile: bytes, damage: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(profile[: max(20, len(profile) - cut)])
    for at, value in damage:
        data[at % len(data)] = value
    for mode in ("RGB", "LA", "CMYK"):
        image = Image.fromarray(PIXELS[:5, :7]).convert("RGB").convert(mode)
        format = "TIFF" if mode == "CMYK" else "PNG"
        assert decode(file_of(image, format, icc_profile=bytes(data))).size == (7, 5)


def test_an_iccp_chunk_that_is_damaged() -> None:
    data = file_of(Image.fromarray(PIXELS))
    whole = zlib.compress(P3)
    for body, decodes in (
        (b"", False), (b"icc", False), (b"icc\0\0", True), (b"icc\0\0" + whole[:-9], True),
        (b"icc\0\x07" + whole, False),
    ):  # fmt: skip
        chunk = struct.pack(">I", len(body)) + b"iCCP" + body + struct.pack(">I", zlib.crc32(b"iCCP" + body))
        damaged = data[:33] + chunk + data[33:]
        if decodes:
            assert np.array_equal(decode(damaged), decode(data)), body[:6]
        else:
            with pytest.raises(InputError, match="not an image"):
                decode(damaged)


def test_a_profile_is_read_once_and_serves_all_threads() -> None:
    profile = rgb_profile("another", DISPLAY_P3)
    files = [file_of(Image.fromarray(PIXELS[i:, :, :3]), icc_profile=profile) for i in range(12)]
    alone = [np.asarray(decode(data)) for data in files]
    before = icc._transform.cache_info()
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(decode, files * 8), alone * 8, strict=True):
            assert np.array_equal(found, expected)
    after = icc._transform.cache_info()
    assert (after.hits - before.hits, after.misses) == (96, before.misses)


def test_large_images_are_converted_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    images = {"RGB": P3, "RGBA": P3, "L": grey_profile(1.8), "CMYK": cmyk_profile()}
    files = [
        file_of(
            Image.fromarray(PIXELS).convert("RGBA" if mode == "RGBA" else "RGB").convert(mode), "TIFF", icc_profile=one
        )
        for mode, one in images.items()
    ]
    whole = [decode(data).reduce(2) for data in files]
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 1000)
    monkeypatch.setattr(decode_module, "ROWS", 8)
    for data, expected in zip(files, whole, strict=True):
        assert np.array_equal(decode(data), expected)


def test_png_chunks_of_color_are_passed_over() -> None:
    data = file_of(Image.fromarray(PIXELS))
    chunks = {b"gAMA": struct.pack(">I", 100_000), b"cICP": bytes([12, 13, 0, 1]),
              b"cHRM": struct.pack(">8I", 31_270, 32_900, 68_000, 32_000, 26_500, 69_000, 15_000, 6_000)}  # fmt: skip
    for kind, body in chunks.items():
        chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        assert np.array_equal(decode(data[:33] + chunk + data[33:]), decode(data))
