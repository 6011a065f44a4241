"""Write a gallery for other engines: each with its code space, and a README that shows how to load and query it.

Hamming distance does not depend on the order of bits, as long as it is one: engines that take bits as text are given
bit 0 first.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gallery import codespace
from gallery.codes import unpack
from gallery.database import SPACE_KEY
from gallery.errors import InputError
from gallery.files import atomic_path, remove_partial
from gallery.index import GalleryIndex
from gallery.site import README, SiteOptions, write_site

if TYPE_CHECKING:
    import pyarrow as pa

IDS, SITE, CHUNK = "ids.txt", "site", 65_536  # rows at once
MAX_ELASTIC_ID = 512  # bytes
SQL_TYPES = {"bool": "boolean", "int64": "bigint", "double": "double precision", "date32[day]": "date",
             "timestamp[us]": "timestamp", "timestamp[us, tz=UTC]": "timestamptz"}  # fmt: skip


class GalleryExport(NamedTuple):
    """items: how many; files: names in the folder; missing: why items of a site have no thumbnail, by their ids"""

    items: int
    files: list[str]
    missing: dict[str, str]


def export_gallery(index: GalleryIndex, out: Path, to: str, site: SiteOptions | None = None) -> GalleryExport:
    """Write a gallery's published version into a new folder, whole or not at all.

    to: a key of `WRITERS`, or `SITE`, which `site` has the options of
    Raises `InputError` where there is something at `out` already.
    """
    if not len(index):
        raise InputError(f"items in the gallery {index.uri}", "none", "Add some.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("a new or empty folder to export to", str(out), "Choose another.")
    remove_partial(out.absolute().parent, out.absolute().name)
    with atomic_path(out) as draft:
        draft.mkdir()
        codespace.save(draft, index.space, index.centers)
        site, count, missing = site or SiteOptions(), len(index), dict[str, str]()
        if to == SITE:
            count, missing = site.count(count), write_site(index, draft, site)
        else:
            WRITERS[to](index, draft)
        text = (Path(__file__).parent / "export_readmes" / f"{to}.md").read_text("utf-8")
        values = {"count": f"{count:,}", "space": index.space.id, "bits": index.space.bits,
                  "bytes": index.space.bits // 8, "version": index.version}  # fmt: skip
        (draft / README).write_text(Template(text).substitute(values), "utf-8")
    return GalleryExport(count, sorted(path.name for path in out.iterdir()), missing)


def _chunks(index: GalleryIndex) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Yield tables of id, labels, source and the owner's columns, in the order of the ids, and the codes."""
    names = ["id", "labels", "source", *index.owner_columns]
    for start in range(0, len(index), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(index)))
        yield index.columns(names, rows), index.codes[rows]


def _parquet(index: GalleryIndex, folder: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    writer = None
    for table, codes in _chunks(index):
        packed = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(codes.shape[1]), len(codes), [None, pa.py_buffer(codes.tobytes())]
        )
        table = table.add_column(1, "code", packed)
        if writer is None:
            metadata = {SPACE_KEY: json.dumps(index.space.to_dict())}
            writer = parquet.ParquetWriter(folder / "items.parquet", table.schema.with_metadata(metadata))
        writer.write_table(table.replace_schema_metadata(writer.schema.metadata))
    if writer is not None:
        writer.close()


def _write_ids(index: GalleryIndex, folder: Path) -> None:
    with (folder / IDS).open("w", encoding="utf-8", newline="\n") as stream:
        for chunk in index.ids.to_pylist():  # no id has control characters
            stream.write(chunk + "\n")


def _faiss(index: GalleryIndex, folder: Path) -> None:
    import faiss

    flat = faiss.IndexBinaryFlat(index.space.bits)
    flat.add(np.ascontiguousarray(index.codes))
    faiss.write_index_binary(flat, str(folder / "codes.faiss"))
    _write_ids(index, folder)


def _sqlite(index: GalleryIndex, folder: Path) -> None:
    names = ["labels", "source", *index.owner_columns]
    columns = ", ".join(f'"{name}"' for name in names)
    with closing(sqlite3.connect(folder / "items.sqlite")) as database, database:
        database.execute(f"CREATE TABLE items (id TEXT PRIMARY KEY, code BLOB NOT NULL, {columns}) WITHOUT ROWID")
        database.execute("CREATE TABLE code_space (id TEXT, json TEXT)")
        database.execute("INSERT INTO code_space VALUES (?, ?)", (index.space.id, json.dumps(index.space.to_dict())))
        marks = ", ".join("?" * (len(names) + 2))
        for table, codes in _chunks(index):
            rows = zip(table.to_pylist(), codes, strict=True)
            values = ([row["id"], code.tobytes(), *(_plain_value(row[name]) for name in names)] for row, code in rows)
            database.executemany(f"INSERT INTO items VALUES ({marks})", values)


def _plain_value(value: Any) -> Any:
    if isinstance(value, list):
        return json.dumps(value)
    return value if isinstance(value, str | int | float | None) else str(value)


def _pgvector(index: GalleryIndex, folder: Path) -> None:
    """Write a script for psql: COPY's text format, in which the backslash escapes, and nothing is a statement."""
    schema, bits = index.schema, index.space.bits
    names = ["labels", "source", *index.owner_columns]
    types = ["text[]" if name == "labels" else SQL_TYPES.get(str(schema.field(name).type), "text") for name in names]
    columns = "".join(f',\n  "{name}" {kind}' for name, kind in zip(names, types, strict=True))
    listed = ", ".join(f'"{name}"' for name in ("id", "code", *names))
    with (folder / "items.sql").open("w", encoding="utf-8", newline="\n") as stream:
        stream.write("SET client_encoding = 'UTF8';\nCREATE EXTENSION IF NOT EXISTS vector;\n")
        stream.write(f"CREATE TABLE items (\n  id text PRIMARY KEY,\n  code bit({bits}) NOT NULL{columns}\n);\n")
        stream.write(f"COMMENT ON TABLE items IS 'Twinhash code space {index.space.id}';\n")
        stream.write(f"COPY items ({listed}) FROM stdin;\n")
        for table, codes in _chunks(index):
            for row, code in zip(table.to_pylist(), unpack(codes), strict=True):
                bits_as_text = "".join("1" if bit else "0" for bit in code)
                stream.write("\t".join([_copied(row["id"]), bits_as_text, *(_copied(row[n]) for n in names)]) + "\n")
        stream.write("\\.\n")


def _copied(value: Any) -> str:
    """Return a value in COPY's text format."""
    if value is None:
        return "\\N"
    if isinstance(value, list):
        quoted = (str(one).replace("\\", "\\\\").replace('"', '\\"') for one in value)
        value = "{" + ",".join(f'"{one}"' for one in quoted) + "}"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    for character, escaped in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r"), ("\0", "")):
        text = text.replace(character, escaped)
    return text


def _elasticsearch(index: GalleryIndex, folder: Path) -> None:
    """Write lines for the bulk API, and a mapping each for Elasticsearch and OpenSearch: codes as signed bytes."""
    from hashlib import sha256

    names, bits = ["labels", "source", *index.owner_columns], index.space.bits
    kinds = {"bool": "boolean", "int64": "long", "double": "double", "date32[day]": "date", "timestamp[us]": "date"}
    fields = {name: {"type": kinds.get(str(index.schema.field(name).type), "keyword")} for name in names}
    vectors = {
        "elasticsearch": {"type": "dense_vector", "element_type": "bit", "dims": bits, "similarity": "l2_norm"},
        "opensearch": {"type": "knn_vector", "data_type": "binary", "dimension": bits,
                       "method": {"name": "hnsw", "engine": "faiss", "space_type": "hamming"}},
    }  # fmt: skip
    for engine, vector in vectors.items():
        properties = {"id": {"type": "keyword"}, "code": vector, **fields}
        mapping: dict[str, Any] = {"mappings": {"_meta": {"code_space": index.space.id}, "properties": properties}}
        mapping |= {"settings": {"index.knn": True}} if engine == "opensearch" else {}
        (folder / f"mapping.{engine}.json").write_text(json.dumps(mapping, indent=1) + "\n")
    with (folder / "items.ndjson").open("w", encoding="utf-8", newline="\n") as stream:
        for table, codes in _chunks(index):
            for row, code in zip(table.to_pylist(), codes.view(np.int8).tolist(), strict=True):
                id = row["id"]
                key = id if len(id.encode()) <= MAX_ELASTIC_ID else sha256(id.encode()).hexdigest()
                document = {"id": id, "code": code} | {name: row[name] for name in names if row[name] is not None}
                lines: Sequence[Any] = ({"index": {"_id": key}}, document)
                stream.writelines(json.dumps(line, default=_iso) + "\n" for line in lines)


def _iso(value: Any) -> str:
    return str(value.isoformat())


WRITERS: dict[str, Callable[[GalleryIndex, Path], None]] = {
    "parquet": _parquet, "faiss": _faiss, "pgvector": _pgvector, "elasticsearch": _elasticsearch, "sqlite": _sqlite,
}  # fmt: skip
