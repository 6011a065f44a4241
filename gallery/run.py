"""A gallery of your own: add images, search, serve, verify, export.

    python gallery/run.py add runs/mine catalogue/
    python gallery/run.py search runs/mine photo.jpg
    python gallery/run.py serve runs/mine
    python gallery/run.py stats runs/mine

Each command describes its options: `gallery/run.py add --help`.

Exit codes: 0 passed, 1 something is wrong in the gallery, 2 bad input, 3 a crash, 130 or 143 stopped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

# A script's own folder comes first on the path, where its modules would hide packages of the same name.
sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in distill/run.py

import tyro

from gallery.command_line import read_flags, run_cli
from gallery.commands import handlers, options
from gallery.commands.output import SHOWN, select, show
from gallery.console import log, plain
from gallery.errors import EXIT_GATE_FAILED, EXIT_PASSED, InputError
from gallery.service.command import ServeCommand, serve

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gallery.batch_encoder import EncodeImages
    from gallery.codes import Codes
    from gallery.codespace import CodeSpace
    from gallery.index import GalleryIndex
    from gallery.ingest import IngestCounts
    from gallery.store import GalleryStore


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    runners: dict[str, tuple[Any, Callable[[Any], int]]] = {
        "add": (options.AddCommand, add),
        "remove": (options.RemoveCommand, on_gallery(handlers.remove)),
        "publish": (options.PublishCommand, on_gallery(handlers.publish)),
        "search": (options.SearchCommand, search),
        "serve": (ServeCommand, serve_gallery),
        "verify": (options.VerifyGalleryCommand, verify),
        "stats": (options.StatsCommand, on_gallery(handlers.stats)),
        "failures": (options.FailuresCommand, failures),
        "duplicates": (options.DuplicatesCommand, on_gallery(handlers.duplicates)),
        "compact": (options.CompactCommand, on_gallery(handlers.compact)),
        "export": (options.ExportGalleryCommand, export),
        "backfill": (options.BackfillCommand, backfill),
        "cutover": (options.CutoverCommand, cutover),
        "rollback": (options.RollbackCommand, on_gallery(handlers.rollback)),
        "retire": (options.RetireCommand, on_gallery(handlers.retire)),
    }

    def work() -> int:
        parse, names = tyro.extras.subcommand_cli_from_dict, {name: kind for name, (kind, _) in runners.items()}
        command = read_flags(parse, names, args=arguments, description=__doc__)
        return next(run for kind, run in runners.values() if kind is type(command))(command)

    return run_cli(work, "What was committed is kept: run the same command again.")


def on_gallery(action: Callable[[str, Any], int]) -> Callable[[Any], int]:
    """Return an action on the address of a gallery as one on the command that names it."""
    return lambda command: action(locate(command.gallery)[0], command)


class Teacher(NamedTuple):
    """The teacher of a code space, in its run folder."""

    folder: Path
    space: CodeSpace
    centers: NDArray[np.int8]

    def load(self) -> EncodeImages:
        """Load the network, and check that it hashes here as when it was trained."""
        from distill.image_encoder import load_encoder

        return load_encoder(self.folder, self.space)


def locate(gallery: str, runs: Sequence[Path] = ()) -> tuple[str, list[Path]]:
    """Return the address of a gallery, and the runs that belong to it: those given, else its own."""
    from distill.config import is_run
    from distill.image_encoder import gallery_run

    path = Path(gallery)
    for run in runs:
        if not is_run(run):
            raise InputError("a run folder", f"none at {run}", "Name a folder that distill/run.py made.")
    if "://" not in gallery and is_run(path):
        return str(gallery_run(path) / "gallery"), list(runs) or [path]
    own = "://" not in gallery and path.name == "gallery" and is_run(path.absolute().parent)
    return gallery, list(runs) or ([path.absolute().parent] if own else [])


def teachers(uri: str, runs: Sequence[Path]) -> list[Teacher]:
    """Return the teachers of runs, which are not loaded; raises `InputError` where there is no run."""
    from distill.image_encoder import gallery_run
    from gallery import codespace

    if not runs:
        raise InputError(f"a run whose teacher encodes for {uri}", "none", "Name it: --run runs/NAME.")
    folders = [gallery_run(run) for run in runs]
    return [Teacher(folder, *codespace.load(folder)) for folder in folders]


def add(command: options.AddCommand) -> int:
    """Bring a gallery up to date with a source, in the code space of each run."""
    from distill.config import is_run
    from gallery.store import GalleryStore

    uri, runs = locate(command.gallery, command.run)
    chosen = teachers(uri, runs)
    store = GalleryStore(uri, create=bool(command.run) and not is_run(Path(command.gallery)))
    check_spaces(store, chosen)
    states = {name: record.state for name, record in store.spaces().items()}
    chosen.sort(key=lambda teacher: states.get(teacher.space.id) != "serving")  # first, as `backfill` relies on
    counts = [add_to_space(store, teacher, command) for teacher in chosen]
    rows = [one.model_dump() for one in counts]
    show(rows, command.as_json, [{"": name, **{row["code_space"]: row[name] for row in rows}} for name in rows[0]])
    if failed := max(one.failed for one in counts):
        log.warning("%d images could not be encoded: gallery/run.py failures %s", failed, plain(command.gallery))
    return EXIT_PASSED


def check_spaces(store: GalleryStore, chosen: Sequence[Teacher]) -> None:
    """Raise `InputError` unless every code space of a gallery is written to: else students of one would miss items."""
    from gallery.maintenance import active_spaces

    living, known, given = active_spaces(store), store.spaces(), {teacher.space.id for teacher in chosen}
    expected = f"the runs of the code spaces of {store.uri}: {', '.join(living)}"
    if retired := given & (known.keys() - living.keys()):
        fix = "Name the runs of those, and not its run: --run runs/OLD runs/NEW."
        raise InputError(expected, f"that of {', '.join(retired)}, which is retired", fix)
    if others := living.keys() - given:
        fix = "Name the run of each: --run runs/OLD runs/NEW; or retire what is not needed: gallery/run.py retire."
        raise InputError(expected, f"{', '.join(given)} without {', '.join(others)}", fix)


def add_to_space(store: GalleryStore, teacher: Teacher, command: options.AddCommand) -> IngestCounts:
    """Bring the table of one code space up to date, and publish it."""
    from distill.image_encoder import load_encoder
    from gallery.database import owner_columns
    from gallery.ingest import IngestOptions, ids_not_in, ingest
    from gallery.maintenance import publish_changes
    from gallery.sources.listing import SourceOptions, describe, list_source

    space, known = teacher.space, store.spaces()
    schema = store.open_table(space.id).schema if space.id in known else None
    types = {name: schema.field(name).type for name in owner_columns(schema.names)} if schema else {}
    listing = list_source(command.source, SourceOptions(command.labels_from_folders, command.allow_http, types))
    log.info("[add] %s from %s", describe(listing), plain(command.source))
    for warning in listing.warnings:
        log.warning("  %s", warning)
    items = listing.items
    own = items.select(owner_columns(items.column_names)).schema
    store.add_space(space, teacher.centers, own)
    gone = ids_not_in(store, space.id, listing, command.prune_most) if command.prune else []
    how = IngestOptions(
        command.commit_rows, command.rehash, False, command.allow_http, command.add_column, command.engine,
        command.slice_rows, partial(publish_changes, store, space.id) if command.publish else lambda: None,
    )  # fmt: skip
    counts = ingest(store, space, listing, how, partial(load_encoder, teacher.folder.absolute(), space))
    if gone:
        counts = counts.model_copy(update={"removed": store.remove(space.id, gone, "prune").removed})
    store.forget_failures(space.id, gone)
    record = publish_changes(store, space.id) if command.publish else store.spaces()[space.id]
    return counts.model_copy(update={"version": record.version})


def backfill(command: options.BackfillCommand) -> int:
    """Encode all items in the code space of a new run, beside the one that is served."""
    from gallery.backfill import backfill as fill
    from gallery.backfill import served_beside
    from gallery.cutover import resume_building
    from gallery.ingest import IngestOptions
    from gallery.maintenance import publish_changes
    from gallery.sources.listing import SourceOptions, list_source
    from gallery.store import GalleryStore

    uri, runs = locate(command.gallery, [command.run])
    (teacher,) = teachers(uri, runs)
    store, space = GalleryStore(uri), teacher.space
    served_beside(store, space.id)
    images = list_source(command.images, SourceOptions(allow_http=command.allow_http)) if command.images else None
    resume_building(store, space.id)
    how = IngestOptions(command.commit_rows, retry=command.retry, allow_http=command.allow_http)
    counts = fill(store, space, teacher.centers, images, how, teacher.load)
    record = publish_changes(store, space.id)
    show(counts.model_copy(update={"version": record.version}).model_dump(), command.as_json)
    if counts.failed:
        log.warning("%d images could not be encoded: gallery/run.py failures %s", counts.failed, plain(command.gallery))
    log.info("To serve it, if it passes the gates: gallery/run.py cutover %s", plain(command.gallery))
    return EXIT_PASSED


def export(command: options.ExportGalleryCommand) -> int:
    """Write the published version for another engine; a run's own images are read where it had them from."""
    from distill.image_encoder import gallery_run
    from distill.run_images import run_images

    uri, runs = locate(command.gallery)
    return handlers.export(uri, command, partial(run_images, gallery_run(runs[0])) if runs else None)


def cutover(command: options.CutoverCommand) -> int:
    """Serve the new code space if it passes the gates."""
    uri, runs = locate(command.gallery)
    return handlers.cutover(uri, command, runs)


def search(command: options.SearchCommand) -> int:
    """Print the nearest items of an image, a code or an item."""
    from gallery.commands.search_rows import parse_code, result_rows
    from gallery.index import open_gallery

    if sum(one is not None for one in (command.image, command.code, command.id)) != 1:
        raise InputError("an image, --code or --id", "none, or several", "Give one of them.")
    uri, runs = locate(command.gallery, [command.run] if command.run else [])
    count = command.k
    if command.image is not None:
        index, code = hash_query(command, command.image, uri, runs)
    elif command.code is not None:
        index = open_gallery(uri)
        code = parse_code(command.code, index.space)
    else:
        index, count = open_gallery(uri), count + 1  # it finds itself
        code = index.codes[index.rows_of([command.id or ""])]
    rows = result_rows(index, code, count, command.where, command.max_distance)
    rows = [row for row in rows if row["id"] != command.id][: command.k]
    found = {"code_space": index.space.id, "version": index.version, "code": code.tobytes().hex(), "results": rows}
    show(found, command.as_json, rows[:SHOWN])
    return EXIT_PASSED


def hash_query(
    command: options.SearchCommand, image: Path, uri: str, runs: Sequence[Path]
) -> tuple[GalleryIndex, Codes]:
    """Return the gallery and the code of an image, by the network of the command; its code space must be there."""
    from gallery.codes import pack
    from gallery.decode import decode, to_square
    from gallery.index import open_gallery
    from gallery.onnx_student import OnnxStudent

    if command.network == "teacher":
        teacher = teachers(uri, runs[:1])[0]
        index = open_gallery(uri, teacher.space)
        pixels = to_square(decode(image), teacher.space.preprocessing.size)
        return index, pack(teacher.load()(pixels[None]))
    if command.bundle is None and not runs:
        fix = "Name them: --bundle BUNDLE, or --run runs/NAME."
        raise InputError("a bundle whose student hashes the image", f"none for {uri}", fix)
    student = OnnxStudent(command.bundle or runs[0] / "bundle")
    return open_gallery(uri, student.code_space), student.encode(image)


def serve_gallery(command: ServeCommand) -> int:
    """Serve a gallery, with the students of its runs."""
    uri, runs = locate(command.gallery)
    return serve(command.model_copy(update={"gallery": uri}), runs)


def verify(command: options.VerifyGalleryCommand) -> int:
    """Verify every row, and encode a sample again."""
    from gallery.maintenance import chosen_space, encode_again
    from gallery.sources.reader import ImageReader
    from gallery.store import GalleryStore

    uri, runs = locate(command.gallery, [command.run] if command.run else [])
    store = GalleryStore(uri)
    space_id = chosen_space(store, command.space)
    found = store.verify(space_id)
    result: dict[str, Any] = {"code_space": space_id, "version": found.version, "rows": found.found.rows}
    result |= {"problem": found.problem, "damaged": found.damaged[:SHOWN], "repeated": found.repeated[:SHOWN]}
    problem = found.problem
    if command.deep and not problem:
        teacher = next((one for one in teachers(uri, runs) if one.space.id == space_id), None)
        if teacher is None:
            raise InputError(f"the run of code space {space_id}", "another's", "Name it: --run runs/NAME.")
        reader = ImageReader(teacher.space.preprocessing.size, command.allow_http)
        deep = encode_again(store, teacher.space, command.deep, reader, teacher.load)
        result |= deep._asdict()
        problem = f"{len(deep.wrong)} codes that are not those of their images" if deep.wrong else ""
        result["problem"] = problem
    show(result if command.as_json else result | {"problem": problem or "none, the gallery is sound"}, command.as_json)
    return EXIT_GATE_FAILED if problem else EXIT_PASSED


def failures(command: options.FailuresCommand) -> int:
    """List what could not be encoded, or try it again."""
    from gallery.ingest import IngestOptions, ingest
    from gallery.maintenance import active_spaces, list_failures, publish_changes
    from gallery.sources.listing import Listing
    from gallery.store import GalleryStore

    uri, runs = locate(command.gallery, [command.run] if command.run else [])
    store = GalleryStore(uri)
    for teacher in teachers(uri, runs) if command.retry else ():
        listing = Listing(store.failures(teacher.space.id).select(["id", "source", "etag"]))
        ingest(store, teacher.space, listing, IngestOptions(retry=True, allow_http=command.allow_http), teacher.load)
        publish_changes(store, teacher.space.id)
    rows = [{"space": space, **row} for space in active_spaces(store) for row in list_failures(store, space)]
    show(rows, command.as_json, select(rows[:SHOWN], "space", "id", "stale", "reason"))
    if len(rows) > SHOWN and not command.as_json:
        log.info("... and %d more: --json has all", len(rows) - SHOWN)
    return EXIT_PASSED


if __name__ == "__main__":
    sys.exit(main())
