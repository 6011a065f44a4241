"""Read the metadata of a model file with its format's own library; nothing of the file is executed."""

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from export.artifact import KEY, ModelMetadata, first_line
from export.capture_output import quiet
from gallery.errors import CorruptFile, InputError, MissingBackend

SPEC = Path("Data/com.apple.CoreML/model.mlmodel")
COREAI_ABOUT, COREAI_OWN = "metadata.json", "creatorDefinedMetadata"
COREAI_PROGRAM, COREAI_HASH = "main.mlirb", "main.hash"


def read_metadata(path: Path) -> ModelMetadata:
    """Read the metadata of an .onnx, .tflite, .mlpackage or .aimodel.

    Raises `InputError` for another kind of file, `CorruptFile` for a damaged one, `CodeSpaceMismatch` without metadata,
    `MissingBackend` without the format's library.
    """
    readers = {
        ".onnx": _onnx, ".tflite": _litert, ".aimodel": _coreai,
        ".mlpackage": lambda path: coreml_spec(path).description.metadata.userDefined.get(KEY),
    }  # fmt: skip
    if path.suffix not in readers:
        raise InputError("an .onnx, .tflite, .mlpackage or .aimodel file", path.name, "Name a file of the bundle.")
    try:
        text = readers[path.suffix](path)
    except (CorruptFile, MissingBackend):
        raise
    except Exception as error:  # OSError, JSON, flatbuffers and protobuf: all say that the file is damaged
        raise corrupt_file(path, error) from error
    return ModelMetadata.from_json(text, path.name)


def _onnx(path: Path) -> str | None:
    model = import_backend("onnx").load(path, load_external_data=False)
    return {entry.key: entry.value for entry in model.metadata_props}.get(KEY)


def _litert(path: Path) -> str | None:
    schema, data = import_backend("ai_edge_litert.schema_py_generated"), path.read_bytes()
    if not schema.Model.ModelBufferHasIdentifier(data, 0):
        raise ValueError("no TFL3 identifier")
    model = schema.Model.GetRootAs(data, 0)
    for entry in map(model.Metadata, range(model.MetadataLength())):
        if entry.Name() == KEY.encode():
            return bytes(model.Buffers(entry.Buffer()).DataAsNumpy()).decode()
    return None


def _coreai(path: Path) -> str | None:
    text: str | None = json.loads((path / COREAI_ABOUT).read_text()).get(COREAI_OWN, {}).get(KEY)
    if hashlib.sha256((path / COREAI_PROGRAM).read_bytes()).digest() != (path / COREAI_HASH).read_bytes():
        raise ValueError(f"{COREAI_PROGRAM} is not what {COREAI_HASH} says")
    return text


def coreml_spec(path: Path) -> Any:
    """Parse the package's specification (protobuf); `CorruptFile` unless the manifest leads to it."""
    with quiet():
        import_backend("coremltools")
    from coremltools.proto import Model_pb2

    try:
        manifest = json.loads((path / "Manifest.json").read_text())
        root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
        if Path("Data", root) != SPEC:
            raise ValueError(f"the manifest leads to {root}")
        spec = Model_pb2.Model()
        spec.ParseFromString((path / SPEC).read_bytes())
    except Exception as error:  # OSError, JSON, KeyError, protobuf's DecodeError: all say that the package is damaged
        raise corrupt_file(path, error) from error
    return spec


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
            fix = f"Run: pip install {package}"
            raise MissingBackend(f"{package} to be installed", str(error), fix) from error
        fix = f"Give the process more memory, or install it again: pip install {package} --force-reinstall"
        raise MissingBackend(f"{package}, which is installed, to load", str(error), fix) from error
