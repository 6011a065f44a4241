"""Geometry of the report's plots, whose SVG its template writes; heat maps as PNG."""

import base64
import io
import math
from collections.abc import Sequence
from itertools import compress
from typing import NamedTuple

import numpy as np
from PIL import Image

from gallery.results import MARGIN_STEP, ModelResult
from gallery.training_results import TrainingCurve

MIN_DARKEST = 0.05  # share of the images that the darkest mark stands for at least: 1 of 32 is no dark bit
MAX_TICKS = 10
MAX_POINTS = 240  # of a curve; more cannot be seen at its width
LIGHT, DARK = (244, 240, 228), (24, 54, 92)  # of heat maps, RGB
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 340, 180, 40, 24, 12, 8  # of a plot, in SVG units


class Line(NamedTuple):
    """A polyline: its SVG `points`, the centers of its markers, and the CSS class of its style."""

    name: str
    style: str
    points: str
    markers: list[tuple[float, float]]


class Plot(NamedTuple):
    """A small plot; ticks are (position, text)."""

    title: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


class BitFlipStrip(NamedTuple):
    """The bits of a model that ever flip, as (bit, number of images, darkness 0..1); most: the one that flips most."""

    row: ModelResult
    bits: tuple[tuple[int, int, float], ...]
    most: tuple[int, int, float] | None


class LatencyRange(NamedTuple):
    """p50, p90 and p99 as positions 0..100 on the axis; a missing percentile is at p50."""

    row: ModelResult
    p50: float
    p90: float
    p99: float


def plot_curve(curve: TrainingCurve) -> list[Plot]:
    """The loss, and the training and validation accuracy where there are any."""
    accuracies = {
        "training accuracy": downsample(curve.steps, curve.accuracy),
        "validation accuracy": [(float(x), y) for x, y in curve.validation],
    }
    quality = {name: points for name, points in accuracies.items() if points}
    loss = _plot("loss", {"loss": downsample(curve.steps, curve.loss)})
    return [loss, _plot("quality", quality)] if quality else [loss]


def plot_margins(rows: Sequence[ModelResult]) -> list[Plot]:
    """Histograms of |logit| of each quantized model beside the first float one, on the first device that ran it."""
    models: dict[str, ModelResult] = {}
    for row in rows:
        if sum(row.margins):
            models.setdefault(row.variant, row)
    first = next((row for row in models.values() if row.is_float), None)
    pairs = [(first, row) for row in models.values() if first and not row.is_float]
    return [_plot("share of all logits", dict(map(_histogram, pair)), second=pair[1].variant) for pair in pairs]


def bit_flip_strips(rows: Sequence[ModelResult]) -> tuple[list[BitFlipStrip], float]:
    """A strip per row with bit flips by position, and the share of the images that the darkest mark stands for."""
    rows = [row for row in rows if row.bit_flips]
    shares = [[flips * len(row.bit_flips) / (row.bits_compared or math.inf) for flips in row.bit_flips] for row in rows]
    darkest, strips = max([MIN_DARKEST, *map(max, shares)]), []
    for row, share in zip(rows, shares, strict=True):
        bits = tuple((bit, flips, round(share[bit] / darkest, 3)) for bit, flips in enumerate(row.bit_flips) if flips)
        strips.append(BitFlipStrip(row, bits, max(bits, key=lambda bit: bit[1], default=None)))
    return strips, darkest


def latency_ranges(rows: Sequence[ModelResult]) -> tuple[list[LatencyRange], list[tuple[float, str]]]:
    """A range per timed row, and the ticks (position, ms) of the logarithmic axis that they share."""
    taken = np.array([(row.p50_ms, row.p90_ms, row.p99_ms) for row in rows], float).reshape(-1, 3)  # None is nan
    taken = np.where((taken > 0) & (taken < math.inf), taken, np.nan)
    timed = np.isfinite(taken[:, 0])
    if not timed.any():
        return [], []
    times = np.where(np.isnan(taken), taken[:, :1], taken)[timed]
    low, high = math.log10(times.min()) - 0.05, math.log10(times.max()) + 0.05  # air at both ends
    steps = [(n, n * 10.0**k) for k in range(math.floor(low), math.ceil(high) + 1) for n in (1, 2, 5)]
    ticks = [(n, ms) for n, ms in steps if low <= math.log10(ms) <= high]
    ticks = ticks if len(ticks) <= MAX_TICKS else [(n, ms) for n, ms in ticks if n == 1]

    def position(ms: float) -> float:
        return round(100 * (math.log10(ms) - low) / (high - low), 1)

    ranges = [LatencyRange(row, *map(position, own)) for row, own in zip(compress(rows, timed), times, strict=True)]
    return ranges, [(position(ms), f"{ms:g}") for _, ms in ticks]


def heatmap(matrix: Sequence[Sequence[float]]) -> str:
    """A matrix as a PNG data: URI, one pixel per entry, light for the smallest and dark for the largest."""
    values = np.asarray(matrix, float)
    low, high = values.min(), values.max()
    share = (values - low) / (high - low if high > low else 1.0)
    light, dark = np.array(LIGHT), np.array(DARK)
    stream = io.BytesIO()
    Image.fromarray(np.uint8(light + share[..., None] * (dark - light))).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def downsample(steps: Sequence[int], values: Sequence[float]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points, the means of equal stretches; values that are not finite are left out."""
    points = np.array([(x, y) for x, y in zip(steps, values, strict=False) if math.isfinite(y)]).reshape(-1, 2)
    stretch = -(-len(points) // MAX_POINTS) or 1
    return [(float(x), float(y)) for x, y in (points[i : i + stretch].mean(0) for i in range(0, len(points), stretch))]


def _histogram(row: ModelResult) -> tuple[str, list[tuple[float, float]]]:
    """The name of a model, and its share of logits by |logit|."""
    total = sum(row.margins)
    return row.variant, [((place + 0.5) * MARGIN_STEP, count / total) for place, count in enumerate(row.margins)]


def _plot(title: str, series: dict[str, list[tuple[float, float]]], second: str = "validation accuracy") -> Plot:
    finite = {name: [point for point in line if math.isfinite(point[1])] for name, line in series.items()}
    points = [point for line in finite.values() for point in line] or [(0.0, 0.0)]
    right, top = max(x for x, _ in points) or 1.0, max(y for _, y in points)
    low = min(0.0, min(y for _, y in points))
    high = 1.0 if title == "quality" else top if top > low else low + 1

    def position(x: float, y: float) -> tuple[float, float]:
        height = (y - low) / (high - low) * (HEIGHT - BOTTOM - TOP)
        return round(LEFT + x / right * (WIDTH - LEFT - RIGHT), 1), round(HEIGHT - BOTTOM - height, 1)

    lines = []
    for name, line in finite.items():
        positions = [position(*point) for point in line]
        style, markers = ("validation", positions) if name == second else ("training", [])
        lines.append(Line(name, style, " ".join(f"{x},{y}" for x, y in positions), markers))
    x_ticks = [(position(x, low)[0], f"{x:,.{0 if right >= 10 else 1}f}") for x in (0.0, right / 2, right)]
    y_ticks = [(position(0, y)[1], f"{y:.{2 if abs(y) < 1 else 3}g}") for y in (low, (low + high) / 2, high)]
    return Plot(title, lines, x_ticks, y_ticks)
