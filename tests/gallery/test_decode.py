"""Every kind of image, and every kind of file that is none."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gallery import decode as module
from gallery.decode import decode, shorter_side, to_square
from gallery.errors import InputError

UPRIGHT = np.zeros((24, 40, 3), np.uint8)
UPRIGHT[:12, :20], UPRIGHT[:12, 20:], UPRIGHT[12:, :20], UPRIGHT[12:, 20:] = (250, 0, 0), (0, 250, 0), (0, 0, 250), 200


def write(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def reason(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        decode(path)
    assert str(path) in caught.value.expected
    return caught.value.found


def test_bytes_are_decoded_as_their_file_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100))
    assert np.array_equal(decode(path.read_bytes()), decode(path))
    for data, found in ((b"", "an empty file"), (b"rubbish", "not an image"), (path.read_bytes()[:90], "")):
        with pytest.raises(InputError, match=rf"an image in {len(data)} bytes; found {found}"):
            decode(data)


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera held that way writes, after the EXIF standard's table."""
    mirrored = upright[:, ::-1]
    return {
        1: upright,
        2: mirrored,
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(mirrored, -1),
        8: np.rot90(upright, -1),
    }[orientation]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff", "jpg", "webp"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored(UPRIGHT, orientation)))
    lossless = {"lossless": True} if suffix == "webp" else {"quality": 95, "subsampling": 0} if suffix == "jpg" else {}
    got = np.asarray(decode(write(tmp_path / f"a.{suffix}", image, exif=exif, **lossless))).astype(int)
    assert got.shape == UPRIGHT.shape
    assert np.abs(got - UPRIGHT)[4:8, 4:16].max() <= (3 if suffix == "jpg" else 0)
    assert np.abs(got - UPRIGHT).mean() < 3


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0rubbish", b"Exif\0\0MM\0*\0\0\0\x08\0\3\1\x12\0\x09\xff\xff\xff\xff\0\0\0\1"]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_does_not_cost_the_image(tmp_path: Path, exif: bytes) -> None:
    assert decode(write(tmp_path / "a.jpg", Image.fromarray(UPRIGHT), exif=exif)).size == (40, 24)


def test_cmyk_and_adobes_inverted_cmyk(tmp_path: Path) -> None:
    red = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    assert decode(write(tmp_path / "a.tiff", red)).getpixel((9, 9)) == (255, 0, 0)
    adobe = write(tmp_path / "a.jpg", red, quality=100)
    assert np.abs(np.subtract(decode(adobe).getpixel((9, 9)), (255, 0, 0))).max() <= 2
    raw = adobe.read_bytes()
    at = raw.index(b"\xff\xee\x00\x0eAdobe")
    plain = tmp_path / "plain.jpg"  # a CMYK JPEG is inverted, whether Adobe's marker says so or not; browsers agree
    plain.write_bytes(raw[:at] + raw[at + 16 :])
    assert np.array_equal(decode(plain), decode(adobe))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    assert decode(write(tmp_path / "a.png", Image.new("RGBA", (4, 4), (200, 0, 0, 51)))).getpixel((0, 0)) == (
        244,
        204,
        204,
    )
    assert decode(write(tmp_path / "b.png", Image.new("LA", (4, 4), (0, 0)))).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 1), 0)
    got = decode(write(tmp_path / "c.png", palette, transparency=0))
    assert (got.getpixel((0, 0)), got.getpixel((1, 1))) == ((10, 20, 30), (255, 255, 255))
    got = decode(write(tmp_path / "d.gif", palette, transparency=0))
    assert (got.getpixel((0, 0)), got.getpixel((1, 1))) == ((10, 20, 30), (255, 255, 255))
    keyed = Image.new("RGB", (4, 4), (1, 2, 3))
    assert decode(write(tmp_path / "e.png", keyed, transparency=(1, 2, 3))).getpixel((0, 0)) == (255, 255, 255)
    opaque = write(tmp_path / "f.png", palette)
    assert decode(opaque).getpixel((1, 1)) == (0, 0, 0)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm", "jp2"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    options = {"irreversible": False} if suffix == "jp2" else {}
    got = np.asarray(decode(write(tmp_path / f"a.{suffix}", Image.fromarray(values), **options)))
    np.testing.assert_array_equal(got, np.round(values[..., None] / 257).astype(np.uint8).repeat(3, -1))


def png(width: int, height: int, depth: int, color: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def test_16_bit_color_is_scaled(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 3)).astype(">u2")
    (tmp_path / "a.png").write_bytes(png(8, 8, 16, 2, b"".join(b"\0" + row.tobytes() for row in values)))
    assert np.abs(np.asarray(decode(tmp_path / "a.png")) - values / 257).max() <= 1


def test_one_bit_grey_and_animations(tmp_path: Path) -> None:
    bits = Image.fromarray(np.eye(8, dtype=bool))
    assert np.array_equal(np.asarray(decode(write(tmp_path / "a.png", bits)))[..., 1], np.eye(8) * 255)
    grey = decode(write(tmp_path / "b.png", Image.new("L", (8, 8), 77)))
    assert (grey.mode, grey.getpixel((3, 3))) == ("RGB", (77, 77, 77))
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    for suffix, more in (("gif", {}), ("png", {}), ("webp", {"lossless": True})):
        path = write(tmp_path / f"c.{suffix}", frames[0], save_all=True, append_images=frames[1:], **more)
        assert decode(path).getpixel((0, 0)) == (255, 0, 0)


def test_pixels_of_unknown_range_are_rejected(tmp_path: Path) -> None:
    assert "floating-point" in reason(write(tmp_path / "a.tiff", Image.fromarray(np.ones((8, 8), np.float32))))
    assert "32-bit" in reason(write(tmp_path / "b.tiff", Image.fromarray(np.full((8, 8), 70_000, np.int32))))
    assert "32-bit" in reason(write(tmp_path / "c.tiff", Image.fromarray(np.full((8, 8), -1, np.int32))))


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("This is not an image.")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "null.jpg").symlink_to("/dev/null")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "eps.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    assert "not an image" in reason(tmp_path / "text.jpg")
    assert reason(tmp_path / "empty.jpg") == "an empty file"
    for name in ("folder", "fifo", "null"):
        assert reason(tmp_path / f"{name}.jpg") == "not a regular file"
    assert reason(tmp_path / "missing.jpg") == "No such file or directory"
    assert "symbolic links" in reason(tmp_path / "loop.jpg")
    assert "not an image" in reason(tmp_path / "eps.jpg")  # which Pillow would hand to Ghostscript


def test_a_sparse_giant_is_rejected_unread(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as stream:
        stream.truncate(1 << 40)
    assert "1024 MiB" in reason(tmp_path / "a.jpg")


def test_the_extension_does_not_matter(tmp_path: Path) -> None:
    assert np.array_equal(decode(write(tmp_path / "a.jpg", Image.fromarray(UPRIGHT), format="PNG")), UPRIGHT)


@pytest.mark.parametrize("side", [15_000, 30_000])  # Pillow warns of the first, raises at the second
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(png(side, side, 8, 0, b"\0" * 1000))
    assert "decompression bomb" in reason(tmp_path / "a.png")
    with pytest.raises(InputError, match="decompression bomb"):
        shorter_side(tmp_path / "a.png")


def test_strips(tmp_path: Path) -> None:
    assert decode(write(tmp_path / "a.png", Image.new("RGB", (10, 500)))).size == (10, 500)
    assert "strip" in reason(write(tmp_path / "b.png", Image.new("RGB", (10, 501))))
    assert "strip" in reason(write(tmp_path / "c.png", Image.new("RGB", (501, 10))))


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "tiff", "bmp", "avif"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated_files(tmp_path: Path, suffix: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    path = write(tmp_path / f"a.{suffix}", noise)
    whole = path.read_bytes()
    decode(path)
    path.write_bytes(whole[: int(len(whole) * share)])
    assert reason(path)


SEEDS = []
for _format, _mode in (("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "I;16"), ("GIF", "P"), ("TIFF", "RGBA"),
                       ("WEBP", "RGBA"), ("PPM", "RGB"), ("BMP", "RGB")):  # fmt: skip
    _buffer = io.BytesIO()
    Image.new(_mode, (20, 16)).save(_buffer, _format)
    SEEDS.append(_buffer.getvalue())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8))
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_an_image_or_a_reason(tmp_path: Path, raw: bytes, damage: list[tuple[int, int]]) -> None:
    data = bytearray(raw)
    for at, value in damage:
        data[at % len(data)] = value
    (tmp_path / "a.jpg").write_bytes(data)
    try:
        mode = decode(tmp_path / "a.jpg").mode
    except InputError:  # anything else is a failure of the test
        return
    assert mode == "RGB"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 48), st.integers(0, 9))
def test_to_square_is_torchvisions_resize_and_crop(width: int, height: int, size: int, seed: int) -> None:
    from distill.models.hash_net import import_timm

    import_timm()
    from torchvision.transforms import CenterCrop, Compose, Resize

    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))
    twin = Compose([Resize(size, antialias=True), CenterCrop(size)])(image)
    square = to_square(image, size)
    assert square.shape == (size, size, 3)
    np.testing.assert_array_equal(square, np.asarray(twin))


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    inner = to_square(Image.fromarray(stripes), 8)[:, 1:-1].astype(int)
    assert np.abs(inner - 127).max() <= 4  # sampled without a filter it would be 0 or 255


def test_shorter_side_comes_from_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jpg", Image.new("RGB", (300, 200)))
    path.write_bytes(path.read_bytes()[:700])
    assert shorter_side(path) == 200
    assert "truncated" in reason(path)


def test_reasons_are_short_and_printable() -> None:
    text = module._reason(ValueError("\udcff" + "x" * 999))
    assert len(text) == 200
    assert text.encode()


def chunk_after_header(path: Path, kind: bytes, body: bytes) -> Path:
    raw = path.read_bytes()
    made = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(raw[:33] + made + raw[33:])
    return path


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 15])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_bits_that_the_file_states(tmp_path: Path, bits: int, suffix: str) -> None:
    white = (1 << bits) - 1
    values = np.linspace(0, white, 4096).astype(np.uint16).reshape(64, 64)
    stated = {"tiffinfo": {281: white}} if suffix == "tiff" else {}
    path = write(tmp_path / f"a.{suffix}", Image.fromarray(values), **stated)
    if suffix == "png":
        chunk_after_header(path, b"sBIT", bytes([bits]))
    image = decode(path)
    assert "bits" not in image.info
    np.testing.assert_array_equal(np.asarray(image)[..., 1], np.floor(values * (255 / white) + 0.5).astype(np.uint8))


def test_12_bits_packed_in_a_tiff(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 64 * 64).astype(np.uint32)
    pairs = values[0::2] << 12 | values[1::2]
    strip = np.stack([pairs >> 16, pairs >> 8, pairs], -1).astype(np.uint8).tobytes()
    tags = {256: 64, 257: 64, 258: 12, 259: 1, 262: 1, 273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: 64, 279: len(strip)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    (tmp_path / "a.tif").write_bytes(struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + strip)
    np.testing.assert_array_equal(np.asarray(decode(tmp_path / "a.tif"))[..., 0].ravel(), np.round(values / 4095 * 255))


def test_what_is_stated_but_does_not_hold_is_not_believed(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    plain = np.asarray(decode(write(tmp_path / "a.png", Image.fromarray(values))))
    for bits in (b"\x0c", b"\x00", b"\xff", b"\x10", b""):
        path = chunk_after_header(write(tmp_path / "b.png", Image.fromarray(values)), b"sBIT", bits)
        assert np.array_equal(decode(path), plain)
    for stated in (4095, 40_000, 0, (5, 6)):
        path = write(tmp_path / "b.tif", Image.fromarray(values), tiffinfo={281: stated})
        assert np.array_equal(decode(path), plain)
    assert decode(path).info == {"bits": 16}


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["png", "II", "MM", "II deflated", "MM deflated"])
def test_bits_that_a_file_in_color_states(tmp_path: Path, bits: int, kind: str) -> None:
    white = (1 << bits) - 1
    values = np.random.default_rng(0).integers(0, white + 1, (16, 24, 3))
    values[0, 0] = white
    exact = values.astype(">u2" if kind in ("png", "MM", "MM deflated") else "<u2")
    path = tmp_path / "a.img"
    if kind == "png":
        path.write_bytes(png(24, 16, 16, 2, b"".join(b"\0" + row.tobytes() for row in exact)))
        chunk_after_header(path, b"sBIT", bytes([bits] * 3))
    else:
        strip = zlib.compress(exact.tobytes()) if "deflated" in kind else exact.tobytes()
        order, at = "<" if kind.startswith("II") else ">", 8 + 2 + 11 * 12 + 4
        fields = [(256, 4, 1, 24), (257, 4, 1, 16), (258, 3, 3, at), (259, 4, 1, 8 if "deflated" in kind else 1),
                  (262, 4, 1, 2), (273, 4, 1, at + 12), (274, 4, 1, 3), (277, 4, 1, 3), (278, 4, 1, 16),
                  (279, 4, 1, len(strip)), (281, 3, 3, at + 6)]  # fmt: skip
        entries = b"".join(struct.pack(f"{order}HHII", *one) for one in fields)
        head = struct.pack(f"{order}2sHIH", kind[:2].encode(), 42, 8, len(fields)) + entries + bytes(4)
        path.write_bytes(head + struct.pack(f"{order}6H", 16, 16, 16, white, white, white) + strip)
        values = values[::-1, ::-1]
    image = decode(path)
    assert image.info == ({"bits": 16} if bits == 16 else {})
    expected = values >> 8 if bits == 16 else np.floor(values * (255 / white) + 0.5)
    np.testing.assert_array_equal(np.asarray(image), expected)


def test_bits_of_color_are_a_bound(tmp_path: Path) -> None:
    for bits in (8, 12, 16):
        values = np.random.default_rng(0).integers(0, 1 << bits, (8, 8, 3)).astype(">u2")
        (tmp_path / "a.png").write_bytes(png(8, 8, 16, 2, b"".join(b"\0" + row.tobytes() for row in values)))
        assert decode(tmp_path / "a.png").info == {"bits": bits}
    assert decode(write(tmp_path / "b.png", Image.fromarray(UPRIGHT))).info == {}
    values = np.random.default_rng(0).integers(0, 1 << 12, (8, 8, 2)).astype(">u2")  # grey with alpha: not scaled
    (tmp_path / "c.png").write_bytes(png(8, 8, 16, 4, b"".join(b"\0" + row.tobytes() for row in values)))
    assert decode(chunk_after_header(tmp_path / "c.png", b"sBIT", b"\x0c\x0c")).info == {"bits": 12}


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"tEXt", b"iCCP"])
def test_large_texts_do_not_cost_the_image(tmp_path: Path, kind: bytes) -> None:
    text, packed = b"x" * (3 << 20), zlib.compress(b"x" * (3 << 20))
    body = {b"zTXt": b"prompt\0\0" + packed, b"iTXt": b"prompt\0\1\0\0\0" + packed, b"tEXt": b"bits\0" + text,
            b"iCCP": b"icc\0\0" + packed}[kind]  # fmt: skip
    path = chunk_after_header(write(tmp_path / "a.png", Image.fromarray(UPRIGHT)), kind, body)
    assert np.array_equal(decode(path), UPRIGHT)
    assert shorter_side(path) == 24


def test_a_text_that_unpacks_without_end(tmp_path: Path) -> None:
    body = b"prompt\0\0" + zlib.compress(bytes(100 << 20))
    assert "MAX_TEXT" in reason(chunk_after_header(write(tmp_path / "a.png", Image.fromarray(UPRIGHT)), b"zTXt", body))


@pytest.mark.parametrize(("suffix", "width", "height"), [("jpg", 16_384, 12_288), ("png", 12_000, 8_000)])
def test_100_and_200_megapixels_are_read_reduced(tmp_path: Path, suffix: str, width: int, height: int) -> None:
    image = Image.new("L", (width, height), 30)
    image.paste(220, (width // 2, 0, width, height))
    exif = Image.Exif()
    exif[0x0112] = 3
    got = decode(write(tmp_path / f"a.{suffix}", image, exif=exif))
    assert (got.mode, got.size) == ("RGB", (width // 2, height // 2))
    assert [got.getpixel((x, 2_000))[0] for x in (1_000, width // 2 - 1_000)] == [220, 30]
    assert shorter_side(tmp_path / f"a.{suffix}") == height


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "1", "I;16", "LA", "CMYK"])
def test_halves_are_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 51, 4), np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (37, 51)).astype(np.uint16))
    path = write(tmp_path / ("a.tiff" if mode == "CMYK" else "a.png"), image if mode == "I;16" else image.convert(mode))
    whole = decode(path).reduce(2)
    monkeypatch.setattr(module, "MAX_PIXELS", 1000)
    monkeypatch.setattr(module, "ROWS", 8)
    assert np.array_equal(decode(path), whole)


HEIC = "import sys; sys.modules['pillow_heif'] = None; from gallery.decode import decode\n"


def test_heic_without_its_package_names_the_fix(tmp_path: Path) -> None:
    for brand in (b"heic", b"mif1"):
        (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(99))
        call = f"{HEIC}decode(__import__('pathlib').Path({str(tmp_path / 'a.heic')!r}))"
        done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, timeout=120)
        assert "needs: pip install pillow-heif (or convert it to JPEG)" in done.stderr.splitlines()[-1]


def test_heic(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.fromarray(UPRIGHT).resize((400, 240), Image.Resampling.NEAREST)
    got = decode(
        write(tmp_path / "a.heic", Image.fromarray(np.rot90(np.asarray(upright))), exif=exif.tobytes(), quality=90)
    )
    assert got.size == (400, 240)
    assert np.abs(np.asarray(got).astype(int) - np.asarray(upright)).mean() < 6
    raw = (tmp_path / "a.heic").read_bytes()
    (tmp_path / "a.heic").write_bytes(raw[: len(raw) // 2])
    assert reason(tmp_path / "a.heic")


def test_a_raw_files_preview_is_no_image(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dng", Image.fromarray(UPRIGHT), format="TIFF", tiffinfo={254: 1})
    assert "preview" in reason(path)
    raw = write(tmp_path / "a.tif", Image.fromarray(UPRIGHT).convert("L")).read_bytes()
    offset = int.from_bytes(raw[4:8], "little") + 4
    (tmp_path / "a.cr2").write_bytes(raw[:4] + offset.to_bytes(4, "little") + b"CR\2\0" + raw[8:])
    assert "preview" in reason(tmp_path / "a.cr2")
    assert decode(write(tmp_path / "b.tif", Image.fromarray(UPRIGHT), tiffinfo={254: 0})).size == (40, 24)


def test_16_bit_grey_of_which_0_is_white(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    expected = 255 - np.asarray(decode(write(tmp_path / "a.tif", Image.fromarray(values))))
    path = write(tmp_path / "a.tif", Image.fromarray(values), tiffinfo={262: 0})
    raw = path.read_bytes()
    place = raw.index(struct.pack("<HHI", 262, 3, 1)) + 8
    path.write_bytes(raw[:place] + bytes(4) + raw[place + 4 :])
    np.testing.assert_array_equal(np.asarray(decode(path)), expected)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_damaged_exif_of_other_formats_does_not_cost_the_image(tmp_path: Path, suffix: str) -> None:
    assert decode(write(tmp_path / f"a.{suffix}", Image.fromarray(UPRIGHT), exif=b"Exif\0\0rubbish!")).size == (40, 24)


def test_bits_of_a_ppm_in_color_are_a_bound(tmp_path: Path) -> None:
    values = np.arange(16 * 16 * 3).reshape(16, 16, 3) * 5
    (tmp_path / "a.ppm").write_bytes(b"P6 16 16 65535\n" + values.astype(">u2").tobytes())
    assert decode(tmp_path / "a.ppm").info["bits"] == 12
