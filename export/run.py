"""Export a finished run's student again, export a custom model, verify a bundle, or release it to apps.

    python export/run.py runs/mine --formats onnx litert --precisions fp32 w8a8
    python export/run.py --student-weights mine.safetensors --student mobilenetv3_small_100 --img-size 224 \\
        --code-space runs/mine --images photos/ --out mine-bundle
    python export/run.py verify runs/mine/bundle
    python export/run.py release runs/mine/bundle --version 3 --key key.pem

The first two write a bundle; the third checks one: that names, sizes, checksums and code space are as the manifest
says, and that every file returns the golden codes (`verify --help`).  The last signs what installed apps may download
(`release-key --help`, `release --help`, `verify-release --help`).
Exit codes: 0 all is well, 1 a file does not return its codes, 2 bad input, 3 a crash, 130 or 143 stopped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from inspect import getdoc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

# A script's own folder comes first on the path, where its modules would hide packages of the same name.
sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in distill/run.py

import tyro

from distill.config import is_run
from export.artifact import FLOAT
from export.release_commands import (
    ReleaseCommand,
    ReleaseKeyCommand,
    VerifyReleaseCommand,
    make_release_keys,
    release,
    verify_release,
)
from gallery.command_line import read_flags, run_cli
from gallery.console import log, track
from gallery.errors import EXIT_BAD_INPUT, EXIT_GATE_FAILED, EXIT_PASSED, InputError, TwinhashError
from gallery.layers import require
from gallery.record import Line, ModelVersion, Record

if TYPE_CHECKING:
    from export.exporter import ExportRequest

NEEDED = "student_weights", "code_space", "images", "out"  # for a custom model
CUSTOM = "code_space", "images", "img_size", "mean", "std", "student", "student_weights"


class ExportCommand(Record):
    """Write a bundle of a finished run's student, or of a network of your own."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """A finished run folder of distill/run.py; its networks, results and own bundle are not modified."""
    formats: tuple[str, ...] = ("onnx", "litert", "coreml")
    """onnx, ort, litert, mediapipe (LiteRT without the codes), coreml, coreai."""
    precisions: tuple[str, ...] = ()
    """fp32, fp16, w8a32, w8a8, w8a16, w8a8-dynamic, palettize6; default: the first three (Core ML: without fp32)."""
    out: Path | None = None
    """Folder of the new bundle; by default RUN/export."""
    dynamic_image_size: bool = False
    """ONNX models take images of any size and resize them themselves."""
    author: Line = ""
    """Author of the model, in the files where Xcode and Netron show it; by default a run's, or "not stated"."""
    license: Line = ""
    """License of the model, likewise."""
    model_version: ModelVersion = 0
    """Version of the model, likewise: a whole number that you count up; 0: not stated."""
    student_weights: Path | None = None
    """A network of your own, safetensors: a student of a run, or timm's with as many outputs as the code has bits."""
    student: str | None = None
    """timm name, or a short one, of --student-weights; a run's student knows its own."""
    img_size: int | None = None
    """Side of its square input, pixels; a run's student knows its own."""
    code_space: Path | None = None
    """The folder with codespace.json and centers.npy that its codes belong to: a run, a bundle."""
    images: Path | None = None
    """A folder of images like the app's queries: golden inputs, and calibration of the 8-bit layers."""
    mean: tuple[float, float, float] | None = None
    """Mean of its input normalisation, for pixels in 0..1; by default timm's for that name."""
    std: tuple[float, float, float] | None = None
    """Standard deviation of its input normalisation; by default timm's for that name."""


class VerifyCommand(Record):
    """Verify a bundle: names, bytes and metadata against its manifest, then every file against the golden codes.

    Golden photographs are decoded and resized here, and must give the bundle's squares to the last bit.
    Each file runs in a process of its own, with limits of time and memory.  Its metadata must fit its inputs, outputs
    and weights, and its codes must be the signs of its own logits.

    Allowed bit flips against the golden codes: in an fp32 file none, unless both logits are within 0.001 of zero; in an
    fp16 file none, unless both are within a tenth of the logits' standard deviation; in a quantized file 2 % and three
    standard deviations more, since the images are few.  A damaged file flips tens of percent.  Whether a file is good
    enough is measured on all queries: see the report of its run.
    """

    bundle: tyro.conf.Positional[Path]
    """Folder of the bundle."""
    strict: bool = False
    """A file that cannot be run here is an error (exit code 2)."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = sys.argv[1:] if arguments is None else arguments
    commands: dict[str, tuple[Any, Callable[[Any], int]]] = {
        "verify": (VerifyCommand, verify), "release-key": (ReleaseKeyCommand, make_release_keys),
        "release": (ReleaseCommand, release), "verify-release": (VerifyReleaseCommand, verify_release),
    }  # fmt: skip

    def work() -> int:
        if options[:1] and options[0] in commands:
            kind, act = commands[options[0]]
            described = {"prog": f"run.py {options[0]}", "description": getdoc(kind)}
            return act(read_flags(tyro.cli, kind, args=options[1:], **described))
        return export(read_flags(tyro.cli, ExportCommand, args=options, description=__doc__))

    return run_cli(work, "Nothing was written: run the same command again.")


def export(command: ExportCommand) -> int:
    """Check the options and write the bundle."""
    given = [name for name in CUSTOM if getattr(command, name) is not None]
    if command.run and given:
        found = f"a run and {_flags(given)}"
        raise InputError("either a run folder or a network of your own", found, "Leave one out.")
    if missing := [name for name in NEEDED if not command.run and getattr(command, name) is None]:
        expected = f"a run folder, or a network of your own with {_flags(NEEDED)}"
        raise InputError(expected, f"neither: no {_flags(missing)}", "Give these, or a run folder.")
    require("export")
    from distill.system import limit_threads
    from export.exporter import select_variants

    limit_threads()
    variants = select_variants(command.formats, command.precisions)
    out = (command.out or Path(command.run or "", "export")).resolve()
    check_out(out)
    (export_run if command.run else export_custom)(command, variants, out)
    return EXIT_PASSED


def _flags(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def check_out(out: Path) -> None:
    """Raise `InputError` unless `out` is new, empty, or an earlier bundle that is as it was written."""
    from export.bundle import open_bundle
    from gallery.files import is_desktop_file

    if out.name == "bundle" and is_run(out.parent):
        fix = "Choose another --out, or add the variants to the run: distill/run.py --formats, --precisions."
        raise InputError("a folder of its own for the new bundle", f"{out}, the bundle that its run evaluated", fix)
    if not out.exists() or (out.is_dir() and all(is_desktop_file(path.name) for path in out.iterdir())):
        return
    try:
        open_bundle(out)
    except (TwinhashError, OSError) as error:
        found = f"something else: {getattr(error, 'found', error)}"
        raise InputError(f"a new folder, or a bundle to replace, at {out}", found, "Choose another --out.") from error


def export_run(command: ExportCommand, variants: list[str], out: Path) -> None:
    """Export a finished run's student, calibrated with the run's images; its results and its own bundle stay."""
    from distill.export_samples import export_request
    from distill.load_run import load_run
    from export.exporter import AUTHORSHIP, ExportRequest

    with load_run(command.run or "") as run:
        fields = export_request(run.context, run.student, run.space)
        fields |= {name: getattr(command, name) or getattr(run.context.config, name) for name in AUTHORSHIP}
        write(ExportRequest(**fields, dynamic_image_size=command.dynamic_image_size), variants, out)


def export_custom(command: ExportCommand, variants: list[str], out: Path) -> None:
    """Export the user's own network; its golden codes are those of its float logits."""
    from distill.export_samples import NUM_GOLDEN
    from distill.models.custom import load_custom_model, read_images, warn_if_foreign_space
    from export.exporter import AUTHORSHIP, ExportRequest
    from export.quantize import logits, normalize
    from gallery import codespace
    from gallery.codes import pack
    from gallery.codespace import Preprocessing

    space, centers = codespace.load(Path(command.code_space or ""))
    path = Path(command.student_weights or "")
    net, start, size = load_custom_model(path, command.student, command.img_size, space.bits)
    preprocessing = Preprocessing(size, command.mean or start.mean, command.std or start.std)
    if not all(value > 0 for value in preprocessing.std):
        found = str(preprocessing.std)
        raise InputError("a --std above zero in each channel", found, "Give what the network was trained with.")
    pixels = read_images(Path(command.images or ""), size)
    outputs = logits(net, normalize(pixels, preprocessing)).numpy()
    warn_if_foreign_space(pack(outputs), pack(centers))
    golden = slice(None, None, -(-len(pixels) // NUM_GOLDEN))
    write(ExportRequest(
        net, start.name, preprocessing, space, centers, (pixels[::2], pixels[1::2]),
        (pixels[golden], pack(outputs[golden]), outputs[golden]), command.dynamic_image_size,
        **{name: getattr(command, name) for name in AUTHORSHIP},
    ), variants, out)  # fmt: skip


def write(request: ExportRequest, variants: list[str], out: Path) -> None:
    """Write the bundle and log a line for each model."""
    from export.exporter import export_bundle

    log.info("[export] writing %s to %s", ", ".join(variants), out)
    manifest, chosen = export_bundle(request, variants, out)
    inputs = sum(row["kept"] for row in (chosen["layers"] if chosen else []) if row["mode"] == "int8")
    for file in manifest.files:
        line, precision = f"  {file.variant}: {file.bytes / 1e6:.2f} MB", file.metadata.precision
        line += "" if precision in FLOAT else f", {len(file.metadata.float_layers)} layers kept in float"
        log.info(line + (f", {inputs} more with float activations" if file.metadata.calibration else ""))
    for one in manifest.failures:
        log.warning("  %s failed: %s", one.variant, one.reason)
    log.info("bundle %s", out)


def verify(command: VerifyCommand) -> int:
    """Verify every byte of a bundle, then run every model, each in a process of its own."""
    from export.bundle import open_bundle, read_golden
    from mobile_eval.devices.host import Host
    from mobile_eval.golden import FAILED, OK, check_golden

    manifest = open_bundle(command.bundle)
    golden = read_golden(command.bundle, manifest)
    log.info("%s: code space %s; names, bytes and metadata match the manifest", command.bundle, manifest.space.id)
    if golden.photos:
        log.info("  %d golden photographs, decoded and resized here: every square is the bundle's", len(golden.photos))
    else:
        log.warning(
            "  no golden photographs: nothing shows here whether images are decoded and resized as they must be"
        )
    with Host(samples=0) as host:
        host.push(manifest.files, golden.images)
        rows = [check_golden(host, file, golden) for file in track(manifest.files, "verify", len(manifest.files))]
    for file, (end, why) in zip(manifest.files, rows, strict=True):
        (log.info if end == OK else log.warning)("  %s: %s: %s", file.variant, end, why)
    for one in manifest.failures:
        log.info("  %s: not in the bundle: %s", one.variant, one.reason)
    ends = {end for end, _ in rows}
    if FAILED in ends:
        return EXIT_GATE_FAILED
    return EXIT_BAD_INPUT if command.strict and ends != {OK} else EXIT_PASSED


if __name__ == "__main__":
    sys.exit(main())
