"""Bundles sabotaged in every way that a broken disk, other software or a forger has: generated, seeded, by name."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from export.artifact import ANY_SIZE, KEY
from export.bundle import GOLDEN, MANIFEST
from export.metadata import SPEC, coreml_spec
from gallery.codes import unpack
from gallery.files import sha256_of, size_of
from tests.mobile_eval.bundles import BITS, SIZE

ONNX, LITERT, COREML = "query-fp32.onnx", "query-fp32.tflite", "query-fp16.mlpackage"
QUANTIZED = "query-w8a32.onnx"
DEEP = b"[" * 100_000
Sabotage = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """base: the bundle that is copied; harmless: None where a forger's signature makes either verdict right

    slow: several seconds, because an engine is started or made to hang
    """

    group: str
    name: str
    base: str
    sabotage: Sabotage
    harmless: bool | None = False
    slow: bool = False


def sign(bundle: Path) -> None:
    """What a forger does: the manifest's sums are those of the files."""
    record = json.loads((bundle / MANIFEST).read_text("utf-8"))
    for name, entry in record["files"].items():
        if (bundle / name).exists():
            entry |= {"sha256": sha256_of(bundle / name), "bytes": size_of(bundle / name)}
    write_manifest(bundle, record)


def write_manifest(bundle: Path, record: dict[str, Any]) -> None:
    (bundle / MANIFEST).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


def signed(sabotage: Sabotage) -> Sabotage:
    def both(bundle: Path) -> None:
        sabotage(bundle)
        sign(bundle)

    return both


# ---- every file of a bundle, in every way that bytes and file systems go wrong


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Sabotage:
    return lambda bundle: (bundle / name).write_bytes(change((bundle / name).read_bytes()))


def flipped(seed: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        rng, damaged = random.Random(seed), bytearray(data)
        if damaged:
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        return bytes(damaged)

    return change


BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data.rstrip(b"\n")[:-1],
    "twice": lambda data: data + data,
    "zeros": lambda data: bytes(len(data)),
    "noise": lambda data: random.Random(len(data)).randbytes(len(data)),
    "deep": lambda data: DEEP,
    "null": lambda data: b"null",
    "a list": lambda data: b"[]",
    "a number": lambda data: b"1e999",
    "a text": lambda data: b'"\\ud800"',
    "an object": lambda data: b'{"a": {"b": []}}',
    "a zip": lambda data: b"PK\x03\x04" + data,
    "flipped 1": flipped(1),
    "flipped 2": flipped(2),
    "flipped 3": flipped(3),
}


def replaced(name: str, make: Callable[[Path], object]) -> Sabotage:
    def sabotage(bundle: Path) -> None:
        path = bundle / name
        shutil.move(path, bundle.parent / "moved")
        make(path)

    return sabotage


def bind(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    os.chdir(here)


def sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(6 << 30)


KINDS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "a link": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself as it was": lambda path: path.symlink_to(_moved(path)),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a pipe": os.mkfifo,
    "a socket": bind,
    "a folder": lambda path: path.mkdir(),
    "six gigabytes": sparse,
    "of another case": lambda path: path.with_name(path.name.swapcase()).write_bytes(b"x"),
}


def _moved(path: Path) -> Path:
    return next(parent / "moved" for parent in path.parents if (parent / "moved").exists())


FILES = {
    "onnx": (
        MANIFEST, "codespace.json", "centers.npy", GOLDEN, "golden/000.png", "README.md", "apps/queryEncoder.ts", ONNX,
    ),
    "litert": (LITERT,),
    "coreml": (f"{COREML}/Manifest.json", f"{COREML}/{SPEC}", f"{COREML}/{SPEC.parent}/weights/weight.bin"),
}  # fmt: skip
TEXTS = ("README.md", "apps/queryEncoder.ts")  # a signed change of these is a change of no result


def of_files() -> Iterator[Case]:
    for base, names in FILES.items():
        for name in names:
            for what, change in BYTES.items():
                yield Case("bytes", f"{name}: {what}", base, rewrite(name, change))
                starts = base == "coreml" or (name == ONNX and "flipped" in what)
                few = base == "coreml" or name in TEXTS  # slow ones, and such that change no result
                if name != MANIFEST and not (few and what not in ("deep", "half", "flipped 1")):
                    both = signed(rewrite(name, change))
                    yield Case("signed", f"{name}: {what}, signed", base, both, harmless=None, slow=starts)
            for what, make in KINDS.items():
                yield Case("kinds", f"{name}: {what}", base, replaced(name, make))


# ---- metadata that lies, in the file and in the manifest alike

LIES: dict[str, list[Any]] = {
    "code_space": ["0" * 16, "", None, 5],
    "bits": [8, 64, 16.0, "16", True, 0, -16, 10**9, None],
    "student": [None, 5, {"a": 1}, "\x1b[2J", "x" * 2000],
    "precision": ["fp16", "w8a32", "w8a8", "palettize6", "int8", "", None, 5, ["fp32"]],
    "size": [8, 25, 24.0, "24", 0, -24, 10**9, None],
    "rule": [1, 3, "2", 2.0, True, None, "stretch to size"],
    "layout": ["NCHW float32", "image", ANY_SIZE, "", None, ["NHWC uint8"]],
    "colour_order": ["BGR", "rgb", "", None, 1],
    "bit_rule": ["logit >= 0", "", None],
    "bit_order": ["big", "", None],
    "version": [1, 99, 0, -1, "x", 2.0, True, None],
    "author": [None, 5, "\x1b[2J", "x" * 2000],
    "license": [None, ["MIT"], "two\nlines"],
    "model_version": [-1, 10**9, "1", 1.0, True, None],
    "float_layers": ["abc", [1], ["head"], None, {"a": 1}, [["a"]]],
    "calibration": [None, 5, "\x1b]0;title\x07", "x" * 2000],
    "more": ["a field that nobody knows"],
}


def lie(name: str, changes: dict[str, Any], drop: str = "") -> Sabotage:
    def sabotage(bundle: Path) -> None:
        model = onnx.load(bundle / name)
        entry, *_ = model.metadata_props  # Twinhash's own comes first
        told = {key: value for key, value in (json.loads(entry.value) | changes).items() if key != drop}
        entry.value = json.dumps(told, sort_keys=True)
        (bundle / name).write_bytes(model.SerializeToString())
        record = json.loads((bundle / MANIFEST).read_text("utf-8"))
        record["files"][name]["metadata"] = told
        write_manifest(bundle, record)
        sign(bundle)

    return sabotage


def in_bytes(name: str, old: bytes, new: bytes) -> Sabotage:
    """The same lie in a flatbuffer or a protobuf, whose lengths stay, and in the manifest."""
    assert len(old) == len(new)

    def sabotage(bundle: Path) -> None:
        path = bundle / name / SPEC if (bundle / name).is_dir() else bundle / name
        data = path.read_bytes()
        assert old in data, old
        path.write_bytes(data.replace(old, new))
        text = (bundle / MANIFEST).read_text("utf-8")
        (bundle / MANIFEST).write_text(text.replace(old.decode(), new.decode()), "utf-8")
        sign(bundle)

    return sabotage


def of_metadata() -> Iterator[Case]:
    for field, values in LIES.items():
        for value in values:
            yield Case("metadata", f"{field} {value!r:.40}", "onnx", lie(ONNX, {field: value}))
    for field in ("code_space", "bits", "student", "precision", "size", "rule"):
        yield Case("metadata", f"without {field}", "onnx", lie(ONNX, {}, drop=field))
    yield Case("metadata", "another student than its neighbour", "pair", lie(QUANTIZED, {"student": "another"}))
    yield Case("metadata", "fp32 that is w8a32", "pair", lie(QUANTIZED, {"precision": "fp32"}))
    yield Case("metadata", "fp16 that is w8a32", "pair", lie(QUANTIZED, {"precision": "fp16"}))
    for name, base in ((LITERT, "litert"), (COREML, "coreml")):
        for old, new in (
            (b'"RGB"', b'"BGR"'), (b'"little"', b'"middle"'), (b'"bits": 16', b'"bits": 24'),
            (b'"size": 24', b'"size": 48'), (b'"version": 2', b'"version": 7'), (b"centre crop", b"centre cut "),
            (b'"precision": "fp', b'"precision": "FP'),
        ):  # fmt: skip
            yield Case("metadata", f"{name}: {new.decode()}", base, in_bytes(name, old, new))
    yield Case("metadata", "fp16 in name", "litert", in_bytes(LITERT, b'"fp32"', b'"fp16"'))
    yield Case("metadata", "w8a8 in name", "litert", in_bytes(LITERT, b'"fp32"', b'"w8a8"'))
    yield Case("metadata", "w8a8 in name, Core ML", "coreml", in_bytes(COREML, b'"fp16"', b'"w8a8"'))
    yield Case("metadata", "fp32 in name, Core ML", "coreml", in_bytes(COREML, b'"fp16"', b'"fp32"'))


# ---- golden inputs that contradict, or are something else


def golden(change: Callable[[list[dict[str, Any]]], object]) -> Sabotage:
    def sabotage(bundle: Path) -> None:
        rows = json.loads((bundle / GOLDEN).read_text())
        found = change(rows)
        (bundle / GOLDEN).write_text(json.dumps(rows if found is None else found))
        sign(bundle)

    return sabotage


def image(draw: Callable[[Image.Image], Image.Image], format: str = "PNG", name: str = "golden/000.png") -> Sabotage:
    def sabotage(bundle: Path) -> None:
        stream = io.BytesIO()
        draw(Image.open(bundle / name)).save(stream, format)
        (bundle / name).write_bytes(stream.getvalue())
        sign(bundle)

    return sabotage


def set_all(key: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row[key] = value

    return change


def add_unlisted_image(bundle: Path) -> None:
    shutil.copy(bundle / "golden/000.png", bundle / "golden/008.png")
    record = json.loads((bundle / MANIFEST).read_text("utf-8"))
    record["files"]["golden/008.png"] = record["files"]["golden/000.png"]
    write_manifest(bundle, record)


ROWS: dict[str, Callable[[list[dict[str, Any]]], object]] = {
    "no rows": lambda rows: [],
    "an object": lambda rows: {"rows": rows},
    "a row that is null": lambda rows: [None, *rows[1:]],
    "a row that is a list": lambda rows: [[1], *rows[1:]],
    "one row too few": lambda rows: rows[:-1],
    "a row twice": lambda rows: [*rows, rows[0]],
    "the rows backwards": lambda rows: rows[::-1],
    "100,000 rows": lambda rows: [{"file": "x"}] * 100_000,
    "logits of zero": set_all("logits", [0.0] * BITS),
    "logits not a number": set_all("logits", [float("nan")] * BITS),
    "infinite logits": set_all("logits", [float("inf")] * BITS),
    "logits too few": set_all("logits", [1.0] * (BITS - 8)),
    "logits too many": set_all("logits", [1.0] * 4096),
    "logits that are texts": set_all("logits", ["x"] * BITS),
    "logits in logits": set_all("logits", [[[1.0]]] * BITS),
    "logits that are null": set_all("logits", None),
    "logits too large": set_all("logits", [10**400] * BITS),
    "codes of all ones": set_all("code", "ff" * (BITS // 8)),
    "codes too short": set_all("code", "ff"),
    "codes too long": set_all("code", "ff" * 500),
    "codes that are no hex": set_all("code", "zz" * (BITS // 8)),
    "codes that are numbers": set_all("code", 255),
    "codes that are empty": set_all("code", ""),
    "codes with blanks": lambda rows: [{**row, "code": f"{row['code'][:2]} {row['code'][2:]}"} for row in rows],
    "logits that are texts of numbers": lambda rows: [{**row, "logits": list(map(str, row["logits"]))} for row in rows],
    "a field that nobody knows": set_all("more", 1),
    "a file outside": set_all("file", "../../secret.png"),
    "an absolute file": set_all("file", "/etc/passwd"),
    "a device": set_all("file", "/dev/zero"),
    "another image": set_all("file", "golden/001.png"),
    "files that are numbers": set_all("file", 0),
    "all signs turned": lambda rows: [
        {**row, "code": bytes(255 - byte for byte in bytes.fromhex(row["code"])).hex(),
         "logits": [-value for value in row["logits"]]} for row in rows
    ],
}  # fmt: skip
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 24\n%%EndComments\nshowpage\n%%EOF\n"


def of_golden() -> Iterator[Case]:
    for what, change in ROWS.items():
        yield Case("golden", what, "onnx", golden(change), slow=what == "all signs turned")
    for format in ("GIF", "BMP", "JPEG", "TIFF", "PPM", "WEBP", "TGA", "ICO", "PCX", "SGI"):
        yield Case("golden", f"an image as {format}", "onnx", image(lambda shown: shown, format))
    yield Case("golden", "PostScript", "onnx", signed(rewrite("golden/000.png", lambda data: EPS)))
    for mode in ("L", "RGBA", "P", "1", "LA", "I;16"):
        yield Case("golden", f"an image of mode {mode}", "onnx", image(lambda shown, mode=mode: shown.convert(mode)))
    for width, height in ((23, 24), (24, 25), (1, 1), (13_000, 13_000), (48, 48)):
        name = f"an image of {width} x {height} pixels"
        draw = lambda shown, sides=(width, height): Image.new("RGB", sides)  # noqa: E731
        yield Case("golden", name, "onnx", image(draw), slow=width > 1000)
    yield Case("golden", "an image of other pixels", "onnx", image(lambda shown: Image.eval(shown, lambda v: 255 - v)),
               harmless=None, slow=True)  # fmt: skip
    yield Case("golden", "an image without a row", "onnx", add_unlisted_image)


# ---- manifests that were edited, with sums that fit


def edit(change: Callable[[dict[str, Any]], object]) -> Sabotage:
    def sabotage(bundle: Path) -> None:
        record = json.loads((bundle / MANIFEST).read_text("utf-8"))
        change(record)
        write_manifest(bundle, record)

    return sabotage


def drop(name: str) -> Sabotage:
    """A file that is neither there nor listed."""

    def sabotage(bundle: Path) -> None:
        (bundle / name).unlink()
        edit(lambda record: record["files"].pop(name))(bundle)

    return sabotage


def listed(name: str, data: bytes = b"x") -> Sabotage:
    def sabotage(bundle: Path) -> None:
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_bytes(data)
        edit(lambda record: record["files"].update({name: {"sha256": "", "bytes": 0}}))(bundle)
        sign(bundle)

    return sabotage


def many(bundle: Path) -> None:
    (bundle / "many").mkdir()
    record = json.loads((bundle / MANIFEST).read_text("utf-8"))
    empty = {"sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "bytes": 0}
    for i in range(5000):
        (bundle / "many" / f"{i}").touch()
        record["files"][f"many/{i}"] = empty
    (bundle / "many" / "5000").touch()  # and one that is not listed
    write_manifest(bundle, record)


def entry(**changes: Any) -> Sabotage:
    return edit(lambda record: record["files"][ONNX].update(changes))


def failures(value: Any) -> Sabotage:
    return edit(lambda record: record.update(failures=value))


def listed_as(name: str) -> Sabotage:
    """The model under another name."""

    def sabotage(bundle: Path) -> None:
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / ONNX).rename(bundle / name)
        edit(lambda record: record["files"].update({name: record["files"].pop(ONNX)}))(bundle)

    return sabotage


def model_twice(bundle: Path) -> None:
    shutil.copy(bundle / ONNX, bundle / "again.onnx")
    edit(lambda record: record["files"].update({"again.onnx": record["files"][ONNX]}))(bundle)


def class_less(bundle: Path) -> None:
    edit(lambda record: record["code_space"]["classes"].pop())(bundle)
    space = json.loads((bundle / "codespace.json").read_text("utf-8"))
    space["classes"].pop()
    (bundle / "codespace.json").write_text(json.dumps(space), "utf-8")
    sign(bundle)


MANIFESTS: dict[str, Sabotage] = {
    "no files": edit(lambda record: record.update(files={})),
    "files as a list": edit(lambda record: record.update(files=list(record["files"]))),
    "files null": edit(lambda record: record.update(files=None)),
    "an entry null": edit(lambda record: record["files"].update({ONNX: None})),
    "another version": edit(lambda record: record.update(version=2)),
    "a version as text": edit(lambda record: record.update(version="1")),
    "a code space as text": edit(lambda record: record.update(code_space="x")),
    "a code space null": edit(lambda record: record.update(code_space=None)),
    "a code space of other bits": edit(lambda record: record["code_space"].update(bits=32)),
    "a code space of another id": edit(lambda record: record["code_space"].update(id="0" * 16)),
    "classes that are numbers": edit(lambda record: record["code_space"].update(classes=[1, 2, 3, 4])),
    "another rule": edit(lambda record: record["code_space"]["preprocessing"].update(rule=3)),
    "bytes negative": entry(bytes=-1),
    "bytes as text": entry(bytes="5"),
    "bytes of an exabyte": entry(bytes=10**18),
    "sha256 null": entry(sha256=None),
    "another format": entry(format="litert"),
    "format null": entry(format=None),
    "metadata null": entry(metadata=None),
    "metadata empty": entry(metadata={}),
    "a field more": entry(more=1),
    "failures null": failures(None),
    "failures that are texts": failures(["onnx-fp16"]),
    "a failure null": failures([None]),
    "a failure without a reason": failures([{"variant": "onnx-fp16"}]),
    "a failure that steers the terminal": failures([{"variant": "onnx-fp16", "reason": "\x1b[2J\x1b]0;title\x07"}]),
    "a failure that forges a line": failures([{"variant": "onnx-fp16", "reason": "x\nVerdict: passed"}]),
    "a failure of no variant": failures([{"variant": "\x1b[2J", "reason": "x"}]),
    "a variant that is a list": failures([{"variant": ["onnx-fp16"], "reason": "x"}]),
    "a variant that is a number": failures([{"variant": 5, "reason": "x"}]),
    "a reason that is a list": failures([{"variant": "onnx-fp16", "reason": ["x"]}]),
    "a reason of a megabyte": failures([{"variant": "onnx-fp16", "reason": "x" * 1_000_000}]),
    "a failure of a precision that nobody knows": failures([{"variant": "onnx-int4", "reason": "x"}]),
    "a failure of a model that is there": failures([{"variant": "onnx-fp32", "reason": "x"}]),
    "fifty thousand failures": failures([{"variant": "onnx-fp16", "reason": "x"}] * 50_000),
    "a model of another name": listed_as("query-w8a8.onnx"),
    "a model in a folder": listed_as(f"models/{ONNX}"),
    "a model twice": model_twice,
    "a class less than centers": class_less,
    "five thousand files, and one more": many,
    "no model": drop(ONNX),
    "no golden images": drop(GOLDEN),
    "no golden image": drop("golden/000.png"),
    "no centers": drop("centers.npy"),
    "no code space": drop("codespace.json"),
    "a hidden file": listed(".hidden"),
    "a desktop file that is listed": listed("Thumbs.db"),
    "a model that is none": listed("query-fp16.onnx"),
    "a name with a blank": listed("a file"),
    "a name that steers": listed("a\x1b[2J"),
    "three folders deep": listed("a/b/c"),
    "an edited text": rewrite(MANIFEST, lambda data: data + b"\n"),
    "a name twice": rewrite(MANIFEST, lambda data: data.replace(b'"files": {', b'"files": {"README.md": {},')),
    "UTF-16": rewrite(MANIFEST, lambda data: data.decode().encode("utf-16")),
}


def of_manifests() -> Iterator[Case]:
    for what, sabotage in MANIFESTS.items():
        yield Case("manifest", what, "onnx", sabotage)


# ---- what lies in the folder beside what is listed

STRAYS: dict[str, Callable[[Path], object]] = {
    "a file": lambda path: path.write_bytes(b"x"),
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a link": lambda path: path.symlink_to("/etc"),
}
DESKTOP = (".DS_Store", "._query-fp32.onnx", "Thumbs.db", "desktop.ini", ".localized", "__MACOSX", "@eaDir", "Icon\r")


def below(folder: str, name: str, make: Callable[[Path], object]) -> Sabotage:
    return lambda bundle: make(bundle / folder / name)


def of_strays() -> Iterator[Case]:
    for folder in ("", "golden", "apps"):
        for what, make in STRAYS.items():
            yield Case("strays", f"{what} in {folder or 'the bundle'}", "onnx", below(folder, "stray", make))
    inside = f"{COREML}/Data"
    yield Case("strays", "a file in a package", "coreml", below(inside, "stray", STRAYS["a file"]))
    yield Case("strays", "a pipe in a package", "coreml", below(inside, "stray", STRAYS["a pipe"]))
    yield Case("strays", "a link in a package", "coreml", below(inside, "stray", STRAYS["a link"]))
    for i, name in enumerate(DESKTOP):
        folder, make = ("", "golden", "apps")[i % 3], STRAYS["a folder" if name in ("__MACOSX", "@eaDir") else "a file"]
        yield Case("desktop", f"{name!r} in {folder or 'the bundle'}", "onnx", below(folder, name, make), harmless=True)
    for what in ("a pipe", "a link"):
        yield Case("desktop", f".DS_Store as {what}", "onnx", below("", ".DS_Store", STRAYS[what]), harmless=True)
    finder = below(f"{COREML}/Data/com.apple.CoreML", ".DS_Store", STRAYS["a file"])
    yield Case("desktop", "Finder in a package", "coreml", finder, harmless=True, slow=True)
    yield Case("desktop", "a package that was opened", "coreml", opened, harmless=True, slow=True)


def opened(bundle: Path) -> None:
    """coremltools writes Manifest.json again, on macOS in another form."""
    import coremltools

    coremltools.models.MLModel(str(bundle / COREML), skip_model_load=True)
    path = bundle / COREML / "Manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text())).replace("/", "\\/"))


# ---- models that are built to harm


def onnx_changed(change: Callable[[onnx.ModelProto], object], name: str = ONNX) -> Sabotage:
    def sabotage(bundle: Path) -> None:
        model = onnx.load(bundle / name)
        change(model)
        (bundle / name).write_bytes(model.SerializeToString())
        sign(bundle)

    return sabotage


def tensor_of(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def dead_bit(name: str) -> Sabotage:
    """A bit that is set in the fewest golden codes, but in one, is never set by the file."""

    def sabotage(bundle: Path) -> None:
        codes = [bytes.fromhex(row["code"]) for row in json.loads((bundle / GOLDEN).read_text())]
        counts = unpack(np.array([list(code) for code in codes], np.uint8)).sum(axis=0)
        bit = min((count, bit) for bit, count in enumerate(counts) if count)[1]

        def change(model: onnx.ModelProto) -> None:
            packing = tensor_of(model, "packing")
            places = numpy_helper.to_array(packing).copy()
            places[bit] = 0
            packing.CopyFrom(numpy_helper.from_array(places, "packing"))

        onnx_changed(change, name)(bundle)

    return sabotage


def behind_logits(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Let the nodes make "logits" of what was "logits" before, now "before"."""
    for node in model.graph.node:
        node.output[:] = ["before" if name == "logits" else name for name in node.output]
        node.input[:] = ["before" if name == "logits" else name for name in node.input]
    model.graph.node.extend(nodes)


def endless(model: onnx.ModelProto) -> None:
    values = [helper.make_tensor_value_info(name, kind, []) for name, kind in
              (("i", TensorProto.INT64), ("go", TensorProto.BOOL), ("x", TensorProto.FLOAT))]  # fmt: skip
    ends = [helper.make_tensor_value_info(name, kind, []) for name, kind in
            (("go_on", TensorProto.BOOL), ("y", TensorProto.FLOAT))]  # fmt: skip
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Sin", ["x"], ["y"])], "body", values, ends
    )
    model.graph.initializer.extend([
        numpy_helper.from_array(np.array(2**62), "trips"), numpy_helper.from_array(np.array(True), "true"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
    ])  # fmt: skip
    loop = helper.make_node("Loop", ["trips", "true", "zero"], ["nothing"], body=body)
    behind_logits(model, [loop, helper.make_node("Add", ["before", "nothing"], ["logits"])])


def huge(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([1 << 20, 1 << 20]), "huge"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1), np.float32), "small"))
    nodes = [helper.make_node("Expand", ["small", "huge"], ["large"]),
             helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
             helper.make_node("Add", ["before", "sum"], ["logits"])]  # fmt: skip
    behind_logits(model, nodes)


def outside(place: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=place)

    return change


def rename(part: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        (model.graph.input if part == "image" else model.graph.output)[0].name = "other"

    return change


def scale_weights(value: float) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        tensor = max((one for one in model.graph.initializer if one.data_type == 1), key=lambda one: len(one.raw_data))
        tensor.CopyFrom(
            numpy_helper.from_array((numpy_helper.to_array(tensor) * value).astype(np.float32), tensor.name)
        )

    return change


def float_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def other_key(model: onnx.ModelProto) -> None:
    model.metadata_props[0].key = KEY.upper()


def metadata_twice(model: onnx.ModelProto) -> None:
    """The first says BGR; a reader of names and values takes the last."""
    told, *_ = model.metadata_props
    model.metadata_props.add(key=KEY, value=told.value)
    told.value = told.value.replace('"RGB"', '"BGR"')


def key_twice(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = '{"size": 48, ' + model.metadata_props[0].value[1:]


def fixed_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 8


def other_for_one(model: onnx.ModelProto) -> None:
    """An app sends one image at a time."""
    numbers = {
        "first": np.array(0),
        "one": np.array(1),
        "minus": np.array(-1, np.float32),
        "plus": np.array(1, np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in numbers.items())
    steps = [("Shape", "image", "sides"), ("Gather", "sides first", "count"), ("Equal", "count one", "alone"),
             ("Where", "alone minus plus", "sign"), ("Mul", "before sign", "logits")]  # fmt: skip
    nodes = list(model.graph.node)
    place = next(i for i, node in enumerate(nodes) if "logits" in node.output)
    nodes[place].output[:] = ["before"]
    nodes[place + 1 : place + 1] = [helper.make_node(kind, inputs.split(), [output]) for kind, inputs, output in steps]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def hollow(path: str, tag: bytes) -> Sabotage:
    """Twelve megabytes more in the file, of messages that are empty: gigabytes once they are parsed."""
    body = b"\x0a\x00" * 6_000_000
    size = bytes([len(body) & 127 | 128, len(body) >> 7 & 127 | 128, len(body) >> 14 & 127 | 128, len(body) >> 21])
    return signed(rewrite(path, lambda data: data + tag + size + body))


def coreml_changed(change: Callable[[Any], object]) -> Sabotage:
    def sabotage(bundle: Path) -> None:
        spec = coreml_spec(bundle / COREML)
        change(spec)
        (bundle / COREML / SPEC).write_bytes(spec.SerializeToString())
        sign(bundle)

    return sabotage


def leads_elsewhere(data: bytes) -> bytes:
    record = json.loads(data)
    record["itemInfoEntries"]["more"] = {"author": "x", "name": "x", "description": "x", "path": "../../../../etc"}
    return json.dumps(record).encode()


PACKAGES: dict[str, Sabotage] = {
    "a second function": coreml_changed(
        lambda spec: spec.mlProgram.functions["b"].CopyFrom(spec.mlProgram.functions["main"])
    ),
    "a function that is described": coreml_changed(lambda spec: spec.description.functions.add(name="b")),
    "a package that leads elsewhere": signed(rewrite(f"{COREML}/Manifest.json", leads_elsewhere)),
    "millions of empty inputs": hollow(f"{COREML}/{SPEC}", b"\x12"),
}  # fmt: skip
MODELS: dict[str, Callable[[onnx.ModelProto], object]] = {
    "metadata twice": metadata_twice,
    "metadata with a key twice": key_twice,
    "a batch of eight": fixed_batch,
    "an output twice": lambda model: model.graph.output.append(model.graph.output[0]),
    "weights in a file outside": outside("../../secret.bin"),
    "weights in /etc/passwd": outside("/etc/passwd"),
    "weights in the README": outside("README.md"),
    "another input name": rename("image"),
    "another output name": rename("codes"),
    "a float input": float_input,
    "no metadata": lambda model: model.ClearField("metadata_props"),
    "metadata under another key": other_key,
    "no graph": lambda model: model.ClearField("graph"),
    "no nodes": lambda model: model.graph.ClearField("node"),
    "an operation that nobody knows": lambda model: model.graph.node.append(
        helper.make_node("Evil", ["image"], ["x"], domain="com.evil")
    ),
}
RUN: dict[str, Callable[[onnx.ModelProto], object]] = {  # only an engine tells
    "weights not a number": scale_weights(float("nan")),
    "weights of the other sign": scale_weights(-1.0),
    "a terabyte": huge,
    "an endless loop": endless,
    "other codes for one image": other_for_one,
}


def litert_metadata(change: Callable[[Any, Any], object]) -> Sabotage:
    """A .tflite that is written again with other metadata entries."""

    def sabotage(bundle: Path) -> None:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.tools.flatbuffer_utils import read_model_from_bytearray

        model = read_model_from_bytearray(bytearray((bundle / LITERT).read_bytes()))
        change(model, schema)
        for buffer in model.buffers:
            if buffer.data is not None:
                buffer.data = np.frombuffer(bytes(buffer.data), np.uint8)
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        (bundle / LITERT).write_bytes(bytes(builder.Output()))
        sign(bundle)

    return sabotage


def many_entries(model: Any, schema: Any) -> None:
    large = schema.BufferT()
    large.data = bytes(6 << 20)
    model.buffers.append(large)
    for _ in range(3000):
        one = schema.MetadataT()
        one.name, one.buffer = KEY, len(model.buffers) - 1
        model.metadata.insert(0, one)


def large_entry(model: Any, schema: Any) -> None:
    many_entries(model, schema)
    model.metadata = model.metadata[-9:]


def entry_twice(model: Any, schema: Any) -> None:
    model.metadata += [one for one in model.metadata if one.name in (KEY, KEY.encode())]


def no_buffer(model: Any, schema: Any) -> None:
    for one in model.metadata:
        one.buffer = 10_000


def of_models() -> Iterator[Case]:
    for what, change in MODELS.items():
        yield Case("models", what, "onnx", onnx_changed(change))
    for what, change in RUN.items():
        yield Case("models", what, "onnx", onnx_changed(change), slow=True)
    yield Case("models", "a dead bit in a quantized file", "pair", dead_bit(QUANTIZED), slow=True)
    yield Case("models", "a dead bit", "onnx", dead_bit(ONNX), slow=True)
    yield Case("models", "3,000 metadata entries of 6 MB", "litert", litert_metadata(many_entries))
    for what, sabotage in PACKAGES.items():
        yield Case("models", what, "coreml", sabotage)
    yield Case("models", "millions of empty nodes", "onnx", hollow(ONNX, b"\x3a"))
    yield Case("models", "an entry twice", "litert", litert_metadata(entry_twice))
    yield Case("models", "metadata of 6 MB", "litert", litert_metadata(large_entry))
    yield Case("models", "metadata in no buffer", "litert", litert_metadata(no_buffer))
    yield Case("models", "no metadata entries", "litert", litert_metadata(lambda model, schema: model.metadata.clear()))


def cases() -> list[Case]:
    """All of them, in an order that does not change."""
    makers = (of_files, of_metadata, of_golden, of_manifests, of_strays, of_models)
    return [case for maker in makers for case in maker()]


def quick(each: int) -> list[Case]:
    """Some of each group, without those that take long but one."""
    rng, groups = random.Random(14), defaultdict[str, list[Case]](list)
    for case in cases():
        if not case.slow:
            groups[case.group].append(case)
    found = [case for group in groups.values() for case in rng.sample(group, min(each, len(group)))]
    return found + [case for case in cases() if case.name == "a dead bit"]


assert SIZE == 24, "the lies about the size name another one"
