"""The commands of `gallery/run.py`: their options, and what `--help` says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field

from gallery.record import Record

ExportFormat = Literal["parquet", "faiss", "pgvector", "elasticsearch", "sqlite", "site"]


class GalleryCommand(Record):
    """What all commands take."""

    gallery: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="GALLERY")]
    """The folder of a run, or the folder or address of a gallery (s3://bucket/path, gs://, az://)."""
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON."""


class SpaceCommand(GalleryCommand):
    """What commands on one code space take."""

    space: str | None = None
    """The code space; by default the one that is served."""


class TeacherCommand(GalleryCommand):
    """What commands take that may encode images again."""

    run: Path | None = None
    """The run whose teacher encodes; by default the gallery's own."""
    allow_http: bool = False
    """Fetch images by http(s)."""


class AddCommand(GalleryCommand):
    """Add new images and encode changed ones again, with the teacher of a run.

    In a folder, the id of an image is its path below it.  A manifest has a column `path`, and may have `id`, `label` or
    `labels`, and columns of your own, to filter by.

    A file whose size and time have not changed is not read; an image whose bytes have not changed is not encoded.
    Each commit is kept, so the same command resumes after a stop.  The command `failures` lists the images that could
    not be decoded; what was encoded of them before stays.

    Example: `gallery/run.py add runs/mine new_products/`

    Example, for a gallery elsewhere and with columns to filter by:
    `gallery/run.py add s3://bucket/gallery manifest.csv --run runs/mine --add-column price brand`
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A folder, a prefix of an object store, or a CSV or Parquet manifest."""
    run: tuple[Path, ...] = ()
    """Run folders whose teachers encode; by default the gallery's own.  Name two while there are two code spaces."""
    labels_from_folders: bool = False
    """Take the first folder of each path as the image's label."""
    add_column: tuple[str, ...] = ()
    """Columns of the manifest to add to the gallery."""
    allow_http: bool = False
    """Fetch images by http(s) where the manifest says so, each within 64 MiB and 30 s."""
    rehash: bool = False
    """Read every image, whatever its size and time are."""
    prune: bool = False
    """Remove items that the source no longer lists."""
    prune_most: float = Field(0.2, ge=0, le=1)
    """The largest share of the gallery that --prune may remove."""
    commit_rows: int = Field(4096, ge=1, le=1_000_000)
    """Images in each commit."""
    engine: Literal["local", "ray"] = "local"
    """Where to encode: in this process, or by Ray Data (extra ray) on the machines of RAY_ADDRESS."""
    slice_rows: Annotated[int, tyro.conf.arg(name="slice")] = Field(100_000, ge=128)
    """Images that the engine ray encodes between two publications."""
    publish: bool = True
    """Publish the result: searches and the service see published versions only."""


class RemoveCommand(GalleryCommand):
    """Remove items.  To erase them from older versions too, run `compact --forget-before 0d` afterwards.

    Example: `gallery/run.py remove runs/mine --ids shoes/1.jpg shoes/2.jpg`
    """

    ids: tuple[str, ...] = ()
    """Ids of items."""
    ids_file: Path | None = None
    """A text file with an id on each line."""
    not_in: str | None = None
    """A source, as `add` takes it: items that it does not list are removed."""
    prune_most: float = Field(0.2, ge=0, le=1)
    """The largest share of the gallery that --not-in may remove."""
    publish: bool = True
    """Publish the result: searches and the service see published versions only."""


class PublishCommand(SpaceCommand):
    """Verify the newest version of a gallery and publish it: searches and the service then answer from it.

    Example: `gallery/run.py publish runs/mine`
    """


class SearchCommand(GalleryCommand):
    """Search with an image, a code, or an item of the gallery.

    Example: `gallery/run.py search runs/mine photo.jpg --where "price < 10 AND brand = 'acme'"`
    """

    image: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")] = None
    """An image file."""
    code: str | None = None
    """A packed code in hexadecimal, as a phone sends it."""
    id: str | None = None
    """The id of an item; it is not among its own results."""
    k: int = Field(10, ge=1, le=100_000)
    """The number of results."""
    where: str | None = None
    """A condition on the columns, in SQL."""
    max_distance: int | None = Field(None, ge=0)
    """The largest distance of a result, in bits."""
    network: Annotated[Literal["student", "teacher"], tyro.conf.arg(name="with")] = "student"
    """What hashes the image: the bundle's ONNX student, or the run's teacher."""
    run: Path | None = None
    """The run with the teacher and the bundle; by default the gallery's own."""
    bundle: Path | None = None
    """The bundle with the student; by default the run's."""


class VerifyGalleryCommand(SpaceCommand, TeacherCommand):
    """Verify a gallery: the checksum of every row, and all rows against the ledger.  Exit code 1 if one is wrong.

    Example: `gallery/run.py verify runs/mine --deep 100`
    """

    deep: int = Field(0, ge=0, le=1_000_000)
    """The number of images to read and encode again, evenly spaced, to compare their codes."""


class StatsCommand(GalleryCommand):
    """Show what is in a gallery: code spaces, items, versions, failures.

    Example: `gallery/run.py stats runs/mine`
    """


class FailuresCommand(TeacherCommand):
    """List images that could not be encoded, and why.

    Example: `gallery/run.py failures runs/mine --retry`
    """

    retry: bool = False
    """Read and encode them again."""


class DuplicatesCommand(GalleryCommand):
    """List groups of items with equal or similar codes, and say which of them are files of the same bytes.

    Example: `gallery/run.py duplicates runs/mine --within 2 --out duplicates.parquet`
    """

    within: int = Field(0, ge=0)
    """The largest distance between linked items, in bits; a group is everything that such links connect."""
    out: Path | None = None
    """A Parquet file to write; without one, the largest groups are shown."""


class CompactCommand(SpaceCommand):
    """Join the small files that many commits left, and delete old versions.

    Example: `gallery/run.py compact runs/mine --forget-before 30d`
    """

    forget_before: str = "30d"
    """Delete versions older than this: days (30d) or hours (12h); 0d keeps the published one alone, and a service that
    still answers from an older one fails until it has loaded that (5 s)."""


class ExportGalleryCommand(GalleryCommand):
    """Write the published version for another engine, with its code space and a README that shows how to query it.

    The format site is a folder for a page or an app, which any static web host can serve: codes, ids, labels and
    thumbnails.  Everybody who can read the folder can read these.  Images are read where the gallery says they are, and
    those of a run's own data where the run says.  An item whose image cannot be read has no thumbnail, and is listed
    with the reason; so is one whose file has another SHA-256 by now than when `add` encoded it.  A run stores none of
    its own images: where such a file was replaced, the thumbnail shows the new image.

    Example: `gallery/run.py export runs/mine exported --to sqlite`

    Example: `gallery/run.py export runs/mine site --to site --thumbnail-size 240`
    """

    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The folder to write."""
    to: ExportFormat = "parquet"
    """The format; sqlite and site are for apps."""
    thumbnails: bool = True
    """With --to site: make thumbnails."""
    thumbnail_size: int = Field(160, ge=16, le=1024)
    """With --to site: pixels of the longer side of a thumbnail."""
    limit: int | None = Field(None, ge=1)
    """With --to site: the most items; of a larger gallery evenly spaced ones are written."""
    allow_http: bool = False
    """With --to site: fetch images by http(s)."""


class BackfillCommand(GalleryCommand):
    """Encode all items with the teacher of a new run, beside the code space that is served.

    Labels and columns are copied.  After a stop the same command resumes.  Searches answer from the served code space
    until `cutover`.  Meanwhile give `add` both runs: `--run runs/OLD runs/NEW`.

    Example: `gallery/run.py backfill runs/mine --run runs/new`
    """

    run: Path
    """The run folder of the new teacher."""
    images: str | None = None
    """A folder, prefix or manifest with the images of items without a source (a run's own), by their ids."""
    retry: bool = False
    """Read images again that could not be read before."""
    allow_http: bool = False
    """Fetch images by http(s)."""
    commit_rows: int = Field(4096, ge=1, le=1_000_000)
    """Images in each commit."""


class CutoverCommand(GalleryCommand):
    """Serve the new code space if it passes the gates; exit code 1 if it does not.  To undo it, run `rollback`.

    The gates: every row is sound, items and columns are those of the served code space, and retrieval is no worse.
    Retrieval is the tie-aware mean average precision of random items (seed 0), each searched among up to 100,000
    others; items that share a label are relevant.  It is not compared where there are no labels.  With --query-images,
    photos that are not in the gallery are searched too, as hashed by the student of each code space in its own table.

    Example: `gallery/run.py cutover runs/mine --query-images photos/ --bundle runs/new`
    """

    space: str | None = None
    """The code space; by default the one that is being built, or that was rolled back."""
    missing_allowed: float = Field(0.001, ge=0, le=1)
    """The largest share of items without a new code; each of them must be listed by `failures`."""
    map_drop: float = Field(0.01, ge=0, le=1)
    """The largest drop of the mean average precision from that of the served codes."""
    queries: int = Field(1000, ge=1, le=100_000)
    """The number of items, and of photos, to search for."""
    query_images: str | None = None
    """Photos that are not in the gallery: a folder whose folders are their labels, or a manifest with labels."""
    bundle: tuple[Path, ...] = ()
    """With --query-images: the bundles, or runs, of the students of both code spaces; the gallery's own is known."""
    allow_http: bool = False
    """Fetch the photos by http(s)."""


class RollbackCommand(GalleryCommand):
    """Serve the previous code space again, until it is retired.

    Example: `gallery/run.py rollback runs/mine`
    """


class RetireCommand(GalleryCommand):
    """Stop answering students of a code space, and stop adding items to it; its table is kept.

    Example: `gallery/run.py retire runs/mine 0123456789abcdef`
    """

    space: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPACE")]
    """The id of the code space, as `stats` shows it; not the one that is served."""
    delete: bool = False
    """Delete its table; a run whose gallery it is cannot be evaluated again."""
    confirm: str | None = None
    """With --delete: the code space again."""
