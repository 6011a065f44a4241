"""The report: `Results` as tables on a terminal, and as one HTML page that needs neither network nor script."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gallery.files import write_whole
from gallery.results import STUDENT_GALLERY, STUDENT_STUDENT, TEACHER_TEACHER, ModelResult, RunResults
from mobile_eval import formatting, plots
from mobile_eval.gate import row_failures

if TYPE_CHECKING:
    from jinja2 import Template
    from rich.console import Console
    from rich.table import Table

TEMPLATE = "report.html.j2"
MEANING = {
    TEACHER_TEACHER: "The large teacher on both sides.",
    STUDENT_GALLERY: "The product: the phone's student asks, the teacher's gallery answers.",
    STUDENT_STUDENT: "The student on both sides: what hashing the whole gallery again with it would give.",
}
SKIPPED_LINES = 10  # on the terminal; the page lists them all


def write_html(results: RunResults, path: Path) -> Path:
    """Writes the self-contained page, whole or not at all.  Every text in it is escaped: names are not trusted."""
    failures = {row.variant: row_failures(row, results.thresholds) for row in results.models}
    return write_whole(
        path,
        page(TEMPLATE).render(
            r=results,
            curves=[(curve.stage, plots.of_curve(curve)) for curve in results.curves],
            failures=failures,
            margins=plots.of_margins(results.models),
            meaning=MEANING,
            product=STUDENT_GALLERY,
            box=plots,
            smallest=smallest(results),
        ),
    )


def page(template: str) -> Template:
    """A page of this folder, with the filters that both reports write numbers by."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        name: getattr(formatting, name) for name in ("number", "percent", "size", "count", "duration")
    }
    environment.filters |= {
        "heatmap": plots.heatmap,
        "off_diagonal": lambda rows: [x for i, row in enumerate(rows) for j, x in enumerate(row) if i != j],
    }
    return environment.get_template(template)


def smallest(results: RunResults) -> ModelResult | None:
    """The smallest file that ran and held its thresholds."""
    held = [row for row in results.models if row.status == "ran" and not row_failures(row, results.thresholds)]
    return min(held, key=lambda row: row.bytes, default=None)


def print_tables(results: RunResults, console: Console | None = None) -> None:
    """Prints the warnings, the verdict, the protocol and the tables; fits 80 columns and a pipe."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    for alarm in results.alarms:
        console.print(Text(f"WARNING: {formatting.plain(alarm)}", style="bold yellow"))
    word, style = ("PASSED", "bold green") if results.gate.passed else ("FAILED", "bold red")
    console.print(Text(f"{word}  {formatting.plain(results.name)}", style))
    for sentence in (*results.gate.failures, *results.gate.notes):
        console.print(Text(f"  - {formatting.plain(sentence)}"))
    console.print(Text(formatting.plain(results.query_set), "dim"))
    tables = [_cells_table(results), _files_table(results)] + ([_skipped_table(results)] if results.skipped else [])
    for table in tables:
        console.print(table)


def _cells_table(results: RunResults) -> Table:
    table = table_of("queries->gallery", ">mAP", ">retrieved", "what it is")
    for cell in results.pairs:
        meaning = MEANING.get(cell.name, "")
        figures = formatting.number(cell.map, 4), formatting.number(cell.map_retrieved, 4)
        add_row(table, cell.name, *figures, meaning, style="bold" if cell.name == STUDENT_GALLERY else "")
    return table


def _files_table(results: RunResults) -> Table:
    table = table_of("file", ">size", ">flips", ">mAP", ">drop", ">p50 ms", ">p90", "verdict")
    for row in results.models:
        figures = (
            formatting.size(row.bytes),
            formatting.percent(row.bit_flip_rate),
            formatting.number(row.map, 4),
            formatting.number(row.map_drop, 4),
            formatting.number(row.p50_ms, 2),
            formatting.number(row.p90_ms, 2),
        )
        failed = bool(row_failures(row, results.thresholds))
        verdict = "skipped" if row.status == "skipped" else "FAIL" if failed else "pass"
        add_row(table, row.variant, *figures, verdict, style="red" if failed else "")
    return table


def _skipped_table(results: RunResults) -> Table:
    table = table_of(f"skipped: {len(results.skipped)}", "why")
    for skipped in results.skipped[:SKIPPED_LINES]:
        add_row(table, skipped.path, skipped.reason)
    if len(results.skipped) > SKIPPED_LINES:
        add_row(table, "...", f"and {len(results.skipped) - SKIPPED_LINES} more, all of them in the report")
    return table


def table_of(*columns: str) -> Table:
    """Columns that begin with ">" hold numbers: to the right, and never broken."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        figures = column.startswith(">")
        table.add_column(column.lstrip(">"), justify="right" if figures else "left", no_wrap=figures, overflow="fold")
    return table


def add_row(table: Table, *texts: str, style: str = "") -> None:
    from rich.text import Text

    table.add_row(*(Text(formatting.plain(text)) for text in texts), style=style)
