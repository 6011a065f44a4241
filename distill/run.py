"""From photographs to a verified query model, in one command.

    python distill/run.py --teacher vit_b --student mobilenetv3       # the embedded pictures: 10 minutes on 2 cores
    python distill/run.py --data my_catalogue/ --teacher efficientnet_lite2 --student mobilenetv3_small

A teacher network hashes the gallery, once.  A student is distilled into its Hamming space, exported to ONNX, LiteRT and
Core ML, and every exported file is executed: its codes must still find what the float student finds in the real index.
Stopped or killed, the same command goes on where it was.  Exit codes: 0 passed, 1 the gate failed, 2 bad input.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# A script's own folder comes first on the path, where its modules would hide packages of the same name.
sys.path[0] = str(Path(__file__).resolve().parents[1])
# Threads that wait asleep: alone as fast as spinning (126 and 130 pictures a second, ViT-B on 2 cores), and 6 times
# faster where another process wants the cores too (71 and 12).  Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from distill import distributed
from distill.config import TrainConfig
from distill.run_dir import RunDir, open_run
from gallery import results
from gallery.console import log, run_cli
from gallery.errors import EXIT_PASSED
from gallery.files import write_json
from gallery.results import RunResults
from mobile_eval import gate

if TYPE_CHECKING:
    from distill.context import RunContext
    from distill.pipeline import TrainedModels
    from export.bundle import Manifest
    from mobile_eval.prove import QueryResults

QUANTIZATION = "quantization.json"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    import tyro

    command = tyro.cli(TrainConfig, args=arguments, description=__doc__)

    def work() -> int:
        with distributed.init_distributed(), open_run(command.output_dir / command.title) as run:
            return tell(run, command)

    return run_cli(work, "Nothing finished is lost: the same command goes on from here.")


def tell(run: RunDir, command: TrainConfig) -> int:
    """The whole road, stage by stage; what an earlier process finished is read back."""
    from distill import pipeline
    from distill.context import begin
    from distill.engine import keep_freed_memory, limit_threads
    from distill.metrics_log import to_tensorboard
    from export.exporter import select_variants
    from mobile_eval import report

    limit_threads()
    keep_freed_memory()
    variants = select_variants(command.formats, command.precisions)
    exported = {"formats", "precisions", "dynamic_image_size"}
    free = *exported, "thresholds", "name", "output_dir", "strict", "tensorboard"
    changed = run.check_config("config", command, but=free)
    run.invalidate(*({"export", "prove"} if changed & exported else {"prove"} if changed - {"tensorboard"} else ()))

    course = begin(run, command, command.output_dir / "cache")
    networks = pipeline.learn(course)
    distributed.destroy()
    if not distributed.is_main_process():
        return EXIT_PASSED
    if command.tensorboard:
        to_tensorboard(run.folder / "train.jsonl", run.folder / "tensorboard")
    manifest = ship(course, networks, variants, command.dynamic_image_size)
    outcome = prove(course, networks, manifest, command)

    report.write_html(outcome, run.folder / "report.html")
    report.print_tables(outcome)
    log.info("report %s\nbundle %s", run.folder / "report.html", run.folder / "bundle")
    return gate.exit_code(outcome.gate)


def ship(course: RunContext, networks: TrainedModels, variants: list[str], dynamic_image_size: bool) -> Manifest:
    """Exports the student in every variant and bundles what could be made, with golden pictures and their codes."""
    from export.bundle import open_bundle
    from export.ship import Student
    from export.ship import ship as write

    run, plan, net = course.run, course.plan, networks.student
    if not run.is_done("export"):
        with run.stage("export", f"writing {', '.join(variants)}"):
            student = Student(
                net, plan.student.name, course.preprocessing(plan.student, plan.student_img_size),
                networks.space, course.centers, course.calibration(), course.golden(net),
            )  # fmt: skip
            _, chosen = write(student, variants, run.folder / "bundle", dynamic_image_size)
            write_json(run.folder / QUANTIZATION, chosen)
    return open_bundle(run.folder / "bundle")


def prove(course: RunContext, networks: TrainedModels, manifest: Manifest, command: TrainConfig) -> RunResults:
    """Executes every file over all queries; a proof that stands is read back, and judged by today's thresholds."""
    from gallery.codes import pack
    from mobile_eval.prove import QuerySet
    from mobile_eval.prove import prove as execute
    from mobile_eval.retrieval_grid import retrieval_grid, spread

    run, data, path = course.run, course.data, course.run.folder / "results.json"
    if not run.is_done("prove"):
        with run.stage("prove", f"running {len(manifest.files)} files over {len(data.query)} queries"):
            cells, pixels = course.cells(networks), data.pixels[course.plan.student_img_size]
            asked = pixels[data.query], data.labels[data.query]
            queries = QuerySet(*asked, cells.student_queries, cells.teacher_queries, data.cut)
            codes = pack(cells.student_gallery)
            proof = execute(run.folder / "bundle", manifest, queries, codes, networks.gallery, command.thresholds)
            grid = retrieval_grid(
                networks.gallery, spread(proof.score.per_query), pack(queries.student), queries.labels,
                lambda query: queries.pixels[query], lambda hit: pixels[data.gallery[hit]], data.classes,
            )  # fmt: skip
            summarise(course, networks, proof, grid, command).save(path)
    proved = results.load_run(path)
    verdict = gate.check(proved.models, command.thresholds, proved.pairs, command.strict)
    proved = proved.model_copy(update={"thresholds": command.thresholds, "gate": verdict})
    proved.save(path)
    return proved


def summarise(
    course: RunContext,
    networks: TrainedModels,
    proof: QueryResults,
    grid: tuple[results.RetrievalExample, ...],
    command: TrainConfig,
) -> RunResults:
    """The run as one typed record, the only source of tables, plots and the report."""
    from distill.hash_centers.constructions import min_distance
    from mobile_eval.system_info import describe

    data, chosen = course.data, course.run.folder / QUANTIZATION
    protocol = results.EvaluationProtocol(
        dataset=data.name, classes=len(data.classes), train=len(data.train),
        validation=len(data.validation), gallery=len(data.gallery), query=len(data.query), seed=command.seed,
        top_k=data.cut,
    )  # fmt: skip
    return RunResults(
        created=results.now(),
        command=shlex.join(["python", "distill/run.py", *sys.argv[1:]]),
        name=command.title,
        seed=command.seed,
        code_space=networks.space.id,
        bits=command.bits,
        student=command.student,
        query_set=course.protocol,
        num_queries=len(data.query),
        gallery_size=len(data.gallery),
        map=proof.score.map,
        center_distance=min_distance(course.centers),
        protocol=protocol,
        model_summaries=tuple(results.ModelSummary(**facts) for facts in course.portraits(networks)),
        pairs=proof.pairs,
        models=proof.models,
        thresholds=command.thresholds,
        gate=gate.check(proof.models, command.thresholds, proof.pairs, command.strict),
        hash_centers=results.HashCenterSummary(**course.center_map(networks)),
        quantization=json.loads(chosen.read_text()) if chosen.exists() else None,
        curves=tuple(results.TrainingCurve(**curve) for curve in course.curves()),
        examples=grid,
        skipped=tuple(results.Skipped(path=one.name, reason=one.reason) for one in data.skipped),
        seconds=course.run.seconds,
        system=describe(),
    )


if __name__ == "__main__":
    sys.exit(main())
