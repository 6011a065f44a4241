"""The figures in README.md, rendered from `benchmarks/results/`.

python benchmarks/readme.py                  # writes them
python benchmarks/readme.py runs/<name> ...  # first keeps the results of these runs, or evaluations, without thumbnails
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.losses import OURS, LossTrial, by_loss
from benchmarks.trial import RESULTS, mean_and_half_range
from gallery import results
from gallery.files import atomic_write
from gallery.results import (
    STUDENT_GALLERY,
    STUDENT_STUDENT,
    TEACHER_TEACHER,
    EvaluationResults,
    ModelResult,
    RunResults,
)
from mobile_eval import formatting

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- results:", "<!-- end of results -->"


def keep(folder: Path) -> Path:
    """Copies the results of a run, or of its evaluation, into `RESULTS`, without thumbnails and skipped files."""
    kept = results.load(folder / "results.json").model_copy(update={"examples": ()})
    if isinstance(kept, RunResults):
        return kept.model_copy(update={"skipped": ()}).save(RESULTS / f"run-{kept.name}.json")
    return kept.save(RESULTS / f"evaluation-{kept.student}.json")


def render() -> str:
    """The block between the markers of README.md."""
    roads = [results.load_run(path) for path in sorted(RESULTS.glob("run-*.json"))]
    records = [json.loads((RESULTS / f"{name}.json").read_text()) for name in ("csch", "losses", "metric")]
    proofs = [results.load(path) for path in sorted(RESULTS.glob("evaluation-*.json"))]
    tables = [written(record) for written, record in zip((_csch, _losses, _metric), records, strict=True)]
    return "\n\n".join([*map(_run, roads), *map(_evaluation, proofs), *tables])


def with_block(readme: str) -> str:
    """`readme` with the rendered block between its markers."""
    head, rest = readme.split(BEGIN, 1)
    marker, tail = rest.split("\n", 1)[0], rest.split(END, 1)[1]
    return f"{head}{BEGIN}{marker}\n{render()}\n{END}{tail}"


def _run(r: RunResults) -> str:
    pairs = {pair.name: pair for pair in r.pairs}
    rows = "\n".join(_file(row) for row in r.models)
    start = "; ".join(
        f"{n.role} {n.name} at {n.size} px from {'RANDOM weights' if n.random else n.weights}"
        for n in r.model_summaries
    )
    p = r.protocol
    return f"""`{r.command}`

{start}. {p.train:,} pictures for training, {p.gallery:,} in the gallery, {p.query:,} queries, {p.classes} classes, \
{r.bits} bits, seed {r.seed}; \
{formatting.duration(sum(r.seconds.values()))} on {r.system.cores} cores of {r.system.cpu}. \
Tie-aware mAP over the whole gallery: teacher->teacher {pairs[TEACHER_TEACHER].map:.3f}, **student->gallery \
{pairs[STUDENT_GALLERY].map:.3f}**, student->student {pairs[STUDENT_STUDENT].map:.3f}. \
Verdict: {"passed" if r.gate.passed else "failed"}.

| file | size | bits flipped | mAP in the gallery | p50 on that host |
|---|---|---|---|---|
{rows}"""


def _evaluation(p: EvaluationResults) -> str:
    """File by device: milliseconds where time means something, instructions where they were counted."""
    devices, forms = (list(dict.fromkeys(getattr(row, key) for row in p.models)) for key in ("device", "variant"))
    rows = {(row.variant, row.device): row for row in p.models}
    lines = [f"| {form} | {' | '.join(_cost(rows.get((form, device))) for device in devices)} |" for form in forms]
    unlike = sum(row.host_flips_beyond or 0 for row in p.models)
    return f"""Where files run (`{p.command}`): {p.student}, one picture; milliseconds of {p.system.cores} cores of \
{p.system.cpu}, millions of executed instructions of the emulated ARM cores. Bits unlike the host's where its |logit| \
exceeds {p.thresholds.logit_tolerance:g}: {unlike}. Details: `benchmarks/results/README.md`.

| file | {" | ".join(devices)} |
|{"---|" * (len(devices) + 1)}
""" + "\n".join(lines)


def _cost(row: ModelResult | None) -> str:
    if row is None or row.status != "ran":
        return ""
    if row.instructions is not None:
        return f"{row.instructions / 1e6:.1f} M"
    return "" if row.p50_ms is None else f"{row.p50_ms:.2f} ms"


def _csch(c: dict[str, Any]) -> str:
    """Student->gallery of every row, by data and length of code: the mean over seeds, and half the range."""
    values: dict[tuple[str, int], dict[str, list[float]]] = {}
    for trial in c["trials"]:
        own = values.setdefault((trial["data"], trial["bits"]), {})
        own.setdefault(trial["row"], []).append(trial["student_gallery"])
    rows = c["options"]["rows"]
    table = [f"| {data}, {bits} bits | " + " | ".join(mean_and_half_range(own[row]) for row in rows) + " |"
             for (data, bits), own in sorted(values.items())]  # fmt: skip
    o = c["options"]
    return f"""Beside CSCH as its authors released it (`{c["command"]}`): {o["teacher"]} and {o["student"]} at \
{o["size"]} px from pretrained weights, {o["epochs"]} epochs each, the same steps in every row, \
{len(o["seeds"])} seeds; tie-aware mAP of student->gallery. All figures, seconds and protocols: \
`benchmarks/results/csch.md` and `.json`.

| | {" | ".join(rows)} |
|{"---|" * (len(rows) + 1)}
""" + "\n".join(table)


def _losses(o: dict[str, Any]) -> str:
    """CSCH and the best of the other inductive losses, by data and length of code."""
    trials = [trial for trial in map(LossTrial.model_validate, o["trials"]) if not trial.transductive]
    lines = []
    for data, bits in sorted({(trial.data, trial.bits) for trial in trials}):
        own = by_loss([trial for trial in trials if (trial.data, trial.bits) == (data, bits)])
        scores = {name: mean_and_half_range([trial.map for trial in several]) for name, several in own.items()}
        best = next(name for name in scores if name != OURS)
        lines.append(f"| {data}, {bits} bits | {scores[OURS]} | {scores[best]}, {best} |")
    names, p = {trial.loss for trial in trials}, o["options"]
    return f"""Teachers by all {len(names)} losses that do not use the gallery's labels \
(`{o["command"]}`): {p["teacher"]} at {p["size"]} px, {p["seeds"]} seeds, learning rates chosen on validation \
images; tie-aware mAP. All of them, precision and recall by radius, seconds, and published figures: \
`benchmarks/results/losses.md`.

| | {OURS} | best other |
|---|---|---|
""" + "\n".join(lines)


def _metric(m: dict[str, Any]) -> str:
    loops = [case["loops"]["literature"]["speedup"] for case in m["cases"]]
    worst = m["worst"]
    return (
        f"The metric: {m['queries']:,} queries x {m['gallery']:,} codes of {m['bits']} bits, mAP over all: "
        f"{min(loops):.0f} to {max(loops):.0f} times faster than the literature's per-query argsort loop in the same "
        f"process ({len(loops)} kinds of codes and labels; {m['machine']['cores']} cores of {m['machine']['cpu']}), "
        f"{worst['peak_extra_mb']:.0f} MB beyond its inputs at most, and within "
        f"{worst['difference_to_random_orders']:.0e} of the mean over random tie orders (`{m['command']}`)."
    )


def _file(row: ModelResult) -> str:
    if row.status != "ran":
        return f"| {row.variant} | | | {row.status}: {row.reason} | |"
    time = "not timed" if row.p50_ms is None else f"{row.p50_ms:.2f} ms"
    flips = formatting.percent(row.bit_flip_rate)
    return f"| {row.variant} | {formatting.size(row.bytes)} | {flips} | {formatting.number(row.map, 4)} | {time} |"


def main(arguments: list[str]) -> int:
    """Keeps the runs named, then writes the block."""
    for run in arguments:
        print(f"kept {keep(Path(run))}")
    atomic_write(README, with_block(README.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
