"""The gallery as static files: what a page finds there is what the gallery finds, and nothing private is in it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from gallery.commands.handlers import export
from gallery.commands.options import ExportGalleryCommand
from gallery.database import code_array
from gallery.errors import CorruptFile, InputError
from gallery.exports import export_gallery
from gallery.files import STARTED, sha256_of
from gallery.index import GalleryIndex, open_gallery
from gallery.site import CHANGED, NO_SOURCE, SiteOptions, check_site, copy_site
from gallery.store import GalleryStore
from tests.gallery.galleries import SPACE, centers_of

LABELS = [["b", "a"], [], None, ["b"]]
SECRET = "private-folder"


def photo(kind: str = "JPEG", size: tuple[int, int] = (400, 200), **options: Any) -> bytes:
    data = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(data, kind, **options)
    return data.getvalue()


def rotated() -> bytes:
    """An image that is upright after a quarter turn."""
    exif = Image.Exif()
    exif[274] = 6
    return photo(exif=exif)


FILES = {  # by id: the bytes at the source, which is a file named by its place
    "../../../etc/up.jpg": rotated(), "<img src=x onerror=alert(1)>": photo(), "CON": photo(),
    "größe/π.png": photo("PNG", (90, 30)), "junk": b"no image", "\u2028": photo("WEBP"), "empty": b"",
}  # fmt: skip


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    (tmp_path / SECRET).mkdir()
    found = {}
    for place, (id, data) in enumerate(FILES.items()):
        found[id] = str(tmp_path / SECRET / str(place))
        Path(found[id]).write_bytes(data)
    found |= {"gone": str(tmp_path / SECRET / "gone"), "web": "http://127.0.0.1:9/a.jpg", "own": "", "foreign": ""}
    return found | {"changed": found["CON"]}


@pytest.fixture
def index(sources: dict[str, str], tmp_path: Path) -> GalleryIndex:
    ids = list(sources)
    codes = np.random.default_rng(0).integers(0, 2, (len(ids), 8), np.uint8)
    sums = ["f" * 64 if id == "changed" else sha256(FILES[id]).hexdigest() if id in FILES else None for id in ids]
    store = GalleryStore(tmp_path / "g", create=True)
    store.add_space(SPACE, centers_of(64), pa.schema([("price", pa.float64())]))
    labels = pa.array([LABELS[place % 4] for place in range(len(ids))], pa.list_(pa.string()))
    rows = {"id": ids, "code": code_array(codes), "labels": labels, "source": [sources[id] or None for id in ids],
            "sha256": pa.array(sums, pa.string()), "price": [12345.75] * len(ids)}  # fmt: skip
    store.put(SPACE.id, pa.table(rows))
    store.publish(SPACE.id)
    return open_gallery(tmp_path / "g")


def own_image(id: str) -> Image.Image:
    if id != "own":
        raise InputError("an image of the run", "another id", "Add it.")
    return Image.new("RGB", (1000, 10), "red")


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_bytes())


def test_what_can_be_shown_is_shown_and_the_rest_is_named(
    index: GalleryIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    written = export_gallery(index, out, "site", SiteOptions(load_images=lambda: own_image))
    assert set(written.missing) == {"junk", "empty", "gone", "web", "foreign", "changed"}
    assert written.missing["changed"] == CHANGED
    assert "--allow-http" in written.missing["web"]
    assert "6 of 12 items have no thumbnail" in caplog.text
    items, about = read(out, "items.json"), read(out, "gallery.json")
    thumbnails = dict(zip(items["ids"], items["thumbnails"], strict=True))
    assert {id for id, name in thumbnails.items() if name is None} == set(written.missing)
    sizes = {id: Image.open(out / "thumbs" / name).size for id, name in thumbnails.items() if name}
    assert sizes == {"../../../etc/up.jpg": (80, 160), "<img src=x onerror=alert(1)>": (160, 80), "CON": (160, 80),
                     "größe/π.png": (90, 30), "\u2028": (160, 80), "own": (160, 2)}  # fmt: skip
    assert thumbnails["CON"] == thumbnails["<img src=x onerror=alert(1)>"]  # of the same bytes, there once
    files = [path for path in (out / "thumbs").rglob("*") if path.is_file()]
    for path in files:
        name = path.relative_to(out / "thumbs").as_posix()
        assert re.fullmatch(r"[0-9a-f]{2}/[0-9a-f]{30}\.jpg", name)
        assert sha256_of(path).startswith(name.removesuffix(".jpg").replace("/", ""))
    total = sum(path.stat().st_size for path in files)
    assert about["thumbnails"] == {"size": 160, "items": 6, "files": len(files), "bytes": total}
    assert len(files) == 5


def test_the_files_are_the_gallerys_and_say_so(index: GalleryIndex, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_gallery(index, out, "site", SiteOptions())
    about, items = read(out, "gallery.json"), read(out, "items.json")
    assert (out / "codes.bin").read_bytes() == index.codes.tobytes()
    assert items["ids"] == index.ids.to_pylist()
    labels = [own and [items["classes"][place] for place in own] for own in items["labels"]]
    assert labels == index.labels.to_pylist()
    assert (about["format"], about["code_space"], about["bits"]) == (1, SPACE.id, 64)
    assert (about["items"], about["gallery_items"], about["gallery_version"]) == (12, 12, index.version)
    for name, told in about["files"].items():
        assert told == {"bytes": (out / name).stat().st_size, "sha256": sha256_of(out / name)}
    listed = {*about["files"], "gallery.json", "README.md", "thumbs"}
    assert {path.name for path in out.iterdir()} == listed
    for path in out.rglob("*"):
        if path.is_file():
            assert not any(private in path.read_bytes() for private in (SECRET.encode(), b"12345.75", b"price"))


def test_a_few_items_are_evenly_spaced_and_the_files_say_so(
    index: GalleryIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for limit in (1, 3, 11, 12, 99):
        out = tmp_path / str(limit)
        written = export_gallery(index, out, "site", SiteOptions(None, limit))
        ids, about = read(out, "items.json")["ids"], read(out, "gallery.json")
        assert written.items == len(ids) == about["items"] == min(limit, 12)
        rows = index.rows_of(ids)
        assert (out / "codes.bin").read_bytes() == index.codes[rows].tobytes()
        assert np.ptp(np.diff(rows)) <= 1 if len(rows) > 1 else True
        assert (read(out, "items.json")["thumbnails"], (out / "thumbs").exists()) == ([None] * len(ids), False)
        assert ("items are written, evenly spaced" in caplog.text) == (limit < 12)
        assert f"\n{len(ids)} codes of 64 bits" in (out / "README.md").read_text()
        caplog.clear()


def test_a_run_whose_data_are_gone_costs_its_own_thumbnails_alone(index: GalleryIndex, tmp_path: Path) -> None:
    def gone() -> Any:
        raise InputError("data", "nothing at photos/", "Check the path.")

    missing = export_gallery(index, tmp_path / "out", "site", SiteOptions(load_images=gone)).missing
    assert "nothing at photos/" in missing["own"]
    assert "CON" not in missing
    missing = export_gallery(index, tmp_path / "other", "site", SiteOptions(thumbnail_size=32)).missing
    assert missing["own"] == missing["foreign"] == NO_SOURCE
    name = next(name for name in read(tmp_path / "other", "items.json")["thumbnails"] if name)
    assert max(Image.open(tmp_path / "other" / "thumbs" / name).size) == 32


@pytest.fixture
def site(index: GalleryIndex, tmp_path: Path) -> Path:
    export_gallery(index, tmp_path / "site", "site", SiteOptions())
    return tmp_path / "site"


def rewrite(folder: Path, name: str, change: Callable[[Any], object]) -> None:
    """Change a file's JSON, and the checksum that `gallery.json` has of it."""
    value = read(folder, name)
    change(value)
    (folder / name).write_text(json.dumps(value))
    if name != "gallery.json":
        sum_of = sha256_of(folder / name)
        rewrite(folder, "gallery.json", lambda about: about["files"][name].update(sha256=sum_of))


WRONG: dict[str, Callable[[Any], object]] = {
    **{
        f"no {key}": lambda about, key=key: about.pop(key) for key in ("format", "code_space", "bits", "items", "files")
    },
    "no checksum": lambda about: about["files"]["items.json"].pop("sha256"),
    "files as a list": lambda about: about.update(files=[]),
    "another code space": lambda about: about.update(code_space="\x1b"),
    "other bits": lambda about: about.update(bits=32),
    "more items": lambda about: about.update(items=13),
    "another format": lambda about: about.update(format=2),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_description_that_does_not_fit_is_corrupt(site: Path, wrong: str) -> None:
    assert check_site(site) == SPACE
    rewrite(site, "gallery.json", WRONG[wrong])
    with pytest.raises(CorruptFile) as caught:
        check_site(site)
    assert str(caught.value).isprintable()


def test_a_pipe_or_a_large_file_is_never_read(site: Path) -> None:
    (site / "codes.bin").unlink()
    os.mkfifo(site / "codes.bin")
    with pytest.raises(CorruptFile, match=r"codes\.bin is a folder, pipe or device"):
        check_site(site)
    (site / "codes.bin").unlink()
    with (site / "codes.bin").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(CorruptFile, match=r"codes\.bin is 1,099,511,627,776 bytes"):
        check_site(site)


def test_a_copy_has_what_was_exported_and_nothing_else(site: Path, tmp_path: Path) -> None:
    exported = {path.relative_to(site): path.read_bytes() for path in site.rglob("*") if path.is_file()}
    (site / ".git").mkdir()
    for stray in ("key.pem", ".git/config", "thumbs/notes.txt", f"thumbs/{'0' * 2}.jpg"):
        (site / stray).write_text(SECRET)
    (site / "linked").symlink_to(tmp_path)
    copy_site(site, tmp_path / "copy")
    copied = {path.relative_to(tmp_path / "copy"): path.read_bytes()
              for path in (tmp_path / "copy").rglob("*") if path.is_file()}  # fmt: skip
    assert copied == exported


def thumbnail_of(site: Path) -> Path:
    return site / "thumbs" / next(name for name in read(site, "items.json")["thumbnails"] if name)


def linked(path: Path) -> None:
    """Move a file or folder away, and lead there by a link."""
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a thumbnail changed": (lambda site: thumbnail_of(site).write_bytes(photo()), "has another checksum"),
    "a thumbnail gone": (lambda site: thumbnail_of(site).unlink(), "No such file"),
    "a thumbnail linked": (lambda site: linked(thumbnail_of(site)), "is a link, or in one"),
    "its folder linked": (lambda site: linked(thumbnail_of(site).parent), "is a link, or in one"),
    "all linked": (lambda site: linked(site / "thumbs"), "is a link, or in one"),
    "the README linked": (lambda site: linked(site / "README.md"), "is a link, or in one"),
    "a name that leads out": (
        lambda site: rewrite(site, "items.json", lambda items: items.update(thumbnails=["../\x1b"])), "no thumbnail's"),
    "a name that is none": (
        lambda site: rewrite(site, "items.json", lambda items: items.update(thumbnails=[7])), "expected string"),
    "no names": (lambda site: rewrite(site, "items.json", lambda items: items.pop("thumbnails")), "no 'thumbnails'"),
}  # fmt: skip


@pytest.mark.parametrize("tampered", TAMPERED)
def test_a_copy_is_of_what_the_names_say(site: Path, tmp_path: Path, tampered: str) -> None:
    change, said = TAMPERED[tampered]
    change(site)
    assert check_site(site) == SPACE
    with pytest.raises(CorruptFile, match=said) as caught:
        copy_site(site, tmp_path / "copy")
    assert str(caught.value).isprintable()


def test_what_a_killed_export_left_is_removed_by_the_next(index: GalleryIndex, tmp_path: Path) -> None:
    left = [tmp_path / f".{name}.{os.getpid()}.abcdefgh.partial" for name in ("out", "other")]
    for folder in left:
        folder.mkdir()
        os.utime(folder, (STARTED - 1, STARTED - 1))
    export_gallery(index, tmp_path / "out", "site", SiteOptions(None))
    assert [folder.exists() for folder in left] == [False, True]


def test_of_an_image_without_a_checksum_the_file_is_shown(
    index: GalleryIndex, sources: dict[str, str], tmp_path: Path
) -> None:
    Path(sources["gone"]).write_bytes(photo("PNG", (20, 30)))  # another may have been encoded: no one can say
    written = export_gallery(index, tmp_path / "out", "site", SiteOptions())
    assert "gone" not in written.missing


def test_options_of_a_site_are_named_as_they_are_given(tmp_path: Path) -> None:
    command = ExportGalleryCommand(
        gallery="none", out=tmp_path / "out", to="sqlite", thumbnails=False, thumbnail_size=32, allow_http=True
    )
    with pytest.raises(InputError, match="--no-thumbnails, --thumbnail-size, --allow-http with --to sqlite"):
        export("none", command)


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_the_javascript_of_the_readme_finds_what_the_gallery_finds(index: GalleryIndex, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_gallery(index, out, "site", SiteOptions(None))
    (code,) = re.findall("```js\n(.+?)```", (out / "README.md").read_text(), re.S)
    query = np.random.default_rng(1).integers(0, 2, (1, 8), np.uint8)
    script = f"""import {{ readFile }} from "node:fs/promises";
globalThis.fetch = async (name) => new Response(await readFile(name));
const code = Uint8Array.from({query[0].tolist()});
{code}
console.log(JSON.stringify(nearest.map(({{ id, distance }}) => [id, distance])));"""
    done = subprocess.run(["node", "--input-type=module", "-e", script], cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = index.search(query, 10)
    assert json.loads(done.stdout) == [
        list(pair) for pair in zip(wanted.ids[0], wanted.distances[0].tolist(), strict=True)
    ]
