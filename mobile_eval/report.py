"""The report of an evaluation, or of a run with its training: terminal tables, and one HTML page without scripts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gallery.console import log, plain
from gallery.files import atomic_write
from gallery.open_world_results import FLOAT_COSINE, ITQ_TRAIN, OpenWorldResults
from gallery.results import (
    STUDENT_GALLERY,
    STUDENT_STUDENT,
    TEACHER_TEACHER,
    EvaluationResults,
    ModelResult,
    RetrievalPair,
    RunResults,
)
from mobile_eval import junit, plots
from mobile_eval.formatting import count, duration, number, percent, size
from mobile_eval.gate import exit_code, ratio, row_failures

RESULTS, PAGE, JUNIT = "results.json", "report.html", "junit.xml"
MEANING = {
    TEACHER_TEACHER: "The large teacher on both sides.",
    STUDENT_GALLERY: "The product: the student hashes the queries, the teacher hashed the gallery.",
    STUDENT_STUDENT: "The student on both sides: the result of hashing the gallery again with it.",
}
PAIR_COLUMNS: dict[str, Callable[[RetrievalPair], float | None]] = {
    "mAP": lambda pair: pair.map,
    "retrieved": lambda pair: pair.map_retrieved,
    "recall@1": lambda pair: pair.recall_at_1,
    "@10": lambda pair: pair.recall_at_10,
    "@100": lambda pair: pair.recall_at_100,
}
READING = (
    "Columns are queries@database: without labels codes are worth their training where they find more than ITQ, which "
    "makes as many bits of the untouched pretrained features (inductive runs compare with ITQ on train, transductive "
    "ones with both); float cosine ranks by those features themselves."
)
MAX_NOTES, MAX_SKIPPED = 3, 10  # on the terminal; on the page more notes are folded
MAX_UNFOLDED = 10  # disagreements of a model
HOST_TIMES = "Latencies are of this machine ({cpu}): they compare models with each other, not with a phone."
EMULATED_TIMES = "Latencies are of an emulator: they say nothing about a phone."
INSTRUCTIONS = "ARM instructions are counted under emulation: the counts are reproducible, but no latency."

Kind = Literal["n", "words"]  # numbers are aligned to the right
Column = tuple[str, Kind, Callable[[ModelResult], str]]


def _millions(row: ModelResult) -> str:
    return number(None if row.instructions is None else row.instructions / 1e6, 2)


def _worst(row: ModelResult) -> str:
    return ", ".join(f"#{worst.query}\N{NO-BREAK SPACE}({worst.flipped})" for worst in row.worst)


CODES: tuple[Column, ...] = (
    ("bit flips", "n", lambda row: percent(row.bit_flip_rate)),
    ("of all bits", "n", lambda row: f"{count(row.bits_flipped)} of {count(row.bits_compared)}".replace("- of -", "-")),
    ("beyond tolerance", "n", lambda row: count(row.flips_beyond_tolerance)),
    ("predicted", "n", lambda row: percent(row.predicted_bit_flip_rate)),
    ("flips vs host", "n", lambda row: count(row.host_flips)),
    ("vs host, beyond", "n", lambda row: count(row.host_flips_beyond)),
    ("mAP", "n", lambda row: number(row.map, 4)),
    ("mAP drop", "n", lambda row: number(row.map_drop, 4)),
    ("neighbors@10", "n", lambda row: number(row.neighbor_recall, 4)),
    ("neighbors drop", "n", lambda row: number(row.neighbor_recall_drop, 4)),
    ("recall@10", "n", lambda row: percent(row.recall_at_10)),
    ("worst queries (bits)", "words", _worst),
)
COSTS: tuple[Column, ...] = (
    ("size", "n", lambda row: size(row.bytes)),
    ("p50 ms", "n", lambda row: number(row.p50_ms, 2)),
    ("p90 ms", "n", lambda row: number(row.p90_ms, 2)),
    ("p99 ms", "n", lambda row: number(row.p99_ms, 2)),
    ("first ms", "n", lambda row: number(row.first_ms, 1)),
    ("load ms", "n", lambda row: number(row.load_ms, 1)),
    ("peak memory", "n", lambda row: "-" if row.peak_memory_mb is None else f"{row.peak_memory_mb:.1f} MB"),
    ("instructions (M)", "n", _millions),
    ("samples", "n", lambda row: count(row.samples)),
    ("threads", "n", lambda row: count(row.threads)),
    ("engine", "words", lambda row: row.engine),
)
TERMINAL: tuple[Column, ...] = (  # 80 columns: mAP and p50 only where they fit
    ("MB", "n", lambda row: number(row.bytes / 1e6 or None, 2)),
    ("flips", "n", lambda row: percent(row.bit_flip_rate)),
    ("flips\nvs host", "n", lambda row: count(row.host_flips)),
    ("recall\n@10", "n", lambda row: "-" if row.recall_at_10 is None else f"{100 * row.recall_at_10:.1f}%"),
    ("mAP", "n", lambda row: number(row.map if row.host_flips is None else None, 4)),
    ("drop", "n", lambda row: number(row.map_drop if row.map_drop is not None else row.neighbor_recall_drop, 4)),
    ("p50 ms", "n", lambda row: number(row.p50_ms if None in (row.p90_ms, row.host_flips) else None, 2)),
    ("p90 ms", "n", lambda row: number(row.p90_ms, 2)),
    ("instructions\n(M)", "n", _millions),
)


class DeviceSection(NamedTuple):
    """The models on one device; caveats about its numbers; conditions of all models; why none ran, if so."""

    device: str
    rows: list[ModelResult]
    caveats: list[str]
    conditions: dict[str, str]
    reason: str

    def own_conditions(self, row: ModelResult) -> str:
        """Conditions of one model that the others do not share."""
        return ", ".join(f"{name} {value}" for name, value in row.conditions.items() if name not in self.conditions)


class Columns(NamedTuple):
    """Column heads as (label, kind), and rows with their texts, None for models that did not run."""

    heads: list[tuple[str, Kind]]
    rows: list[tuple[ModelResult, list[str] | None]]


def write_reports(results: EvaluationResults, folder: Path) -> int:
    """Write results.json, report.html and junit.xml, print the tables, and return the exit code of the gate."""
    results.save(folder / RESULTS)
    junit.write_junit(results, folder / JUNIT)
    write_html(results, folder / PAGE)
    print_tables(results)
    log.info("report %s", folder / PAGE)
    return exit_code(results.gate)


def write_html(results: EvaluationResults, path: Path) -> Path:
    """Write the self-contained page, whole or not at all.  Every text in it is escaped: names are not trusted."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    filters = number, percent, size, count, duration, plots.heatmap, ratio, plain
    environment.filters |= {function.__name__: function for function in filters}
    environment.filters["off_diagonal"] = lambda matrix: [
        value for i, row in enumerate(matrix) for j, value in enumerate(row) if i != j
    ]
    # why models were skipped or failed: each sentence once, numbered from 1
    sentences = dict.fromkeys(sentence for row in results.models for sentence in _notes_of(row, results))
    notes = {sentence: number for number, sentence in enumerate(sentences, 1)}
    page = environment.get_template("report.html.j2").render(
        r=results,
        run=results if isinstance(results, RunResults) else None,
        sections=device_sections(results),
        by_device={(row.variant, row.device): row for row in results.models},
        status=lambda row: status_mark(row, results),
        gate_notes=gate_notes(results),
        notes=notes,
        notes_of=lambda row: _notes_of(row, results),
        codes=lambda section: drop_empty_columns(section.rows, CODES),
        costs=lambda one: drop_empty_columns(one.rows, (*COSTS, ("conditions", "words", one.own_conditions))),
        smallest=smallest_passing(results),
        partitioned=[row for row in results.models if row.partitions],
        pair_columns=measured_columns(results.pairs) if isinstance(results, RunResults) else {},
        open_world_notes=open_world_notes, itq=ITQ_TRAIN,
        plots=plots, meaning=MEANING, product=STUDENT_GALLERY, max_notes=MAX_NOTES, max_unfolded=MAX_UNFOLDED,
    )  # fmt: skip
    return atomic_write(path, page)


def device_sections(results: EvaluationResults) -> list[DeviceSection]:
    """One section per device, in the order of the rows; with the reason why numbers there are not those of a phone."""
    sections = []
    for device in dict.fromkeys(row.device for row in results.models):
        rows = [row for row in results.models if row.device == device]
        ran = [row for row in rows if row.status == "ran"]
        first = ran[0].conditions if ran else {}
        shared = {key: value for key, value in first.items() if all(row.conditions.get(key) == value for row in ran)}
        caveats = []
        if any(ms is not None for row in ran for ms in (row.p50_ms, row.load_ms, row.first_ms)):
            caveats += [HOST_TIMES.format(cpu=results.system.cpu)] if device.startswith(("host", "browser")) else []
            caveats += [EMULATED_TIMES] if device.startswith("arm64") else []
        caveats += [INSTRUCTIONS] if any(row.instructions is not None for row in ran) else []
        (status, reason), *others = {(row.status, row.reason) for row in rows}
        reason = reason if status == "skipped" and not others else ""
        sections.append(DeviceSection(device, rows, caveats, shared, reason))
    return sections


def status_mark(row: ModelResult, results: EvaluationResults) -> tuple[str, str]:
    """The gate's result for a row, as CSS class and word."""
    if row.status == "skipped":
        return "none", "skipped"
    return ("fail", "failed") if row_failures(row, results.thresholds) else ("pass", "passed")


def _notes_of(row: ModelResult, results: EvaluationResults) -> list[str]:
    return [row.reason] if row.status == "skipped" else row_failures(row, results.thresholds)


def smallest_passing(results: EvaluationResults) -> ModelResult | None:
    """The smallest model that ran and passed on every device it ran on."""
    failed = {row.variant for row in results.models if row_failures(row, results.thresholds)}
    passed = [row for row in results.models if row.status == "ran" and row.bytes and row.variant not in failed]
    return min(passed, key=lambda row: row.bytes, default=None)


def drop_empty_columns(rows: Sequence[ModelResult], columns: Sequence[Column]) -> Columns:
    """The table of those columns in which something was measured."""
    ran = [row for row in rows if row.status == "ran"]
    kept = [column for column in columns if any(column[2](row) not in ("-", "") for row in ran)]
    texts = [(row, [text(row) for _, _, text in kept] if row.status == "ran" else None) for row in rows]
    return Columns([(label, kind) for label, kind, _ in kept], texts)


def measured_columns(pairs: Sequence[RetrievalPair]) -> dict[str, Callable[[RetrievalPair], float | None]]:
    """Return the columns of the table of retrieval pairs in which something was measured."""
    return {label: of for label, of in PAIR_COLUMNS.items() if any(of(pair) is not None for pair in pairs)}


def gate_notes(results: EvaluationResults) -> list[str]:
    """Return the gate's notes; of warnings, which are said before them, only that --strict counts them."""
    said = (*results.alarms, *results.data_warnings) if isinstance(results, RunResults) else ()
    short = ("--strict: the warnings above are errors" if note in said else note for note in results.gate.notes)
    return list(dict.fromkeys(short))


def print_tables(results: EvaluationResults, console: Console | None = None) -> None:
    """Print warnings, the gate's result, retrieval pairs and one table per device; fits 80 columns and a pipe."""
    console, gate = console or Console(), results.gate
    run = results if isinstance(results, RunResults) else None
    for alarm in run.alarms if run else ():
        console.print(Text(f"WARNING: {plain(alarm)}", style="bold yellow"))
    for sentence in run.data_warnings if run else ():
        console.print(Text(f"Check your data: {plain(sentence)}", style="yellow"))
    word, style = ("PASSED", "bold green") if gate.passed else ("FAILED", "bold red")
    console.print(Text(f"{word}  {plain(results.name)}", style))
    notes = gate_notes(results)
    for sentence in (*gate.failures, *notes[:MAX_NOTES]):
        console.print(Text(f"  - {plain(sentence)}"))
    if (more := len(notes) - MAX_NOTES) > 0:
        console.print(Text(f"  - and {more} more notes, all of them in the report"))
    console.print(Text(plain(results.query_set), "dim"))
    if run:
        measured = measured_columns(run.pairs)
        table = make_table("queries->gallery", *(f">{label}" for label in measured), "meaning")
        for pair in run.pairs:
            texts = (number(text(pair), 4) for text in measured.values())
            style = "bold" if pair.name == STUDENT_GALLERY else ""
            add_row(table, pair.name, *texts, MEANING.get(pair.name, ""), style=style)
        console.print(table)
    if run and run.open_world:
        _print_open_world(run.open_world, console)
    for section in device_sections(results):
        _print_section(section, results, console)
    if run and run.skew:
        console.print(Text(f"\npreprocessing: {plain(run.skew.sentence)}", "dim"))
    if run and run.skipped:
        table = make_table(f"skipped: {len(run.skipped)}", "reason")
        for skipped in run.skipped[:MAX_SKIPPED]:
            add_row(table, skipped.path, skipped.reason)
        if (more := len(run.skipped) - MAX_SKIPPED) > 0:
            add_row(table, "...", f"and {more} more, all of them in the report")
        console.print(table)


def open_world_notes(found: OpenWorldResults) -> list[str]:
    """Return the sentences that stand below the table of classes without training labels."""
    compared = any(row.name == FLOAT_COSINE for row in found.rows)
    missing = f"No {'further ' if compared else ''}baselines: {found.no_baselines.rstrip('.')}."
    return [found.caption, *([READING] if compared else []), *([missing] if found.no_baselines else [])]


def _print_open_world(found: OpenWorldResults, console: Console) -> None:
    table = make_table("without training labels", *(f">{head}" for head in found.columns.values()))
    for row in found.rows:
        texts = [number(found.score(row.name, protocol), 4) for protocol in found.columns]
        add_row(table, found.title(row.name), *texts, style="bold" if row.name == STUDENT_GALLERY else "")
    console.print(table)
    for sentence in open_world_notes(found):
        console.print(Text(plain(sentence), "dim"))


def _print_section(section: DeviceSection, results: EvaluationResults, console: Console) -> None:
    console.print(Text(f"\n{plain(section.device)}", "bold"))
    if section.reason:
        console.print(Text(f"  skipped: {plain(section.reason)}"))
        return
    shown = drop_empty_columns(section.rows, TERMINAL)
    table = make_table("model", *(f">{label}" for label, _ in shown.heads), "result")
    for row, texts in shown.rows:
        style, word = status_mark(row, results)
        add_row(table, row.variant, *(texts or ("-",) * len(shown.heads)), word, style="red" if style == "fail" else "")
    console.print(table)
    for sentence in section.caveats:
        console.print(Text(plain(sentence), "dim"))


def make_table(*columns: str) -> Table:
    """A table whose columns that begin with ">" hold numbers: aligned to the right, never wrapped."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        numeric = column.startswith(">")
        table.add_column(column.lstrip(">"), justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    return table


def add_row(table: Table, *texts: str, style: str = "") -> None:
    """Append a row of untrusted texts."""
    table.add_row(*(Text(plain(text)) for text in texts), style=style)
