"""Curves, bits and ranges: positions are computed here, the templates draw them.  Matrices as images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gallery.results import MARGIN_STEP, ModelResult, TrainingCurve

LEAST_DARKEST = 0.05  # of the pictures: one of 32 is no dark bit
MAX_TICKS = 10
MAX_POINTS = 240  # a curve; more cannot be seen at the width it is drawn
LIGHT, DARK = (244, 240, 228), (24, 54, 92)  # of heat maps, RGB
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 340, 180, 40, 24, 12, 8  # a plot, in SVG units


@dataclass(frozen=True)
class Line:
    """points: an SVG `points` attribute; dots: centres to be marked; kind: the style."""

    name: str
    kind: str
    points: str
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Plot:
    """One small plot: ticks are (position, words)."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class BitFlipStrip:
    """A file's bits.

    cells: (bit, pictures in which it differs, darkness 0..1) of those that ever differ; most: that of the darkest
    """

    row: ModelResult
    cells: tuple[tuple[int, int, float], ...]
    most: tuple[int, int, float] | None


@dataclass(frozen=True)
class Range:
    """From p50 to p99 with p90 between, as places 0..100 along an axis; what was not measured is where p50 is."""

    row: ModelResult
    p50: float
    p90: float
    p99: float


def of_curve(curve: TrainingCurve) -> list[Plot]:
    """The loss, and beside it accuracy and validation accuracy where there are any."""
    plots = [_plot("loss", {"loss": thin(curve.steps, curve.loss)})]
    accuracy = thin(curve.steps, curve.accuracy)
    quality = {"training accuracy": accuracy, "validation accuracy": [(float(x), y) for x, y in curve.validation]}
    if any(quality.values()):
        plots.append(_plot("quality", {name: points for name, points in quality.items() if points}))
    return plots


def of_margins(rows: Sequence[ModelResult]) -> Plot | None:
    """Shares of the logits by their distance from zero, of the first float file and of the last 8-bit one."""
    ran = [row for row in rows if sum(row.margins)]
    pair = [row for row in ran if row.is_float][:1] + [row for row in ran if row.precision.startswith("w8")][-1:]
    return _margins(*pair) if len(pair) == 2 else None


def each_margin(rows: Sequence[ModelResult]) -> list[Plot]:
    """The same of the first float file and of each other file, as the first device that ran it returned them."""
    files: dict[str, ModelResult] = {}
    for row in rows:
        if sum(row.margins):
            files.setdefault(row.variant, row)
    first = next((row for row in files.values() if row.is_float), None)
    return [] if first is None else [_margins(first, row) for row in files.values() if row is not first]


def bit_strips(rows: Sequence[ModelResult]) -> tuple[list[BitFlipStrip], float]:
    """A strip a row whose bits were counted, and the share of the pictures that is drawn darkest."""
    counted = [row for row in rows if row.bit_flips]
    darkest = max([LEAST_DARKEST, *(_share(row, max(row.bit_flips)) for row in counted)])
    return [_strip(row, darkest) for row in counted], darkest


def latency_ranges(rows: Sequence[ModelResult]) -> tuple[list[Range], list[tuple[float, str]]]:
    """A range a row that was timed, and the ticks (place, ms) of the logarithmic axis that they share."""
    percentiles = [(row, _percentiles(row)) for row in rows if _known(row.p50_ms)]
    if not percentiles:
        return [], []
    low, high = (math.log10(end(ms for _, three in percentiles for ms in three)) for end in (min, max))
    low, high = low - 0.05, high + 0.05  # air at both ends
    steps = [(n, n * 10.0**k) for k in range(math.floor(low), math.ceil(high) + 1) for n in (1, 2, 5)]
    ticks = [(n, ms) for n, ms in steps if low <= math.log10(ms) <= high]
    ticks = ticks if len(ticks) <= MAX_TICKS else [(n, ms) for n, ms in ticks if n == 1]

    def place(ms: float) -> float:
        return round(100 * (math.log10(ms) - low) / (high - low), 1)

    return [Range(row, *map(place, three)) for row, three in percentiles], [(place(ms), f"{ms:g}") for _, ms in ticks]


def heatmap(matrix: Sequence[Sequence[float]]) -> str:
    """A square matrix as a data: URI, one pixel an entry: light where it is least, dark where it is largest."""
    import base64
    import io

    from PIL import Image

    values = np.asarray(matrix, float)
    low, high = values.min(), values.max()
    share = (values - low) / (high - low if high > low else 1.0)
    light, dark = np.array(LIGHT), np.array(DARK)
    stream = io.BytesIO()
    Image.fromarray(np.uint8(light + share[..., None] * (dark - light))).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def thin(steps: Sequence[int], values: Sequence[float]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points: the means of equal stretches.  Values that are not numbers are left out."""
    points = np.array([(x, y) for x, y in zip(steps, values, strict=False) if math.isfinite(y)]).reshape(-1, 2)
    stretch = -(-len(points) // MAX_POINTS) or 1
    return [(float(x), float(y)) for x, y in (points[i : i + stretch].mean(0) for i in range(0, len(points), stretch))]


def _margins(first: ModelResult, second: ModelResult) -> Plot:
    series = {
        row.variant: [
            ((place + 0.5) * MARGIN_STEP, count / sum(row.margins)) for place, count in enumerate(row.margins)
        ]
        for row in (first, second)
    }
    return _plot("share of all logits", series, second=second.variant)


def _share(row: ModelResult, count: int) -> float:
    return count * len(row.bit_flips) / (row.bits_compared or math.inf)


def _strip(row: ModelResult, darkest: float) -> BitFlipStrip:
    cells = [(bit, count, round(_share(row, count) / darkest, 3)) for bit, count in enumerate(row.bit_flips)]
    cells = [cell for cell in cells if cell[1]]
    return BitFlipStrip(row, tuple(cells), max(cells, key=lambda cell: cell[1], default=None))


def _known(ms: float | None) -> bool:
    return ms is not None and 0 < ms < math.inf


def _percentiles(row: ModelResult) -> tuple[float, float, float]:
    p50 = row.p50_ms or 0.0
    p90, p99 = (ms if ms is not None and _known(ms) else p50 for ms in (row.p90_ms, row.p99_ms))
    return p50, p90, p99


def _plot(title: str, series: dict[str, list[tuple[float, float]]], second: str = "validation accuracy") -> Plot:
    points = [point for line in series.values() for point in line if math.isfinite(point[1])] or [(0.0, 0.0)]
    right, top = max(x for x, _ in points) or 1.0, max(y for _, y in points)
    low = min(0.0, min(y for _, y in points))
    high = 1.0 if title == "quality" else top if top > low else low + 1

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            round(LEFT + x / right * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - BOTTOM - TOP), 1),
        )

    placed = {name: [place(*point) for point in line if math.isfinite(point[1])] for name, line in series.items()}
    lines = tuple(_line(name, line, name == second) for name, line in placed.items())
    x_ticks = tuple((place(x, low)[0], f"{x:,.{0 if right >= 10 else 1}f}") for x in (0.0, right / 2, right))
    y_ticks = tuple((place(0, y)[1], f"{y:.{2 if abs(y) < 1 else 3}g}") for y in (low, (low + high) / 2, high))
    return Plot(title, lines, x_ticks, y_ticks)


def _line(name: str, placed: list[tuple[float, float]], second: bool) -> Line:
    return Line(
        name,
        "validation" if second else "training",
        " ".join(f"{x},{y}" for x, y in placed),
        tuple(placed) if second else (),
    )
