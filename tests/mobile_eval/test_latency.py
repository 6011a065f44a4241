from __future__ import annotations

from itertools import count

import numpy as np
import pytest

from mobile_eval import latency
from mobile_eval.latency import WARM_UPS, measure, timed

IMAGE = np.zeros((1, 4, 4, 3), np.uint8)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still but for what the fake model adds: no test depends on how busy the machine is."""
    now = [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: round(now[0] * 1e9))
    return now


def model(clock: list[float], milliseconds: list[float]) -> tuple[list[tuple[int, ...]], latency.Run]:
    """A model whose calls take these times, the last one for ever after."""
    seen: list[tuple[int, ...]] = []

    def run(pixels: object) -> None:
        clock[0] += milliseconds[min(len(seen), len(milliseconds) - 1)] / 1e3
        seen.append(np.shape(pixels))

    return seen, run


def test_first_call_and_warm_up_stay_out_of_the_percentiles(clock: list[float]) -> None:
    seen, run = model(clock, [500.0, *[50.0] * WARM_UPS, *(n / 100 for n in range(1, 201)), 9e9])
    taken = measure(run, IMAGE)
    assert (taken.first_ms, taken.samples) == (pytest.approx(500), 200)
    assert (taken.p50_ms, taken.p90_ms, taken.p99_ms) == pytest.approx((1.005, 1.801, 1.9801))
    assert seen == [(1, 4, 4, 3)] * (1 + WARM_UPS + 200)


def test_a_slow_model_is_bounded_in_time(clock: list[float]) -> None:
    seen, run = model(clock, [3000.0])
    taken = measure(run, IMAGE, samples=200, max_seconds=10)
    assert taken.samples == 4, "the call that crosses the bound is finished and counted"
    assert clock[0] == pytest.approx(3 + 2 * 12)
    assert len(seen) == 9


def test_one_call_at_least(clock: list[float]) -> None:
    assert measure(model(clock, [1.0])[1], IMAGE, max_seconds=0).samples == 1


def test_timed_gives_the_result_and_milliseconds(clock: list[float]) -> None:
    ticks = count(7)

    def call() -> int:
        clock[0] += 0.25
        return next(ticks)

    assert timed(call) == (7, 250.0)
