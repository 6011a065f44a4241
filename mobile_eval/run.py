"""Evaluate the exported models of a bundle on this host, on emulated ARM cores, in a browser, on a phone, on a Mac.

    python mobile_eval/run.py setup arm64 browser
    python mobile_eval/run.py evaluate runs/mine/bundle --device host arm64 browser
    python mobile_eval/run.py import-results runs/mine/evaluation mac.json
    python mobile_eval/run.py demo runs/mine

`evaluate` compares every model's codes with the float student's, and on other devices with the same model's on the
host.  A bundle in its run folder is evaluated on all queries, in the run's gallery; any other on its golden inputs.
It writes report.html, results.json and junit.xml.  `import-results` adds measurements of other tools.
Exit codes: 0 passed, 1 the gate failed, 2 bad input, or with --strict something that could not be checked, 3 a crash,
130 or 143 stopped.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

# A script's own folder comes first on the path, where its modules would hide packages of the same name.
sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in distill/run.py

import numpy as np
import tyro
from numpy.typing import NDArray
from pydantic import Field

from distill.config import is_run
from gallery.command_line import read_flags, run_cli
from gallery.console import log
from gallery.errors import EXIT_PASSED, InputError
from gallery.layers import require
from gallery.record import Record
from gallery.results import EvaluationResults, RetrievalExample, Thresholds, load, now
from mobile_eval import gate, report
from mobile_eval.demo import DemoCommand

if TYPE_CHECKING:
    from distill.load_run import FinishedRun
    from export.bundle import Golden, Manifest
    from mobile_eval.compare import FloatReference
    from mobile_eval.evaluate import DeviceResults

SHOWN = 4  # worst queries in the report


class SetupCommand(Record):
    """Install what a device needs: Debian's packages (as root), wheels, and engines from npm; what is there is kept."""

    parts: tyro.conf.Positional[tuple[Literal["arm64", "browser", "demo"], ...]]
    """arm64: an AArch64 userland and qemu-user, 260 MB; browser: Chromium, Playwright and the WebAssembly engines;
    demo: the engines alone, by npm."""


class EvaluateCommand(Record):
    """Evaluate a bundle's models on devices.

    Devices: host; arm64 (both of arm64-cortex-a53 and arm64-cortex-a76, emulated: codes and executed instructions, no
    time); browser (browser-wasm-1t and browser-wasm-2t, of one and two threads), browser-webgpu; android, or
    android:SERIAL where there are several; apple (on macOS by compute unit, elsewhere the reference evaluator).
    A device that is missing or lost becomes rows with the reason, and the others go on.
    """

    bundle: tyro.conf.Positional[Path]
    """Folder of the bundle."""
    run: Path | None = None
    """The run of its student, for queries and labels; by default the folder it lies in, if that is one."""
    gallery: str | None = None
    """The gallery to search, a folder or LanceDB address; by default the run's."""
    device: tuple[str, ...] = ("host",)
    """Devices, by the names above."""
    num_queries: int = Field(32, ge=1)
    """Queries on each device but the host and Core ML, which take all; evenly spaced."""
    num_runs: int = Field(200, ge=1)
    """Timed inferences of each model, 10 s of them at most."""
    out: Path | None = None
    """Folder for report.html, results.json and junit.xml; by default `evaluation` beside the bundle."""
    thresholds: Thresholds = Thresholds()
    """What a model may lose; by default those of its run, or on golden inputs what `export/run.py verify` allows."""
    strict: bool = False
    """Exit code 2 if something could not be checked."""


class ImportCommand(Record):
    """Add measurements to an evaluation: JSON of LiteRT's benchmarks, Qualcomm AI Hub, or the bundle's
    apps/run_on_mac.py.  A newer one replaces that of the same model and device."""

    evaluation: tyro.conf.Positional[Path]
    """The folder that `evaluate` wrote."""
    files: tyro.conf.Positional[tuple[Path, ...]]
    """The reports."""
    model: str = ""
    """The bundle's file that was measured, if the report does not name it."""
    device: str = ""
    """Name of the device, if the report does not give it."""
    strict: bool = False
    """Exit code 2 if something could not be checked."""


@dataclass(frozen=True, eq=False)
class EvaluationInputs:
    """The queries of an evaluation, and its thresholds.

    description: of the queries; classes, gallery_image: names, and the pixels of a gallery image, if they can be shown
    """

    reference: FloatReference
    description: str
    thresholds: Thresholds
    classes: Sequence[str] = ()
    gallery_image: Callable[[int], NDArray[np.uint8]] | None = None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    runners: dict[Any, Any] = {
        SetupCommand: set_up, EvaluateCommand: evaluate, ImportCommand: import_results, DemoCommand: demo
    }  # fmt: skip
    names = dict(zip(("setup", "evaluate", "import-results", "demo"), runners, strict=True))

    def work() -> int:
        parse = tyro.extras.subcommand_cli_from_dict
        command = read_flags(parse, names, args=arguments, description=__doc__)
        return runners[type(command)](command)

    return run_cli(work, "No results were written: run the same command again.")


def set_up(command: SetupCommand) -> int:
    """Install each part."""
    from mobile_eval.devices.setup import set_up_arm64, set_up_browser

    if not command.parts:
        raise InputError("arm64, browser or demo", "none of them", "Name what to set up.")
    known: dict[str, Callable[[], Path]] = {"arm64": set_up_arm64, "browser": set_up_browser}
    known["demo"] = partial(set_up_browser, engines_only=True)
    for part in dict.fromkeys(command.parts):
        log.info("[setup] %s", part)
        known[part]()
    return EXIT_PASSED


def evaluate(command: EvaluateCommand) -> int:
    """Evaluate every model of a bundle on every device, and write the reports."""
    require("export")
    from export.bundle import open_bundle, read_golden
    from mobile_eval.devices import devices_by_name
    from mobile_eval.evaluate import evaluate, fail_on_golden

    if command.thresholds.min_map_ratio is not None:
        fix = "Leave it out: distill/run.py judges the networks, this the exported models."
        raise InputError("thresholds on exported models", "--thresholds.min-map-ratio", fix)
    devices, bundle = devices_by_name(command.device, command.num_runs), command.bundle.resolve()
    manifest = open_bundle(bundle)
    golden, out = read_golden(bundle, manifest), (command.out or bundle.parent / "evaluation").resolve()
    if out.is_relative_to(bundle):
        raise InputError("an --out outside the bundle, which holds only what it lists", str(out), "Choose another.")
    out.mkdir(parents=True, exist_ok=True)
    run = command.run or (bundle.parent if is_run(bundle.parent) else None)
    inputs = inputs_from_run(command, run, manifest, golden) if run else inputs_from_golden(command, manifest, golden)
    names = ", ".join(device.name for device in devices)
    log.info("[evaluate] %d models on %s. %s", len(manifest.files), names, inputs.description)
    found, notes = evaluate(devices, (*manifest.files, *manifest.failures), inputs.reference, command.num_queries)
    if not run:
        found = [fail_on_golden(one, manifest.files, golden, inputs.thresholds) for one in found]
    results = build_results(bundle, manifest, inputs, found, notes)
    return report.write_reports(gate.apply(results, inputs.thresholds, command.strict), out)


def inputs_from_run(command: EvaluateCommand, folder: Path, manifest: Manifest, golden: Golden) -> EvaluationInputs:
    """Take all queries of a finished run, whose student must be that of the bundle."""
    from distill.load_run import load_run
    from distill.neighbors import float_neighbors
    from distill.system import limit_threads
    from gallery.index import TRAINING, open_gallery
    from mobile_eval.compare import FloatReference

    limit_threads()
    with load_run(folder) as run:
        logits, neighbors = load_student_logits(run, manifest, golden), float_neighbors(run.context)
    context, data = run.context, run.context.data
    thresholds = context.config.thresholds if command.thresholds == Thresholds() else command.thresholds
    thresholds = thresholds.model_copy(update={"min_map_ratio": None})
    gallery = open_gallery(command.gallery or run.gallery, manifest.space, None if command.gallery else TRAINING)
    pixels, labels = data.pixels[context.resolved.student_img_size], data.labels[data.query]
    reference = FloatReference(
        pixels[data.query], logits, manifest.space, labels if data.classes else None, gallery, data.top_k,
        thresholds.logit_tolerance, classes=data.classes, neighbors=None if command.gallery else neighbors,
    )  # fmt: skip
    gallery_image = None if command.gallery else lambda row: pixels[context.indexed_images[row]]
    description = f"The {len(data.query):,} queries of {data.name}"
    return EvaluationInputs(reference, description, thresholds, data.classes, gallery_image)


def load_student_logits(run: FinishedRun, manifest: Manifest, golden: Golden) -> Any:
    """Return a run's student's logits of the queries.

    Raises `InputError` unless the student gives the bundle's golden codes, as exactly as an fp16 model must: they may
    have been computed on a GPU.
    """
    from distill.summary import student_logits
    from distill.system import device
    from export.quantize import logits, normalize
    from gallery.codes import pack
    from mobile_eval.golden import OK, compare_golden
    from mobile_eval.runtimes import ModelOutput

    context, folder = run.context, run.context.run_dir.folder
    run.space.check_compatible(manifest.space.id, f"the run {folder}", "the bundle")
    found = logits(run.student.cpu(), normalize(golden.images, context.preprocessing("student"))).numpy()
    status, message = compare_golden("fp16", ModelOutput(pack(found), found), golden)
    if status != OK:
        raise InputError(f"the bundle of the student in {folder}", message, "Export it again, or name its own --run.")
    return student_logits(context, run.student.to(device()), run.space.id, "queries")


def inputs_from_golden(command: EvaluateCommand, manifest: Manifest, golden: Golden) -> EvaluationInputs:
    """Take the golden inputs of the bundle: they have no labels, so there is no mAP, and they are few."""
    from gallery.index import open_gallery
    from mobile_eval.compare import FloatReference
    from mobile_eval.golden import golden_thresholds

    thresholds = golden_thresholds(golden.logits.size, command.thresholds)
    tolerance = thresholds.logit_tolerance
    gallery = open_gallery(command.gallery, manifest.space) if command.gallery is not None else None
    reference = FloatReference(golden.images, golden.logits, manifest.space, gallery=gallery, tolerance=tolerance)
    photos = f" ({len(golden.photos)} of them photographs, decoded and resized here)" if golden.photos else ""
    description = f"The {len(golden.images)} golden inputs of the bundle{photos}, which have no labels"
    return EvaluationInputs(reference, description, thresholds)


def build_results(
    bundle: Path, manifest: Manifest, inputs: EvaluationInputs, devices: Sequence[DeviceResults], notes: Sequence[str]
) -> EvaluationResults:
    """Build the record of the evaluation, the only source of the tables, the page and the XML."""
    from mobile_eval.system_info import describe

    reference, description = inputs.reference, inputs.description
    if fewer := [one for one in devices if len(one.reference.pixels) < len(reference.pixels)]:
        names = ", ".join(one.device for one in fewer)
        description += f"; {len(fewer[0].reference.pixels)} of them, evenly spaced, on {names}"
    return EvaluationResults(
        created=now(), command=shlex.join(["python", "mobile_eval/run.py", *sys.argv[1:]]), name=bundle.parent.name,
        code_space=manifest.space.id, bits=manifest.space.bits, student=manifest.files[0].metadata.student,
        query_set=description, num_queries=len(reference.pixels),
        gallery_size=None if reference.gallery is None else len(reference.gallery), map=reference.map,
        neighbor_recall=None if reference.neighbor_recall is None else reference.neighbor_recall.at_10,
        models=tuple(row for one in devices for row in one.rows), notes=tuple(notes),
        examples=worst_examples(inputs, devices), system=describe(),
    )  # fmt: skip


def worst_examples(inputs: EvaluationInputs, devices: Sequence[DeviceResults]) -> tuple[RetrievalExample, ...]:
    """For the queries with most bit flips: what the float student retrieves, and what that model does.

    Empty if there is no bit flip, or if the gallery's images cannot be shown.
    """
    from gallery.codes import pack
    from mobile_eval.retrieval_grid import retrieval_grid

    reference, gallery_image = inputs.reference, inputs.gallery_image
    found = [(worst, row, one) for one in devices for row in one.rows for worst in row.worst]
    if reference.gallery is None or gallery_image is None or not found:
        return ()
    chosen: dict[int, Any] = {}
    for worst, row, results in sorted(found, key=lambda one: -one[0].flipped):
        chosen.setdefault(worst.query, (worst, row, results))
    queries, codes, titles = [], [], []
    for query, (worst, row, results) in list(chosen.items())[:SHOWN]:
        position = results.reference.indices.tolist().index(query)
        queries += [query, query]
        codes += [pack(reference.logits[query]), results.outputs[row.sha256].codes[position]]
        titles += ["float student", f"{gate.row_name(row)}, {worst.flipped} bit flips"]
    labels = np.full(len(reference.pixels), -1) if reference.labels is None else reference.labels
    labels, images = labels[queries], reference.pixels[queries]
    grid = retrieval_grid(reference.gallery, np.array(codes), labels, images, gallery_image, inputs.classes)
    examples = []
    for example, title in zip(grid, titles, strict=True):
        label = f"{example.query.label}: {title}" if example.query.label else title
        thumbnail = example.query.model_copy(update={"label": label})
        examples.append(example.model_copy(update={"query": thumbnail}))
    return tuple(examples)


def import_results(command: ImportCommand) -> int:
    """Add measurements of other tools, and apply the thresholds again."""
    from mobile_eval.external_results import merge_results, read_results

    if not command.files:
        raise InputError("reports to import", "none", "Name their files.")
    results = load(command.evaluation / report.RESULTS)
    found = [one for file in command.files for one in read_results(file, command.model, command.device)]
    results = results.model_copy(update={"models": tuple(merge_results(results.models, found))})
    return report.write_reports(gate.apply(results, results.thresholds, command.strict), command.evaluation)


def demo(command: DemoCommand) -> int:
    """Write the demo of a run or a bundle, and serve it until it is stopped."""
    from distill.image_encoder import gallery_run
    from distill.run_images import run_images
    from mobile_eval.demo import serve_demo, write_demo

    run = command.source if is_run(command.source) else None
    home = gallery_run(run) if run and command.gallery is None else None
    gallery = str(home / "gallery") if home else command.gallery
    if gallery is None:
        raise InputError("--gallery with a bundle", "none", "Name the gallery, or its export --to site.")
    out = command.out or (run or command.source.absolute().parent) / "demo"
    load_images = partial(run_images, home) if home else None
    write_demo(run / "bundle" if run else command.source, gallery, out, load_images)
    log.info("The demo is in %s, for any static web host (by https: else browsers open no camera).", out)
    return serve_demo(out, command.port) if command.serve else EXIT_PASSED


if __name__ == "__main__":
    sys.exit(main())
