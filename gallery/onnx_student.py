"""A bundle's student as ONNX Runtime runs it: from an image to the code that is searched, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gallery.codes import BIT_ORDER, BIT_RULE, KEY, RULE, Codes
from gallery.errors import CorruptFile, InputError
from gallery.files import check_regular, read_json, sha256_of

MANIFEST, MAX_MODEL = "manifest.json", 2 << 30
PRECISIONS = ("fp32", "fp16", "w8a32", "w8a16", "w8a8")  # the first one that a bundle has is used
LAYOUTS = "NHWC uint8", "NHWC uint8, resized inside"  # a square is not resized
AGREED = {"rule": RULE, "colour_order": "RGB", "bit_rule": BIT_RULE, "bit_order": BIT_ORDER}


class OnnxStudent:
    """The student of a bundle.  Calls may run in several threads.

    code_space: the id of its code space; size: the side of the squares that it takes, in pixels
    """

    def __init__(self, bundle: Path, threads: int = 1) -> None:
        """Open the ONNX model in a bundle's folder, or in a run's; raises `InputError` and `CorruptFile`."""
        import onnxruntime as ort

        path = find_model(bundle if (bundle / MANIFEST).is_file() else bundle / "bundle")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            about: dict[str, Any] = json.loads(self._session.get_modelmeta().custom_metadata_map[KEY])
            self.code_space, self.size, self._width = str(about["code_space"]), int(about["size"]), about["bits"] // 8
            if {name: about.get(name) for name in AGREED} != AGREED or about.get("layout") not in LAYOUTS:
                raise ValueError("another layout, colour order, bit rule or rule of preprocessing")
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise CorruptFile(f"a readable model in {path}", str(error)[:200], "Export the bundle again.") from error

    def encode(self, image: Path | bytes) -> Codes:
        """Return the packed code `[1, bytes]` of an image file or its bytes; `InputError` if it cannot be decoded."""
        from gallery.decode import decode, to_square

        return self.encode_square(to_square(decode(image), self.size))

    def encode_square(self, pixels: NDArray[np.uint8]) -> Codes:
        """Return the packed code `[1, bytes]` of a decoded image, uint8 `[size, size, 3]`."""
        codes: Codes = self._session.run(["codes"], {"image": pixels[None]})[0]
        if codes.dtype != np.uint8 or codes.shape != (1, self._width):
            found = f"{codes.dtype} {codes.shape}"
            raise CorruptFile(f"codes uint8 [1, {self._width}] from the student", found, "Export the bundle again.")
        return codes


def find_model(bundle: Path) -> Path:
    """Return the ONNX model of a bundle that loses least, with the checksum that the manifest says."""
    try:
        files = read_json(bundle / MANIFEST, dict)["files"]
        names = [name for precision in PRECISIONS if (name := f"query-{precision}.onnx") in files]
        if not names:
            fix = "Export one: export/run.py RUN --formats onnx."
            raise InputError(f"an ONNX model in the bundle {bundle}", ", ".join(files)[:200] or "nothing", fix)
        check_regular(bundle / names[0], MAX_MODEL)
        if sha256_of(bundle / names[0]) != files[names[0]]["sha256"]:
            fix = "The file was changed or damaged: restore it."
            raise CorruptFile(f"{bundle / names[0]} as the manifest says", "another checksum", fix)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        fix = "Name the folder of a bundle, or of a run with one."
        raise InputError(f"a bundle in {bundle}", str(error), fix) from error
    return bundle / names[0]
