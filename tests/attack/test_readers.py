"""Every reader of ours, fed with variants of every file we write: a typed error or the value, soon, in little memory.

A few of each by default; all with TWINHASH_ATTACK=all.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from gallery import codespace, results
from gallery.codes import pack
from gallery.codespace import CodeSpace, Preprocessing, hash_centers
from gallery.database import code_array
from gallery.encode import ShardCache, encode
from gallery.errors import InputError, TwinhashError
from gallery.files import read_bytes, write_json
from gallery.index import create_gallery, open_gallery
from tests.attack.variants import spoil
from tests.gallery.galleries import named, numbered

ROOT, BITS, SIZE = Path(__file__).parents[2], 16, 32
CASES = 400 if os.environ.get("TWINHASH_ATTACK") == "all" else 12
LIMIT_S, LIMIT_MB, ROOM = 30, 1500, 6 << 30  # ROOM: bytes of address space that a reader may take
CENTERS = np.random.default_rng(1).choice([-1, 1], (4, BITS)).astype(np.int8)
SEEN = Preprocessing(SIZE, (0.5,) * 3, (0.2,) * 3)
SPACE = CodeSpace(BITS, tuple("abcd"), "resnet18", "0" * 64, hash_centers(CENTERS), SEEN)
PIXELS = np.random.default_rng(2).integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)
CODES = pack(np.random.default_rng(3).normal(size=(20, BITS)))


@dataclass(frozen=True)
class Reader:
    """make: writes the files into a folder; read: what is tried; exact: what is read must be as it was written."""

    make: Callable[[Path], object]
    read: Callable[[Path], Any]
    exact: bool = False


def _codespace() -> Reader:
    return Reader(lambda folder: codespace.save(folder, SPACE, CENTERS), lambda folder: codespace.load(folder)[1], True)


def _gallery() -> Reader:
    def make(folder: Path) -> None:
        labels = named(np.arange(20) % 4, SPACE.classes)
        create_gallery(folder / "gallery", SPACE, CENTERS, CODES, numbered(20), labels)

    def read(folder: Path) -> Any:
        index = open_gallery(folder / "gallery")
        return index.search(CODES, 3).ids.tolist(), index.labels.to_pylist(), index.ids.to_pylist()

    return Reader(make, read, True)


def _gallery_rows() -> Reader:
    """Values in the tables of a gallery, which LanceDB itself would read without a word."""
    import lancedb

    from gallery.database import SCHEMAS, code_schema
    from gallery.maintenance import space_rows
    from gallery.store import GalleryStore

    def make(folder: Path) -> None:
        labels = named(np.arange(20) % 4, SPACE.classes)
        create_gallery(folder / "g", SPACE, CENTERS, CODES, numbered(20), labels)
        store = GalleryStore(folder / "g")
        store.fail(SPACE.id, [{"id": "x", "source": "y", "etag": "z", "reason": "w"}])
        for name in (*SCHEMAS, f"codes_{SPACE.id}"):
            table = lancedb.connect(folder / "g").open_table(name)
            metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            rows = json.loads(json.dumps(table.to_arrow().to_pylist(), default=str))
            write_json(folder / f"{name}.json", {"metadata": metadata, "rows": rows})
        shutil.rmtree(folder / "g")

    def write(folder: Path, path: Path) -> None:
        """Write a table as the file says; what fits no table is refused by LanceDB."""
        known = SCHEMAS.get(path.stem, code_schema(SPACE, CENTERS))
        try:
            read = json.loads(path.read_bytes())
            rows = [dict(row) for row in read["rows"]]
            for row in rows:
                row |= {key: datetime.fromisoformat(row[key]) for key in ("since", "at", "encoded_at") if row.get(key)}
            schema = known.with_metadata({str(key): str(own) for key, own in read["metadata"].items()})
            table = lancedb.connect(folder / "g").create_table(path.stem, schema=schema)
            table.add(pa.Table.from_pylist(rows, schema))  # as the second version, which is the published one
        except (Exception, pa.ArrowException) as error:
            raise InputError("rows of a table", "others", "-") from error

    def read(folder: Path) -> Any:
        shutil.rmtree(folder / "g", ignore_errors=True)
        for path in sorted(folder.glob("*.json")):
            if path.is_file():
                write(folder, path)
        store = GalleryStore(folder / "g")
        problem = store.verify(SPACE.id).problem
        space_rows(store)
        index = open_gallery(folder / "g")
        found = index.search(CODES, 3)
        return bool(problem) or found.ids.tolist(), index.labels.to_pylist(), found.distances.tolist()

    return Reader(make, read)


def _manifest() -> Reader:
    from pyarrow import parquet

    from gallery.sources.listing import SourceOptions, list_source

    def make(folder: Path) -> None:
        columns = {"path": [f"{i}.png" for i in range(9)], "id": numbered(9), "labels": ["a;b"] * 9}
        columns |= {"price": [i / 2 for i in range(9)], "day": ["2026-01-02"] * 9, "sold": [True] * 9}
        lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        (folder / "m.csv").write_text("\n".join(lines))
        parquet.write_table(pa.table(columns), folder / "m.parquet")

    def read(folder: Path) -> Any:
        return [list_source(str(folder / name), SourceOptions()).items.to_pylist() for name in ("m.csv", "m.parquet")]

    return Reader(make, read)


def _search_body() -> Reader:
    """Bodies of requests, of a service without its HTTP."""
    pytest.importorskip("fastapi")
    from pydantic import ValidationError

    from gallery.service.errors import HANDLERS, ServiceError, answer
    from gallery.service.schemas import LikeRequest, SearchRequest, parse_codes, parse_json
    from gallery.service.snapshots import Snapshot
    from gallery.store import GalleryStore

    about = {"k": 3, "max_distance": 9, "columns": ["price", "labels"]}
    about |= {"where": {"price": {"lt": 5, "ne": 2}, "labels": ["a", "b"], "brand": "x", "sold": True}}
    snapshots: list[Snapshot] = []

    def make(folder: Path) -> None:
        store = GalleryStore(folder.parent / "service", create=True)
        own: dict[str, Any] = {"price": [i / 2 for i in range(20)], "brand": ["x", None] * 10, "sold": [True] * 20}
        rows = pa.table({"id": numbered(20), "code": code_array(CODES), **own})
        labels = pa.array(named(np.arange(20) % 4, SPACE.classes), pa.list_(pa.string()))
        store.add_space(SPACE, CENTERS, rows.select(list(own)).schema)
        store.put(SPACE.id, rows.append_column("labels", labels))
        snapshots.append(Snapshot(store, store.publish(SPACE.id), False))
        codes = [code.tobytes().hex() for code in CODES[:2]]
        write_json(folder / "search.json", about | {"code_space": SPACE.id, "codes": codes})
        write_json(folder / "like.json", about | {"code_space": SPACE.id, "id": numbered(20)[3]})

    def read(folder: Path) -> Any:
        try:
            search, like = (read_bytes(folder / f"{name}.json", 256 << 10) for name in ("search", "like"))
        except (OSError, ValueError) as error:
            raise InputError("a body", str(error), "-") from error
        try:
            asked = SearchRequest.model_validate(parse_json(search))
            found = snapshots[0].search(parse_codes(asked.codes, BITS), asked)
            near = LikeRequest.model_validate(parse_json(like))
            row = snapshots[0].row(near.id)
            return answer([found, snapshots[0].search(CODES[row : row + 1], near, row)]).body
        except ValidationError as error:
            raise InputError("a request", bytes(HANDLERS[ValidationError](None, error).body).decode(), "-") from error
        except ServiceError as error:
            raise InputError("a request", str(error.answer), "-") from error

    return Reader(make, read)


def _shards() -> Reader:
    def read(folder: Path) -> Any:
        return encode(
            lambda batch: batch.reshape(len(batch), -1) / np.float32(7), PIXELS, 3, ShardCache(folder, "x", "k", 8)
        )

    return Reader(read, read, True)


def _network() -> Reader:
    from distill.checkpoint import load_network, save_network
    from distill.models.hash_net import build

    name = "mobilenetv3_small_050"
    return Reader(
        lambda folder: save_network(folder / "n.safetensors", build(name, SIZE, BITS, 0), name, SIZE, BITS),
        lambda folder: load_network(folder / "n.safetensors"),
    )


def _state() -> Reader:
    from distill.checkpoint import load_state, save_state

    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    parts: Any = {"net": net, "opt": optimizer}
    return Reader(
        lambda folder: save_state(folder / "s", parts, 7, "key"), lambda folder: load_state(folder / "s", parts, "key")
    )


def _results() -> Reader:
    source = ROOT / "benchmarks/results/run-vit_b-mobilenetv3-embedded-64.json"
    return Reader(
        lambda folder: shutil.copy(source, folder / "results.json"),
        lambda folder: results.load_run(folder / "results.json"),
    )


def _measurements() -> Reader:
    from mobile_eval.external_results import read_results

    def make(folder: Path) -> None:
        for path in (ROOT / "tests/mobile_eval/fixtures").glob("*.json"):
            shutil.copy(path, folder)

    return Reader(make, lambda folder: [read_results(path) for path in sorted(folder.iterdir())])


def _stamps() -> Reader:
    from mobile_eval.devices import setup

    def make(folder: Path) -> None:
        write_json(folder / "stamp.json", {"recipe": "x", "numpy": "1"})
        for name, release in setup.NPM_PACKAGES.items():
            write_json(folder / "node_modules" / name / "package.json", {"name": name, "version": release})

    return Reader(make, lambda folder: (setup.out_of_date_reason(folder), setup.engines_installed(folder)))


def _images() -> Reader:
    from PIL import Image

    from distill.data.decode_cache import decode_all
    from distill.data.image_folder import ImageFiles

    def read(folder: Path) -> Any:
        paths = [folder.parent / "images" / f"{i}.png" for i in range(6)]
        made = decode_all(ImageFiles(folder.parent, paths), [path.name for path in paths], [16, 24], folder)
        return {size: np.array(array) for size, array in made.pixels.items()}, made.digests

    def make(folder: Path) -> None:
        (folder.parent / "images").mkdir()
        for i in range(6):
            Image.fromarray(PIXELS[i].repeat(8, 0).repeat(8, 1)).save(folder.parent / "images" / f"{i}.png")
        read(folder)

    return Reader(make, read, True)


def _metrics() -> Reader:
    from distill.metrics_log import MetricsLogger, read_metrics

    def make(folder: Path) -> None:
        logger = MetricsLogger(folder / "train.jsonl", "student", 0, 10)
        for step in range(1, 31):
            logger.log_step(step, torch.tensor(0.5), torch.tensor(0.1))
            if step % 10 == 0:
                logger.end_epoch(step, 0.5)

    return Reader(make, lambda folder: read_metrics(folder / "train.jsonl"))


def _configuration() -> Reader:
    from distill.config import TrainConfig, load_yaml, to_yaml

    return Reader(
        lambda folder: (folder / "config.yaml").write_text(to_yaml(TrainConfig())),
        lambda folder: load_yaml(folder / "config.yaml", TrainConfig),
    )


def _stages() -> Reader:
    from distill.run_dir import open_run

    def make(folder: Path) -> None:
        with open_run(folder) as run, run.stage("teacher", "training"):
            pass
        shutil.rmtree(folder / "cache")
        for name in (".lock", ".pid", "log.txt"):
            (folder / name).unlink(missing_ok=True)

    def read(folder: Path) -> Any:
        with open_run(folder) as run:
            return run.is_done("teacher"), run.seconds

    return Reader(make, read)


def _metadata() -> Any:
    from export.artifact import ModelMetadata

    return ModelMetadata(SPACE.id, BITS, "resnet18", "fp32", SIZE, SEEN.rule)


def _onnx() -> Reader:
    import onnx
    from onnx import TensorProto, helper

    from export.metadata import KEY, read_metadata

    def make(folder: Path) -> None:
        tensors = {"image": ("UINT8", [SIZE, SIZE, 3]), "codes": ("UINT8", [BITS // 8]), "logits": ("FLOAT", [BITS])}
        image, *outputs = (
            helper.make_tensor_value_info(key, TensorProto.DataType.Value(kind), [1, *shape])
            for key, (kind, shape) in tensors.items()
        )
        nodes = [helper.make_node("Gemm", ["image", "w"], [output.name]) for output in outputs]
        weights = helper.make_tensor("w", TensorProto.FLOAT, [64, 64], np.ones(64 * 64, np.float32))
        graph = helper.make_graph(nodes, "g", [image], outputs, [weights])
        model = helper.make_model(graph)
        helper.set_model_props(model, {KEY: _metadata().to_json()})
        onnx.save(model, folder / "m.onnx")

    return Reader(make, lambda folder: read_metadata(folder / "m.onnx"))


def _litert() -> Reader:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    from export.metadata import KEY, read_metadata

    def make(folder: Path) -> None:
        model, entry, buffer = schema.ModelT(), schema.MetadataT(), schema.BufferT()
        buffer.data = list(_metadata().to_json().encode())
        entry.name, entry.buffer = KEY, 1
        model.version, model.buffers, model.metadata = 3, [schema.BufferT(), buffer], [entry]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        (folder / "m.tflite").write_bytes(bytes(builder.Output()))

    return Reader(make, lambda folder: read_metadata(folder / "m.tflite"))


def _coreml() -> Reader:
    from coremltools.proto import Model_pb2

    from export.metadata import KEY, SPEC, read_metadata

    def make(folder: Path) -> None:
        spec, package = Model_pb2.Model(), folder / "m.mlpackage"
        spec.description.metadata.userDefined[KEY] = _metadata().to_json()
        (package / SPEC).parent.mkdir(parents=True)
        (package / SPEC).write_bytes(spec.SerializeToString())
        entry = {"path": "com.apple.CoreML/model.mlmodel", "name": "model.mlmodel", "author": "com.apple.CoreML"}
        write_json(package / "Manifest.json", {"itemInfoEntries": {"A": entry}, "rootModelIdentifier": "A"})

    return Reader(make, lambda folder: read_metadata(folder / "m.mlpackage"))


def _coreai() -> Reader:
    import hashlib

    from export.metadata import COREAI_ABOUT, COREAI_HASH, COREAI_OWN, COREAI_PROGRAM, KEY, read_metadata

    def make(folder: Path) -> None:
        asset = folder / "m.aimodel"
        write_json(asset / COREAI_ABOUT, {COREAI_OWN: {KEY: _metadata().to_json()}})
        (asset / COREAI_PROGRAM).write_bytes(b"program")
        (asset / COREAI_HASH).write_bytes(hashlib.sha256(b"program").digest())

    return Reader(make, lambda folder: read_metadata(folder / "m.aimodel"))


def _bundle() -> Reader:
    from export.artifact import ExportedModel
    from export.bundle import Golden, open_bundle, read_golden, write_bundle
    from gallery.files import sha256_of, size_of

    def make(folder: Path) -> None:
        _onnx().make(folder)
        path = (folder / "m.onnx").rename(folder / "query-fp32.onnx")
        model = ExportedModel(path, "onnx", _metadata(), sha256_of(path), size_of(path))
        logits = np.random.default_rng(5).normal(size=(3, BITS)).astype(np.float32)
        images = np.zeros((3, SIZE, SIZE, 3), np.uint8)
        write_bundle(folder / "bundle", [model], SPACE, CENTERS, Golden(images, pack(logits), logits))
        path.unlink()

    def read(folder: Path) -> Any:
        return read_golden(folder / "bundle", open_bundle(folder / "bundle"))

    return Reader(make, read)


READERS: dict[str, Callable[[], Reader]] = {
    name.removeprefix("_"): value for name, value in list(globals().items())
    if getattr(value, "__annotations__", {}).get("return") == "Reader"
}  # fmt: skip


class Hang(BaseException):
    """A reader that took too long; no `except Exception` catches it."""


@contextmanager
def limits() -> Iterator[None]:
    """Raise `Hang` after `LIMIT_S`, and fail where memory grew by `LIMIT_MB`."""

    def late(*_: object) -> None:
        raise Hang

    before, status = signal.signal(signal.SIGALRM, late), Path("/proc/self/status")
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    start, (soft, hard) = _peak_mb(status), resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, hard))
    began = time.monotonic()
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)
        if time.monotonic() - began >= LIMIT_S:  # the reader took `Hang` for an error of the file
            raise Hang
    assert _peak_mb(status) - start < LIMIT_MB, "memory"


def _peak_mb(status: Path) -> float:
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else bool(a == b)


@pytest.mark.parametrize("name", READERS)
def test_whatever_is_in_a_file_its_reader_refuses_or_reads_it(
    name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    reader, rng = READERS[name](), random.Random(f"14 {name}")
    (tmp_path / "sound" / "files").mkdir(parents=True)
    sound = tmp_path / "sound" / "files"
    reader.make(sound)
    names = sorted(
        path.relative_to(sound).as_posix() for path in sound.rglob("*") if path.is_file() and path.stat().st_size
    )
    expected, refused, faults = reader.read(sound), 0, []
    for number in range(CASES):
        case = tmp_path / "sound" / f"case{number}"
        shutil.copytree(sound, case)
        how = spoil(case, names, rng)
        try:
            with limits():
                found = reader.read(case)
            if reader.exact and not same(found, expected):
                faults.append(f"{how}: another value, without a word")
        except TwinhashError:
            refused += 1
        except (Exception, Hang) as error:  # noqa: BLE001 - that is what is looked for
            faults.append(f"{how}: {type(error).__name__}: {str(error)[:200]}")
        shutil.rmtree(case)
    what = f"{CASES} damaged files for {name}: {refused} refused, {CASES - refused - len(faults)} read"
    record_property("attack", f"{what}, {len(faults)} faults")
    if faults:
        pytest.fail("\n".join([f"{len(faults)} faults", *faults]), pytrace=False)
