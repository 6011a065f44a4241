"""From images to an evaluated query model, in one command.

    python distill/run.py --teacher vit_b --student mobilenetv3       # the embedded images: 10 minutes on 2 cores
    python distill/run.py --data my_catalogue/ --teacher efficientnet_lite2 --student mobilenetv3_small

A teacher network hashes the gallery, once.  A student is distilled into its Hamming space and exported to ONNX, LiteRT
and Core ML, and every exported model is run: its codes must find in the gallery what the float student finds.
Interrupted, the same command resumes.  Exit codes: 0 passed, 1 the quality gate failed, 2 bad input.
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
# Threads that wait asleep: alone as fast as spinning (126 and 130 images a second, ViT-B on 2 cores), and 6 times
# faster where another process uses the cores too (71 and 12).  Read when torch is loaded.
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
    from distill.trained_models import TrainedModels
    from export.bundle import Manifest
    from mobile_eval.prove import QueryResults

QUANTIZATION = "quantization.json"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and returns its exit code."""
    import tyro

    command = tyro.cli(TrainConfig, args=arguments, description=__doc__)

    def work() -> int:
        with distributed.init_distributed(), open_run(command.output_dir / command.title) as run:
            return run_pipeline(run, command)

    return run_cli(work, "Finished stages are kept: the same command resumes from here.")


def run_pipeline(run_dir: RunDir, config: TrainConfig) -> int:
    """Train, export, evaluate and report; what an earlier process finished is read."""
    from distill import pipeline, resolve
    from distill.context import open_context
    from distill.metrics_log import to_tensorboard
    from distill.system import limit_threads, tune_malloc
    from export.exporter import select_variants
    from mobile_eval import report

    limit_threads()
    tune_malloc()
    variants = select_variants(config.formats, config.precisions)
    resolve.check(config)
    resolve.check_effects(config)
    config = resolve.keep_stored(resolve.with_absolute_paths(config), run_dir.folder)
    exported = {"formats", "precisions", "dynamic_image_size"}
    free = *exported, "thresholds", "name", "output_dir", "strict", "tensorboard"
    changed = run_dir.check_config("config", config, but=free)
    run_dir.invalidate(*({"export", "prove"} if changed & exported else {"prove"} if "thresholds" in changed else ()))

    context = open_context(run_dir, config, config.output_dir / "cache")
    models = pipeline.train_all(context)
    distributed.destroy()
    if not distributed.is_main_process():
        return EXIT_PASSED
    if config.tensorboard:
        to_tensorboard(run_dir.folder / "train.jsonl", run_dir.folder / "tensorboard")
    manifest = export_models(context, models, variants)
    results = evaluate_models(context, models, manifest)

    report.write_html(results, run_dir.folder / "report.html")
    report.print_tables(results)
    log.info("report %s\nbundle %s", run_dir.folder / "report.html", run_dir.folder / "bundle")
    return gate.exit_code(results.gate)


def export_models(context: RunContext, models: TrainedModels, variants: list[str]) -> Manifest:
    """Export the student in all formats and precisions, and bundle the files with golden inputs."""
    from distill.export_samples import export_request
    from export.bundle import open_bundle
    from export.ship import Student, ship

    run_dir, config = context.run_dir, context.config
    if not run_dir.is_done("export"):
        with run_dir.stage("export", f"writing {', '.join(variants)}"):
            student = Student(**export_request(context, models.student, models.space))
            _, chosen = ship(student, variants, run_dir.folder / "bundle", config.dynamic_image_size)
            write_json(run_dir.folder / QUANTIZATION, chosen)
    return open_bundle(run_dir.folder / "bundle")


def evaluate_models(context: RunContext, models: TrainedModels, manifest: Manifest) -> RunResults:
    """Run every file on all queries; results that exist are read, and judged by the current thresholds."""
    from distill.summary import pair_logits
    from gallery.codes import pack
    from mobile_eval.prove import QuerySet, prove
    from mobile_eval.retrieval_grid import retrieval_grid, spread

    run_dir, data, config = context.run_dir, context.data, context.config
    path, thresholds = run_dir.folder / "results.json", config.thresholds
    if not run_dir.is_done("prove"):
        with run_dir.stage("prove", f"running {len(manifest.files)} files over {len(data.query)} queries"):
            logits, pixels = pair_logits(context, models), data.pixels[context.resolved.student_img_size]
            queries = QuerySet(
                pixels[data.query], data.labels[data.query], logits.student_queries, logits.teacher_queries, data.cut
            )
            gallery_codes = pack(logits.student_gallery)
            evaluated = prove(run_dir.folder / "bundle", manifest, queries, gallery_codes, models.gallery, thresholds)
            grid = retrieval_grid(
                models.gallery, spread(evaluated.score.per_query), pack(queries.student), queries.labels,
                lambda query: queries.pixels[query], lambda hit: pixels[data.gallery[hit]], data.classes,
            )  # fmt: skip
            build_results(context, models, evaluated, grid).save(path)
    found = results.load_run(path)
    verdict = gate.check(found.models, thresholds, found.pairs, config.strict)
    found = found.model_copy(update={"thresholds": thresholds, "gate": verdict})
    found.save(path)
    return found


def build_results(
    context: RunContext,
    models: TrainedModels,
    evaluated: QueryResults,
    examples: tuple[results.RetrievalExample, ...],
) -> RunResults:
    """Return the run as one typed record, the only source of tables, plots and the report."""
    from distill.codebook import hash_centers_of
    from distill.hash_centers.constructions import min_distance
    from distill.summary import hash_center_summary, model_summaries, training_curves
    from mobile_eval.system_info import describe

    data, config, chosen = context.data, context.config, context.run_dir.folder / QUANTIZATION
    protocol = results.EvaluationProtocol(
        dataset=data.name, classes=len(data.classes), train=len(data.train),
        validation=len(data.validation), gallery=len(data.gallery), query=len(data.query), seed=config.seed,
        top_k=data.cut,
    )  # fmt: skip
    return RunResults(
        created=results.now(),
        command=shlex.join(["python", "distill/run.py", *sys.argv[1:]]),
        name=config.title,
        seed=config.seed,
        code_space=models.space.id,
        bits=config.bits,
        student=config.student,
        query_set=context.protocol,
        num_queries=len(data.query),
        gallery_size=len(data.gallery),
        map=evaluated.score.map,
        center_distance=min_distance(hash_centers_of(context)),
        protocol=protocol,
        model_summaries=tuple(model_summaries(context, models)),
        pairs=evaluated.pairs,
        models=evaluated.models,
        thresholds=config.thresholds,
        gate=gate.check(evaluated.models, config.thresholds, evaluated.pairs, config.strict),
        hash_centers=hash_center_summary(context, models),
        quantization=json.loads(chosen.read_text()) if chosen.exists() else None,
        curves=tuple(training_curves(context)),
        examples=examples,
        skipped=tuple(results.Skipped(path=one.name, reason=one.reason) for one in data.skipped),
        seconds=context.run_dir.seconds,
        system=describe(),
    )


if __name__ == "__main__":
    sys.exit(main())
