"""From images to an evaluated query model, in one command.

    python distill/run.py --teacher vit_b --student mobilenetv3       # the embedded images: 14 to 16 minutes on 2 cores
    python distill/run.py --data my_catalogue/ --teacher efficientnet_lite2 --student mobilenetv3_small

The folders in my_catalogue/ are the classes; where it holds images alone, nothing is learned from labels.

A teacher network hashes the gallery, once.  A student is distilled into its Hamming space and exported to ONNX, LiteRT
and Core ML, and every exported model is run: its codes must find in the gallery what the float student finds.
Interrupted, the same command resumes.  Exit codes: 0 passed, 1 the quality gate failed, 2 bad input,
3 a crash, 130 or 143 stopped.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

# A script's own folder comes first on the path, where its modules would hide packages of the same name.
sys.path[0] = str(Path(__file__).resolve().parents[1])
# Threads that wait asleep: alone as fast as spinning (126 and 130 images a second, ViT-B on 2 cores), and 6 times
# faster where another process uses the cores too (71 and 12).  Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from distill.config import TrainConfig
from gallery import results
from gallery.command_line import read_flags, run_cli
from gallery.console import log
from gallery.errors import EXIT_PASSED
from gallery.files import write_json
from gallery.layers import require
from gallery.results import RunResults
from mobile_eval import gate, report

if TYPE_CHECKING:
    from distill.context import RunContext
    from distill.pipeline import TrainedModels
    from distill.run_dir import RunDir
    from export.bundle import Manifest
    from gallery.metrics import MapResult
    from gallery.neighbors import NeighborRecall
    from gallery.skew_results import PreprocessingSkew
    from mobile_eval.compare import FloatReference

QUANTIZATION = "quantization.json"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""

    def work() -> int:
        import tyro

        command = read_flags(tyro.cli, TrainConfig, args=arguments, description=__doc__)
        require("export")  # before training, not after it
        from distill.distributed import init_distributed
        from distill.run_dir import open_run

        with init_distributed(), open_run(command.output_dir / command.title) as run_dir:
            return run_pipeline(run_dir, command)

    return run_cli(work, "Finished stages are kept: the same command resumes from here.")


def run_pipeline(run_dir: RunDir, config: TrainConfig) -> int:
    """Train, export, evaluate and report; what an earlier process finished is read."""
    from distill import distributed, pipeline, resolve
    from distill.context import open_context
    from distill.metrics_log import to_tensorboard
    from distill.system import limit_threads, tune_malloc
    from export.exporter import AUTHORSHIP, select_variants

    limit_threads()
    tune_malloc()
    variants = select_variants(config.formats, config.precisions)
    resolve.check(config)
    resolve.check_effects(config)
    config = resolve.keep_stored(resolve.with_absolute_paths(config), run_dir)
    exported, evaluated = {"formats", "precisions", "dynamic_image_size", *AUTHORSHIP}, {"thresholds", "skew"}
    data = "data", "data_root", "unlabeled_data"  # which may have moved: what is in them is compared
    free = *exported, *evaluated, *data, "name", "output_dir", "strict", "tensorboard"
    changed = run_dir.check_config("config", config, but=free)
    stages = {"export", "evaluate"} if changed & exported else {"evaluate"} if changed & evaluated else ()
    run_dir.digests |= {"bundle": bundle_digest, report.RESULTS: results_digest}
    context = open_context(run_dir, config, config.output_dir / "cache", stages)
    models = pipeline.train_all(context)
    first = distributed.is_main_process()
    distributed.destroy()
    if not first:
        return EXIT_PASSED
    if config.tensorboard:
        to_tensorboard(run_dir.folder / "train.jsonl", run_dir.folder / "tensorboard")
    manifest = export_models(context, models, variants)
    found = evaluate_models(context, models, manifest)
    found = found.model_copy(update={"name": config.title, "seconds": run_dir.seconds})  # of the evaluation too
    found = gate.apply(found, config.thresholds, config.strict)
    log.info("bundle %s", run_dir.folder / "bundle")
    return report.write_reports(found, run_dir.folder)


def bundle_digest(folder: Path) -> str:
    """Return the checksum of a bundle's manifest, which lists those of its files; raises unless they are intact."""
    from export.bundle import MANIFEST, open_bundle
    from gallery.files import sha256_of

    open_bundle(folder)
    return sha256_of(folder / MANIFEST)


def results_digest(path: Path) -> str:
    """Return the checksum of an evaluation without what every command writes again."""
    from distill.run_dir import json_digest

    again = {"name", "seconds", "thresholds", "gate"}
    return json_digest(results.load_run(path).model_dump(mode="json", exclude=again))


def export_models(context: RunContext, models: TrainedModels, variants: list[str]) -> Manifest:
    """Export the student in all formats and precisions, and bundle the files with golden inputs."""
    from distill.export_samples import export_request
    from export.bundle import open_bundle
    from export.exporter import AUTHORSHIP, ExportRequest, export_bundle

    run_dir, config = context.run_dir, context.config
    if not run_dir.is_done("export"):
        with run_dir.stage("export", f"writing {', '.join(variants)}"):
            fields = export_request(context, models.student, models.space)
            fields |= {name: getattr(config, name) for name in AUTHORSHIP}
            request = ExportRequest(**fields, dynamic_image_size=config.dynamic_image_size)
            _, chosen = export_bundle(request, variants, run_dir.folder / "bundle")
            write_json(run_dir.folder / QUANTIZATION, chosen)
    return open_bundle(run_dir.folder / "bundle")


def evaluate_models(context: RunContext, models: TrainedModels, manifest: Manifest) -> RunResults:
    """Evaluate every exported model on this host, on all queries; a finished evaluation is read."""
    from distill.neighbors import float_neighbors
    from distill.summary import pair_logits
    from gallery.codes import pack
    from mobile_eval.compare import FloatReference
    from mobile_eval.devices.host import Host
    from mobile_eval.evaluate import evaluate_on
    from mobile_eval.retrieval_grid import retrieval_grid, spread
    from mobile_eval.retrieval_pairs import PairLabels, code_pairs, neighbor_pairs, retrieval_pairs

    run_dir, data, index = context.run_dir, context.data, models.gallery
    path, tolerance = run_dir.folder / report.RESULTS, context.config.thresholds.logit_tolerance
    if not run_dir.is_done("evaluate"):
        with run_dir.stage("evaluate", f"running {len(manifest.files)} models on {len(data.query)} queries"):
            logits, pixels = pair_logits(context, models), data.pixels[context.resolved.student_img_size]
            queries, labels, student = pixels[data.query], data.labels[data.query], pack(logits.student_queries)
            teacher = None if logits.teacher_queries is None else pack(logits.teacher_queries)
            codes, neighbors = (teacher, student, index.codes, pack(logits.student_gallery)), float_neighbors(context)
            known = PairLabels(labels, index.class_labels(data.classes, labels.ndim == 2))
            scores = retrieval_pairs(*codes, known, data.top_k) if data.classes else {}
            recalls = {} if neighbors is None else neighbor_pairs(code_pairs(*codes), neighbors)
            reference = FloatReference(
                queries, logits.student_queries, models.space, labels if data.classes else None, index, data.top_k,
                tolerance, classes=data.classes, neighbors=neighbors,
            )  # fmt: skip
            found = evaluate_on(Host(partitions=True), (*manifest.files, *manifest.failures), reference)
            shown = spread((scores or recalls)[results.STUDENT_GALLERY].per_query)
            examples = retrieval_grid(
                index, student[shown], labels[shown], queries[shown],
                lambda hit: pixels[context.indexed_images[hit]], data.classes,
            )  # fmt: skip
            skew = measure_app_skew(context, models, reference)
            build_results(context, models, (scores, recalls), found.rows, examples, skew).save(path)
        if found.killed:
            run_dir.invalidate("evaluate")  # which says nothing about the models: the next run tries them again
    return results.load_run(path)


def measure_app_skew(context: RunContext, models: TrainedModels, reference: FloatReference) -> PreprocessingSkew | None:
    """Measure what ways of preprocessing cost that apps have; None with --no-skew, and for queries that are small."""
    from distill.run_images import query_photos
    from mobile_eval.skew import measure_skew, skewed_squares, subset_for_skew

    size = context.resolved.student_img_size
    if not context.config.skew:
        return None
    photos = query_photos(context)
    part, reduction = subset_for_skew(reference, photos, size)
    if reduction <= 1:
        log.info("  preprocessing skew: not measured, since the queries are no larger than the student's input")
        return None
    squares = skewed_squares(photos(part.indices), size)
    logits = {name: context.pixel_logits("student", models.student, pixels) for name, pixels in squares.items()}
    skew = measure_skew(logits, part, reduction)
    log.info("  %s", skew.sentence)
    return skew


def build_results(
    context: RunContext, models: TrainedModels, scores: tuple[dict[str, MapResult], dict[str, NeighborRecall]],
    exported: Sequence[results.ModelResult], examples: tuple[results.RetrievalExample, ...],
    skew: PreprocessingSkew | None,
) -> RunResults:  # fmt: skip
    """Build the record of the run, the only source of tables, plots and the report.

    scores: mAP of the pairs, and recall of float neighbors, one of which may not have been measured
    """
    from distill.alarms import neighbor_warnings, open_world_warnings, result_warnings
    from distill.codebook import hash_centers_of
    from distill.hash_centers.constructions import min_distance
    from distill.open_world import open_world_results
    from distill.summary import hash_center_summary, model_summaries, training_curves
    from mobile_eval.retrieval_pairs import pair_records
    from mobile_eval.system_info import describe

    data, config, quantization = context.data, context.config, context.run_dir.folder / QUANTIZATION
    centers, (maps, recalls) = hash_centers_of(context), scores
    if maps:
        targets = centers if context.loss_class.centers else None
        warnings = result_warnings(maps, models.gallery, data.labels[data.query], data.classes, targets)
    else:
        warnings = neighbor_warnings(recalls, models.gallery)
    open_world = open_world_results(context, models)
    return RunResults(
        created=results.now(), command=shlex.join(["python", "distill/run.py", *sys.argv[1:]]), system=describe(),
        name=config.title, seed=config.seed, code_space=models.space.id, bits=config.bits, student=config.student,
        query_set=context.protocol, num_queries=len(data.query), gallery_size=len(data.gallery), skipped=data.skipped,
        data_warnings=data.warnings, warnings=(*open_world_warnings(open_world), *warnings), open_world=open_world,
        skew=skew,
        map=maps[results.STUDENT_GALLERY].map if maps else None,
        neighbor_recall=recalls[results.STUDENT_GALLERY].at_10 if recalls else None,
        center_distance=min_distance(centers) if context.classes else None,
        protocol=results.EvaluationProtocol(
            dataset=data.name, classes=len(data.classes), train=len(data.train), validation=len(data.validation),
            gallery=len(data.gallery), query=len(data.query), top_k=data.top_k, seed=config.seed,
        ),
        model_summaries=tuple(model_summaries(context, models)), models=tuple(exported), examples=examples,
        pairs=pair_records(maps, recalls),
        hash_centers=hash_center_summary(context, models), curves=tuple(training_curves(context)),
        quantization=json.loads(quantization.read_text()) if quantization.exists() else None,
        seconds=context.run_dir.seconds,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
