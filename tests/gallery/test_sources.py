"""Folders, manifests, object stores and web servers as sources: what they list, and what they may not."""

from __future__ import annotations

import contextlib
import csv
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from gallery.errors import InputError
from gallery.index import open_gallery
from gallery.ingest import IngestOptions, ingest
from gallery.row_checks import check_ids
from gallery.sources import http_fetch
from gallery.sources.column_types import typed_column
from gallery.sources.http_fetch import fetch
from gallery.sources.listing import Listing, SourceOptions, list_source
from gallery.sources.object_store import ObjectStore
from gallery.sources.reader import ImageReader, ImageRequest
from gallery.store import GalleryStore

SLOW = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def png(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (seed, 2 * seed, 3 * seed)).save(stream, "png")
    return stream.getvalue()


def listed(source: object, **options: Any) -> Listing:
    return list_source(str(source), SourceOptions(**options))


def test_a_folder_lists_what_may_be_images(tmp_path: Path) -> None:
    for name in (
        "a/1.png",
        "a/b/2.JPG",
        "3.png",
        "Thumbs.db",
        "a/._1.png",
        "@eaDir/1.png",
        "a/notes.txt",
        ".git/4.png",
        "gallery/spaces.lance/data/4",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png())
    (tmp_path / "line\nbreak.png").write_bytes(png())
    (tmp_path / "again").symlink_to(tmp_path / "a")
    found = listed(tmp_path, labels_from_folders=True)
    rows = {row["id"]: row for row in found.items.to_pylist()}
    assert sorted(rows) == ["3.png", "a/1.png", "a/b/2.JPG", "line%0Abreak.png"]
    assert [rows[id]["labels"] for id in sorted(rows)] == [None, ["a"], ["a"], None]
    assert found.others == 3
    assert {one.path for one in found.skipped} == {"again"}
    assert all(Path(row["source"]).is_absolute() for row in rows.values())
    assert "labels" not in listed(tmp_path).items.column_names


@pytest.mark.parametrize("name", ["none", "file.png", "a\0b", ""])
def test_what_is_no_source(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.png").write_bytes(png())
    with pytest.raises(InputError, match=r"\.csv or \.parquet manifest"):
        listed(tmp_path / name if name else "")


def manifest(folder: Path, *rows: str) -> Path:
    (folder / "m.csv").write_text("\n".join(rows), "utf-8")
    return folder / "m.csv"


def test_a_manifest_lists_ids_labels_and_columns(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    rows = "x,a.png,red;shoe,3,acme,007,2026-01-02,,true", ",./b.png,,4.5,,12,2026-01-03,,False", ""
    path = manifest(tmp_path, "id,Path,labels,price,Brand,sku,day,empty,sold", *rows)
    items = listed(path).items
    assert items["id"].to_pylist() == ["x", "b.png"]
    assert items["labels"].to_pylist() == [["red", "shoe"], None]
    assert items["etag"].is_null().to_pylist() == [False, True]
    types = {name: str(items.schema.field(name).type) for name in ("price", "Brand", "sku", "day", "sold")}
    assert types == {"price": "double", "Brand": "string", "sku": "string", "day": "date32[day]", "sold": "bool"}
    assert items["Brand"].to_pylist() == ["acme", None]
    assert "empty" not in items.column_names
    parquet.write_table(
        pa.table({"path": ["a.png"], "label": ["shoe"], "n": pa.array([3], pa.uint16())}), tmp_path / "m.parquet"
    )
    items = listed(tmp_path / "m.parquet").items
    assert (items["labels"].to_pylist(), str(items.schema.field("n").type)) == ([["shoe"]], "int64")


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (["id,path", "x,a.png", "y,b.png", "x,c.png"], "both row 2 of m.csv and row 4 of m.csv"),
        (["path", "../a.png"], "a path inside"),
        (["path", "/etc/passwd"], "a path inside"),
        (["path", "http://example.org/a.png"], "--allow-http"),
        (["path", "s3://bucket/a.png", "file:///etc/passwd"], None),  # names of files, which are not there
        (["name", "a.png"], "a column path"),
        (["path,PATH", "a.png,b.png"], "a column path"),
        (["path,label,labels", "a.png,b,c"], "a column path"),
        (["path", "", ""], "rows in m.csv"),
        (["id,path", '"a\tb",a.png'], "control character"),
        (["id,path", "x" * 5000 + ",a.png"], "5,000 bytes"),
        *[
            ([f"path,{name}", "a.png,1"], "Rename the column")
            for name in ("code", "etag", "source", "sha256", "encoded_at", "Check", "distance", "`a`")
        ],
        (["path," + ",".join(f"c{i}" for i in range(600)), "a.png" + ",1" * 600], "at most 512 columns"),
        (["path,price", "a.png,1.5", "b.png,1e999"], "an infinite number"),
    ],
)
def test_junk_in_a_manifest_is_told_by_its_row(tmp_path: Path, rows: list[str], problem: str | None) -> None:
    path = manifest(tmp_path, *rows)
    if problem is None:
        assert listed(path).items["etag"].null_count == len(rows) - 1
        return
    with pytest.raises(InputError, match=problem):
        listed(path)


def test_values_that_do_not_fit_the_gallerys_column(tmp_path: Path) -> None:
    path = manifest(tmp_path, "path,price", "a.png,much")
    with pytest.raises(InputError, match="values of double in the column price"):
        listed(path, types={"price": pa.float64()})


def test_what_is_no_number_is_no_value() -> None:
    column = typed_column("x", pa.chunked_array([[1.0, float("nan"), 3.0]]), pa.int64())
    assert column is not None
    assert column.to_pylist() == [1, None, 3]
    assert typed_column("x", pa.chunked_array([pa.array([float("nan")], pa.float16())]), None) is None


@SLOW
@given(st.binary(max_size=300))
def test_any_bytes_are_a_listing_or_an_error(tmp_path: Path, data: bytes) -> None:
    for name in ("m.csv", "m.parquet"):
        (tmp_path / name).write_bytes(data)
        with contextlib.suppress(InputError):
            check_ids(listed(tmp_path / name).items["id"].to_pylist())


@SLOW
@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=8), st.text(max_size=8)), min_size=1, max_size=4))
def test_any_rows_are_a_listing_or_an_error(tmp_path: Path, rows: list[tuple[str, str, str]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([("id", "path", "own"), *rows])
    (tmp_path / "m.csv").write_text(text.getvalue(), "utf-8", "surrogateescape", newline="")
    try:
        items = listed(tmp_path / "m.csv").items
    except InputError:
        return
    check_ids(items["id"].to_pylist())
    assert all(Path(source).is_relative_to(tmp_path.resolve()) for source in items["source"].to_pylist())


@SLOW
@given(
    st.lists(
        st.none() | st.integers(-(1 << 62), 1 << 62) | st.floats(allow_nan=False, allow_infinity=False), min_size=1
    )
)
def test_numbers_keep_their_values(values: list[Any]) -> None:
    column = typed_column("x", pa.chunked_array([["" if one is None else repr(one) for one in values]]), None)
    if column is None:
        assert values.count(None) == len(values)
        return
    wanted = [None if one is None else one if str(column.type) == "int64" else float(one) for one in values]
    assert column.to_pylist() == (
        wanted if str(column.type) != "string" else [None if one is None else repr(one) for one in values]
    )


class Handler(BaseHTTPRequestHandler):
    """A web server with an image, a redirect to itself, a large file, and one that never ends."""

    def do_GET(self) -> None:
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/image.png")
            self.end_headers()
            return
        self.send_response(200 if self.path != "/missing" else 404)
        self.end_headers()
        try:
            if self.path == "/image.png":
                self.wfile.write(png())
            while self.path in ("/large", "/slow"):
                self.wfile.write(b"x" * (1 << 16 if self.path == "/large" else 1))
                time.sleep(0.0 if self.path == "/large" else 0.05)
        except OSError:
            return

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_fetching_is_limited(tmp_path: Path) -> None:
    with serving() as address:
        assert fetch(f"{address}/image.png") == png()
        problems = {"large": "more than 1,000,000 bytes", "slow": "nothing within 1 s", "missing": "404"}
        for path, problem in {**problems, "redirect": "private network"}.items():
            with pytest.raises(InputError, match=problem):
                fetch(f"{address}/{path}", seconds=1 if path == "slow" else 30, limit=1_000_000)
        (tmp_path / "m.csv").write_text(f"path\n{address}/image.png\n{address}/missing\n")
        sources = listed(tmp_path / "m.csv", allow_http=True).items["source"].to_pylist()
        requests = [ImageRequest(row, source) for row, source in enumerate(sources)]
        image, missing = ImageReader(8, allow_http=True).read_all(requests)
        assert image.pixels is not None
        assert "404" in missing.reason
        (refused,) = ImageReader(8).read_all(requests[:1])
        assert "--allow-http" in refused.reason


def test_a_server_that_sends_endless_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        peer, _ = server.accept()
        try:
            while True:
                peer.sendall(b"H")
                time.sleep(0.05)
        except OSError:
            return

    threading.Thread(target=drip, daemon=True).start()
    with pytest.raises(InputError, match="nothing within 1 s"):
        fetch(f"http://127.0.0.1:{server.getsockname()[1]}/", seconds=1)
    server.close()
    assert http_fetch.MAX_BYTES == 64 << 20


def test_a_redirect_leaves_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "do_GET", lambda self: (
        self.send_response(302), self.send_header("Location", "file:///etc/passwd"), self.end_headers()))  # fmt: skip
    with serving() as address, pytest.raises(InputError, match="not allowed"):
        fetch(address)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An object store on this machine."""
    pytest.importorskip("moto")
    from moto.server import ThreadedMotoServer
    from pyarrow.fs import S3FileSystem

    server = ThreadedMotoServer(port=0)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        S3FileSystem(endpoint_override=f"127.0.0.1:{port}", scheme="http", region="us-east-1",
                     allow_bucket_creation=True).create_dir("shop")  # fmt: skip
        yield f"s3://shop/%s?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    server.stop()


def test_an_object_store_lists_and_reads(bucket: str, tmp_path: Path) -> None:
    store = ObjectStore(bucket % "")
    names = ("in/a/1 %2.png", "in/b/2?#.png", "in/b/notes.txt", "in/.hidden/3.png", "elsewhere/4.png")
    for number, name in enumerate(names):
        with store._files.open_output_stream(f"shop/{name}") as stream:
            stream.write(png(number))
    found = listed(bucket % "in/", labels_from_folders=True)
    assert found.items["id"].to_pylist() == ["a/1 %2.png", "b/2?#.png"]
    assert found.items["labels"].to_pylist() == [["a"], ["b"]]
    assert found.others == 2
    requests = [ImageRequest(row, source) for row, source in enumerate(found.items["source"].to_pylist())]
    assert all(image.pixels is not None for image in ImageReader(8).read_all(requests))
    with store._files.open_output_stream("shop/in/m.csv") as stream:
        stream.write(b"id,path\nx,a/1 %2.png\ny,b/none.png\n")
    items = listed(bucket % "in/m.csv").items
    assert items["etag"].is_null().to_pylist() == [False, True]
    image, missing = ImageReader(8).read_all(
        [ImageRequest(row, s) for row, s in enumerate(items["source"].to_pylist())]
    )
    assert (image.reason, missing.pixels) == ("", None)
    with store._files.open_output_stream("shop/in/m.csv") as stream:
        stream.write(b"path\n../elsewhere/4.png\n")
    with pytest.raises(InputError, match="a name below the manifest in row 2"):
        listed(bucket % "in/m.csv")


def test_from_an_object_store_into_one(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.gallery.test_ingest import SPACE, add, never

    endpoint = bucket.partition("endpoint_override=")[2].partition("&")[0]
    for name, value in {"ENDPOINT": f"http://{endpoint}", "ALLOW_HTTP": "true", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    store = ObjectStore(bucket % "")
    for number in range(6):
        with store._files.open_output_stream(f"shop/new/{number}.png") as stream:
            stream.write(png(number))
    assert add("s3://shop/gallery", bucket % "new", commit_rows=4).encoded == 6
    gallery, source = GalleryStore("s3://shop/gallery"), listed(bucket % "new")
    assert ingest(gallery, SPACE, source, IngestOptions(), never).same == 6
    assert gallery.verify(SPACE.id).problem == ""
    assert len(open_gallery("s3://shop/gallery")) == 6


@pytest.mark.parametrize("uri", ["ftp://a/b", "s3://", "s3://key:secret@bucket/a", "file:///etc", "az://a/b"])
def test_addresses_that_are_refused(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(InputError) as raised:
        listed(uri)
    assert "secret" not in str(raised.value)
