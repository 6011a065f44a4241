"""Signed releases: what a client takes and refuses, in Python and in the bundle's TypeScript, Kotlin and Swift."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from hypothesis import given, settings
from hypothesis import strategies as st

from export.artifact import ExportedModel
from export.bundle import Golden, open_bundle, source_of, write_bundle
from export.release import (
    LINE,
    PAYLOAD,
    Release,
    ReleaseClient,
    ReleaseUpdate,
    check_file,
    check_update,
    install_files,
    read_release,
    sign,
)
from export.release_content import describe_release
from export.release_keys import PASSWORD, load_key, load_public_key, make_keys
from gallery import codespace
from gallery.codes import pack
from gallery.errors import CodeSpaceMismatch, CorruptFile, InputError, TwinhashError
from mobile_eval.devices.setup import chromium
from tests.conftest import import_script
from tests.export.factories import Exports
from tests.export.release_vectors import (
    CHANGED,
    CODES,
    FILES,
    FIRST,
    KEY,
    LONGER,
    OTHER,
    OTHER_KEY,
    RIGHT,
    SPACE,
    A,
    B,
    Vector,
    envelope,
    signed,
    vectors,
    write_vectors,
)  # fmt: skip
from tests.export.test_apps import KOTLIN, WEB, installed

HERE = Path(__file__).with_name("apps")
PUBLIC, VECTORS = KEY.public_key(), vectors()
UPDATES = {"none": ReleaseUpdate.NONE, "student": ReleaseUpdate.STUDENT, "both": ReleaseUpdate.BOTH}
Call = Callable[..., tuple[int, str]]


def update_of(vector: Vector) -> ReleaseUpdate:
    client = ReleaseClient(vector.space, vector.installed, vector.pinned)
    return check_update(read_release(vector.data, PUBLIC), client)


@pytest.mark.parametrize("vector", VECTORS, ids=[one.name for one in VECTORS])
def test_vector(vector: Vector) -> None:
    if vector.is_taken:
        assert update_of(vector) == UPDATES[vector.answer]
        return
    with pytest.raises(TwinhashError) as caught:
        update_of(vector)
    error = caught.value
    assert isinstance(error, InputError | CorruptFile | CodeSpaceMismatch)
    assert vector.answer in str(error)
    assert error.expected
    assert error.found
    assert error.fix.endswith((".", "FOLDER."))
    assert str(error).isprintable()


def test_the_vectors_have_names_of_their_own_and_all_answers() -> None:
    assert len({one.name for one in VECTORS}) == len(VECTORS) > 120
    assert {one.answer for one in VECTORS if one.is_taken} == set(UPDATES)


@given(st.binary(max_size=400))
@settings(deadline=None)  # the machine may be shared
def test_arbitrary_bytes_are_a_corrupt_file(data: bytes) -> None:
    with pytest.raises(CorruptFile):
        read_release(data, PUBLIC)


TREES = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["payload", "signature", "x"]), inner),
)


@given(TREES)
@settings(deadline=None)
def test_arbitrary_json_is_a_corrupt_file(value: Any) -> None:
    with pytest.raises(CorruptFile):
        read_release(json.dumps(value).encode(), PUBLIC)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_is_refused_or_changes_nothing(data: st.DataObject) -> None:
    """Only white space, escapes and the like of the JSON may change without a change of what it says."""
    whole = bytearray(signed(FIRST))
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(CorruptFile):
        assert read_release(bytes(whole), PUBLIC) == FIRST


LINES = st.lists(
    st.sampled_from(
        [
            "twinhash release 1",
            "twinhash release 2",
            "version 3",
            f"code_space {SPACE}",
            "student a",
            "created 2026-11-30T12:00:00Z",
            f"file {A.sha256} 20 a.bin",
            f"file {A.sha256} 20 b.bin",
            f"gallery {A.sha256} 20 a.bin",
            "",
            "\r",
            "version",
        ]
    )
)


@given(st.text(st.characters(exclude_categories=["Cs"])) | LINES.map("\n".join) | st.just(FIRST.payload))
@settings(deadline=None)
def test_a_signed_payload_is_read_as_it_is_written_or_is_an_error(payload: str) -> None:
    try:
        assert read_release(envelope(payload), PUBLIC).payload == payload
    except (CorruptFile, InputError):
        assert payload != FIRST.payload


names = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?", fullmatch=True)
files = st.builds(replace, st.just(A), name=names, bytes=st.integers(1, 9_999_999_999))
releases = st.builds(
    Release, st.integers(1, 999_999_999), st.sampled_from([SPACE, OTHER]), st.just("a/b:c"), st.just(FIRST.created),
    st.lists(files, min_size=1, max_size=9).map(tuple), st.lists(files, max_size=9).map(tuple),
)  # fmt: skip


@given(releases)
@settings(deadline=None)
def test_what_is_signed_is_read_again(release: Release) -> None:
    listed = [one.name.lower() for one in (*release.files, *release.gallery)]
    if len(set(listed)) < len(listed):
        with pytest.raises(InputError, match="twice"):
            sign(release, KEY)
        return
    ready = sign(release, KEY)
    assert read_release(ready.text.encode(), PUBLIC) == release
    assert read_release(ready.text.encode(), PUBLIC).text == ready.text
    with pytest.raises(CorruptFile, match="another key's signature"):
        read_release(ready.text.encode(), OTHER_KEY.public_key())


versions, clients = st.integers(1, 4), st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans(), st.booleans())


@given(versions, st.booleans(), clients)
@settings(deadline=None)
def test_the_rule_is_that_of_its_slow_twin(version: int, brings: bool, client: tuple[int, int, bool, bool]) -> None:
    before, pinned, same_space, same_content = client
    release = replace(FIRST, version=version, gallery=(CODES,) if brings else ())
    older = replace(release, version=before) if same_content else replace(release, version=before, files=(A,))
    has = older if before else None
    space = SPACE if same_space else OTHER
    expected: Any  # said one condition after the other
    if version < pinned or (has and version < before) or (has and version == before and not same_content):
        expected = InputError
    elif has and version == before:
        expected = ReleaseUpdate.NONE
    elif not same_space and not brings:
        expected = CodeSpaceMismatch
    else:
        expected = ReleaseUpdate.BOTH if brings else ReleaseUpdate.STUDENT
    try:
        found: Any = check_update(release, ReleaseClient(space, has, pinned))
    except TwinhashError as error:
        found = type(error)
    assert found == expected


@pytest.mark.parametrize("name", FILES)
def test_downloaded_file(name: str, tmp_path: Path) -> None:
    data, said = FILES[name]
    (tmp_path / "b.bin").write_bytes(data)
    if said == "right":
        check_file(tmp_path / "b.bin", B)
        return
    with pytest.raises(CorruptFile, match="Download the file again") as caught:
        check_file(tmp_path / "b.bin", B)
    assert B.sha256[:16] in caught.value.expected


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "b.bin")
    (tmp_path / "folder").mkdir()
    for name in ("b.bin", "folder", "none"):
        with pytest.raises(CorruptFile, match="Download the file again"):
            check_file(tmp_path / name, B)


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    folder = tmp_path / "downloads"
    folder.mkdir()
    for name in ("a.bin", "b.bin", "codes.bin"):
        (folder / name).write_bytes(RIGHT)
    return folder


def placed(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_files_are_installed_whole_or_not_at_all(downloads: Path, tmp_path: Path) -> None:
    folder, client, ready = tmp_path / "app", ReleaseClient(SPACE), sign(replace(FIRST, gallery=(CODES,)), KEY)
    for data in (CHANGED, LONGER, RIGHT[:-1], b""):
        (downloads / "codes.bin").write_bytes(data)  # the last one that is copied
        with pytest.raises(CorruptFile, match=r"codes\.bin"):
            install_files(ready, client, downloads, folder)
        assert not list(folder.iterdir())
    (downloads / "codes.bin").unlink()
    with pytest.raises(CorruptFile, match=r"codes\.bin"):
        install_files(ready, client, downloads, folder)
    with pytest.raises(InputError, match=r"Choose from a\.bin, b\.bin"):
        install_files(ready, client, downloads, folder, ["c.bin"])
    assert not list(folder.iterdir())
    (downloads / "codes.bin").write_bytes(RIGHT)
    assert install_files(ready, client, downloads, folder) == ReleaseUpdate.BOTH
    everything = {"3/student/a.bin", "3/student/b.bin", "3/gallery/codes.bin", "3/gallery/release.json"}
    everything |= {"3/release.json"}
    assert placed(folder) == everything
    assert read_release((folder / "3" / "release.json").read_bytes(), PUBLIC) == ready


def test_a_student_alone_keeps_the_gallery_and_nothing_is_installed_twice(downloads: Path, tmp_path: Path) -> None:
    folder, first = tmp_path / "app", sign(replace(FIRST, gallery=(CODES,)), KEY)
    install_files(first, ReleaseClient(SPACE), downloads, folder)
    second = sign(replace(FIRST, version=4), KEY)
    client = ReleaseClient(SPACE, first)
    assert install_files(second, client, downloads, folder, ["b.bin"]) == ReleaseUpdate.STUDENT
    assert {name for name in placed(folder) if name.startswith("4/")} == {
        "4/student/b.bin", "4/gallery/codes.bin", "4/gallery/release.json", "4/release.json"}  # fmt: skip
    assert (folder / "4" / "gallery" / "release.json").read_text() == first.text
    before = placed(folder)
    assert install_files(second, ReleaseClient(SPACE, second), downloads, folder) == ReleaseUpdate.NONE
    with pytest.raises(InputError, match="version 4, which is installed"):
        install_files(first, ReleaseClient(SPACE, second), downloads, folder)
    with pytest.raises(CodeSpaceMismatch):
        install_files(sign(replace(FIRST, version=5, code_space=OTHER), KEY), client, downloads, folder)
    assert placed(folder) == before


def test_a_gallery_is_kept_only_whole_and_of_the_same_code_space(downloads: Path, tmp_path: Path) -> None:
    folder, first = tmp_path / "app", sign(replace(FIRST, gallery=(CODES,)), KEY)
    second, other = (sign(replace(FIRST, version=4, code_space=space), KEY) for space in (SPACE, OTHER))
    install_files(first, ReleaseClient(SPACE), downloads, folder)
    with pytest.raises(CodeSpaceMismatch, match=f"gallery's code space {SPACE}"):
        install_files(other, ReleaseClient(OTHER, first), downloads, folder)  # a client that knows its space wrongly
    install_files(second, ReleaseClient(SPACE, first), downloads, folder)
    last = sign(replace(FIRST, version=5, code_space=OTHER), KEY)
    with pytest.raises(CodeSpaceMismatch, match=f"gallery's code space {SPACE}"):
        install_files(last, ReleaseClient(OTHER, second), downloads, folder)  # the second brought none, but has one
    before, client = placed(folder), ReleaseClient(SPACE, second)
    last, gallery = sign(replace(FIRST, version=5), KEY), folder / "4" / "gallery"
    for damage, found in (
        (lambda: (gallery / "codes.bin").write_bytes(CHANGED), "codes.bin of 20 bytes"),
        (lambda: (gallery / "codes.bin").unlink(), "codes.bin of 20 bytes"),
        (lambda: (gallery / "release.json").write_text("x"), "release.json that brought the gallery"),
        (lambda: (gallery / "release.json").unlink(), "release.json that brought the gallery"),
    ):
        damage()
        with pytest.raises(CorruptFile, match="Install a release that brings its gallery") as caught:
            install_files(last, client, downloads, folder)
        assert found in caught.value.expected
    shutil.rmtree(folder / "3" / "gallery")
    with pytest.raises(CorruptFile, match="Install a release that brings its gallery"):
        install_files(second, ReleaseClient(SPACE, first), downloads, folder)
    assert placed(folder) < before
    assert install_files(first, ReleaseClient(SPACE), downloads, folder) == ReleaseUpdate.BOTH  # as the fix says
    assert install_files(second, ReleaseClient(SPACE, first), downloads, folder) == ReleaseUpdate.STUDENT
    assert placed(folder) == before


def test_a_server_s_gallery_is_none_to_keep(downloads: Path, tmp_path: Path) -> None:
    folder, first = tmp_path / "app", sign(FIRST, KEY)
    install_files(first, ReleaseClient(SPACE), downloads, folder)
    moved = sign(replace(FIRST, version=4, code_space=OTHER), KEY)
    assert install_files(moved, ReleaseClient(OTHER, first), downloads, folder) == ReleaseUpdate.STUDENT
    assert not list(folder.glob("*/gallery"))


def test_a_lost_public_key_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    private = tmp_path / "key.pem"
    public, digits = make_keys(private)
    data = public.read_bytes()
    public.unlink()
    code, said = call("release-key", private)
    assert (code, f"{private}, as it was" in said, digits in said) == (0, True, True), said
    assert public.read_bytes() == data
    assert load_key(private).public_key().public_bytes_raw().hex() == digits
    public.unlink()
    private.write_text("notes")
    with pytest.raises(InputError, match="in new files"):
        make_keys(private)
    assert (private.read_text(), public.exists()) == ("notes", False)
    monkeypatch.chdir(tmp_path)
    for folder in (".", "..", "/", tmp_path):
        code, said = call("release-key", folder)
        assert (code, "Name a file in it: " in said) == (2, True), said


def test_keys_are_for_their_owner_alone_and_are_not_overwritten(tmp_path: Path) -> None:
    private = tmp_path / "keys" / "key.pem"
    before = os.umask(0)
    try:
        public, digits = make_keys(private)
    finally:
        os.umask(before)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert public == tmp_path / "keys" / "key.pub"
    assert load_public_key(public).public_bytes_raw().hex() == digits
    assert load_key(private).public_key().public_bytes_raw().hex() == digits
    assert private.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    kept = private.read_bytes(), public.read_bytes()
    with pytest.raises(InputError, match="Keep that key"):
        make_keys(private)
    private.unlink()
    with pytest.raises(InputError, match=r"key\.pub"):
        make_keys(private)
    private.symlink_to(tmp_path / "elsewhere.pem")
    with pytest.raises(InputError, match="Keep that key"):
        make_keys(private)
    assert not (tmp_path / "elsewhere.pem").exists()
    assert public.read_bytes() == kept[1]
    with pytest.raises(InputError, match=r"Name it key\.pem"):
        make_keys(tmp_path / "key.pub")


def test_an_encrypted_key_takes_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = tmp_path / "key.pem"
    monkeypatch.setenv(PASSWORD, "correct horse")
    _, digits = make_keys(private)
    assert private.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert load_key(private).public_key().public_bytes_raw().hex() == digits
    monkeypatch.setenv(PASSWORD, "wrong")
    with pytest.raises(InputError, match=f"Set {PASSWORD} to the password it was made with"):
        load_key(private)
    monkeypatch.delenv(PASSWORD)
    with pytest.raises(InputError, match=f"Set the environment variable {PASSWORD}"):
        load_key(private)
    monkeypatch.setenv(PASSWORD, "of another key")
    plain = tmp_path / "plain.pem"
    plain.write_bytes(pem_of(KEY))
    assert load_key(plain).public_key() == PUBLIC  # a password that is not needed is no error


def pem_of(key: Any) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))


def test_what_is_no_key_is_an_error(tmp_path: Path) -> None:
    rsa = generate_private_key(65537, 2048)
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    contents = {
        "none": None, "empty": b"", "noise": bytes(range(256)), "large": b"-" * (1 << 15), "rsa": pem_of(rsa),
        "text": b"-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----\n",
        "rsa-public": rsa.public_key().public_bytes(serialization.Encoding.PEM, info),
    }  # fmt: skip
    for name, data in contents.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        for load, kind in ((load_key, "private key"), (load_public_key, "public key")):
            with pytest.raises(InputError, match="release-key") as caught:
                load(tmp_path / name)
            assert kind in caught.value.expected
    (tmp_path / "key.pem").write_bytes(pem_of(KEY))
    with pytest.raises(InputError, match=r"Name the \.pub file"):
        load_public_key(tmp_path / "key.pem")


@pytest.fixture(scope="module")
def bundle(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Path:
    student, logits = exports.student, exports.student.logits[:2]
    models: list[ExportedModel] = [exports.files[name] for name in ("onnx-w8a32", "litert-w8a32", "coreml-w8a32")]
    folder = tmp_path_factory.mktemp("release") / "bundle"
    write_bundle(folder, models, student.space, student.centers, Golden(student.images[:2], pack(logits), logits))
    return folder


@pytest.fixture
def gallery(exports: Exports, tmp_path: Path) -> Path:
    """A folder as `gallery/run.py export --to site` writes it, as far as a release looks at it."""
    folder = tmp_path / "gallery"
    folder.mkdir()
    codespace.save(folder, exports.student.space, exports.student.centers)
    (folder / "codes.bin").write_bytes(np.arange(80, dtype=np.uint8).tobytes())
    (folder / "items.json").write_text('{"ids": []}')
    (folder / "README.md").write_text("how to query it\n")
    (folder / "thumbs").mkdir()
    (folder / ".DS_Store").write_bytes(b"x")
    return folder


def test_a_release_names_the_models_the_manifest_and_the_gallery(bundle: Path, gallery: Path) -> None:
    release = describe_release(bundle, 7, gallery=gallery)
    manifest = open_bundle(bundle, parse_models=False)
    names = ["query-w8a32.onnx", "query-w8a32.tflite", "manifest.json"]
    assert sorted(one.name for one in release.files) == sorted(names)
    assert [one.name for one in release.gallery] == ["codes.bin", "items.json"]
    assert (release.version, release.code_space, release.student) == (7, manifest.space.id, "mobilenetv3_small_100")
    for folder, files in ((bundle, release.files), (gallery, release.gallery)):
        for file in files:
            check_file(folder / file.name, file)
    assert read_release(sign(release, KEY).text.encode(), PUBLIC) == release


def test_what_cannot_ship_is_an_error(bundle: Path, gallery: Path, exports: Exports, tmp_path: Path) -> None:
    for version in (0, -1, 1_000_000_000):
        with pytest.raises(InputError, match="a release version of 1"):
            describe_release(bundle, version)
    for name in ("query-w8a32.mlpackage", "../bundle/manifest.json", "golden", "golden/000.png", ".gitattributes", "x"):
        with pytest.raises(InputError, match="single files of the bundle"):
            describe_release(bundle, 1, [name])
    (gallery / "key.pem").write_bytes(pem_of(KEY))
    with pytest.raises(InputError, match="no private key among the files to ship"):
        describe_release(bundle, 1, gallery=gallery)
    (gallery / "key.pem").rename(gallery / "ö.txt")
    with pytest.raises(InputError, match="no private key"):
        describe_release(bundle, 1, gallery=gallery)
    (gallery / "ö.txt").write_bytes(b"-" * 5000 + pem_of(KEY))
    with pytest.raises(InputError, match="no private key"):
        describe_release(bundle, 1, gallery=gallery)
    (gallery / "ö.txt").write_text("x")
    with pytest.raises(InputError, match=r"ö\.txt\. Rename the file\."):
        describe_release(bundle, 1, gallery=gallery)
    for name, size, message in (
        ("empty.txt", 0, r"empty\.txt of 0 bytes\. Move it away"),
        ("large.bin", 10_000_000_000, "of 10,000,000,000 bytes. Move it away"),
        ("Release.json", 3, "a release lies beside them"),
    ):
        with (gallery / name).open("wb") as stream:
            stream.truncate(size)  # takes no space
        with pytest.raises(InputError, match=message):
            describe_release(bundle, 1, gallery=gallery)
        (gallery / name).unlink()
    many = replace(FIRST, gallery=tuple(replace(A, name=f"f{i}") for i in range(65)))
    with pytest.raises(InputError, match=r"2 and 65 files.* or choose fewer"):
        sign(many, KEY)
    for name in ("codes.bin", "items.json", "ö.txt"):
        (gallery / name).unlink()
    with pytest.raises(InputError, match=r"gallery/run\.py export"):
        describe_release(bundle, 1, gallery=gallery)
    student = exports.student
    codespace.save(gallery, replace(student.space, teacher="another"), student.centers)
    with pytest.raises(CodeSpaceMismatch, match="of the same run"):
        describe_release(bundle, 1, gallery=gallery)
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="an exported gallery with"):
            describe_release(bundle, 1, gallery=folder)


def test_a_damaged_bundle_is_not_released(bundle: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (other / "query-w8a32.onnx").write_bytes(b"x")
    with pytest.raises(CorruptFile, match=r"query-w8a32\.onnx"):
        describe_release(other, 1)


def test_a_bundle_of_core_ml_alone_has_no_file_to_download(exports: Exports, tmp_path: Path) -> None:
    student, logits = exports.student, exports.student.logits[:1]
    folder, golden = tmp_path / "bundle", Golden(exports.student.images[:1], pack(logits), logits)
    write_bundle(folder, [exports.files["coreml-w8a32"]], student.space, student.centers, golden)
    with pytest.raises(InputError, match="Export ONNX or LiteRT too"):
        describe_release(folder, 1)
    assert [one.name for one in describe_release(folder, 1, ["manifest.json"]).files] == ["manifest.json"]


@pytest.fixture
def call(heard: Any) -> Call:
    """The command line in this process: exit code and what it said."""
    found: Call = heard(import_script("export.run").main)
    return found


def test_commands_from_a_key_to_a_release_that_an_app_takes(
    bundle: Path, gallery: Path, call: Call, tmp_path: Path
) -> None:
    key, out = tmp_path / "key.pem", bundle.parent / "release.json"
    code, said = call("release-key", key)
    assert code == 0
    digits = load_public_key(tmp_path / "key.pub").public_bytes_raw().hex()
    assert f"public key {tmp_path / 'key.pub'}, in apps: {digits}" in said
    code, said = call("release", bundle, "--version", "3", "--key", key)
    assert code == 0, said
    assert "not in it, since they are folders: query-w8a32.mlpackage" in said
    assert digits not in out.read_text()
    assert "PRIVATE" not in out.read_text()
    check = ("verify-release", out, "--public-key", tmp_path / "key.pub")
    code, said = call(*check, "--folder", bundle)
    assert (code, "an app updates the student alone; all files are right" in said) == (0, True), said
    code, said = call(*check, "--space", "0" * 16)
    assert (code, "without a gallery" in said) == (2, True)
    code, said = call(*check, "--pinned-version", "4")
    assert (code, "version 4, which is pinned" in said) == (2, True)
    shutil.copy(out, tmp_path / "installed.json")
    code, said = call(*check, "--installed", tmp_path / "installed.json")
    assert (code, "an app updates nothing: it is installed" in said) == (0, True)
    code, said = call("release", bundle, "--version", "3", "--key", key)
    assert (code, "Take --version 4" in said) == (2, True)
    code, said = call("release", bundle, "--version", "4", "--key", key, "--gallery", gallery)
    assert code == 0, said
    assert (
        call(*check, "--space", "0" * 16, "--installed", tmp_path / "installed.json", "--folder", bundle, gallery)[0]
        == 0
    )
    code, said = call(*check, "--folder", bundle)
    assert (code, "codes.bin" in said) == (2, True)
    code, said = call("verify-release", tmp_path / "installed.json", *check[2:], "--installed", out)
    assert (code, "version 4, which is installed" in said) == (2, True)
    assert open_bundle(bundle).files  # release.json lies beside the bundle, which stays as it was


def test_commands_refuse_what_does_not_fit(bundle: Path, call: Call, tmp_path: Path) -> None:
    keys = [tmp_path / "one.pem", tmp_path / "two.pem"]
    assert [call("release-key", key)[0] for key in keys] == [0, 0]
    out = tmp_path / "release.json"
    made = ("release", bundle, "--version", "1", "--key", keys[0], "--out", out)
    assert call(*made)[0] == 0
    checks: dict[str, tuple[object, ...]] = {
        "Keep that key": ("release-key", keys[0]),
        "outside of what ships": ("release-key", bundle / "key.pem"),
        "take the key of before": ("release", bundle, "--version", "2", "--key", keys[1], "--out", out),
        "release.json then lies beside the bundle": (*made[:-1], bundle / "release.json"),
        "outside of the bundle and the gallery": (*made[:-1], bundle / "golden" / "x.json", "--gallery", bundle.parent),
        "Name a file elsewhere: --out FILE": (*made[:-2], "--gallery", bundle.parent),
        "another key's signature": ("verify-release", out, "--public-key", tmp_path / "two.pub"),
        "Make a pair": ("release", bundle, "--version", "2", "--key", tmp_path / "none.pem"),
        "Name the .pub file": ("verify-release", out, "--public-key", keys[0]),
        "Name the release.json": ("verify-release", tmp_path / "none.json", "--public-key", tmp_path / "one.pub"),
        "at most 65,536 bytes": ("verify-release", bundle / "query-w8a32.onnx", "--public-key", tmp_path / "one.pub"),
    }
    for message, words in checks.items():
        code, said = call(*words)
        assert (code, message in said) == (2, True), said
    keys[0].chmod(0o644)
    code, said = call("release", bundle, "--version", "2", "--key", keys[0], "--out", out)
    assert (code, "Other users of this machine may read" in said) == (0, True)
    assert not list(bundle.rglob("*.pem"))
    out.write_text("notes")
    code, said = call("release", bundle, "--version", "3", "--key", keys[0], "--out", out)
    assert (code, "an earlier release of the same key to replace" in said, out.read_text()) == (2, True, "notes")


def test_another_code_space_is_checked_as_an_app_does(bundle: Path, gallery: Path, call: Call, tmp_path: Path) -> None:
    make_keys(key := tmp_path / "key.pem")
    signer, space = load_key(key), open_bundle(bundle, parse_models=False).space.id
    former, out = tmp_path / "former.json", tmp_path / "out.json"
    for brings in ((), (CODES,)):
        for path in (former, out):
            path.write_text(sign(replace(FIRST, code_space=OTHER, gallery=brings), signer).text)
        made = ("release", bundle, "--key", key, "--out", out, "--version")
        check = ("verify-release", out, "--public-key", tmp_path / "key.pub", "--installed", former)
        code, said = call(*made, "4")
        assert (code, f"code space {OTHER}, this one of {space} without a gallery" in said) == (0, True), said
        code, said = call(*check)
        assert (code, f"the gallery's code space {OTHER}" in said) == (2, True), said
        assert call(*check, "--space", space)[0] == (2 if brings else 0)  # or it searches a server's gallery
        code, said = call(*made, "5", "--gallery", gallery)
        assert (code, "without a gallery" in said, call(*check)[0]) == (0, False, 0), said


Answers = dict[str, str]


def answers(command: list[Any], folder: Path) -> Answers:
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return dict(line.split("\t", 1) for line in run.stdout.splitlines())


@pytest.fixture(scope="module")
def compiled(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the TypeScript, type-checked and compiled, and the vectors."""
    if shutil.which("node") is None:
        pytest.skip("Node is not installed")
    packages = installed(pytestconfig, WEB) / "node_modules"
    folder = tmp_path_factory.mktemp("web")
    shutil.copy(source_of("release.ts"), folder)
    for name in ("driveRelease.mjs", "answers.js"):
        shutil.copy(HERE / "release" / name, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    strict = ["--strict", "--noUnusedLocals", "--noUnusedParameters", "--noImplicitReturns", "--types", ""]
    modern = ["--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler", "--lib", "es2022,dom"]
    compiler = ["node", packages / "typescript" / "bin" / "tsc", *strict, *modern, "release.ts"]
    check = subprocess.run(compiler, cwd=folder, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout
    write_vectors(folder)
    return folder


@pytest.fixture(scope="module")
def node(compiled: Path) -> Answers:
    return answers(["node", "driveRelease.mjs", compiled], compiled)


@pytest.fixture(scope="module")
def browser(compiled: Path) -> Answers:
    """The same in Chromium, in a page of this machine."""
    if chromium() is None:
        pytest.skip("chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api")
    (compiled / "index.html").write_text("<!doctype html><title>releases</title>")
    handler = partial(SimpleHTTPRequestHandler, directory=str(compiled))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, playwright.sync_playwright() as started:
        Thread(target=server.serve_forever, daemon=True).start()
        with started.chromium.launch(executable_path=chromium(), chromium_sandbox=False) as browser:
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{server.server_port}/")
            found = page.evaluate("""async () => {
                const load = async (name) => (await fetch(`${name}.tsv`)).text();
                return (await import("/answers.js")).answersTo(await load("releases"), await load("files"));
            }""")
        server.shutdown()
    return dict(found)


@pytest.fixture(scope="module")
def android(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """The Kotlin, compiled without a warning, and run on the vectors with a stand-in for Android's JSON."""
    if shutil.which("java") is None:
        pytest.skip("Java is not installed")
    library = installed(pytestconfig, KOTLIN) / "node_modules" / "kotlin-compiler" / "lib"
    folder = tmp_path_factory.mktemp("android")
    java = ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp"]
    compiler = [*java, library / "kotlin-compiler.jar", "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-Werror"]
    sources = [source_of("Release.kt"), HERE / "JsonStandIn.kt", HERE / "release" / "DriveRelease.kt"]
    standard = library / "kotlin-stdlib.jar"
    options = ["-no-stdlib", "-no-reflect", "-cp", standard, "-d", "out", *sources]
    check = subprocess.run([*compiler, *options], cwd=folder, capture_output=True, text=True)
    assert check.returncode == 0, check.stderr
    write_vectors(folder)
    return answers([*java, f"out:{standard}", "DriveReleaseKt", folder], folder)


@pytest.mark.parametrize("language", ["node", "browser", "android"])
def test_apps_take_and_refuse_what_python_does(language: str, request: pytest.FixtureRequest) -> None:
    found: Answers = request.getfixturevalue(language)
    for vector in VECTORS:
        said = found[vector.name]
        if vector.is_taken:
            assert said == vector.answer, vector.name
        else:
            assert vector.answer in said, vector.name
            assert said.startswith("expected "), vector.name
    for name, (_, part) in FILES.items():
        assert part in found[name], name
    assert "64 hexadecimal digits" in found["short-key"]
    assert found["no-point"].startswith("expected ")


def test_the_web_fetches_all_files_or_none(node: Answers) -> None:
    assert node["fetch-right"] == "a.bin:20,b.bin:20"
    assert "b.bin of 20 bytes" in node["fetch-changed"]
    assert "at most 20 bytes" in node["fetch-longer"]
    assert "HTTP status 404" in node["fetch-none"]
    assert node["fetch-one"] == "a.bin:20"
    assert "Choose from a.bin, b.bin" in node["fetch-other"]


def test_the_web_says_where_ed25519_is_missing(node: Answers) -> None:
    assert "Serve the page by https" in node["http"]
    assert "Chrome 137, Firefox 129, Safari 17" in node["old-browser"]


def test_android_installs_all_files_or_none_and_names_a_provider(android: Answers) -> None:
    assert "b.bin of 20 bytes" in android["install-changed"]
    assert android["placed-nothing"] == ""
    assert android["install-one"] == "3/release.json,3/student/a.bin"
    assert "Choose from a.bin, b.bin" in android["install-other"]
    assert android["install-right"] == "3/release.json,3/student/a.bin,3/student/b.bin"
    assert "no file" in android["missing"]
    student = "gallery/codes.bin,gallery/release.json,release.json,student/b.bin"
    assert android["update-first"] == android["update-student"] == android["update-kept"] == student
    assert f"gallery's code space {SPACE}" in android["update-other-space"]
    assert android["update-folders"] == android["update-left"] == "3,4"
    assert "codes.bin of 20 bytes" in android["update-damaged"]
    for name in ("damaged", "unknown", "lost"):
        assert "Install a release that brings its gallery" in android[f"update-{name}"]
    assert "a folder that can be written at" in android["update-nowhere"]
    assert "Check that the app may write there" in android["update-nowhere"]
    assert "b.bin of 20 bytes" in android["update-missing"]
    assert "BouncyCastleProvider()" in android["no-provider"]


def test_the_swift_parses() -> None:
    parser = pytest.importorskip("tree_sitter")
    grammar = pytest.importorskip("tree_sitter_swift")
    source = source_of("Release.swift").read_bytes()
    swift = parser.Parser(parser.Language(grammar.language()))
    assert not swift.parse(source).root_node.has_error
    assert b"in release.files + release.gallery {" in source
    assert swift.parse(source.replace(b"guard", b"guard else", 1)).root_node.has_error


@pytest.mark.parametrize("name", ["release.ts", "Release.kt", "Release.swift"])
def test_every_language_has_the_same_expression(name: str) -> None:
    text = source_of(name).read_text()
    head = PAYLOAD.partition("(?:file")[0]
    first, _, second = head.partition("created")
    lines = [LINE, first, f"created{second}"]
    for part in lines:
        assert part in text, part
    assert "){1,64}(?:gallery" in text
    assert "){0,64}" in text


def test_the_readme_claims_what_is_tested_here(bundle: Path) -> None:
    text = " ".join((bundle / "README.md").read_text().split())
    tested = f"type-checked (TypeScript {WEB['typescript']}, strict), and run under Node and in Chromium"
    assert f"(Chrome 137, Firefox 129, Safari 17, Node 20): {tested}" in text
