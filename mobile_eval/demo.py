"""A page that searches a gallery by an image, as a folder for any static web host.

The student runs in the browser, by the npm package of `export/apps/web` (LiteRT.js, or ONNX Runtime Web); the gallery
is its export `site`.  esbuild makes the package's scripts and the page's.  It and the engines come from npm, by the
command `setup demo`, at the versions that `evaluate` runs: nothing is downloaded here.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import Field

from gallery.console import log
from gallery.errors import EXIT_STOPPED, CodeSpaceMismatch, InputError, MissingBackend
from gallery.files import atomic_path, is_desktop_file, remove_partial
from gallery.record import Record

if TYPE_CHECKING:
    from export.artifact import ExportedModel
    from export.bundle import Manifest
    from gallery.site import ReadImage

PAGE, KIT_SOURCE = Path(__file__).parent / "demo_page", Path(__file__).parents[1] / "export" / "apps" / "web"
FILES = "index.html", "demo.css", "favicon.svg"
SCRIPT, KIT, GALLERY = "demo.js", "kit", "gallery"
ENGINES = "litert", "onnx"  # formats that browsers run: what is fetched least first
PREFERRED = "w8a32", "fp32", "fp16"  # precisions: the smallest that keeps the codes first
OPTIONS = "--format=esm", "--target=es2022", "--minify", "--log-level=error"
COMPILE_S = 60.0


class DemoCommand(Record):
    """Write a page that searches by an image in the browser, and serve it on this machine.

    The folder is complete: the page, the student, its runtime and the gallery, with ids, labels and thumbnails, which
    everybody can read who can read the page.  No other host is asked for anything, and no image leaves the browser.
    Once before: `mobile_eval/run.py setup demo` installs the runtime and a compiler by npm.

    Example: `mobile_eval/run.py demo runs/mine`

    Example, for a web host: `mobile_eval/run.py demo runs/mine --out public/ --no-serve`
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a run, or of a bundle with --gallery."""
    gallery: str | None = None
    """The folder or address of a gallery, or the folder that `gallery/run.py export --to site` wrote, which has options
    for thumbnails and large galleries; by default the run's gallery."""
    out: Path | None = None
    """The folder to write; by default `demo` in the run, or beside the bundle.  A demo that is there is replaced,
    unless other files lie in it."""
    port: int = Field(8080, ge=0, le=65535)
    """Port on this machine; 0 takes a free one."""
    serve: bool = True
    """Serve the page until it is stopped by Ctrl-C."""


def write_demo(bundle: Path, gallery: str, out: Path, load_images: Callable[[], ReadImage] | None = None) -> None:
    """Write the folder of a demo, whole or not at all.

    bundle: one with a LiteRT or ONNX student; gallery: an address, or the folder of an export `site`
    load_images: loads what reads the images of items without a source, by their ids
    Raises `MissingBackend` without the runtime and the compiler, `CodeSpaceMismatch` for a gallery of another code
    space, `InputError` where `out` holds anything else.
    """
    from export.bundle import open_bundle

    engines, manifest = _find_engines(), open_bundle(bundle, parse_models=False)
    model = _choose_model(manifest)
    _check_out(out)
    remove_partial(out.absolute().parent, out.absolute().name)
    with atomic_path(out) as draft:
        (draft / "model").mkdir(parents=True)
        _add_gallery(gallery, manifest, draft / GALLERY, load_images)
        for path in (bundle / "manifest.json", model.path):
            shutil.copyfile(path, draft / "model" / path.name)
        for name in FILES:
            text = (PAGE / name).read_text("utf-8")
            (draft / name).write_text(text.replace("$model", model.path.name), "utf-8")
        _compile("node", KIT_SOURCE / "build.mjs", draft / KIT, engines, model.format)
        _compile(engines / ".bin" / "esbuild", PAGE / "demo.ts", f"--outfile={draft / SCRIPT}", *OPTIONS)


def serve_demo(folder: Path, port: int) -> int:
    """Serve a folder here until a signal, and return its exit code; raises `InputError` for a port that is taken."""
    from mobile_eval.devices.web_server import WebServer

    try:
        server = WebServer(folder, port)
    except OSError as error:
        raise InputError(f"to listen on port {port}", str(error.strerror), "Choose another: --port.") from error
    log.info("Serving it at http://localhost:%d/", server.server_port)
    try:
        threading.Event().wait()
    except KeyboardInterrupt as stop:  # the way to end it
        log.info("Stopped.  The demo is in %s.", folder)
        return EXIT_STOPPED + int(getattr(stop, "number", signal.SIGINT))
    finally:
        server.close()
    return 0


def _find_engines() -> Path:
    """Return the folder of npm's packages."""
    from mobile_eval.devices.setup import DEMO_FIX, NPM_PACKAGES, default_folder, engines_installed

    folder = default_folder("browser")
    if not engines_installed(folder):
        parts = ", ".join(f"{name} {release}" for name, release in NPM_PACKAGES.items())
        raise MissingBackend(parts, f"not all of them in {folder}", DEMO_FIX)
    if shutil.which("node") is None:
        raise MissingBackend("Node, which runs esbuild", "none on the path", "Install it: Debian's package nodejs.")
    return folder / "node_modules"


def _choose_model(manifest: Manifest) -> ExportedModel:
    found = {(one.format, one.metadata.precision): one for one in manifest.files}
    wanted = [(format, precision) for format in ENGINES for precision in PREFERRED]
    if not found.keys() & set(wanted):
        formats = ", ".join(one.path.name for one in manifest.files)
        fix = "Export one: export/run.py RUN --formats litert --precisions w8a32."
        raise InputError(f"a LiteRT or ONNX student of {' or '.join(PREFERRED)}", formats, fix)
    return next(found[one] for one in wanted if one in found)


def _check_out(out: Path) -> None:
    """Raise `InputError` unless a folder is new or empty, or holds a demo and nothing that a demo has not."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    missing = [name for name in (*FILES, SCRIPT) if not (out / name).is_file()]
    found = f"{out} without {missing[0]}" if missing else next(_strays(out), "")
    if found:
        fix = "Choose another: --out.  What was added to a demo is kept outside it."
        raise InputError("a new or empty folder, or a demo to replace with nothing added to it", found, fix)


def _strays(folder: Path) -> Iterator[str]:
    """Yield the escaped names of files and folders that no demo has, but for those of desktop software."""
    from gallery import site

    names = "|".join(map(re.escape, (*FILES, SCRIPT, KIT, "model", GALLERY)))
    own = "|".join(map(re.escape, (*site.CHECKED, site.DESCRIPTION, site.README, site.THUMBNAILS)))
    thumbnails = rf"{site.THUMBNAILS}/([0-9a-f]{{2}}|{site.THUMBNAIL_NAME})"
    models, kit = r"manifest\.json|query-[a-z0-9]+\.(onnx|tflite)", rf"{KIT}/[A-Za-z_-]+\.(js|wasm)"
    known = re.compile(rf"{names}|model/({models})|{kit}|{GALLERY}/({own}|{thumbnails})")
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_desktop_file(name)]
        for name in (*folders, *(name for name in files if not is_desktop_file(name))):
            path = Path(parent, name).relative_to(folder).as_posix()
            if not known.fullmatch(path):
                yield f"{path!a} in {folder}"


def _add_gallery(gallery: str, manifest: Manifest, folder: Path, load_images: Callable[[], ReadImage] | None) -> None:
    """Copy an export `site`, or write one."""
    from gallery.exports import SITE, export_gallery
    from gallery.index import open_gallery
    from gallery.site import DESCRIPTION, SiteOptions, check_site, copy_site

    written = Path(gallery)
    if "://" in gallery or not (written / DESCRIPTION).is_file():
        export_gallery(open_gallery(gallery, manifest.space), folder, SITE, SiteOptions(load_images=load_images))
        return
    if (space := check_site(written).id) != manifest.space.id:
        fix = "Export the gallery of that code space, or name the bundle of this one."
        raise CodeSpaceMismatch(f"a gallery of code space {manifest.space.id}", f"{space} in {written}", fix)
    copy_site(written, folder)


def _compile(*command: str | Path) -> None:
    """Run what compiles scripts; raises `MissingBackend` where it fails."""
    from mobile_eval.devices.setup import DEMO_FIX

    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=COMPILE_S
        )
    except subprocess.TimeoutExpired as error:
        raise MissingBackend(f"esbuild to end within {COMPILE_S:g} s", "no end", "Run it again.") from error
    if done.returncode:
        raise MissingBackend("scripts that compile", " ".join(done.stderr.split())[:500], DEMO_FIX)
