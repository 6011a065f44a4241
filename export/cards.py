"""Reading the card of a shipped file: no torch, no TensorFlow, and nothing of the file is executed."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from export.card import KEY, Card
from export.quiet import quiet
from gallery.errors import CorruptFile, InputError, MissingBackend

SPEC = Path("Data/com.apple.CoreML/model.mlmodel")
_METADATA, _BUFFERS, _NAME, _BUFFER, _DATA = 16, 12, 4, 6, 4  # vtable places in TFLite's schema


def read_card(path: Path) -> Card:
    """The card of an .onnx, .tflite or .mlpackage.

    Raises `InputError` for another kind of file, `CorruptFile` for a damaged one, `CodeSpaceMismatch` without a card.
    """
    readers = {".onnx": onnx_card, ".tflite": litert_card, ".mlpackage": coreml_card}
    if path.suffix not in readers:
        raise InputError("an .onnx, .tflite or .mlpackage file", path.name, "Name a file of the bundle.")
    return readers[path.suffix](path)


def onnx_card(path: Path) -> Card:
    """The card in `metadata_props`."""
    onnx = backend("onnx")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, and what malformed fields raise
        raise damaged(path, error) from error
    return Card.from_json({entry.key: entry.value for entry in model.metadata_props}.get(KEY), path.name)


def litert_card(path: Path) -> Card:
    """The card in a metadata buffer, read with bare flatbuffers: an old board has no schema to import."""
    backend("flatbuffers")
    try:
        data = path.read_bytes()
        if data[4:8] != b"TFL3":
            raise ValueError("no TFL3 identifier")
        text = _tflite_metadata(data).get(KEY)
        return Card.from_json(text.decode() if text else None, path.name)
    except (OSError, struct.error, IndexError, ValueError, TypeError) as error:
        raise damaged(path, error) from error


def coreml_card(path: Path) -> Card:
    """The card in `user_defined_metadata`."""
    return Card.from_json(coreml_spec(path).description.metadata.userDefined.get(KEY), path.name)


def coreml_spec(path: Path) -> Any:
    """The package's specification (a protobuf message); `CorruptFile` unless the manifest leads to it."""
    with quiet():
        backend("coremltools")
    from coremltools.proto import Model_pb2

    try:
        manifest = json.loads((path / "Manifest.json").read_text())
        root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        if Path("Data", root) != SPEC:
            raise ValueError(f"the manifest leads to {root}")
        spec = Model_pb2.Model()
        spec.ParseFromString((path / SPEC).read_bytes())
    except Exception as error:  # OSError, JSON, KeyError, protobuf's DecodeError: all say that the package is broken
        raise damaged(path, error) from error
    return spec


def damaged(path: Path, error: Exception) -> CorruptFile:
    """The error for a file that its own format's reader does not accept."""
    return CorruptFile(
        f"a readable {path.suffix[1:]} file in {path.name}",
        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no detail'}",
        "Copy it again, or export it again.",
    )


def backend(name: str) -> Any:
    """Imports an engine or a format's library, or says how to get it."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0].replace("_", "-")
        raise MissingBackend(f"{package} to be installed", str(error), f"Run: pip install {package}") from error


def _tflite_metadata(data: bytes) -> dict[str, bytes]:
    """Name to content of the metadata table's entries (tensorflow/lite/schema.fbs)."""
    from flatbuffers.encode import Get
    from flatbuffers.packer import uoffset
    from flatbuffers.table import Table

    def tables(owner: Any, place: int) -> list[Any]:
        field = owner.Offset(place)
        start = owner.Vector(field) if field else 0
        return [Table(data, owner.Indirect(start + 4 * i)) for i in range(owner.VectorLen(field) if field else 0)]

    model = Table(data, Get(uoffset, data, 0))
    buffers, found = tables(model, _BUFFERS), {}
    for entry in tables(model, _METADATA):
        name = entry.String(entry.Pos + entry.Offset(_NAME)).decode()
        buffer = buffers[Get(uoffset, data, entry.Pos + entry.Offset(_BUFFER))]
        field = buffer.Offset(_DATA)
        start = buffer.Vector(field)
        found[name] = data[start : start + buffer.VectorLen(field)]
    return found
