"""The cache: decoded once, whole or not at all, opened without touching an image."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distill.data import DataConfig, Dataset, load
from distill.data.app_pixels import RECIPE, app_squares
from distill.data.decode_cache import decode_all
from gallery.decode import decode
from gallery.errors import InputError
from gallery.results import Skipped
from tests.distill.data.factories import MakeFolder, noise

LOAD = """
import sys
from pathlib import Path
from distill.data import DataConfig, load
data = load(sys.argv[1], [int(s) for s in sys.argv[3:]], Path(sys.argv[2]), DataConfig(seed=0))
print(data.fingerprint, {size: int(p.astype(int).sum()) for size, p in data.pixels.items()})
"""


def opened(root: Path, *sizes: int, cache: str = "cache", **options: Any) -> Dataset:
    return load(str(root), sizes, root.parent / cache, DataConfig(seed=0, **options))


def process(root: Path, *sizes: int, cache: str = "cache") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LOAD, str(root), str(root.parent / cache), *map(str, sizes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def swap_contents(root: Path) -> None:
    """Junk in place of every image, of the same size and time: only the pixels could tell."""
    for path in root.rglob("*.png"):
        status = path.stat()
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def same(left: Dataset, right: Dataset) -> bool:
    pixels = left.pixels.keys() == right.pixels.keys() and all(
        np.array_equal(left.pixels[size], right.pixels[size]) for size in left.pixels
    )
    return pixels and left.fingerprint == right.fingerprint and left.names == right.names


def arrays(root: Path, cache: str = "cache") -> list[Path]:
    return sorted((root.parent / cache).glob("*/*.npy"))


def test_a_second_run_opens_no_image(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 6, "b": 6})
    cold = opened(root, 8, 16)
    swap_contents(root)
    warm = opened(root, 8, 16)
    assert same(cold, warm)
    assert same(opened(root, 16), opened(root, 16))
    assert [path.name for path in arrays(root)] == ["16.npy", "8.npy"]
    plain = np.load(arrays(root)[0], mmap_mode="r", allow_pickle=False)
    assert (plain.shape, plain.dtype, plain.flags.writeable) == ((12, 16, 16, 3), np.uint8, False)


def test_a_new_seed_or_label_does_not_decode_again(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 6, "b": 6})
    rows = [f"a/{i:03d}.png,{'xy'[i % 2]}" for i in range(6)]
    (root / "m.csv").write_text("\n".join(["path,label", *rows]))
    first = opened(root, 8)
    labeled = load(str(root / "m.csv"), [8], root.parent / "cache", DataConfig(seed=0))
    swap_contents(root)
    other = load(str(root), [8], root.parent / "cache", DataConfig(seed=1))
    assert np.array_equal(first.pixels[8], other.pixels[8])
    assert first.fingerprint != other.fingerprint
    (root / "m.csv").write_text("\n".join(["path,label", *rows[:-1], "a/005.png,x"]))
    relabeled = load(str(root / "m.csv"), [8], root.parent / "cache", DataConfig(seed=0))
    assert np.array_equal(labeled.pixels[8], relabeled.pixels[8])
    assert labeled.fingerprint != relabeled.fingerprint


def test_a_changed_image_is_decoded_again(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 6, "b": 6})
    cold = opened(root, 8)
    noise(99).save(root / "b" / "001.png")
    changed = opened(root, 8)
    differ = [name for name, x, y in zip(cold.names, cold.pixels[8], changed.pixels[8], strict=True) if (x != y).any()]
    assert differ == ["b/001.png"]
    assert changed.fingerprint != cold.fingerprint


def test_the_fingerprint_follows_contents_not_places_or_times(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 6, "b": 6})
    cold = opened(root, 8)
    copy = Path(shutil.copytree(root, root.parent / "elsewhere" / "images"))
    for path in copy.rglob("*.png"):
        os.utime(path, (1, 1))
    assert same(load(str(copy), [8], root.parent / "other", DataConfig(seed=0)), cold)
    assert opened(root, 16, 8).fingerprint == cold.fingerprint


def test_the_fingerprint_follows_the_labels(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 4})
    prints = set()
    for labels in ("xyx", "yxx", "xyy"):
        rows = [f"a/{i:03d}.png,{label},{'train' if i < 2 else 'query'}" for i, label in enumerate(labels)]
        (root / "m.csv").write_text("\n".join(["path,label,split", *rows]))
        prints.add(load(str(root / "m.csv"), [8], root.parent / "cache", DataConfig(seed=0)).fingerprint)
    assert len(prints) == 3


def test_another_size_of_the_same_images(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 6, "b": 6})
    (root / "a" / "000.png").write_bytes(b"broken")
    first = opened(root, 8)
    before = arrays(root)[0].stat().st_mtime_ns
    both = opened(root, 8, 16)
    assert arrays(root)[1].stat().st_mtime_ns == before  # 8.npy was not written again
    assert same(both, opened(root, 8, 16, cache="fresh"))
    assert both.skipped == first.skipped
    assert len(both.skipped) == 1


def test_squares_as_apps_make_them_are_beside_the_others(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 6, "b": 6})
    (root / "a" / "000.png").write_bytes(b"broken")

    def asked(app_size: int | None = 8) -> Dataset:
        return load(str(root), [8, 16], root.parent / "cache", DataConfig(seed=0), app_size)

    first = asked(None)
    assert first.app_pixels is None
    before = [path.stat().st_mtime_ns for path in arrays(root)]
    cold = asked()
    assert [path.name for path in arrays(root)] == ["16.npy", f"8-apps-{RECIPE}.npy", "8.npy"]
    assert [path.stat().st_mtime_ns for path in arrays(root) if "apps" not in path.name] == before
    assert same(first, cold)
    for name, squares in zip(cold.names, cold.app_pixels, strict=True):
        image, digest = decode(root / name), hashlib.sha256((root / name).read_bytes()).hexdigest()
        assert np.array_equal(squares, app_squares(image, 8, digest))
    kept, path = np.array(cold.app_pixels), arrays(root)[1]
    path.write_bytes(path.read_bytes()[:-1])
    assert np.array_equal(asked().app_pixels, kept)  # made again
    swap_contents(root)
    assert np.array_equal(asked().app_pixels, kept)


def test_sizes_of_different_images_are_never_mixed(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 6, "b": 6})
    opened(root, 8)
    good = {path: (path.read_bytes(), path.stat()) for path in root.rglob("*.png")}
    swap_contents(root)
    one = root / "a" / "000.png"
    for path, (data, status) in good.items():
        if path != one:
            path.write_bytes(data)
            os.utime(path, ns=(0, status.st_mtime_ns))
    both = opened(root, 8, 16)
    assert [s.path for s in both.skipped] == ["a/000.png"]
    assert len(both.pixels[8]) == len(both.pixels[16]) == len(both.names) == 11


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "json", "list", "index", "reasons"])
def test_a_damaged_cache_is_made_again(make_folder: MakeFolder, damage: str) -> None:
    root = make_folder({"a": 6, "b": 6})
    cold = opened(root, 8)
    expected = {size: np.array(pixels) for size, pixels in cold.pixels.items()}
    array, record = arrays(root)[0], arrays(root)[0].with_suffix(".json")
    if damage == "cut":
        os.truncate(array, 500)
    elif damage == "flip":
        raw = bytearray(array.read_bytes())
        raw[-1] ^= 255
        array.write_bytes(raw)
    elif damage == "gone":
        array.unlink()
    elif damage == "index":
        record.write_text(json.dumps({**json.loads(record.read_text()), "skipped": [[99, "x"]]}))
    else:
        record.write_text({"json": "{", "list": "[]", "reasons": record.read_text().replace("[]", "[7]")}[damage])
    again = opened(root, 8)
    assert np.array_equal(again.pixels[8], expected[8])
    assert again.fingerprint == cold.fingerprint


def test_killed_in_the_middle(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 6, "b": 1})
    Image.new("L", (6000, 6000)).save(root / "b" / "slow.png")
    for i in range(10):
        shutil.copy(root / "b" / "slow.png", root / "b" / f"slow{i}.png")
    killed = process(root, 8, 200)
    deadline = time.monotonic() + 60
    while not (drafts := list((root.parent / "cache").glob("*/.200.npy.*/200.npy"))) or not drafts[0].stat().st_size:
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert arrays(root) == []
    assert same(opened(root, 8, 200), opened(root, 8, 200, cache="fresh"))
    assert [path.name for path in arrays(root)] == ["200.npy", "8.npy"]
    assert not [path for path in (root.parent / "cache").glob("*/.*") if path.name != ".lock"]  # the draft is gone


def test_two_at_once(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 30, "b": 30}, width=400, height=300)
    (root / "a" / "003.png").write_bytes(b"broken")
    both = [process(root, 8, 64), process(root, 64)]
    printed = [one.communicate(timeout=120)[0].split(" ", 1) for one in both]
    assert [one.returncode for one in both] == [0, 0]
    fresh = opened(root, 8, 64, cache="fresh")
    sums = {size: int(pixels.astype(int).sum()) for size, pixels in fresh.pixels.items()}
    assert [p[0] for p in printed] == [fresh.fingerprint] * 2
    assert [p[1].strip() for p in printed] == [str(sums), str({64: sums[64]})]
    assert same(opened(root, 8, 64), fresh)


def test_no_room(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder({"a": 6, "b": 6})
    need = 12 * 3 * (8 * 8 + 16 * 16)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, need - 1))
    with pytest.raises(
        InputError, match=rf"room for {need:,} bytes .*cache.*found {need - 1:,} free\. Free some space"
    ):
        opened(root, 8, 16)
    monkeypatch.undo()
    opened(root, 8, 16)


def test_a_write_that_fails_halfway(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 60, "b": 60})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # a real error of write(2), as a full disk gives
    try:
        with pytest.raises(InputError, match=r"room for 368,640 bytes .*File too large"):
            opened(root, 32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert arrays(root) == []
    assert not list((root.parent / "cache").glob("*/.32*"))
    assert len(opened(root, 32).pixels[32]) == 120


def test_a_cache_that_cannot_be_written(make_folder: MakeFolder) -> None:
    root = make_folder({"a": 6, "b": 6})
    (root.parent / "file").touch()
    with pytest.raises(InputError, match=r"a folder that can be written at .*another folder"):
        opened(root, 8, cache="file")


def test_pillows_warnings_stay_out_of_the_terminal(make_folder: MakeFolder, recwarn: pytest.WarningsRecorder) -> None:
    root = make_folder({"a": 6, "b": 6})
    noise(5).save(root / "a" / "odd.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\3\1\x12\0\x09\xff\xff\xff\xff\0\0\0\1")
    assert "a/odd.jpg" in opened(root, 8).names
    assert not [w for w in recwarn.list if "EXIF" in str(w.message)]


def test_a_format_whose_package_comes_later_is_read_then(make_folder: MakeFolder) -> None:
    pytest.importorskip("pillow_heif")
    root = make_folder({"a": 4, "b": 4})
    without = "import sys\nsys.modules['pillow_heif'] = None\n" + LOAD.replace("import sys\n", "")
    assert len(opened(root, 8).names) == 8  # registers the format
    noise(99, 64, 64).save(root / "a" / "new.heic", "HEIF")
    command = [sys.executable, "-c", without + "print(data.skipped)", str(root), str(root.parent / "cache"), "8"]
    assert "pip install pillow-heif" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "a/new.heic" in opened(root, 8).names


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not give cores to processes")
def test_images_are_decoded_on_the_cores_of_the_process_and_may_go_away(tmp_path: Path) -> None:
    threads = set()

    class Source:
        def stamp(self) -> str:
            return "none"

        def read(self, index: int) -> tuple[Image.Image, str]:
            threads.add(threading.get_ident())
            time.sleep(0.01)
            if index == 3:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory")  # it went away just now
            return noise(index), f"{index:064x}"

        def shorter_side(self, index: int) -> int:
            return 8

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        made = decode_all(Source(), list("abcd"), [8], tmp_path)
    finally:
        os.sched_setaffinity(0, cores)
    assert len(threads) == 1
    assert made.skipped == (Skipped(path="d", reason="No such file or directory"),)
