"""Positions in the plots, and numbers as texts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gallery.results import TrainingCurve
from mobile_eval import formatting, plots
from tests.mobile_eval.factories import not_run, ran


def test_formatting() -> None:
    assert [formatting.percent(v) for v in (None, 0.0, 0.00019, 0.0123, math.nan)] == [
        "-",
        "0%",
        "0.019%",
        "1.23%",
        "nan%",
    ]
    assert [formatting.size(v) for v in (0, 999, 8_512_345)] == ["-", "1.0 kB", "8.51 MB"]
    assert [formatting.duration(v) for v in (0.04, 9.94, 59.4, 59.6, 356.2)] == [
        "0.0 s",
        "9.9 s",
        "59 s",
        "1 min 0 s",
        "5 min 56 s",
    ]
    assert formatting.number(None, 4) == formatting.count(None) == "-"
    assert formatting.count(64000) == "64,000"


def test_a_long_curve_is_thinned_to_means_and_its_plot_stays_inside() -> None:
    steps = tuple(range(10_000))
    values = tuple(math.sin(s) + (math.nan if s == 17 else 0) for s in steps)
    thinned = plots.downsample(steps, values)
    assert len(thinned) <= plots.MAX_POINTS
    stretch = math.ceil(9999 / plots.MAX_POINTS)
    assert thinned[3][1] == pytest.approx(np.mean(values[3 * stretch + 1 : 4 * stretch + 1]))
    for plot in plots.plot_curve(
        TrainingCurve(
            stage="s",
            steps=steps,
            loss=values,
            accuracy=tuple(abs(math.cos(s)) for s in steps),
            validation=((10, 0.0), (9999, 1.0)),
        )
    ):
        for line in plot.lines:
            points = [tuple(map(float, pair.split(","))) for pair in line.points.split()]
            assert len(points) > 1
            assert all(plots.LEFT <= x <= plots.WIDTH - plots.RIGHT for x, _ in points)
            assert all(plots.TOP <= y <= plots.HEIGHT - plots.BOTTOM for _, y in points)


def test_ranges_lie_on_one_logarithmic_axis() -> None:
    rows = [ran(p50_ms=1.0, p90_ms=10.0, p99_ms=100.0), ran("a", p50_ms=5.0, p90_ms=None, p99_ms=None), not_run()]
    (first, second), ticks = plots.latency_ranges(rows)
    assert 0 < first.p50 < first.p90 < first.p99 < 100
    assert first.p90 - first.p50 == pytest.approx(first.p99 - first.p90, abs=0.2)
    assert second.p50 == second.p90 == second.p99
    assert [text for _, text in ticks] == ["1", "2", "5", "10", "20", "50", "100"]
    assert [place for place, text in ticks if text in ("1", "10", "100")] == [first.p50, first.p90, first.p99]
    _, ticks = plots.latency_ranges([ran(p50_ms=0.02, p90_ms=30.0, p99_ms=4000.0)])
    assert [text for _, text in ticks] == ["0.1", "1", "10", "100", "1000"]
    assert plots.latency_ranges([not_run()]) == ([], [])


def test_the_darkness_of_a_bit_is_its_share_of_the_images_on_that_device() -> None:
    few = ran(bits_compared=20 * 4, bit_flips=(0, 2, 0, 1))
    many = ran(bits_compared=1000 * 4, bit_flips=(50, 0, 0, 0))
    (first, second), darkest = plots.bit_flip_strips([few, not_run(), many])
    assert darkest == 0.1
    assert first.bits == ((1, 2, 1.0), (3, 1, 0.5))
    assert first.most == (1, 2, 1.0)
    assert second.bits == ((0, 50, 0.5),)
    (pale,), darkest = plots.bit_flip_strips([ran(bits_compared=4000, bit_flips=(1, 0, 0, 0))])
    assert (pale.bits, darkest) == (((0, 1, 0.02),), plots.MIN_DARKEST)


def test_margins_are_of_each_quantized_model_once_beside_the_first_float_one() -> None:
    rows = [ran("onnx-w8a8", margins=(1, 1)), ran(margins=(3, 1)), ran("litert-w8a8", margins=(1, 3)), not_run()]
    rows += [row.model_copy(update={"device": "android", "margins": (9, 0)}) for row in rows[:3]]
    rows.append(ran("litert-fp16"))
    found = plots.plot_margins(rows)
    assert [[(line.name, line.style) for line in plot.lines] for plot in found] == [
        [("onnx-fp32", "training"), ("onnx-w8a8", "validation")],
        [("onnx-fp32", "training"), ("litert-w8a8", "validation")],
    ]
    assert found[0].y_ticks[-1][1] == "0.75"
    assert plots.plot_margins(rows[:1]) == plots.plot_margins(()) == []
