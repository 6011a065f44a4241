"""Reading the card of a shipped file: with the standard library alone, and nothing of the file is executed."""

from __future__ import annotations

import hashlib
import json
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

from export.capture_output import quiet
from export.card import KEY, ModelMetadata
from gallery.errors import CorruptFile, InputError, MissingBackend

SPEC = Path("Data/com.apple.CoreML/model.mlmodel")
COREAI_ABOUT, COREAI_OWN = "metadata.json", "creatorDefinedMetadata"
COREAI_PROGRAM, COREAI_HASH = "main.mlirb", "main.hash"
_METADATA, _BUFFERS, _NAME, _BUFFER, _DATA = 16, 12, 4, 6, 4  # vtable places in TFLite's schema
_GRAPH, _PROPS = 7, 14  # fields of onnx.proto
_DESCRIPTION, _ABOUT, _USER_DEFINED = 2, 100, 100  # of Core ML's Model.proto
_SIZED, _FIXED = 2, {1: 8, 5: 4}  # protobuf's wire types: length first; so many bytes


def read_card(path: Path) -> ModelMetadata:
    """The card of an .onnx, .tflite, .mlpackage or .aimodel.

    Raises `InputError` for another kind of file, `CorruptFile` for a damaged one, `CodeSpaceMismatch` without a card.
    """
    readers = {".onnx": onnx_card, ".tflite": litert_card, ".mlpackage": coreml_card, ".aimodel": coreai_card}
    if path.suffix not in readers:
        raise InputError("an .onnx, .tflite, .mlpackage or .aimodel file", path.name, "Name a file of the bundle.")
    return readers[path.suffix](path)


def onnx_card(path: Path) -> ModelMetadata:
    """The card in `metadata_props`."""
    try:
        model = _fields(path.read_bytes())
        _fields(b"".join(model[_GRAPH]))  # damage there is found before an engine meets it
        text = _entries(model[_PROPS]).get(KEY)
    except (OSError, ValueError, IndexError) as error:
        raise damaged(path, error) from error
    return ModelMetadata.from_json(text, path.name)


def litert_card(path: Path) -> ModelMetadata:
    """The card in a metadata buffer, read by hand: an old board has no schema to import."""
    try:
        data = path.read_bytes()
        if data[4:8] != b"TFL3":
            raise ValueError("no TFL3 identifier")
        text = _tflite_metadata(data).get(KEY)
        return ModelMetadata.from_json(text.decode() if text else None, path.name)
    except (OSError, struct.error, IndexError, ValueError) as error:
        raise damaged(path, error) from error


def coreml_card(path: Path) -> ModelMetadata:
    """The card in `user_defined_metadata`."""
    try:
        about = _fields(b"".join(_fields(_coreml_program(path))[_DESCRIPTION]))[_ABOUT]
        text = _entries(_fields(b"".join(about))[_USER_DEFINED]).get(KEY)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise damaged(path, error) from error
    return ModelMetadata.from_json(text, path.name)


def coreai_card(path: Path) -> ModelMetadata:
    """The card among the asset's own metadata; `CorruptFile` unless the program is the one that was hashed."""
    try:
        text = json.loads((path / COREAI_ABOUT).read_text()).get(COREAI_OWN, {}).get(KEY)
        if hashlib.sha256((path / COREAI_PROGRAM).read_bytes()).digest() != (path / COREAI_HASH).read_bytes():
            raise ValueError(f"{COREAI_PROGRAM} is not what {COREAI_HASH} says")
    except (OSError, ValueError, AttributeError) as error:
        raise damaged(path, error) from error
    return ModelMetadata.from_json(text, path.name)


def coreml_spec(path: Path) -> Any:
    """The package's specification (a protobuf message); `CorruptFile` unless the manifest leads to it."""
    with quiet():
        backend("coremltools")
    from coremltools.proto import Model_pb2

    try:
        spec = Model_pb2.Model()
        spec.ParseFromString(_coreml_program(path))
    except Exception as error:  # OSError, JSON, KeyError, protobuf's DecodeError: all say that the package is broken
        raise damaged(path, error) from error
    return spec


def _coreml_program(path: Path) -> bytes:
    manifest = json.loads((path / "Manifest.json").read_text())
    root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    if Path("Data", root) != SPEC:
        raise ValueError(f"the manifest leads to {root}")
    return (path / SPEC).read_bytes()


def damaged(path: Path, error: Exception) -> CorruptFile:
    """The error for a file that its own format's reader does not accept."""
    return CorruptFile(
        f"a readable {path.suffix[1:]} file in {path.name}",
        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no detail'}",
        "Copy it again, or export it again.",
    )


def backend(name: str, package: str = "") -> Any:
    """Imports an engine or a format's library, or says how to get it: as `package`, if that is not called the same."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = package or name.split(".")[0].replace("_", "-")
        raise MissingBackend(f"{package} to be installed", str(error), f"Run: pip install {package}") from error


def _tflite_metadata(data: bytes) -> dict[str, bytes]:
    """Name to content of the metadata table's entries (tensorflow/lite/schema.fbs; the flatbuffers' own layout)."""

    def number(kind: str, at: int) -> int:
        return int(struct.unpack_from(kind, data, at)[0])

    def field(table: int, place: int) -> int:
        """Where a table's field stands; 0 for one that is left out."""
        places = table - number("<i", table)
        return table + number("<H", places + place) if place < number("<H", places) else 0

    def vector(at: int) -> tuple[int, int]:
        return at + number("<I", at) + 4, number("<I", at + number("<I", at))

    def content(at: int) -> bytes:
        first, count = vector(at)
        return data[first : first + count]

    def tables(owner: int, place: int) -> list[int]:
        first, count = vector(field(owner, place))
        return [item + number("<I", item) for item in range(first, first + 4 * count, 4)]

    model = number("<I", 0)
    buffers = tables(model, _BUFFERS)
    names = {content(field(one, _NAME)).decode(): number("<I", field(one, _BUFFER)) for one in tables(model, _METADATA)}
    return {name: content(field(buffers[buffer], _DATA)) for name, buffer in names.items()}


def _fields(message: bytes | memoryview) -> dict[int, list[memoryview]]:
    """What a protobuf message holds of strings and messages, by field number; numbers are passed over."""
    found, data, place = defaultdict[int, list[memoryview]](list), memoryview(message), 0
    while place < len(data):
        key, place = _varint(data, place)
        if key & 7 == _SIZED:
            size, place = _varint(data, place)
            found[key >> 3].append(data[place : place + size])
            place += size
        elif key & 7 in _FIXED:
            place += _FIXED[key & 7]
        else:
            _, place = _varint(data, place)
    if place != len(data):
        raise ValueError("the file ends too early")
    return found


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """A number in groups of seven bits, and where the next one begins."""
    end = place
    while data[end] & 128:
        end += 1
    groups = data[place : end + 1]
    return sum((group & 127) << 7 * i for i, group in enumerate(groups[:10])), end + 1


def _entries(pairs: list[memoryview]) -> dict[str, str]:
    """Keys and values of a protobuf map of strings."""
    both = [_fields(pair) for pair in pairs]
    return {bytes(one[1][-1]).decode(): bytes(one[2][-1]).decode() for one in both if one[1] and one[2]}
