"""The commands of `gallery/run.py`: their options, and what `--help` says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from gallery.record import Record

ExportFormat = Literal["parquet", "faiss", "pgvector", "elasticsearch", "sqlite", "codes.bin"]


class GalleryCommand(Record):
    """What all commands take."""

    gallery: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GALLERY")]
    """A run folder, whose gallery is meant; or a gallery's folder or address: s3://bucket/path, gs://, az://."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


class AddCommand(GalleryCommand):
    """Add images, or bring those that changed up to date, with the teacher of a run.

    Images whose size and time are those of the last time are not read, those of the same bytes not encoded; what is
    done is in the gallery after each commit, so that the same command resumes.  What cannot be decoded is listed by
    `failures`, and its old code stays.

    Examples: `gallery/run.py add runs/mine new_products/`, and for a gallery elsewhere, with columns to filter by,
    `gallery/run.py add s3://bucket/gallery manifest.csv --run runs/mine --add-column price brand`.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A folder (ids are the paths below it), an object store's prefix, or a CSV or Parquet manifest: `path`, and
    optionally `id`, `label` or `labels`, and columns of your own, to filter by."""
    run: tuple[Path, ...] = ()
    """Run folders whose teachers encode; by default the gallery's own.  Two while two code spaces are kept."""
    labels_from_folders: bool = False
    """The first folder of an image's path is its label."""
    add_column: tuple[str, ...] = ()
    """New columns of the manifest's that the gallery is to have."""
    allow_http: bool = False
    """Fetch images by http(s) where the manifest says so, each within 64 MiB and 30 s."""
    rehash: bool = False
    """Read every image, also where size and time are those of the last time."""
    prune: bool = False
    """Remove what the source does not list any more."""
    prune_most: float = Field(0.2, ge=0, le=1)
    """The share of the gallery that may be removed."""
    commit_rows: int = Field(4096, ge=1, le=1_000_000)
    """Images a commit."""
    engine: Literal["local", "ray"] = "local"
    """This process, or Ray Data (extra `ray`): for many machines, whose cluster is at RAY_ADDRESS."""
    slice_rows: Annotated[int, tyro.conf.arg(name="slice")] = Field(100_000, ge=128)
    """Images after which the engine `ray` publishes what there is."""
    publish: bool = True
    """Give the result to readers at the end."""


class RemoveCommand(GalleryCommand):
    """Remove items.  To erase them for good, also from the versions that are kept: `compact --forget-before 0d`.

    Example: `gallery/run.py remove runs/mine --ids shoes/1.jpg shoes/2.jpg`
    """

    ids: tuple[str, ...] = ()
    """Ids of items."""
    ids_file: Path | None = None
    """A text file with an id on each line."""
    not_in: str | None = None
    """A source, as `add` takes it: what it does not list is removed."""
    prune_most: float = Field(0.2, ge=0, le=1)
    """The share of the gallery that --not-in may remove."""
    publish: bool = True
    """Give the result to readers at the end."""


class PublishCommand(GalleryCommand):
    """Verify the newest version of a gallery and give it to readers.

    Example: `gallery/run.py publish runs/mine`
    """

    space: str | None = None
    """The code space; by default the one that is served."""


class SearchCommand(GalleryCommand):
    """Search with an image, a code, or an item of the gallery.

    Example: `gallery/run.py search runs/mine photo.jpg --where "price < 10 AND brand = 'acme'"`
    """

    image: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")] = None
    """An image file."""
    code: str | None = None
    """A packed code in hexadecimal, as a phone sends it."""
    id: str | None = None
    """An item; it is not among its own results."""
    k: int = Field(10, ge=1, le=100_000)
    """The number of results."""
    where: str | None = None
    """A condition on the columns, in SQL."""
    max_distance: int | None = Field(None, ge=0)
    """Bits in which a result's code may differ."""
    network: Annotated[Literal["student", "teacher"], tyro.conf.arg(name="with")] = "student"
    """What hashes the image: the bundle's ONNX student, or the run's teacher."""
    run: Path | None = None
    """The run with the teacher and the bundle; by default the gallery's own."""
    bundle: Path | None = None
    """The bundle with the student; by default the run's."""


class VerifyGalleryCommand(GalleryCommand):
    """Verify a gallery: the check of every row, and the rows against the ledger.  Exit code 1 if something is wrong.

    Example: `gallery/run.py verify runs/mine --deep 100`
    """

    deep: int = Field(0, ge=0, le=1_000_000)
    """Read and encode so many images again, evenly spaced among those that `add` encoded, and compare their codes."""
    space: str | None = None
    """The code space; by default the one that is served."""
    run: Path | None = None
    """The run whose teacher encodes; by default the gallery's own."""
    allow_http: bool = False
    """Fetch images by http(s)."""


class StatsCommand(GalleryCommand):
    """Show what is in a gallery: code spaces, items, versions, failures.

    Example: `gallery/run.py stats runs/mine`
    """


class FailuresCommand(GalleryCommand):
    """List what could not be encoded, and why.

    Example: `gallery/run.py failures runs/mine --retry`
    """

    retry: bool = False
    """Read and encode them again."""
    run: Path | None = None
    """The run whose teacher encodes; by default the gallery's own."""
    allow_http: bool = False
    """Fetch images by http(s)."""


class DuplicatesCommand(GalleryCommand):
    """List groups of items of equal codes, or near ones, and say which of them are the same bytes.

    Example: `gallery/run.py duplicates runs/mine --within 2 --out duplicates.parquet`
    """

    within: int = Field(0, ge=0)
    """Bits in which codes may differ.  Groups are chains: each member is that near to another, not to all."""
    out: Path | None = None
    """A Parquet file to write; without one, the largest groups are shown."""


class CompactCommand(GalleryCommand):
    """Join the small files that many commits left, and delete old versions.

    Example: `gallery/run.py compact runs/mine --forget-before 30d`
    """

    forget_before: str = "30d"
    """The age of versions to delete: days (30d), hours (12h); 0d: all but the published one."""
    space: str | None = None
    """The code space; by default the one that is served."""


class ExportGalleryCommand(GalleryCommand):
    """Write the published version for another engine, with its code space, and a README that shows how to query it.

    Example: `gallery/run.py export runs/mine exported --to sqlite`
    """

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The folder to write."""
    to: ExportFormat = "parquet"
    """The engine; codes.bin: the packed codes, one after the other, beside a file of ids, for apps."""


class BackfillCommand(GalleryCommand):
    """Encode all items with the teacher of a new run, beside the code space that is served.

    Labels and columns are copied.  It may be stopped and killed: the same command goes on.  Readers see nothing of it
    until `cutover`.  Meanwhile `add` takes both runs: `--run runs/OLD runs/NEW`.

    Example: `gallery/run.py backfill runs/mine --run runs/new`
    """

    run: Path
    """The run folder of the new teacher."""
    images: str | None = None
    """Where items are that have no source, as the images of a run's own data: a folder, prefix or manifest, in which
    they have their ids."""
    retry: bool = False
    """Read images again that could not be read before."""
    allow_http: bool = False
    """Fetch images by http(s)."""
    commit_rows: int = Field(4096, ge=1, le=1_000_000)
    """Images a commit."""


class CutoverCommand(GalleryCommand):
    """Serve the new code space, if it passes the gates; exit code 1 if not.  `rollback` is the way back.

    Retrieval is compared where items have labels: items at random (seed 0), each searched among the others (up to
    100,000) of its own table; tie-aware mean average precision over all that shares a label with it.

    Example: `gallery/run.py cutover runs/mine`
    """

    space: str | None = None
    """The code space; by default the one that is being built, or that was rolled back."""
    missing_allowed: float = Field(0.001, ge=0, le=1)
    """The share of items that may have no new code; all of them must be in `failures`."""
    map_drop: float = Field(0.01, ge=0, le=1)
    """By how much the mean average precision may be lower than that of the served codes."""
    queries: int = Field(1000, ge=1, le=100_000)
    """Items to search for."""


class RollbackCommand(GalleryCommand):
    """Serve the previous code space again, until it is retired.

    Example: `gallery/run.py rollback runs/mine`
    """


class RetireCommand(GalleryCommand):
    """Answer students of a code space no longer, and add no more items to it; its table is kept.

    Example: `gallery/run.py retire runs/mine 0123456789abcdef`
    """

    space: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPACE")]
    """The code space, by `stats`; not the one that is served."""
    delete: bool = False
    """Delete its table for good; if it was made by a run, that run cannot be evaluated again."""
    confirm: str | None = None
    """With --delete: the code space again."""
