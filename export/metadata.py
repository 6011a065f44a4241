"""Read the metadata of a model file with its format's own library; nothing of the file is executed."""

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from export.artifact import KEY, MAX_METADATA, ModelMetadata, first_line
from export.capture_output import quiet
from gallery.errors import CorruptFile, InputError, MissingBackend
from gallery.files import read_bytes, read_json
from gallery.layers import missing_module
from gallery.memory import limit_memory

SPEC = Path("Data/com.apple.CoreML/model.mlmodel")
COREAI_ABOUT, COREAI_OWN = "metadata.json", "creatorDefinedMetadata"
MAX_MODEL, MAX_SPEC = 2 << 30, 512 << 20  # bytes: protobuf takes no larger file; a package has its weights beside it
MAX_ENTRIES = 1000  # of metadata in a .tflite or .ort
PARSER_BYTES, PARSER_COPIES = 512 << 20, 4  # memory to parse any file, and for each byte of it
COREAI_PROGRAM, COREAI_HASH = "main.mlirb", "main.hash"


def read_metadata(path: Path) -> ModelMetadata:
    """Read the metadata of an .onnx, .ort, .tflite, .mlpackage or .aimodel.

    Raises `InputError` for another kind of file, `CorruptFile` for a damaged one, `CodeSpaceMismatch` without metadata,
    `MissingBackend` without the format's library.
    """
    readers = {
        ".onnx": _onnx, ".ort": _ort, ".tflite": _litert, ".aimodel": _coreai,
        ".mlpackage": lambda path: coreml_spec(path).description.metadata.userDefined.get(KEY),
    }  # fmt: skip
    if path.suffix not in readers:
        raise InputError(f"a file that ends in {', '.join(readers)}", path.name, "Name a file of the bundle.")
    try:
        text = readers[path.suffix](path)
    except (CorruptFile, MissingBackend):
        raise
    except Exception as error:  # OSError, JSON, flatbuffers and protobuf: all say that the file is damaged
        raise corrupt_file(path, error) from error
    return ModelMetadata.from_json(text, path.name)


def onnx_model(path: Path) -> Any:
    """Parse an .onnx; weights that it has outside are not read."""
    return _parse_protobuf(import_backend("onnx").load_model_from_string, path, MAX_MODEL)


def _parse_protobuf(parse: Callable[[bytes], Any], path: Path, limit: int) -> Any:
    """Parse in limited memory: two bytes of a file can become an object of several hundred."""
    data = read_bytes(path, limit)
    with limit_memory(PARSER_BYTES + PARSER_COPIES * len(data)):
        return parse(data)


def _onnx(path: Path) -> str | None:
    return _only([entry.value for entry in onnx_model(path).metadata_props if entry.key == KEY])


def _only(texts: list[str]) -> str | None:
    """Return the text of the only entry: of two, other readers may take the other."""
    if len(texts) > 1:
        raise ValueError(f"{len(texts)} entries {KEY}")
    return texts[0] if texts else None


def litert_model(path: Path) -> Any:
    """Return the root of a .tflite (flatbuffer), which is read where it is asked."""
    schema, data = import_backend("ai_edge_litert.schema_py_generated"), read_bytes(path, MAX_MODEL)
    if not schema.Model.ModelBufferHasIdentifier(data, 0):
        raise ValueError("no TFL3 identifier")
    return schema.Model.GetRootAs(data, 0)


def _litert(path: Path) -> str | None:
    model = litert_model(path)
    texts = []
    for entry in _entries_of(model.Metadata, model.MetadataLength()):
        buffer = model.Buffers(entry.Buffer())
        if buffer.DataLength() > MAX_METADATA:
            raise ValueError(f"metadata of {buffer.DataLength():,} bytes")
        texts.append(bytes(buffer.DataAsNumpy()).decode() if buffer.DataLength() else "")
    return _only(texts)


def _entries_of(read: Callable[[int], Any], count: int) -> list[Any]:
    """Return the flatbuffer's entries whose first field, a name, is `KEY`."""
    if count > MAX_ENTRIES:
        raise ValueError(f"{count:,} metadata entries")
    return [entry for entry in map(read, range(count)) if text_of(entry, 4, len(KEY)) == KEY.encode()]


def text_of(table: Any, slot: int, most: int) -> bytes:
    """Return a text of a flatbuffer's table, or nothing if it is longer: a thousand may be the same megabytes."""
    place = table._tab.Offset(slot)
    if not place or table._tab.VectorLen(place) > most:
        return b""
    return bytes(table._tab.String(place + table._tab.Pos))


def ort_model(path: Path) -> Any:
    """Return the model of an .ort (flatbuffer), which is read where it is asked."""
    import_backend("onnxruntime.tools.ort_format_model")  # which leads Python to the schema's classes
    from ort_flatbuffers_py.fbs.InferenceSession import InferenceSession

    data = read_bytes(path, MAX_MODEL)
    if not InferenceSession.InferenceSessionBufferHasIdentifier(data, 0):
        raise ValueError("no ORTM identifier")
    return InferenceSession.GetRootAs(data, 0).Model()


def _ort(path: Path) -> str | None:
    model = ort_model(path)
    found = _entries_of(model.MetadataProps, model.MetadataPropsLength())
    return _only([text_of(entry, 6, MAX_METADATA).decode() for entry in found])


def _coreai(path: Path) -> str | None:
    text: str | None = read_json(path / COREAI_ABOUT, dict, MAX_METADATA).get(COREAI_OWN, {}).get(KEY)
    program, said = read_bytes(path / COREAI_PROGRAM, MAX_MODEL), read_bytes(path / COREAI_HASH, MAX_METADATA)
    if hashlib.sha256(program).digest() != said:
        raise ValueError(f"{COREAI_PROGRAM} is not what {COREAI_HASH} says")
    return text


def coreml_spec(path: Path) -> Any:
    """Parse the package's specification (protobuf); `CorruptFile` unless the manifest leads to it."""
    with quiet():
        import_backend("coremltools")
    from coremltools.proto import Model_pb2

    try:
        manifest = read_json(path / "Manifest.json", dict, MAX_METADATA)
        items = {name: Path("Data", item["path"]) for name, item in manifest["itemInfoEntries"].items()}
        if items[manifest["rootModelIdentifier"]] != SPEC or not set(items.values()) <= {SPEC, SPEC.parent / "weights"}:
            raise ValueError(f"the manifest leads to {', '.join(map(str, items.values()))}")
        return _parse_protobuf(Model_pb2.Model.FromString, path / SPEC, MAX_SPEC)
    except Exception as error:  # OSError, JSON, KeyError, protobuf's DecodeError: all say that the package is damaged
        raise corrupt_file(path, error) from error


def corrupt_file(path: Path, error: Exception) -> CorruptFile:
    """Build the error for a file that its own format's reader does not accept."""
    expected = f"a readable {path.suffix[1:]} file in {path.name}"
    return CorruptFile(expected, first_line(error), "Copy it again, or export it again.")


def import_backend(name: str, package: str = "") -> Any:
    """Import an engine or a format's library; `MissingBackend` says how to install it (as `package`), or why it fails.

    One that is installed may still not load: for want of memory, or of a library of the system.
    """
    root = name.split(".")[0]
    package = package or root.replace("_", "-")
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        if importlib.util.find_spec(root) is None:
            raise missing_module(name, package) from error
        fix = f"Give the process more memory, or install it again: pip install {package} --force-reinstall"
        raise MissingBackend(f"{package}, which is installed, to load", str(error), fix) from error
