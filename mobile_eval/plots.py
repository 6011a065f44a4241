"""Curves as small SVG plots: positions are computed here, the template draws them.  Matrices as images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mobile_eval.results import MARGIN_STEP, Curve, FileRow

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


def of_curve(curve: Curve) -> list[Plot]:
    """The loss, and beside it accuracy and validation accuracy where there are any."""
    plots = [_plot("loss", {"loss": thin(curve.steps, curve.loss)})]
    accuracy = thin(curve.steps, curve.accuracy)
    quality = {"training accuracy": accuracy, "validation accuracy": [(float(x), y) for x, y in curve.validation]}
    if any(quality.values()):
        plots.append(_plot("quality", {name: points for name, points in quality.items() if points}))
    return plots


def of_margins(rows: Sequence[FileRow]) -> Plot | None:
    """Shares of the logits by their distance from zero, of the first float file and of the last 8-bit one."""
    ran = [row for row in rows if row.margins]
    pair = [row for row in ran if row.is_float][:1] + [row for row in ran if row.precision.startswith("int8")][-1:]
    if len(pair) < 2:
        return None
    series = {
        row.form: [((place + 0.5) * MARGIN_STEP, count / sum(row.margins)) for place, count in enumerate(row.margins)]
        for row in pair
    }
    return _plot("share of all logits", series, second=pair[1].form)


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
