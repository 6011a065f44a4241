"""Fashion-MNIST: the subset in the repository, and the full set."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from distill.data import DataConfig, fashion_mnist, load
from gallery.errors import CorruptFile, InputError

NAMES = sorted(fashion_mnist.FILES)
installed = pytest.mark.skipif(not fashion_mnist.DEBIAN.is_dir(), reason="dataset-fashion-mnist is not installed")


def idx(*shape: int, value: int = 0, kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, kind, len(shape), *shape) + bytes([value]) * int(np.prod(shape))


def full_set(folder: Path, n_train: int = 40, n_test: int = 10) -> Path:
    folder.mkdir()
    for part, n in (("train", n_train), ("t10k", n_test)):
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(n, 28, 28)))
        labels = idx(n)[:8] + bytes(i % 10 for i in range(n))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return folder


def test_the_subset(tmp_path: Path) -> None:
    data = load("embedded", [28, 32], tmp_path, DataConfig(seed=0))
    assert (data.name, data.classes) == ("fashion_mnist_7k", fashion_mnist.CLASSES)
    assert (data.classes[0], data.classes[8], data.classes[9]) == ("T-shirt/top", "Bag", "Ankle boot")
    assert len(set(data.names)) == 7000
    assert np.bincount(data.labels[data.gallery]).tolist() == [600] * 10
    assert np.bincount(data.labels[data.query]).tolist() == [100] * 10
    assert np.bincount(data.labels[data.validation]).tolist() == [30] * 10
    assert np.array_equal(np.union1d(data.train, data.validation), data.gallery)
    assert not set(data.query) & set(data.gallery)
    assert {data.names[i].split("/")[0] for i in data.query} == {"test"}
    assert {data.names[i].split("/")[0] for i in data.gallery} == {"train"}
    with np.load(fashion_mnist.SUBSET, allow_pickle=False) as file:
        assert np.array_equal(data.pixels[28], file["images"][..., None].repeat(3, -1))
    assert "6000 train = gallery, 1000 query; 300 of train" in data.protocol
    assert load("embedded", [28], tmp_path, DataConfig(seed=0)).fingerprint == data.fingerprint


def test_file_and_licence() -> None:
    assert fashion_mnist.SUBSET.stat().st_size < 6e6
    licence = fashion_mnist.SUBSET.with_name("FASHION_MNIST_LICENSE").read_text()
    for words in ("MIT", "Copyright (c) 2017 Zalando SE", "https://tech.zalando.com", "WITHOUT WARRANTY OF ANY KIND"):
        assert words in licence


def make_subset() -> dict[str, np.ndarray]:
    """The embedded subset, sampled again from the full set: `np.savez_compressed(SUBSET, **make_subset())` wrote it."""
    random, parts = np.random.default_rng(0), []
    for part, share in (("train", 600), ("t10k", 100)):
        images, labels = fashion_mnist.read_idx(fashion_mnist.DEBIAN, part)
        each = [random.choice(np.flatnonzero(labels == c), share, replace=False) for c in range(10)]
        rows = np.sort(np.concatenate(each))
        parts.append((images[rows], labels[rows], rows.astype(np.uint16)))
    return dict(zip(("images", "labels", "rows"), map(np.concatenate, zip(*parts, strict=True)), strict=True))


@installed
def test_the_subset_is_sampled_from_debians() -> None:
    again = make_subset()
    read = {}
    for part, n in (("train", 60_000), ("t10k", 10_000)):
        with gzip.open(fashion_mnist.DEBIAN / f"{part}-images-idx3-ubyte.gz") as stream:
            read[part] = np.frombuffer(stream.read()[16:], np.uint8).reshape(n, 28, 28)
        with gzip.open(fashion_mnist.DEBIAN / f"{part}-labels-idx1-ubyte.gz") as stream:
            read[part + " labels"] = np.frombuffer(stream.read()[8:], np.uint8)
    with np.load(fashion_mnist.SUBSET) as file:
        assert all(np.array_equal(file[name], array) for name, array in again.items())
        train, test = file["rows"][:6000], file["rows"][6000:]
        assert np.array_equal(file["images"], np.concatenate([read["train"][train], read["t10k"][test]]))
        assert np.array_equal(file["labels"], np.concatenate([read["train labels"][train], read["t10k labels"][test]]))


@installed
def test_the_full_set(tmp_path: Path) -> None:
    data = load("fashion_mnist", [4], tmp_path, DataConfig(seed=0))
    assert (len(data.gallery), len(data.query), len(data.validation)) == (60_000, 10_000, 3_000)
    assert np.bincount(data.labels[data.query]).tolist() == [1000] * 10
    assert data.classes == fashion_mnist.CLASSES


def zipped(data: bytes) -> bytes:
    """Compressed, without the second it was done in: the cases have the same names in every process."""
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train-images-idx3-ubyte.gz", b"not gzip"),
        ("train-images-idx3-ubyte.gz", zipped(idx(40, 28, 28))[:60]),
        ("train-images-idx3-ubyte.gz", zipped(idx(40, 28, 28)[:-1])),
        ("train-images-idx3-ubyte.gz", zipped(idx(40, 28, 28) + b"x")),
        ("train-images-idx3-ubyte.gz", zipped(idx(40, 28, 28, kind=9))),
        ("train-images-idx3-ubyte.gz", zipped(idx(40, 28))),
        ("train-images-idx3-ubyte.gz", zipped(idx(39, 28, 28))),
        ("train-images-idx3-ubyte.gz", zipped(idx(10, 56, 56))),
        ("train-images-idx3-ubyte.gz", zipped(b"\0\0\x08\x03" + b"\xff" * 12 + bytes(64))),
        ("train-images-idx3-ubyte.gz", zipped(b"")),
        ("train-labels-idx1-ubyte.gz", zipped(idx(40, value=10))),
        ("t10k-labels-idx1-ubyte.gz", None),
    ],
)
def test_damaged_idx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes | None) -> None:
    folder = full_set(tmp_path / "set")
    monkeypatch.setattr(fashion_mnist, "DEBIAN", folder)
    assert len(load("fashion_mnist", [4], tmp_path / "cache", DataConfig(seed=0)).query) == 10
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(CorruptFile):
        load("fashion_mnist", [4], tmp_path / "cache", DataConfig(seed=0))


def test_an_idx_bomb_is_not_unpacked(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.gz", "wb", compresslevel=1) as stream:
        for _ in range(64):
            stream.write(bytes(1 << 20))
    with pytest.raises(CorruptFile, match=f"{16 + 70_000 * 784 + 1} bytes"):
        fashion_mnist._read_idx(tmp_path / "a.gz", 28, 28)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server of the four files, from the folder returned."""
    folder = full_set(tmp_path / "mirror")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "not installed")
        monkeypatch.setattr(fashion_mnist, "MIRROR", f"http://127.0.0.1:{httpd.server_port}")
        sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in fashion_mnist.FILES}
        monkeypatch.setattr(fashion_mnist, "FILES", sums)
        yield folder
        httpd.shutdown()


def test_the_full_set_is_downloaded_once(tmp_path: Path, server: Path) -> None:
    data = load("fashion_mnist", [4], tmp_path / "cache", DataConfig(seed=0))
    assert (len(data.gallery), len(data.query)) == (40, 10)
    for path in server.iterdir():
        path.unlink()
    assert load("fashion_mnist", [4], tmp_path / "cache", DataConfig(seed=0)).fingerprint == data.fingerprint


def test_a_server_that_has_it_not(tmp_path: Path, server: Path) -> None:
    (server / NAMES[0]).unlink()
    with pytest.raises(InputError, match=r"404.*Install Debian's package dataset-fashion-mnist"):
        load("fashion_mnist", [4], tmp_path / "cache", DataConfig(seed=0))


def test_a_server_that_never_answers(tmp_path: Path, server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setattr(fashion_mnist, "MIRROR", f"http://127.0.0.1:{mute.getsockname()[1]}")
        with pytest.raises(InputError, match="timed out"):
            load("fashion_mnist", [4], tmp_path / "cache", DataConfig(seed=0))


def test_a_download_with_another_checksum(tmp_path: Path, server: Path) -> None:
    (server / NAMES[0]).write_bytes(zipped(idx(10, 28, 28, value=1)))
    with pytest.raises(CorruptFile, match="MD5"):
        load("fashion_mnist", [4], tmp_path / "cache", DataConfig(seed=0))
