"""Evaluate the exported models of a bundle on this host, on emulated ARM cores, in a browser, on a phone, on a Mac.

    python mobile_eval/run.py setup arm64 browser
    python mobile_eval/run.py evaluate runs/mine/bundle --device host arm64 browser
    python mobile_eval/run.py import-results runs/mine/evaluation mac.json

`evaluate` compares every file's codes with the float student's, and elsewhere with the same file's on the host.  For a
bundle in its run folder it asks all queries, in the run's gallery; for any other the golden pictures that came with it.
It writes report.html, results.json and junit.xml.  `import-results` adds what
other tools measured on devices that are not here.
Exit codes: 0 passed, 1 the gate failed, 2 bad input, or with --strict something that could not be checked.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

# A script's own folder comes first on the path, where its modules would hide packages of the same name.
sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in distill/run.py

import tyro
from pydantic import Field

from distill.config import StrictModel
from gallery.console import log, run_cli
from gallery.errors import EXIT_PASSED, CorruptFile, InputError
from gallery.results import EvaluationResults, RetrievalExample, Thresholds, load, now
from mobile_eval import gate

if TYPE_CHECKING:
    from distill.load_run import FinishedRun
    from export.bundle import Golden, Manifest
    from mobile_eval.compare import FloatReference
    from mobile_eval.evaluate import DeviceResults
    from mobile_eval.retrieval_grid import Picture

JSON, PAGE, JUNIT = "results.json", "report.html", "junit.xml"
SHOWN = 4  # queries in the grid of the worst


class SetupCommand(StrictModel):
    """Install what a device needs: Debian's packages (as root), wheels, and engines from npm; what is there stays."""

    parts: tyro.conf.Positional[tuple[Literal["arm64", "browser"], ...]]
    """arm64: an AArch64 userland and qemu-user, 260 MB; browser: Chromium, Playwright and the WebAssembly engines."""


class EvaluateCommand(StrictModel):
    """Run a bundle's files on devices, compare their codes, and judge them.

    Devices: host; arm64 (both of arm64-cortex-a53 and arm64-cortex-a76, emulated: codes and executed instructions, no
    time); browser (browser-wasm-1t and browser-wasm-2t, of one and two threads), browser-webgpu; android, or
    android:SERIAL where there are several; apple (on macOS by compute unit, elsewhere the reference evaluator).
    A device that cannot be had, or goes away, is a row with the reason, and the others go on.
    """

    bundle: tyro.conf.Positional[Path]
    """Its folder."""
    run: Path | None = None
    """The run of its student, for queries and labels; by default the folder it lies in, if that is one."""
    gallery: str | None = None
    """The gallery to search, a folder or LanceDB address; by default the run's."""
    device: tuple[str, ...] = ("host",)
    """Where to run the files."""
    num_queries: int = Field(32, ge=1)
    """Pictures on devices other than the host, which takes all; spread evenly over the queries."""
    num_runs: int = Field(200, ge=1)
    """Timed inferences of each file, 10 s of them at most."""
    out: Path | None = None
    """Folder for report.html, results.json and junit.xml; by default `evaluation` beside the bundle."""
    thresholds: Thresholds = Thresholds()
    """What a file may lose; by default what its run allows."""
    strict: bool = False
    """What cannot be checked here is an error (exit code 2)."""


class ImportCommand(StrictModel):
    """Add measurements to an evaluation: JSON of LiteRT's benchmarks, Qualcomm AI Hub, or the bundle's
    apps/run_on_mac.py.  A newer one replaces that of the same file and device."""

    proof: tyro.conf.Positional[Path]
    """The folder that `evaluate` wrote."""
    files: tyro.conf.Positional[tuple[Path, ...]]
    """The reports."""
    model: str = ""
    """The bundle's file that was measured, where the report does not say."""
    device: str = ""
    """What to call the device."""
    strict: bool = False
    """As for `evaluate`."""


@dataclass(frozen=True, eq=False)
class EvaluationInputs:
    """What the files are asked, and by which thresholds they are judged.

    words: which pictures; classes, hit: names, and the pixels of a gallery picture, where they can be shown
    """

    against: FloatReference
    words: str
    thresholds: Thresholds
    classes: Sequence[str] = ()
    hit: Callable[[int], Picture] | None = None


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    commands: dict[str, Callable[..., Any]] = {
        "setup": SetupCommand,
        "evaluate": EvaluateCommand,
        "import-results": ImportCommand,
    }
    command = tyro.extras.subcommand_cli_from_dict(commands, args=arguments, description=__doc__)

    def work() -> int:
        if isinstance(command, SetupCommand):
            return set_up(command)
        return evaluate(command) if isinstance(command, EvaluateCommand) else import_results(command)

    return run_cli(work, "No results were written: run the same command again.")


def set_up(command: SetupCommand) -> int:
    """Installs each part."""
    from mobile_eval.devices import arm64_setup, browser_setup

    if not command.parts:
        raise InputError("arm64, browser, or both", "neither", "Name what to set up.")
    for part in dict.fromkeys(command.parts):
        log.info("[setup] %s", part)
        {"arm64": arm64_setup.setup, "browser": browser_setup.setup}[part]()
    return EXIT_PASSED


def evaluate(command: EvaluateCommand) -> int:
    """Asks every file on every device, and writes what came out."""
    from export.bundle import open_bundle
    from mobile_eval.devices import devices_by_name
    from mobile_eval.evaluate import everywhere

    if command.thresholds.min_map_ratio is not None:
        fix = "Leave it out: distill/run.py judges the networks, this the files."
        raise InputError("thresholds on files", "--thresholds.min-map-ratio", fix)
    devices, bundle = devices_by_name(command.device, command.num_runs), command.bundle.resolve()
    manifest = open_bundle(bundle)
    out = (command.out or bundle.parent / "evaluation").resolve()
    if out.is_relative_to(bundle):
        raise InputError("an --out outside the bundle, which holds only what it lists", str(out), "Choose another.")
    out.mkdir(parents=True, exist_ok=True)
    home = command.run or (bundle.parent if (bundle.parent / "config.yaml").is_file() else None)
    asked = inputs_from_run(command, home, manifest) if home else inputs_from_golden(command, manifest)
    log.info("[evaluate] %d files on %s; %s", len(manifest.files), ", ".join(d.name for d in devices), asked.words)
    lanes, notes = everywhere(devices, manifest.files, asked.against, command.num_queries)
    return write_reports(summarise(command, manifest, asked, lanes, notes), out)


def inputs_from_run(command: EvaluateCommand, folder: Path, manifest: Manifest) -> EvaluationInputs:
    """All queries of a finished run, whose student must be that of the bundle."""
    from distill.load_run import load_run
    from distill.system import limit_threads
    from gallery.index import open_gallery
    from mobile_eval.compare import reference

    limit_threads()
    with load_run(folder) as run:
        logits = load_student_logits(run, manifest, load_golden(command.bundle, manifest))
    context, data = run.context, run.context.data
    thresholds = context.config.thresholds if command.thresholds == Thresholds() else command.thresholds
    thresholds = thresholds.model_copy(update={"min_map_ratio": None})
    gallery = open_gallery(command.gallery or run.gallery, manifest.space)
    pixels, labels = data.pixels[context.resolved.student_img_size], data.labels[data.query]
    against = reference(pixels[data.query], logits, labels, gallery, data.cut, thresholds.logit_tolerance)
    shown = None if command.gallery else lambda hit: pixels[data.gallery[hit]]
    return EvaluationInputs(against, f"the {len(data.query):,} queries of {data.name}", thresholds, data.classes, shown)


def load_student_logits(run: FinishedRun, manifest: Manifest, golden: Golden) -> Any:
    """Return a run's student's logits of the queries.

    Raises `InputError` unless the student gives the bundle's golden codes, as exactly as an fp16 file must: they may
    have been computed on a GPU.
    """
    from distill.summary import student_query_logits
    from distill.system import device
    from export.quantize import logits, normalised
    from gallery.codes import pack
    from mobile_eval.golden import OK, judge
    from mobile_eval.runtimes import ModelOutput

    context, folder = run.context, run.context.run_dir.folder
    run.space.check_compatible(manifest.space.id, f"the run {folder}", "the bundle")
    found = logits(run.student.cpu(), normalised(golden.images, context.preprocessing("student"))).numpy()
    end, message = judge("fp16", ModelOutput(pack(found), found), golden)
    if end != OK:
        raise InputError(f"the bundle of the student in {folder}", message, "Export it again, or name its own --run.")
    return student_query_logits(context, run.student.to(device()), run.space.id)


def inputs_from_golden(command: EvaluateCommand, manifest: Manifest) -> EvaluationInputs:
    """The pictures that came with the bundle: they have no labels, so there is no mAP."""
    from gallery.index import open_gallery
    from mobile_eval.compare import FloatReference, reference

    golden, thresholds = load_golden(command.bundle, manifest), command.thresholds
    against = FloatReference(golden.images, golden.logits, manifest.space, tolerance=thresholds.logit_tolerance)
    if command.gallery is not None:
        gallery = open_gallery(command.gallery, manifest.space)
        against = reference(golden.images, golden.logits, None, gallery, tolerance=thresholds.logit_tolerance)
    return EvaluationInputs(
        against, f"the {len(golden.images)} golden pictures of the bundle, which have no labels", thresholds
    )


def load_golden(bundle: Path, manifest: Manifest) -> Golden:
    """The golden pictures of a bundle; `CorruptFile` unless their logits give their codes."""
    import numpy as np

    from export.bundle import read_golden
    from gallery.codes import pack

    golden, bits = read_golden(bundle), manifest.space.bits
    if golden.logits.shape[1] != bits or not np.array_equal(pack(golden.logits), golden.codes):
        raise CorruptFile(f"golden logits that give the codes of {bits} bits in {bundle}", "others", "Restore it.")
    return golden


def summarise(
    command: EvaluateCommand,
    manifest: Manifest,
    asked: EvaluationInputs,
    lanes: Sequence[DeviceResults],
    notes: Sequence[str],
) -> EvaluationResults:
    """All of it as one typed record, the only source of the table, the page and the XML."""
    from mobile_eval.system_info import describe

    rows, against = tuple(row for lane in lanes for row in lane.rows), asked.against
    return EvaluationResults(
        created=now(),
        command=shlex.join(["python", "mobile_eval/run.py", *sys.argv[1:]]),
        name=command.bundle.resolve().parent.name,
        code_space=manifest.space.id,
        bits=manifest.space.bits,
        student=manifest.files[0].card.student,
        query_set=describe_inputs(asked, lanes),
        num_queries=len(against.pixels),
        gallery_size=None if against.gallery is None else len(against.gallery),
        map=against.map,
        models=rows,
        thresholds=asked.thresholds,
        gate=gate.check(rows, asked.thresholds, strict=command.strict, notes=notes),
        notes=tuple(notes),
        examples=worst_grid(asked, lanes),
        system=describe(),
    )


def describe_inputs(asked: EvaluationInputs, lanes: Sequence[DeviceResults]) -> str:
    """Which pictures were asked where."""
    fewer = [lane for lane in lanes if len(lane.against.pixels) < len(asked.against.pixels)]
    if not fewer:
        return asked.words
    where = ", ".join(lane.device for lane in fewer)
    return f"{asked.words}; {len(fewer[0].against.pixels)} of them, evenly spread, on {where}"


def worst_grid(asked: EvaluationInputs, lanes: Sequence[DeviceResults]) -> tuple[RetrievalExample, ...]:
    """For the queries whose codes changed most: what the float student finds, and what that file does."""
    from gallery.codes import pack

    found = [(worst, row, lane) for lane in lanes for row in lane.rows for worst in row.worst]
    chosen: dict[int, Any] = {}
    for worst, row, lane in sorted(found, key=lambda one: -one[0].flipped):
        chosen.setdefault(worst.query, (worst, row, lane))
    grid: list[RetrievalExample] = []
    for query, (worst, row, lane) in list(chosen.items())[:SHOWN]:
        places = lane.against.places
        here = query if places is None else places.tolist().index(query)
        grid += _example(asked, query, pack(asked.against.logits[query]), "float student")
        named = f"{gate.who(row)}, {worst.flipped} bits flipped"
        grid += _example(asked, query, lane.outcomes[row.sha256].codes[here], named)
    return tuple(grid)


def _example(asked: EvaluationInputs, query: int, code: Any, by: str) -> list[RetrievalExample]:
    """The nearest pictures to a code of a query, and who gave the code; nothing where they cannot be shown."""
    import numpy as np

    from mobile_eval.retrieval_grid import retrieval_grid

    against, hit = asked.against, asked.hit
    if against.gallery is None or against.labels is None or hit is None:
        return []
    rows = retrieval_grid(
        against.gallery, np.array([0]), code[None], against.labels[query : query + 1],
        lambda _: against.pixels[query], hit, asked.classes,
    )  # fmt: skip
    tiles = [row.query.model_copy(update={"label": f"{row.query.label}: {by}"}) for row in rows]
    return [row.model_copy(update={"query": tile}) for row, tile in zip(rows, tiles, strict=True)]


def import_results(command: ImportCommand) -> int:
    """Adds other tools' measurements, and judges again."""
    from mobile_eval import external_results

    if not command.files:
        raise InputError("reports to import", "none", "Name their files.")
    proof = load(command.proof / JSON)
    found = [
        one for file in command.files for one in external_results.read_results(file, command.model, command.device)
    ]
    rows = tuple(external_results.merge_results(proof.models, found))
    verdict = gate.check(rows, proof.thresholds, strict=command.strict, notes=proof.notes)
    return write_reports(proof.model_copy(update={"models": rows, "gate": verdict}), command.proof)


def write_reports(proof: EvaluationResults, out: Path) -> int:
    """Writes the record and its three renderings."""
    from mobile_eval import junit, report

    proof.save(out / JSON)
    junit.write_junit(proof, out / JUNIT)
    report.write_html(proof, out / PAGE)
    report.print_tables(proof)
    log.info("report %s", out / PAGE)
    return gate.exit_code(proof.gate)


if __name__ == "__main__":
    sys.exit(main())
