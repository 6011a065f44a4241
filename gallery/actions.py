"""The commands on a gallery that need no network and no run."""

from __future__ import annotations

from gallery.commands import (
    CompactCommand,
    DuplicatesCommand,
    ExportGalleryCommand,
    PublishCommand,
    RemoveCommand,
    StatsCommand,
)
from gallery.console import log
from gallery.errors import EXIT_PASSED, InputError
from gallery.output import SHOWN, show


def remove(uri: str, command: RemoveCommand) -> int:
    """Remove items from every code space that is not retired."""
    from gallery.ingest import ids_not_in
    from gallery.sources import SourceOptions, list_source
    from gallery.store import GalleryStore
    from gallery.upkeep import living_spaces, publish_changes, read_ids, remove_items

    if sum(map(bool, (command.ids, command.ids_file, command.not_in))) != 1:
        raise InputError("one of --ids, --ids-file and --not-in", "none, or several", "Say what is to be removed.")
    store = GalleryStore(uri)
    ids = list(command.ids) or (read_ids(command.ids_file) if command.ids_file else [])
    if command.not_in:
        listing = list_source(command.not_in, SourceOptions(allow_http=True))
        spaces = living_spaces(store)
        ids = sorted({id for space in spaces for id in ids_not_in(store, space, listing, command.prune_most)})
    removed = remove_items(store, ids)
    if command.publish:
        for space in removed:
            publish_changes(store, space)
    show(removed, command.as_json, [{"code space": space, "removed": count} for space, count in removed.items()])
    return EXIT_PASSED


def publish(uri: str, command: PublishCommand) -> int:
    """Verify the newest version and give it to readers."""
    from gallery.store import GalleryStore
    from gallery.upkeep import chosen_space

    store = GalleryStore(uri)
    show(store.publish(chosen_space(store, command.space))._asdict(), command.as_json)
    return EXIT_PASSED


def stats(uri: str, command: StatsCommand) -> int:
    """Print what is in each code space."""
    from gallery.store import GalleryStore
    from gallery.upkeep import space_rows

    rows = space_rows(GalleryStore(uri))
    show({"gallery": uri, "spaces": rows}, command.as_json, rows)
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
    show({"groups": groups, "items": rows}, command.as_json, rows[:SHOWN])
    return EXIT_PASSED


def compact(uri: str, command: CompactCommand) -> int:
    """Join small files and delete old versions."""
    from gallery.store import GalleryStore
    from gallery.upkeep import chosen_space, parse_age

    keep = parse_age(command.forget_before)
    store = GalleryStore(uri)
    space = chosen_space(store, command.space)
    forgotten = store.compact(space, keep)
    if not forgotten:
        log.warning("Old versions are kept: one has a tag, as a run's training version has, or rows are unpublished.")
    show({"code_space": space, "version": store.spaces()[space].version, "forgotten": forgotten}, command.as_json)
    return EXIT_PASSED


def export(uri: str, command: ExportGalleryCommand) -> int:
    """Write the published version for another engine."""
    from gallery.exports import export_gallery
    from gallery.index import open_gallery

    index = open_gallery(uri)
    files = export_gallery(index, command.out, command.to)
    show({"out": str(command.out), "items": len(index), "code_space": index.space.id, "files": files}, command.as_json)
    return EXIT_PASSED
