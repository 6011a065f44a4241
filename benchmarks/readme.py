"""The figures in README.md, rendered from `benchmarks/results/`.

python benchmarks/readme.py                  # writes them
python benchmarks/readme.py runs/<name> ...  # first keeps the results of these runs, or evaluations, without thumbnails
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import gallery_index, open_world
from benchmarks.losses import OURS, LossTrial, by_loss
from benchmarks.trial import RESULTS, mean_and_half_range, table
from gallery import results
from gallery.files import atomic_write
from gallery.results import EvaluationResults, ModelResult, RunResults
from mobile_eval import formatting

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- results:", "<!-- end of results -->"


def keep(folder: Path) -> Path:
    """Copy the results of a run, or of its evaluation, into `RESULTS`, without thumbnails and skipped files."""
    kept = results.load(folder / "results.json").model_copy(update={"examples": ()})
    if isinstance(kept, RunResults):
        return kept.model_copy(update={"skipped": ()}).save(RESULTS / f"run-{kept.name}.json")
    return kept.save(RESULTS / f"evaluation-{kept.student}.json")


def render() -> str:
    """The block between the markers of README.md."""
    runs = [results.load_run(path) for path in sorted(RESULTS.glob("run-*.json"))]
    evaluations = [results.load(path) for path in sorted(RESULTS.glob("evaluation-*.json"))]
    records = [json.loads((RESULTS / f"{name}.json").read_text()) for name in ("csch", "losses", "metric", "gallery")]
    tables = [written(record) for written, record in zip((_csch, _losses, _metric, _gallery), records, strict=True)]
    if (path := RESULTS / "open_world.json").exists():  # which takes hours, and may not be measured yet
        tables.insert(2, _open_world(json.loads(path.read_text())))
    return "\n\n".join([_runs(runs), _models(runs[0]), *map(_evaluation, evaluations), *tables])


def with_block(readme: str) -> str:
    """`readme` with the rendered block between its markers."""
    head, rest = readme.split(BEGIN, 1)
    marker, tail = rest.split("\n", 1)[0], rest.split(END, 1)[1]
    return f"{head}{BEGIN}{marker}\n{render()}\n{END}{tail}"


def _runs(runs: Sequence[RunResults]) -> str:
    """One row a run: data, models, their pretrained weights, mAP of the retrieval pairs, quality gate, time."""
    pairs = results.TEACHER_TEACHER, results.STUDENT_GALLERY, results.STUDENT_STUDENT
    rows = []
    for r in runs:
        maps = {pair.name: f"{pair.map:.3f}" for pair in r.pairs}
        maps[results.STUDENT_GALLERY] = f"**{maps[results.STUDENT_GALLERY]}**"
        rows.append([
            f"{r.protocol.dataset}: {r.protocol.gallery:,} gallery, {r.protocol.query:,} queries",
            *(f"{m.name}, {m.size} px" for m in r.model_summaries),
            "none (random)" if all(m.random for m in r.model_summaries) else "ImageNet", *map(maps.get, pairs),
            "passed" if r.gate.passed else "failed", f"{formatting.duration(sum(r.seconds.values()))} on {_host(r)}",
        ])  # fmt: skip
    names = [f"**{pair}**" if pair == results.STUDENT_GALLERY else pair for pair in pairs]
    columns = "data", "teacher", "student", "pretrained weights", *names, "quality gate", "time"
    return (
        "**The student finds what the teacher finds.** Tie-aware mAP over the whole gallery, one seed; teachers at "
        "CSCH's published scale, of labeled images alone (`--loss-args scale 8 similarity-weight 0`); details in "
        f"`benchmarks/results/run-*.json`.\n\n{table(columns, rows)}"
    )


def _models(r: RunResults) -> str:
    """The exported models of one run."""
    rows = []
    for row in r.models:
        time = "not timed" if row.p50_ms is None else f"{row.p50_ms:.2f} ms"
        flips, score = formatting.percent(row.bit_flip_rate), formatting.number(row.map, 4)
        found = [formatting.size(row.bytes), flips, score, time]
        rows.append([row.variant, *(found if row.status == "ran" else ["", "", f"{row.status}: {row.reason}", ""])])
    columns = "model", "size", "bit flip rate", "mAP in the gallery", "p50 latency"
    return (
        f"**The exported models keep it.** `{r.command}`; latency on {_host(r)}, batch size 1, one thread."
        f"\n\n{table(columns, rows)}"
    )


def _evaluation(e: EvaluationResults) -> str:
    """Model by device: latency where time means something, instructions where they were counted."""
    devices, variants = (list(dict.fromkeys(getattr(row, key) for row in e.models)) for key in ("device", "variant"))
    cost = {(row.variant, row.device): _cost(row) for row in e.models}
    rows = ([variant, *(cost.get((variant, device), "") for device in devices)] for variant in variants)
    beyond = sum(row.host_flips_beyond or 0 for row in e.models)
    return (
        f"**And on other devices.** {e.student}, latency on {_host(e)}, millions of executed instructions of the "
        f"emulated ARM cores. Bit flips against the host where its |logit| exceeds {e.thresholds.logit_tolerance:g}: "
        f"{beyond}. Details: `benchmarks/results/README.md`.\n\n{table(['model', *devices], rows)}"
    )


def _host(e: EvaluationResults) -> str:
    return f"{e.system.cores} cores of {e.system.cpu}"


def _cost(row: ModelResult) -> str:
    if row.instructions is not None:
        return f"{row.instructions / 1e6:.1f} M"
    return "" if row.p50_ms is None else f"{row.p50_ms:.2f} ms"


def _csch(c: dict[str, Any]) -> str:
    """Student->gallery of every row, by data and length of code: the mean over seeds, and half the range."""
    o, trials = c["options"], c["trials"]
    rows = []
    for key in sorted({(trial["data"], trial["bits"]) for trial in trials}):
        own = [trial for trial in trials if (trial["data"], trial["bits"]) == key]
        values = ([trial["student_gallery"] for trial in own if trial["row"] == row] for row in o["rows"])
        rows.append([f"{key[0]}, {key[1]} bits", *map(mean_and_half_range, values)])
    return (
        f"**Better than CSCH as its authors released it** (`{c['command']}`): {o['teacher']} and {o['student']} at "
        f"{o['size']} px from pretrained weights, {o['epochs']} epochs each, the same steps in every row, "
        f"{len(o['seeds'])} seeds; tie-aware mAP of student->gallery. All figures, seconds and protocols: "
        f"`benchmarks/results/csch.md` and `.json`.\n\n{table(['', *o['rows']], rows)}"
    )


def _losses(c: dict[str, Any]) -> str:
    """CSCH and the best of the other inductive losses, by data and length of code."""
    trials = [trial for trial in map(LossTrial.model_validate, c["trials"]) if not trial.transductive]
    rows = []
    for key in sorted({(trial.data, trial.bits) for trial in trials}):
        own = by_loss([trial for trial in trials if (trial.data, trial.bits) == key])
        scores = {name: mean_and_half_range([trial.map for trial in several]) for name, several in own.items()}
        best = next(name for name in scores if name != OURS)
        rows.append([f"{key[0]}, {key[1]} bits", scores[OURS], f"{scores[best]}, {best}"])
    o, seeds = c["options"], len({trial.seed for trial in trials})
    return (
        f"**Losses compared.** Teachers by {len({trial.loss for trial in trials})} losses that do not use the "
        f"gallery's labels (`{c['command']}`): {o['teacher']} at {o['size']} px, {seeds} seeds, learning rates "
        "chosen on validation images; tie-aware mAP. All of them, precision and recall by radius, seconds, and "
        f"published figures: `benchmarks/results/losses.md`.\n\n{table(['', OURS, 'best other'], rows)}"
    )


def _open_world(c: dict[str, Any]) -> str:
    """The four protocols of the longest codes: ours with and without the term on unlabeled images, and baselines."""
    every = [open_world.OpenWorldTrial.model_validate(trial) for trial in c["trials"]]
    trials = [trial for trial in every if trial.bits == max(one.bits for one in every)]
    names = open_world.FLOAT, open_world.ITQ_TRAIN, open_world.OLD, open_world.OURS
    rows = []
    for data in dict.fromkeys(trial.data for trial in trials):
        own = open_world.by_row([trial for trial in trials if trial.data == data])
        for name in (name for name in names if name in own):
            maps = [open_world.product_maps(trial) for trial in own[name]]
            rows.append([data, f"**{name}**" if name == open_world.OURS else name, *open_world.cells(maps), len(maps)])
    o = c["options"]
    return (
        f"**Classes that came after training.** Student->gallery of {trials[0].bits}-bit codes "
        f"(`{c['command']}`): {o['teacher']} and {o['student']} at {o['size']} px, queries@gallery of classes that "
        "training had labels of (seen) and had none of (unseen); csch learns from the gallery's images of unseen "
        "classes without labels, csch-no-similarity, as published (scale 8; its student at a rate of 1e-3), does not "
        "in its teacher. Float features of the pretrained teacher and ITQ codes of them need no training at all. All "
        "that was measured: "
        "`benchmarks/results/open_world.md`.\n\n"
        f"{table(['data', '', *open_world.COLUMNS.values(), 'draws'], rows)}"
    )


def _metric(m: dict[str, Any]) -> str:
    loops = [case["loops"]["literature"]["speedup"] for case in m["cases"]]
    worst = m["worst"]
    return (
        f"**A fast, exact metric.** {m['queries']:,} queries x {m['gallery']:,} codes of {m['bits']} bits, mAP "
        "over all: "
        f"{min(loops):.0f} to {max(loops):.0f} times faster than the literature's per-query argsort loop in the same "
        f"process ({len(loops)} kinds of codes and labels; {m['machine']['cores']} cores of {m['machine']['cpu']}), "
        f"{worst['peak_extra_mb']:.0f} MB beyond its inputs at most, and within "
        f"{worst['difference_to_random_orders']:.0e} of the mean over random tie orders (`{m['command']}`)."
    )


def _gallery(g: dict[str, Any]) -> str:
    """The 10 nearest by the exact index, by flat scans, and by an inverted file; graphs in a sentence."""
    found = [gallery_index.IndexFigures.model_validate(trial["index"]) for trial in g["trials"] if trial["index"]]
    rows = []
    for key in dict.fromkeys((one.items, one.codes) for one in found if one.items > gallery_index.GRAPHS):
        own = {one.method: one for one in found if (one.items, one.codes) == key}
        first = {method: one.timings[0] for method, one in own.items() if one.timings}
        ours, inverted = first[gallery_index.OURS], first["faiss IVF, nprobe 4"]
        flat = (f"{first[method].p50_ms:.2f} ms" for method in (gallery_index.FLAT, "numpy flat"))
        rows.append([
            f"{key[0]:,}, {key[1]}", f"**{ours.p50_ms:.2f}** / {ours.p95_ms:.2f} ms", f"{ours.exact_rows:,}", *flat,
            f"{inverted.p50_ms:.2f} ms", f"{inverted.exact_distances:,} / {inverted.exact_rows:,}",
        ])  # fmt: skip
    graphs = [one for one in found if one.timings and one.method.startswith(("faiss HNSW", "usearch"))]
    exact = [one.timings[0].exact_distances for one in graphs]
    queries = f"{found[0].queries:,}"
    columns = (
        "codes", f"{gallery_index.OURS} p50 / p95", f"exact of {queries}", "faiss flat", "numpy flat",
        "faiss IVF, 4 cells", "exact distances / rows",
    )  # fmt: skip
    return (
        f"**Exact search in a large gallery.** The 10 nearest of {g['trials'][0]['bits']}-bit codes resampled from a "
        f"teacher's logits, CPU time of a query on one thread (`{g['command']}`). `CodebookIndex` answers as a flat "
        "scan does, in distance and in row, and takes the flat scan where that is quicker. An inverted file with the "
        f"same centers does not; graphs (HNSW of faiss and usearch, {gallery_index.GRAPHS:,} codes) find the right "
        f"distances for {min(exact)} to {max(exact)} of {queries} queries. All figures: "
        f"`benchmarks/results/gallery.md`.\n\n{table(columns, rows)}"
    )


def main(arguments: list[str]) -> int:
    """Keep the named runs, then write the block."""
    for run in arguments:
        print(f"kept {keep(Path(run))}")
    atomic_write(README, with_block(README.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
