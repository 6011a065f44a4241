"""The commands on a gallery that need no teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gallery.commands.options import (
    CompactCommand,
    CutoverCommand,
    DuplicatesCommand,
    ExportGalleryCommand,
    PublishCommand,
    RemoveCommand,
    RetireCommand,
    RollbackCommand,
    StatsCommand,
)
from gallery.commands.output import SHOWN, select, show
from gallery.console import log, plain
from gallery.errors import EXIT_GATE_FAILED, EXIT_PASSED, InputError

if TYPE_CHECKING:
    from gallery.query_photos import QueryPhotos
    from gallery.site import ReadImage
    from gallery.store import GalleryStore

SITE_FLAGS = {
    name: ExportGalleryCommand.model_fields[name].default
    for name in ("thumbnails", "thumbnail_size", "limit", "allow_http")
}


def remove(uri: str, command: RemoveCommand) -> int:
    """Remove items from every code space that is not retired."""
    from gallery.ingest import ids_not_in
    from gallery.maintenance import active_spaces, publish_changes, read_ids, remove_items
    from gallery.sources.listing import SourceOptions, list_source
    from gallery.store import GalleryStore

    if sum(map(bool, (command.ids, command.ids_file, command.not_in))) != 1:
        raise InputError("one of --ids, --ids-file and --not-in", "none, or several", "Say what is to be removed.")
    store = GalleryStore(uri)
    ids = list(command.ids) or (read_ids(command.ids_file) if command.ids_file else [])
    if command.not_in:
        listing = list_source(command.not_in, SourceOptions(allow_http=True))
        spaces = active_spaces(store)
        ids = sorted({id for space in spaces for id in ids_not_in(store, space, listing, command.prune_most)})
    removed = remove_items(store, ids)
    if command.publish:
        for space in removed:
            publish_changes(store, space)
    show(removed, command.as_json, [{"code space": space, "removed": count} for space, count in removed.items()])
    return EXIT_PASSED


def publish(uri: str, command: PublishCommand) -> int:
    """Verify the newest versions and give them to readers."""
    from gallery.maintenance import chosen_space
    from gallery.store import GalleryStore

    store = GalleryStore(uri)
    answered = [name for name, record in store.spaces().items() if record.state in ("serving", "previous")]
    spaces = [command.space] if command.space or not answered else answered
    rows = [store.publish(chosen_space(store, space))._asdict() for space in spaces]
    show(rows, command.as_json, select(rows, "space", "state", "version", "rows"))
    return EXIT_PASSED


def stats(uri: str, command: StatsCommand) -> int:
    """Print what is in each code space."""
    from gallery.maintenance import space_rows
    from gallery.store import GalleryStore

    rows = space_rows(GalleryStore(uri))
    lines = [{"": name, **{row["space"]: row[name] for row in rows}} for name in (rows[0] if rows else ())]
    show({"gallery": uri, "spaces": rows}, command.as_json, lines)
    return EXIT_PASSED


def duplicates(uri: str, command: DuplicatesCommand) -> int:
    """Write or show groups of equal or near codes."""
    from gallery.duplicates import find_duplicates
    from gallery.files import atomic_path
    from gallery.index import open_gallery

    table = find_duplicates(open_gallery(uri), command.within)
    groups = table["group"].to_pylist()[-1] + 1 if len(table) else 0
    log.info("%d groups of %d items", groups, len(table))
    if command.out is not None:
        from pyarrow import parquet

        with atomic_path(command.out) as draft:
            parquet.write_table(table, draft)
        show({"groups": groups, "items": len(table), "out": str(command.out)}, command.as_json)
        return EXIT_PASSED
    rows = table.to_pylist()
    shown = select(rows[:SHOWN], "group", "id", "distance", "same_bytes", "source")
    show({"groups": groups, "items": rows}, command.as_json, shown)
    return EXIT_PASSED


def compact(uri: str, command: CompactCommand) -> int:
    """Join small files and delete old versions."""
    from gallery.maintenance import chosen_space, parse_age
    from gallery.store import GalleryStore

    keep = parse_age(command.forget_before)
    store = GalleryStore(uri)
    space = chosen_space(store, command.space)
    forgotten = store.compact(space, keep)
    if not forgotten:
        log.warning("Old versions are kept: one has a tag, as a run's training version has, or rows are unpublished.")
    show({"code_space": space, "version": store.spaces()[space].version, "forgotten": forgotten}, command.as_json)
    return EXIT_PASSED


def export(uri: str, command: ExportGalleryCommand, load_images: Callable[[], ReadImage] | None = None) -> int:
    """Write the published version for another engine. load_images: loads what reads a run's own images, by their ids"""
    from gallery.exports import SITE, export_gallery
    from gallery.index import open_gallery
    from gallery.site import SiteOptions

    given = {name: value for name, value in command if name in SITE_FLAGS and value != SITE_FLAGS[name]}
    if given and command.to != SITE:
        flags = [f"--{'no-' if value is False else ''}{name.replace('_', '-')}" for name, value in given.items()]
        fix = "Leave it out, or export --to site."
        raise InputError(f"--to {SITE}, whose options these are", f"{', '.join(flags)} with --to {command.to}", fix)
    size = command.thumbnail_size if command.thumbnails else None
    options = SiteOptions(size, command.limit, command.allow_http, load_images)
    index = open_gallery(uri)
    written = export_gallery(index, command.out, command.to, options)
    told: dict[str, Any] = {"out": str(command.out), "items": written.items, "code_space": index.space.id}
    told["files"] = written.files
    if size and command.to == SITE:
        told["without_thumbnail"] = written.missing if command.as_json else len(written.missing)
    show(told, command.as_json)
    return EXIT_PASSED


def cutover(uri: str, command: CutoverCommand, runs: Sequence[Path]) -> int:
    """Serve the new code space if it passes the gates. runs: the gallery's own"""
    from gallery.cutover import candidate, cut_over
    from gallery.cutover_gates import CutoverLimits, check_gates
    from gallery.store import GalleryStore

    if not command.query_images and (command.bundle or command.allow_http):
        found, fix = "--bundle or --allow-http without it", "Add --query-images, or leave them out."
        raise InputError("--query-images, whose photos the students hash", found, fix)
    store = GalleryStore(uri)
    space = candidate(store, command.space).space
    photos = hash_photos(store, space, command, runs) if command.query_images else None
    limits = CutoverLimits(command.missing_allowed, command.map_drop, command.queries)
    gates = check_gates(store, space, limits, photos)
    passed = all(gate.passed for gate in gates)
    if passed:
        cut_over(store, space)
    rows = [{"gate": one.gate, "found": one.found, "allowed": one.allowed, "passed": one.passed} for one in gates]
    show({"code_space": space, "passed": passed, "gates": rows}, command.as_json, rows)
    for gate in gates:
        if not gate.passed:
            log.error("Refused: %s: %s where %s is allowed.  %s", gate.gate, gate.found, gate.allowed, gate.fix)
    if not passed:
        return EXIT_GATE_FAILED
    log.info("Code space %s is served.  The way back: gallery/run.py rollback", space)
    return EXIT_PASSED


def hash_photos(store: GalleryStore, space: str, command: CutoverCommand, runs: Sequence[Path]) -> QueryPhotos:
    """Hash the command's query photos by the students of the served code space and of the new one."""
    import pyarrow as pa

    from gallery.onnx_student import OnnxStudent
    from gallery.query_photos import choose_photos, encode_photos
    from gallery.sources.listing import SourceOptions, describe, list_source
    from gallery.sources.manifest import is_manifest

    served, source = store.space_in("serving"), command.query_images or ""
    wanted, students = {space, *([served.space] if served else [])}, dict[str, OnnxStudent]()
    for bundle in (*command.bundle, *runs):
        if not wanted <= students.keys():
            student = OnnxStudent(bundle)
            students.setdefault(student.code_space, student)
    if missing := wanted - students.keys():
        fix = "Name their bundles or runs: --bundle runs/OLD runs/NEW."
        expected = f"students of the code spaces {', '.join(sorted(wanted))}"
        raise InputError(expected, f"none of {', '.join(sorted(missing))}", fix)
    from_folders = not is_manifest(source.partition("?")[0])
    listing = list_source(source, SourceOptions(from_folders, command.allow_http))
    log.info("[cutover] query photos: %s from %s", describe(listing), plain(source))
    columns = [store.read(store.open_table(one), ["sha256"])["sha256"] for one in wanted]
    known = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())
    chosen = {one: students[one] for one in wanted}
    return encode_photos(choose_photos(listing, command.queries), chosen, known, command.allow_http)


def rollback(uri: str, command: RollbackCommand) -> int:
    """Serve the previous code space again."""
    from gallery.cutover import roll_back
    from gallery.store import GalleryStore

    show(roll_back(GalleryStore(uri))._asdict(), command.as_json)
    return EXIT_PASSED


def retire(uri: str, command: RetireCommand) -> int:
    """Answer students of a code space no longer, and delete it if that is confirmed."""
    from gallery import cutover
    from gallery.store import GalleryStore

    store, space = GalleryStore(uri), command.space
    if command.delete and command.confirm != space:
        fix = f"If it is to be lost for good: --delete --confirm {plain(space)}."
        raise InputError("the code space again, to delete it", f"{plain(command.confirm or 'none')}", fix)
    if not command.delete or space in store.spaces():
        cutover.retire(store, space)
    if command.delete:
        cutover.delete_space(store, space)
    show({"code_space": space, "state": "deleted" if command.delete else "retired"}, command.as_json)
    return EXIT_PASSED
