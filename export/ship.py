"""One student to one bundle: the layers of 8-bit forms are chosen, every form is written, and the folder verified."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from export.bundle import Golden, Manifest, write_bundle
from export.exporter import export_all
from export.quantize import Pixels, simulate
from gallery.codes import Codes
from gallery.codespace import CodeSpace, Preprocessing


@dataclass(frozen=True, eq=False)
class Student:
    """A trained network, and what its bundle needs beside it.

    net:         normalised float32 `[B, 3, S, S]` to logits `[B, bits]`; name: timm's, for the metadata
    centers:     of the code space, int8 `[classes, bits]`
    calibration: pictures uint8 `[n, S, S, 3]`, those seen and those held out (`export.quantize.quantize`)
    golden:      pictures, codes and logits of the float network (`export.bundle.Golden`)
    """

    net: nn.Module
    name: str
    preprocessing: Preprocessing
    space: CodeSpace
    centers: NDArray[np.int8]
    calibration: tuple[Pixels, Pixels]
    golden: tuple[Pixels, Codes, NDArray[np.float32]]


def ship(
    student: Student, forms: Sequence[str], folder: Path, dynamic_image_size: bool = False
) -> tuple[Manifest, dict[str, Any] | None]:
    """Writes the bundle `folder`, whole or not at all: what it holds, and how 8-bit layers were chosen.

    The second is `export.quantize.Quantized.record`, None where no form needs it.  Raises what `export_all` and
    `write_bundle` raise.
    """
    net, preprocessing, space = student.net, student.preprocessing, student.space
    quantized, nets = simulate(net, preprocessing, *student.calibration, forms)
    left, how = (quantized.float_layers, quantized.calibration) if quantized else ((), "")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as work:  # on the disk it goes to
        made = export_all(
            net, preprocessing, space.id, student.name, forms, Path(work), left, nets, how, dynamic_image_size
        )  # fmt: skip
        manifest = write_bundle(folder, made, space, student.centers, Golden(*student.golden))
    return manifest, quantized.record() if quantized else None
