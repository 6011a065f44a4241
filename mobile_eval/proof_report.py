"""The report of a proof: device by file on a terminal, and as one HTML page that needs neither network nor script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gallery.files import write_whole
from gallery.results import EvaluationResults, ModelResult
from mobile_eval import formatting, plots
from mobile_eval.gate import row_failures
from mobile_eval.report import add_row, page, table_of

if TYPE_CHECKING:
    from rich.console import Console

TEMPLATE = "proof.html.j2"
NOTES_SHOWN = 3  # of the gate; on the page more of them are folded
SHORT_LIST = 10  # disagreements of a file that are unfolded
HERE = "Its milliseconds are of this machine ({cpu}): they compare files with each other and are no phone's."
EMULATED = "Its milliseconds are an emulator's: they are no phone's, and not even a slow one's."
COUNTED = "ARM instructions are executed under emulation and counted: they repeat, and they are no time."

Kind = Literal["n", "words"]  # numbers stand to the right
Column = tuple[str, Kind, Callable[[ModelResult], str]]
CODES: tuple[Column, ...] = (
    ("bits flipped", "n", lambda row: formatting.percent(row.bit_flip_rate)),
    ("of all bits", "n", lambda row: _flipped(row)),
    ("beyond tolerance", "n", lambda row: formatting.count(row.flips_beyond_tolerance)),
    ("predicted", "n", lambda row: formatting.percent(row.predicted_bit_flip_rate)),
    ("other than host (beyond)", "n", lambda row: _against_host(row)),
    ("mAP", "n", lambda row: formatting.number(row.map, 4)),
    ("mAP drop", "n", lambda row: formatting.number(row.map_drop, 4)),
    ("neighbours kept", "n", lambda row: formatting.percent(row.recall_at_10)),
    (
        "worst pictures (bits)",
        "words",
        lambda row: ", ".join(f"#{one.query}\N{NO-BREAK SPACE}({one.flipped})" for one in row.worst),
    ),
)
COSTS: tuple[Column, ...] = (
    ("size", "n", lambda row: formatting.size(row.bytes)),
    ("p50 ms", "n", lambda row: formatting.number(row.p50_ms, 2)),
    ("p90 ms", "n", lambda row: formatting.number(row.p90_ms, 2)),
    ("p99 ms", "n", lambda row: formatting.number(row.p99_ms, 2)),
    ("first ms", "n", lambda row: formatting.number(row.first_ms, 1)),
    ("load ms", "n", lambda row: formatting.number(row.load_ms, 1)),
    ("peak memory", "n", lambda row: "-" if row.peak_memory_mb is None else f"{row.peak_memory_mb:.1f} MB"),
    ("ARM instructions", "n", lambda row: formatting.count(row.instructions)),
    ("samples", "n", lambda row: formatting.count(row.samples)),
    ("threads", "n", lambda row: formatting.count(row.threads)),
    ("engine", "words", lambda row: row.engine),
)
TERMINAL: tuple[Column, ...] = (
    ("size", "n", lambda row: formatting.size(row.bytes)),
    ("flips", "n", lambda row: formatting.percent(row.bit_flip_rate)),
    ("host!=", "n", lambda row: formatting.count(row.host_flips)),
    ("kept", "n", lambda row: "-" if row.recall_at_10 is None else f"{100 * row.recall_at_10:.1f}%"),
    ("drop", "n", lambda row: formatting.number(row.map_drop, 4)),
    ("p50 ms", "n", lambda row: formatting.number(row.p50_ms if row.p90_ms is None else None, 2)),  # 80 columns
    ("p90 ms", "n", lambda row: formatting.number(row.p90_ms, 2)),
    ("Minstr", "n", lambda row: "-" if row.instructions is None else f"{row.instructions / 1e6:.2f}"),
)


@dataclass(frozen=True)
class DeviceSection:
    """A device with its rows.

    says: what its numbers are not; shared: the conditions of all its files; reason: the one why none of them ran
    """

    name: str
    rows: tuple[ModelResult, ...]
    says: tuple[str, ...]
    shared: dict[str, str]
    reason: str

    def own(self, row: ModelResult) -> str:
        """The conditions of one file that the others do not share."""
        return ", ".join(f"{name} {value}" for name, value in row.conditions.items() if name not in self.shared)


@dataclass(frozen=True)
class Sheet:
    """A table without the columns in which nothing was measured.

    heads: (label, kind); lines: a row with its texts, None where it did not run
    """

    heads: tuple[tuple[str, Kind], ...]
    lines: tuple[tuple[ModelResult, tuple[str, ...] | None], ...]


def write_html(proof: EvaluationResults, path: Path) -> None:
    """Writes the self-contained page, whole or not at all.  Every text in it is escaped: names are not trusted."""
    strips, darkest = plots.bit_strips(proof.models)
    ranges, ticks = plots.latency_ranges(proof.models)
    write_whole(
        path,
        page(TEMPLATE).render(
            logit=_logit,
            p=proof,
            places=places(proof),
            forms=tuple(dict.fromkeys(row.variant for row in proof.models)),
            table={(row.variant, row.device): row for row in proof.models},
            mark=lambda row: mark(row, proof),
            remarks=remarks(proof),
            remarks_of=lambda row: remarks_of(row, proof),
            codes=lambda place: sheet(place.rows, CODES),
            costs=lambda place: sheet(place.rows, (*COSTS, ("conditions", "words", place.own))),
            smallest=smallest(proof),
            margins=plots.each_margin(proof.models),
            strips=strips,
            darkest=darkest,
            ranges=ranges,
            ticks=ticks,
            box=plots,
            notes_shown=NOTES_SHOWN,
            short_list=SHORT_LIST,
        ),
    )


def places(proof: EvaluationResults) -> list[DeviceSection]:
    """The devices in the order of their first rows."""
    return [_place(name, proof) for name in dict.fromkeys(row.device for row in proof.models)]


def _place(name: str, proof: EvaluationResults) -> DeviceSection:
    rows = tuple(row for row in proof.models if row.device == name)
    ran = [row for row in rows if row.status == "ran"]
    first = ran[0].conditions if ran else {}
    shared = {key: value for key, value in first.items() if all(row.conditions.get(key) == value for row in ran)}
    (status, reason), *others = {(row.status, row.reason) for row in rows}
    alike = status == "skipped" and not others
    return DeviceSection(name, rows, tuple(_says(name, ran, proof)), shared, reason if alike else "")


def _says(name: str, ran: Sequence[ModelResult], proof: EvaluationResults) -> list[str]:
    """What must be said of a device's numbers, lest they be taken for a phone's."""
    said = []
    if any(ms is not None for row in ran for ms in (row.p50_ms, row.load_ms, row.first_ms)):
        said += [HERE.format(cpu=proof.system.cpu)] if name.startswith(("host", "browser")) else []
        said += [EMULATED] if name.startswith("arm64") else []
    return said + ([COUNTED] if any(row.instructions is not None for row in ran) else [])


def mark(row: ModelResult, proof: EvaluationResults) -> tuple[str, str]:
    """What the gate says of a row, as a style and a word."""
    if row.status == "skipped":
        return "none", "skipped"
    return ("fail", "failed") if row_failures(row, proof.thresholds) else ("pass", "passed")


def remarks(proof: EvaluationResults) -> dict[str, int]:
    """Why files did not run or did not pass, each sentence once, numbered from 1."""
    sentences = dict.fromkeys(sentence for row in proof.models for sentence in remarks_of(row, proof))
    return {sentence: place for place, sentence in enumerate(sentences, 1)}


def remarks_of(row: ModelResult, proof: EvaluationResults) -> list[str]:
    """Those of one row."""
    return [row.reason] if row.status == "skipped" else row_failures(row, proof.thresholds)


def smallest(proof: EvaluationResults) -> ModelResult | None:
    """The smallest file that ran somewhere and held its thresholds wherever it ran."""
    failed = {row.variant for row in proof.models if row_failures(row, proof.thresholds)}
    held = [row for row in proof.models if row.status == "ran" and row.bytes and row.variant not in failed]
    return min(held, key=lambda row: row.bytes, default=None)


def sheet(rows: Sequence[ModelResult], columns: Sequence[Column]) -> Sheet:
    """Leaves out the columns in which nothing was measured."""
    ran = [row for row in rows if row.status == "ran"]
    kept = [column for column in columns if any(column[2](row) not in ("-", "") for row in ran)]
    lines = ((row, tuple(text(row) for _, _, text in kept) if row.status == "ran" else None) for row in rows)
    return Sheet(tuple((label, kind) for label, kind, _ in kept), tuple(lines))


def _flipped(row: ModelResult) -> str:
    return (
        "-"
        if row.bits_flipped is None
        else f"{formatting.count(row.bits_flipped)} of {formatting.count(row.bits_compared)}"
    )


def _against_host(row: ModelResult) -> str:
    return (
        "-"
        if row.host_flips is None
        else f"{formatting.count(row.host_flips)} ({formatting.count(row.host_flips_beyond)})"
    )


def _logit(value: float) -> str:
    return f"{value:+.4g}"


def print_table(proof: EvaluationResults, console: Console | None = None) -> None:
    """Prints the verdict and a table a device; fits 80 columns and a pipe."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    word, style = ("PASSED", "bold green") if proof.gate.passed else ("FAILED", "bold red")
    console.print(Text(f"{word}  {formatting.plain(proof.name)}", style))
    for sentence in (*proof.gate.failures, *proof.gate.notes[:NOTES_SHOWN]):
        console.print(Text(f"  - {formatting.plain(sentence)}"))
    if (more := len(proof.gate.notes) - NOTES_SHOWN) > 0:
        console.print(Text(f"  - and {more} more notes, all of them in the report"))
    console.print(Text(formatting.plain(proof.query_set), "dim"))
    for place in places(proof):
        _print_place(place, proof, console)


def _print_place(place: DeviceSection, proof: EvaluationResults, console: Console) -> None:
    from rich.text import Text

    console.print(Text(f"\n{formatting.plain(place.name)}", "bold"))
    if place.reason:
        console.print(Text(f"  skipped: {formatting.plain(place.reason)}"))
        return
    shown = sheet(place.rows, TERMINAL)
    table = table_of("file", *(f">{label}" for label, _ in shown.heads), "verdict")
    for row, texts in shown.lines:
        style, word = mark(row, proof)
        add_row(table, row.variant, *(texts or ("-",) * len(shown.heads)), word, style="red" if style == "fail" else "")
    console.print(table)
    for sentence in place.says:
        console.print(Text(formatting.plain(sentence), "dim"))
