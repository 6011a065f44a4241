"""A gallery in an object store, on a server of its own: the commands, writers at once, and what goes wrong with it."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gallery.cutover import cut_over, roll_back
from gallery.cutover_gates import CutoverLimits, check_gates
from gallery.errors import InputError, StoreUnreachable, TwinhashError
from gallery.index import open_gallery
from gallery.maintenance import list_failures
from gallery.sources.object_store import ObjectStore
from gallery.store import GalleryStore
from tests.conftest import Call, import_script
from tests.gallery.test_ingest import SPACE, add, contents, expected, start, write

pytest.importorskip("moto")
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
               "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip
PATIENCE_S = 60


class StoreServer:
    """A process of moto's server with the bucket `shop`, which the environment of this process names."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        command = [shutil.which("moto_server", path=Path(sys.executable).parent), "-H", "127.0.0.1", "-p", str(port)]
        null = subprocess.DEVNULL
        self.process = subprocess.Popen([str(word) for word in command], stdout=null, stderr=null)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.ask("/shop", "PUT")
                return
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def ask(self, path: str, method: str, data: bytes = b"") -> None:
        request = urllib.request.Request(self.address + path, data, method=method)
        request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request")
        request.add_header("Content-Type", "text/plain")
        urllib.request.urlopen(request, timeout=10).close()

    def check_credentials(self, are_checked: bool) -> None:
        self.ask("/moto-api/reset-auth", "POST", b"0" if are_checked else b"inf")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def environment() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield patch


@pytest.fixture(scope="module")
def server(environment: pytest.MonkeyPatch) -> Iterator[StoreServer]:
    made = StoreServer()
    environment.setenv("AWS_ENDPOINT_URL", made.address)
    yield made
    made.stop()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(24):
        write(tmp_path / "in" / "ab"[number % 2] / f"{number:02}.png", number)
    return tmp_path / "in"


def upload(folder: Path, prefix: str) -> None:
    """Copy a folder below a prefix of the bucket."""
    files = ObjectStore("s3://shop")._files
    for path in (path for path in folder.rglob("*") if path.is_file()):
        with files.open_output_stream(f"shop/{prefix}/{path.relative_to(folder).as_posix()}") as stream:
            stream.write(path.read_bytes())


def test_the_commands(
    server: StoreServer, run: Path, made: Path, heard: Callable[..., Call], capsys: pytest.CaptureFixture[str]
) -> None:
    from gallery.service.snapshots import Snapshots

    command, uri = heard(import_script("gallery.run").main), "s3://shop/commands/gallery"

    def told(*words: object) -> Any:
        capsys.readouterr()
        code, said = command(*words, "--json")
        assert code == 0, said
        return json.loads(capsys.readouterr().out)

    upload(made / "in" / "bag", "images/bag")
    (counts,) = told("add", uri, "s3://shop/images", "--run", run)
    assert (counts["encoded"], told("add", uri, "s3://shop/images", "--run", run)[0]["same"]) == (20, 20)
    (counts,) = told("add", uri, made / "in", "--run", run, "--labels-from-folders", "--no-publish")
    assert counts["encoded"] + counts["updated"] == 80
    assert [one["rows"] for one in told("publish", uri)] == [80]
    photo = next((made / "in").rglob("*.png"))
    found = told("search", uri, photo, "--run", run, "--with", "teacher", "--k", "3")["results"]
    assert found[0]["distance"] == 0
    verified = told("verify", uri, "--deep", "8", "--run", run)
    assert (verified["rows"], verified["problem"], verified["encoded"]) == (80, "", 8)
    assert told("compact", uri, "--forget-before", "0d")["forgotten"] is True
    assert told("verify", uri)["rows"] == 80
    snapshots = Snapshots(uri)
    snapshots.poll()
    assert len(snapshots.answering.of(None).index) == 80
    assert len(told("remove", uri, "--not-in", "s3://shop/images", "--prune-most", "1")) == 1
    assert len(open_gallery(uri)) == 20


def test_four_writers_at_once_and_one_that_is_killed(server: StoreServer, images: Path, tmp_path: Path) -> None:
    uri = "s3://shop/writers/gallery"
    for number in range(20, 44):
        write(tmp_path / "other" / f"{number}.png", number)
    killed = start(uri, images, 2, 0.2)
    assert killed.stderr is not None
    deadline = time.monotonic() + PATIENCE_S
    while not has_rows(uri) and time.monotonic() < deadline:
        time.sleep(0.05)
    writers = [start(uri, images, 3, 0.02), start(uri, images, 4, 0.02), start(uri, tmp_path / "other", 5, 0.02)]
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    killed.communicate()
    writers.append(start(uri, tmp_path / "other", 3, 0.02))
    for writer in writers:
        _, said = writer.communicate(timeout=240)
        assert writer.returncode == 0, said
    assert add(uri, str(images)).encoded == 0
    assert contents(uri) == expected(images) | expected(tmp_path / "other")
    found = GalleryStore(uri).verify(SPACE.id)
    assert (found.problem, found.found) == ("", found.expected)
    add(str(tmp_path / "local"), str(images))
    add(str(tmp_path / "local"), str(tmp_path / "other"))
    assert found.found == GalleryStore(tmp_path / "local").verify(SPACE.id).found


def test_a_backfill_that_is_killed_twice_ends_with_what_is_served(server: StoreServer, images: Path) -> None:
    from tests.gallery import test_backfill as backfills

    store = GalleryStore("s3://shop/backfill/gallery", create=True)
    backfills.add(store, images)
    for _ in range(2):
        worker = backfills.start(store, 0.2)
        worker.send_signal(signal.SIGKILL)
        assert worker.wait() == -signal.SIGKILL
    done = backfills.fill(store.uri)
    assert (done.same + done.encoded, done.failed, done.same >= 4) == (24, 0, True)
    assert backfills.contents(store, backfills.NEW.id) == backfills.complements(store)
    assert backfills.fill(store.uri).encoded == 0
    assert all(one.passed for one in check_gates(store, backfills.NEW.id, CutoverLimits(map_drop=1)))
    before = backfills.contents(store, SPACE.id)
    for change in (cut_over, lambda store, _: roll_back(store), cut_over):
        change(store, backfills.NEW.id)
    assert [store.spaces()[space.id].state for space in (SPACE, backfills.NEW)] == ["previous", "serving"]
    assert backfills.contents(store, SPACE.id) == before


def has_rows(uri: str) -> bool:
    try:
        return int(GalleryStore(uri).open_table(SPACE.id).count_rows()) > 0
    except TwinhashError:  # not yet
        return False


def test_what_is_not_there_or_not_allowed_is_told(server: StoreServer, images: Path) -> None:
    for where in ("s3://none/gallery", "s3://shop/none"):
        with pytest.raises(InputError, match="none"):
            GalleryStore(where)
    with pytest.raises(InputError, match="Check the address"):
        add("s3://none/gallery", str(images))
    for source in ("s3://none/images", "s3://shop/none"):
        with pytest.raises(InputError, match="Check the address"):
            add("s3://shop/errors", source)
    with pytest.raises(InputError, match="endpoint_override, scheme and region"):
        ObjectStore("s3://shop/images?secret_key=x")
    server.check_credentials(True)
    try:
        for attempt in (lambda: GalleryStore("s3://shop/errors"), lambda: list(ObjectStore("s3://shop").list())):
            with pytest.raises(TwinhashError, match="credentials in the environment"):
                attempt()
    finally:
        server.check_credentials(False)
    assert GalleryStore("s3://shop/errors").spaces()


@pytest.mark.parametrize("is_source", [False, True])
def test_a_store_that_goes_away_ends_it_and_is_no_fault_of_an_image(
    environment: pytest.MonkeyPatch, server: StoreServer, images: Path, tmp_path: Path, is_source: bool
) -> None:
    own = StoreServer()
    environment.setenv("AWS_ENDPOINT_URL", own.address)
    try:
        uri, source = ("s3://shop/g", str(images)) if not is_source else (str(tmp_path / "g"), "s3://shop/images")
        if is_source:
            upload(images, "images")
        stopping = threading.Thread(target=stop_after_a_commit, args=(own, uri))
        stopping.start()
        begin = time.monotonic()
        with pytest.raises(StoreUnreachable if is_source else InputError, match="Check the address, the network"):
            add(uri, source, commit_rows=2, slow=0.3)
        stopping.join()
        assert time.monotonic() - begin < PATIENCE_S
        if is_source:
            assert list_failures(GalleryStore(uri), SPACE.id) == []
    finally:
        own.stop()
        environment.setenv("AWS_ENDPOINT_URL", server.address)


def stop_after_a_commit(own: StoreServer, uri: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not has_rows(uri) and time.monotonic() < deadline:
        time.sleep(0.05)
    own.stop()
